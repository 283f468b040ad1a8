//! btc-ticker from start to end: read what is wanted, start the threads, wait for the signal, and
//! see everybody out.

#![no_main]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use btc_ticker::config::Config;
use btc_ticker::feed::{Feed, History, Journal, heartbeat, janitor};
use btc_ticker::http::{Routes, Server, listen};
use btc_ticker::source::demo::Demo;
use btc_ticker::source::poller::{Poller, pace};
use btc_ticker::system::{Failure, Limits, METRICS, Shutdown, Threads, unix_millis};
use btc_ticker::system::{health, kernel, logging};
use crossbeam_channel::{RecvTimeoutError, bounded};

/// Updates that are kept at most, whatever interval and retention say: some 30 MB.
const MOST_UPDATES: usize = 100_000;
/// How long threads may take to end. The process does not wait longer for one that is still waiting
/// for the source.
const FAREWELL: Duration = Duration::from_millis(1500);

/// Called by the system itself rather than by std, which would give every thread a signal stack,
/// if only to name the thread that overflows its stack: two memory mappings more, so that the usual
/// `vm.max_map_count` of 65,530 would be enough for 15,800 clients instead of 31,700. And where
/// there are no more mappings, the process would abort rather than be told that there is no thread.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    kernel::open_standard_streams();
    kernel::survive_broken_pipes();
    kernel::wake_in_batches();
    let config = Config::read();
    logging::start();
    let result = if config.check_health { health::check(config.listen) } else { run(&config) };
    if let Err(error) = &result {
        eprintln!("btc-ticker: {error}");
    }
    result.is_err().into()
}

fn run(config: &Config) -> Result<(), Failure> {
    let threads = Threads::new(Shutdown::on_signal()?);
    let listener = listen(config.listen).map_err(|error| {
        let address = config.listen;
        format!("cannot listen on {address}: {error}; free it, or choose another with --listen")
    })?;
    let address = listener.local_addr()?;
    kernel::widen_futex_table();
    let limits = Limits::claim(config.max_clients);
    let demo = if config.is_demo() { Some(Demo::start(&threads)?) } else { None };
    let source = config.source(demo.as_ref().map(|demo| demo.url.as_str()));
    let (interval, retention, quiet) = (config.interval, config.retention, config.heartbeat);
    log::info!("btc-ticker {} on http://{address}", env!("CARGO_PKG_VERSION"));
    log::info!("{} ({}) every {interval:?}, kept for {retention:?}", source.name, source.host());

    let mut history = History::new(source.dating(), unix_millis(), retention, MOST_UPDATES);
    let open = |path| Journal::open(path, source.made_up, &mut history);
    let journal = config.journal.as_deref().map(open).transpose()?;
    let feed = Feed::new(history);
    let (tell_full, full) = bounded(1);
    let pace = pace(source.dating(), interval);
    let routes = Routes::new(feed.clone(), &source, pace, limits, tell_full);
    let server = Server::new(listener, routes, limits.connections);

    journal.map(|journal| journal.start(&threads, &feed)).transpose()?;
    let poller = Poller::new(source, interval, feed.clone());
    threads.spawn("poller", move |shutdown| poller.run(shutdown))?;
    let kept = feed.clone();
    threads.spawn("janitor", move |shutdown| janitor::run(&kept, shutdown))?;
    let alive = feed.clone();
    threads.spawn("heartbeat", move |end| heartbeat::run(&alive, quiet, &full, end))?;
    let accepting = server.clone();
    threads.spawn("accept", move |shutdown| accepting.accept(shutdown))?;
    writeln!(io::stdout(), "listening on http://{address}")?;

    let end = threads.wait().map_err(|name| format!("the thread {name} has ended by itself"));
    log::info!("stopping: {}", end.as_ref().err().map_or("asked by a signal", |why| why));
    let deadline = Instant::now() + FAREWELL;
    server.stop();
    demo.iter().for_each(|demo| demo.server.unblock());
    // Nothing is ever sent on it: it closes when the last stream has ended.
    let streams = feed.close().recv_deadline(deadline);
    if !threads.join(deadline) || streams != Err(RecvTimeoutError::Disconnected) {
        log::info!("not waiting for threads that wait for others");
    }
    log::info!("served {} streams", METRICS.clients_accepted.get());
    Ok(end?)
}
