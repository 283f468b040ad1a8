//! Outages of the source: from the first failure to the next success. Decides when to try again, keeps
//! the log short, and leaves the reason with the feed. Owned by the poller's or the follower's thread.

use std::sync::Arc;
use std::time::Duration;

use super::error::{FetchError, NO_CONNECTION};
use super::{STALE_AFTER, Source};
use crate::feed::Feed;
use crate::system::{METRICS, random};

/// The longest pause that we choose ourselves. (A poller with a longer interval pauses for that; a follower
/// never pauses for longer than this.)
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that a source can send us away for: its `Retry-After` may be a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How the source fares, as the feed and the log are told.
pub struct Outages {
    name: &'static str,
    /// Whether made-up prices may help somebody who has no internet.
    may_try_demo: bool,
    interval: Duration,
    feed: Arc<Feed>,
    /// How often it has failed since it was last well, and why at last.
    failures: u32,
    reason: String,
}

impl Outages {
    pub fn new(source: &Source, interval: Duration, feed: Arc<Feed>) -> Outages {
        let may_try_demo = !source.made_up && !source.is_followed;
        Outages {
            name: source.name,
            may_try_demo,
            interval,
            feed,
            failures: 0,
            reason: String::new(),
        }
    }

    /// The source was heard: prices count as fresh for `patience` from now. Ends an outage.
    pub fn source_is_well(&mut self, patience: Duration) {
        if self.failures > 0 {
            let Outages { name, failures, reason, .. } = self;
            log::info!("prices from {name} again after {failures} failures, the last: {reason}");
            self.failures = 0;
        }
        self.feed.source_is_well(patience);
    }

    /// The source has failed. Returns for how long at least to leave it alone.
    pub fn source_fails(&mut self, error: &FetchError) -> Duration {
        METRICS.fetches.inc(&[&error.reason]);
        let FetchError { reason, detail, retry_after } = error;
        self.feed.source_fails(reason, self.interval * STALE_AFTER);
        if self.failures == 0 {
            let is_offline = reason == NO_CONNECTION && self.may_try_demo;
            let hint = if is_offline { "; without internet, --source demo works" } else { "" };
            log::warn!("no price from {}: {reason} ({detail}){hint}", self.name);
        }
        self.failures = self.failures.saturating_add(1);
        self.reason.clone_from(reason);
        let pause = backoff(self.failures, self.interval);
        pause.max(LONGEST_RETRY_AFTER.min(*retry_after))
    }
}

/// Nothing after the first failure, when a poller waits for its next tick. Then it doubles from the
/// interval, with jitter, so that many who fail together do not return together.
fn backoff(failures: u32, interval: Duration) -> Duration {
    if failures == 1 {
        return Duration::ZERO;
    }
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
        assert_eq!(backoff(1, second), Duration::ZERO);
        assert_eq!(backoff(9, Duration::from_secs(90)), Duration::from_secs(90));
    }
}
