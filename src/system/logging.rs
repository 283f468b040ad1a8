//! The log: to standard error, at the level of `RUST_LOG`. Shared by all threads, none of which blocks on it:
//! lines go through a `Printer`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};
use std::{env, mem, panic, thread};

use env_logger::{Target, WriteStyle};
use log::LevelFilter;
use parking_lot::Mutex;

use super::Printer;

/// The shortest time between two lines about the same fault.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Starts the log. Called once, by `main`, which drops the printer last. Fails if the system has no thread
/// for it.
pub fn start() -> io::Result<Printer> {
    let printer = Printer::start("log", io::stderr())?;
    let level = env::var("RUST_LOG").unwrap_or_default();
    let mut builder = env_logger::Builder::new();
    // The default level; a directive that is missing or invalid does not change it.
    builder.filter_level(LevelFilter::Info).parse_filters(&level);
    // It logs every refused certificate; the poller logs the first one of an outage.
    builder.filter_module("rustls_platform_verifier", LevelFilter::Off);
    builder.target(Target::Pipe(Box::new(printer.writer())));
    if io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none() {
        // env_logger sees only the pipe.
        builder.write_style(WriteStyle::Always);
    }
    builder.init();
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        log::error!("thread {name} {panic}");
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            log::error!("{trace}");
        }
    }));
    Ok(printer)
}

/// Limits the log of a frequent fault to one line in ten seconds.
#[derive(Default)]
pub struct LogLimit {
    /// When the last line was allowed. Held to compare and to set it.
    last: Mutex<Option<Instant>>,
}

impl LogLimit {
    /// Returns whether a line may be logged now: none was within ten seconds.
    pub fn allows(&self) -> bool {
        let mut last = self.last.lock();
        if last.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            return false;
        }
        *last = Some(Instant::now());
        true
    }
}

/// Limits the log of a fault that comes and goes: at most one episode in ten seconds is logged, by a line for its
/// beginning and one for its end.
#[derive(Default)]
pub struct EpisodeLog {
    limit: LogLimit,
    is_logged: bool,
}

impl EpisodeLog {
    /// Returns whether to log the beginning now. Called repeatedly during an episode; returns true at most once.
    pub fn begin(&mut self) -> bool {
        if self.is_logged {
            return false;
        }
        self.is_logged = self.limit.allows();
        self.is_logged
    }

    /// Returns whether to log the end: whether the beginning was logged.
    pub fn end(&mut self) -> bool {
        mem::take(&mut self.is_logged)
    }
}
