//! The log: to standard error, at the level of `RUST_LOG`. No thread blocks on it, for it goes through a
//! `Printer`. Shared by all threads.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant};
use std::{env, panic, process, thread};

use anstream::AutoStream;
use env_logger::Target;
use parking_lot::Mutex;

use super::Printer;

/// A fault that repeats is logged at most once in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Starts the log, at the level of `RUST_LOG`. Called once, by `main`, which drops the printer last.
/// Exits with 1 if the system has no thread for it.
pub fn start() -> Printer {
    let printer = Printer::start("log", io::stderr()).unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "btc-ticker: cannot start the thread of the log: {error}");
        process::exit(1)
    });
    let level = env::var("RUST_LOG").unwrap_or_default();
    // Checked first, because env_logger prints such an error by itself.
    let wrong = env_filter::Builder::new().try_parse(&level).err();
    let usable = wrong.is_none() && !level.is_empty();
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(if usable { &level } else { "info" });
    // env_logger writes each line at once, under a lock that is held until the printer has it.
    builder.target(Target::Pipe(Box::new(printer.writer())));
    // Colours as if env_logger wrote to standard error itself.
    match env::var("RUST_LOG_STYLE").as_deref() {
        Ok(style @ ("always" | "never")) => builder.parse_write_style(style),
        _ => builder.write_style(AutoStream::choice(&io::stderr()).into()),
    };
    builder.init();
    if let Some(wrong) = wrong {
        log::warn!("RUST_LOG={level} is ignored, the level is info: {wrong}");
    }
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        log::error!("thread {name} {panic}");
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            log::error!("{trace}");
        }
    }));
    printer
}

/// Logs a fault that may come by the thousand, one line in ten seconds.
#[derive(Default)]
pub struct RateLimitedLog {
    /// When the last line was logged. Held to compare and to set it.
    last: Mutex<Option<Instant>>,
}

impl RateLimitedLog {
    pub fn warn(&self, message: impl Display) {
        let mut last = self.last.lock();
        if last.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        log::warn!("{message}");
    }
}
