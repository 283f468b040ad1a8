//! Start-up and shutdown: reads the configuration, starts the threads, waits for a signal, and stops
//! everything in order.

use std::error::Error;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use btc_ticker::config::Config;
use btc_ticker::feed::freshness::Freshness;
use btc_ticker::feed::{self, History, heartbeat, janitor};
use btc_ticker::http::{Routes, Scope, Server, listen};
use btc_ticker::source::poller::Poller;
use btc_ticker::source::reader::Reader;
use btc_ticker::source::turns::Turns;
use btc_ticker::source::{Standing, demo};
use btc_ticker::system::{
    Limits, METRICS, Printer, Semaphore, Threads, format_duration, unix_millis,
};
use btc_ticker::system::{health, kernel, logging};
use crossbeam_channel::{RecvTimeoutError, bounded};

/// The maximum number of retained updates, regardless of interval and retention; about 30 MB.
const MAX_UPDATES: usize = 100_000;
/// The capacity of the report channel. The heartbeat drains it at once, so senders rarely block.
const REPORT_CAPACITY: usize = 16;
/// The connection limit of the management address, drawn from the descriptors that `Limits` reserves.
const ADMIN_CONNECTIONS: u64 = 4;
/// The shutdown timeout. Threads that are still blocked then (a name look-up, a hung store) are abandoned.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    // Before the first thread: threads inherit both settings.
    kernel::leave_signals_ignored();
    kernel::wake_in_batches();
    let config = Config::read();
    let log = match logging::start() {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(io::stderr(), "btc-ticker: cannot start a thread: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = if config.check_health {
        health::check(config.admin.unwrap_or(config.listen))
    } else {
        run(&config)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.print(format_args!("btc-ticker: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<(), Box<dyn Error>> {
    let mut threads = Threads::new()?;
    let listener = bind(config.listen, "--listen")?;
    let address = listener.local_addr()?;
    let admin = match config.admin {
        Some(address) => Some(bind(address, "--admin")?),
        None => None,
    };
    kernel::widen_futex_table();
    let limits = Limits::claim(config.max_clients);

    // The source of prices.
    let source = config.source();
    let (interval, retention) = (config.interval, config.retention);
    let endpoint =
        if source.is_simulated() { demo::start(&mut threads)? } else { config.endpoint(&source) };
    log::info!("btc-ticker {} on http://{address}", env!("CARGO_PKG_VERSION"));
    let (name, host) = (source.name(), endpoint.host());
    // The effective retention: the number of updates is limited, too.
    let kept = retention.min(interval.saturating_mul(MAX_UPDATES as u32));
    let (every, kept) = (format_duration(interval), format_duration(kept));
    log::info!("{name} ({host}) every {every}, kept for {kept}");
    let store = config.store()?;
    if let Some(store) = &store {
        store.check()?;
    }

    // The feed, its janitor and its heartbeat.
    let complete_since = if store.is_some() { None } else { Some(unix_millis()) };
    let history = History::new(complete_since, retention, MAX_UPDATES);
    let (publisher, feed) = feed::new(history, source.is_simulated());
    let standing = Arc::new(Standing::new(store.is_some()));
    let (reports, reported) = bounded(REPORT_CAPACITY);
    let janitor_feed = feed.clone();
    threads.spawn("janitor", move |shutdown| janitor::run(&janitor_feed, shutdown))?;
    let (heartbeat_feed, idle) = (feed.clone(), config.heartbeat);
    let freshness = Freshness::new(interval, Instant::now());
    threads.spawn("heartbeat", move |shutdown| {
        heartbeat::run(&heartbeat_feed, freshness, &reported, idle, shutdown);
    })?;

    // The thread that publishes: the poller or, with a store, the reader.
    let poller = Poller::new(source.clone(), endpoint, interval, reports.clone());
    let (agent, polled_feed) = (poller.agent(), feed.clone());
    if let Some(store) = store {
        let (news, heard) = bounded(1);
        let (starting, started) = bounded(0);
        let reader = Reader::new(
            store.clone(),
            publisher,
            retention,
            standing.clone(),
            reports,
            news,
            starting,
        );
        threads.spawn("reader", move |shutdown| reader.run(shutdown))?;
        // The past first: a client that is accepted earlier would receive it as live updates.
        threads.wait_for(&started);
        let turns = Turns::new(poller, store, polled_feed, standing.clone(), heard);
        threads.spawn("poller", move |shutdown| turns.run(shutdown))?;
    } else {
        threads.spawn("poller", move |shutdown| poller.run(publisher, &polled_feed, shutdown))?;
    }
    threads.on_shutdown(move || agent.shutdown());

    // Clients.
    let connections = Semaphore::new(limits.connections);
    let streams = Semaphore::new(limits.streams);
    let mut routes = Routes::new(
        feed.clone(),
        &source,
        interval,
        standing,
        connections.clone(),
        streams.clone(),
    );
    if let Some(listener) = admin {
        log::info!("health and metrics on http://{}", listener.local_addr()?);
        // Permits of its own, so that clients cannot exhaust them.
        let permits = Semaphore::new(ADMIN_CONNECTIONS);
        let server = Server::new(listener, permits, routes.with_scope(Scope::Admin));
        serve(&mut threads, "accept-admin", server)?;
        routes = routes.with_scope(Scope::Public);
    }
    serve(&mut threads, "accept", Server::new(listener, connections, routes))?;
    Printer::start("stdout", io::stdout())?.print(format_args!("listening on http://{address}"));

    // Shutdown: first the threads, then the streams; then wait for both.
    let end = threads.wait();
    match end {
        Ok(()) => log::info!("stopping: received a signal"),
        Err(name) => log::error!("stopping: the thread {name} has ended unexpectedly"),
    }
    threads.shut_down();
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    let streams_ended = streams.close();
    feed.close();
    let streams_ended = streams_ended.recv_deadline(deadline);
    let all_joined = threads.join(deadline);
    if streams_ended != Err(RecvTimeoutError::Disconnected) || !all_joined {
        log::info!("exiting before all threads have ended");
    }
    log::info!("served {} streams", METRICS.clients_accepted.get());
    end.map_err(|name| format!("the thread {name} has ended unexpectedly").into())
}

fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, String> {
    listen(address).map_err(|error| {
        format!("cannot listen on {address}: {error}; free it, or choose another with {option}")
    })
}

fn serve(threads: &mut Threads, name: &'static str, server: Arc<Server>) -> io::Result<()> {
    let accepting = server.clone();
    threads.spawn(name, move |shutdown| accepting.accept(shutdown))?;
    threads.on_shutdown(move || server.stop());
    Ok(())
}
