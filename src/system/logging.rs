//! The log: to standard error, at the level of `RUST_LOG`. Shared by all threads.

use std::fmt::Display;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Where one fault follows another, the log has one line for all of them in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Called by `main`, once.
pub fn start() {
    let environment = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(environment).init();
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
