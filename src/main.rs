//! btc-ticker from start to end: read what is wanted, start the threads, wait for the signal, and
//! see everybody out.

#![cfg_attr(all(target_os = "linux", target_env = "gnu"), no_main)]

use std::error::Error;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use btc_ticker::config::Config;
use btc_ticker::feed::{Feed, History, Journal, Publisher, heartbeat, janitor};
use btc_ticker::http::{Routes, Server, listen};
use btc_ticker::source::follow::Follower;
use btc_ticker::source::poller::Poller;
use btc_ticker::source::{STALE_AFTER, demo};
use btc_ticker::system::{Limits, METRICS, Threads, unix_millis};
use btc_ticker::system::{health, kernel, logging};
use crossbeam_channel::RecvTimeoutError;

/// Updates that are kept at most, whatever interval and retention say: some 30 MB.
const MOST_UPDATES: usize = 100_000;
/// How long threads may take to end. The process does not wait longer for one that is still waiting for
/// the disk, or for the address of the source.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1500);

/// std's own `main` would give every thread a signal stack, only to name a thread that overflows its
/// stack. That is two more memory mappings each: the usual `vm.max_map_count` of 65,530 would be enough
/// for 15,800 clients instead of 31,700. And where std finds no mapping for a signal stack it aborts the
/// process; where there is none for the stack itself, starting the thread is an error, which we survive.
/// So the C library calls us. Elsewhere (musl) std needs its own start, or it would not know the
/// arguments.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    start()
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn main() {
    std::process::exit(start());
}

/// Returns the exit code.
fn start() -> i32 {
    kernel::open_standard_streams();
    kernel::survive_broken_pipes();
    kernel::wake_in_batches();
    let config = Config::read();
    logging::start();
    let result = if config.check_health { health::check(config.listen) } else { run(&config) };
    match result {
        Ok(()) => 0,
        Err(error) => {
            // Where nobody reads it, it is no reason for a panic.
            let _ = writeln!(io::stderr(), "btc-ticker: {error}");
            1
        }
    }
}

fn run(config: &Config) -> Result<(), Box<dyn Error>> {
    let mut threads = Threads::new()?;
    let listener = listen(config.listen).map_err(|error| {
        let address = config.listen;
        format!("cannot listen on {address}: {error}; free it, or choose another with --listen")
    })?;
    let address = listener.local_addr()?;
    kernel::widen_futex_table();
    let limits = Limits::claim(config.max_clients);

    // Where prices come from.
    let mut source = config.source();
    if source.made_up {
        source.url = demo::start(&mut threads)?;
    }
    let (interval, retention) = (config.interval, config.retention);
    log::info!("btc-ticker {} on http://{address}", env!("CARGO_PKG_VERSION"));
    log::info!("{} ({}) every {interval:?}, kept for {retention:?}", source.name, source.host());

    // What was before. A poller knows everything from now on; a replica from its first update on,
    // whenever that was.
    let complete_since = if source.is_followed { None } else { Some(unix_millis()) };
    let mut history = History::new(complete_since, retention, MOST_UPDATES);
    let journal = match &config.journal {
        Some(path) => Some(Journal::open(path, source.made_up, &mut history)?),
        None => None,
    };

    // Who shares it, and who fills it.
    let feed = Feed::new(history, source.made_up, interval * STALE_AFTER);
    let publisher = Publisher::new(feed.clone(), journal);
    let routes = Routes::new(feed.clone(), &source, interval, limits);
    if source.is_followed {
        let follower = Follower::new(&source, interval, config.heartbeat, publisher);
        let agent = follower.agent();
        threads.spawn("follower", move |shutdown| follower.run(shutdown))?;
        threads.on_shutdown(move || agent.shutdown());
    } else {
        let poller = Poller::new(source, interval, publisher);
        let agent = poller.agent();
        threads.spawn("poller", move |shutdown| poller.run(shutdown))?;
        threads.on_shutdown(move || agent.shutdown());
    }
    let janitor_feed = feed.clone();
    threads.spawn("janitor", move |shutdown| janitor::run(&janitor_feed, shutdown))?;
    let (heartbeat_feed, quiet) = (feed.clone(), config.heartbeat);
    threads.spawn("heartbeat", move |shutdown| heartbeat::run(&heartbeat_feed, quiet, shutdown))?;

    // Clients.
    let server = Server::new(listener, routes);
    let accepting = server.clone();
    threads.spawn("accept", move |shutdown| accepting.accept(shutdown))?;
    threads.on_shutdown(move || server.stop());
    // Where nobody reads it, the service runs all the same.
    let _ = writeln!(io::stdout(), "listening on http://{address}");

    // The end.
    let end = threads.wait();
    match end {
        Ok(()) => log::info!("stopping: asked by a signal"),
        Err(name) => log::info!("stopping: the thread {name} has ended by itself"),
    }
    threads.shut_down();
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    // The channel closes when the last stream has ended.
    let all_left = feed.close().recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected);
    let all_joined = threads.join(deadline);
    if !all_left || !all_joined {
        log::info!("not waiting for threads that wait for others");
    }
    log::info!("served {} streams", METRICS.clients_accepted.get());
    end.map_err(|name| format!("the thread {name} has ended by itself").into())
}
