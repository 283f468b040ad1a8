//! An outage of the source: from the first failure to the next success. It decides when to try
//! again, and keeps the log short. Owned by the poller's thread.

use std::time::{Duration, Instant};

use super::fetch::{Failure, Reason};
use crate::system::random;

/// The longest pause that we choose ourselves; the interval, where that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that a source can send us away for: its `Retry-After` may be a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

pub struct Outage {
    /// The name of the source.
    source: &'static str,
    began: Instant,
    failures: u32,
    /// Why prices have stopped coming, for those who ask.
    pub reason: String,
}

impl Outage {
    /// Begins with the first failure. Says all there is to say about it.
    pub fn new(source: &'static str, failure: &Failure) -> Outage {
        let reason = told(failure);
        log::warn!("no price from {source}: {reason} ({})", failure.detail);
        Outage { source, began: Instant::now(), failures: 0, reason }
    }

    /// Takes note of a failure, and returns how long to leave the source alone; `None` is until the
    /// next tick, as ever.
    pub fn note(&mut self, failure: &Failure, interval: Duration) -> Option<Duration> {
        self.failures += 1;
        self.reason = told(failure);
        let asked = failure.retry_after.map(|wait| wait.min(LONGEST_RETRY_AFTER).max(interval));
        let own = (self.failures > 1).then(|| backoff(self.failures, interval));
        asked.max(own)
    }

    /// Ends with a success.
    pub fn end(self) {
        let Outage { source, began, failures, reason } = self;
        let time = began.elapsed().as_secs_f64();
        log::info!("prices from {source} again after {failures} failures in {time:.1} s: {reason}");
    }
}

fn told(failure: &Failure) -> String {
    let is_offline = failure.reason == Reason::Unreachable;
    let hint = if is_offline { "; without internet, --source demo works" } else { "" };
    format!("{}{hint}", failure.reason)
}

/// Doubles from the interval, with jitter, so that many who fail together do not return together.
fn backoff(failures: u32, interval: Duration) -> Duration {
    let doubled = interval.saturating_mul(1 << (failures - 1).min(16));
    let pause = doubled.min(LONGEST_PAUSE.max(interval));
    pause.mul_f64(0.75 + random() / 4.0).max(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_at_a_minute() {
        let second = Duration::from_secs(1);
        for (failures, longest) in [(2, 2), (3, 4), (6, 32), (7, 60), (30, 60), (u32::MAX, 60)] {
            let pause = backoff(failures, second);
            let longest = Duration::from_secs(longest);
            assert!(pause <= longest && pause >= longest.mul_f64(0.75), "{pause:?}");
        }
        assert_eq!(backoff(9, Duration::from_secs(90)), Duration::from_secs(90));
    }
}
