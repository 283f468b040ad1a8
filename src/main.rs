//! btc-ticker from start to end: read what is wanted, start the threads, wait for the signal, and
//! see everybody out.

#![no_main]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use btc_ticker::config::Config;
use btc_ticker::conversation::Conversations;
use btc_ticker::crew::{Crew, Failure, Shutdown};
use btc_ticker::feed::Feed;
use btc_ticker::history::History;
use btc_ticker::limits::Limits;
use btc_ticker::listener::listen;
use btc_ticker::metrics::METRICS;
use btc_ticker::poller::{Poller, unix_millis};
use btc_ticker::routes::Service;
use btc_ticker::server::Warden;
use btc_ticker::{demo, health, heart, janitor, limits};

/// Updates that are kept at most, whatever interval and retention say: some 30 MB.
const MOST_UPDATES: usize = 100_000;
/// How long threads may take to end. The process does not wait longer for one that is still waiting
/// for the source.
const FAREWELL: Duration = Duration::from_millis(1500);

/// Called by the system itself rather than by std, which would give every thread a signal stack,
/// if only to name the thread that overflows its stack: two memory mappings more, and without them
/// the process aborts where it should be told that there is no thread to be had.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    limits::survive_broken_pipes();
    limits::wake_in_batches();
    let config = Config::read();
    start_log();
    let result = if config.check_health { health::check(config.listen) } else { run(&config) };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("btc-ticker: {error}");
            1
        }
    }
}

fn run(config: &Config) -> Result<(), Failure> {
    let started = Instant::now();
    let (crew, muster) = Crew::new(Shutdown::on_signal()?);
    let listener = listen(config.listen).map_err(|error| {
        format!(
            "cannot listen on {}: {error}; free it, or choose another with --listen",
            config.listen
        )
    })?;
    let address = listener.local_addr()?;
    limits::widen_futex_table();
    let limits = Limits::claim(config.max_clients);
    let demo_url = if config.is_demo() { Some(demo::start(&crew, limits)?) } else { None };
    let source = config.source(demo_url);
    log::info!(
        "btc-ticker {}: {source} every {:?}, kept for {:?}, on http://{address}",
        env!("CARGO_PKG_VERSION"),
        config.interval,
        config.retention
    );

    let history = History::new(unix_millis(), config.retention, MOST_UPDATES);
    let feed = Feed::new(history.dated(source.timestamp_at.is_some()));
    let service = Service::new(config, &source, feed.clone(), limits);
    let poller = Poller::new(source, config, feed.clone(), crew.shutdown.clone());
    let conversations =
        Conversations::new(crew.clone(), move |request, further| service.answer(request, further));
    let warden = Warden::new(listener, conversations, limits, crew.clone());
    let (kept, end) = (feed.clone(), crew.shutdown.clone());
    let (alive, stop, heartbeat) = (feed.clone(), crew.shutdown.clone(), config.heartbeat);
    crew.spawn_vital("poller", move || poller.run())?;
    crew.spawn_vital("janitor", move || janitor::run(&kept, &end))?;
    crew.spawn_vital("heart", move || heart::run(&alive, heartbeat, &stop))?;
    crew.spawn_vital("warden", move || warden.run())?;
    drop(crew);
    writeln!(io::stdout(), "listening on http://{address}")?;

    let end = muster.wait();
    log::info!(
        "stopping: {}",
        end.map_or_else(
            |name| format!("the thread {name} has ended"),
            |()| "asked by a signal".into()
        )
    );
    feed.close();
    if !muster.all_gone_within(FAREWELL) {
        log::info!("not waiting for threads that wait for others");
    }
    log::info!(
        "served {} streams in {:.0?}: {} updates, of {} published",
        METRICS.clients_accepted.get(),
        started.elapsed(),
        METRICS.updates_delivered.get() + METRICS.updates_replayed.get(),
        METRICS.updates_published.get()
    );
    end.map_err(|name| format!("the thread {name} has ended, which it must not").into())
}

/// Logs go to standard error, at the level of `RUST_LOG`. A panic is a line there like any other.
/// What the HTTP library dies of is no news: its thread has no name, and the warden tells of it.
fn start_log() {
    let environment = env_logger::Env::default().default_filter_or("info,tiny_http=off");
    env_logger::Builder::from_env(environment).init();
    std::panic::set_hook(Box::new(|panic| match std::thread::current().name() {
        Some(name) => log::error!("thread {name} panicked: {panic}"),
        None => log::debug!("a thread of the HTTP library panicked: {panic}"),
    }));
}
