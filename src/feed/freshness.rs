//! Freshness: decides when prices are stale. A pure state machine, owned by the heartbeat's thread.

use std::time::{Duration, Instant};

/// Prices are stale after this many intervals without an update: enough for another process to take over
/// polling and for one slow fetch.
pub const STALE_AFTER: u32 = 4;

/// The reason if nothing has failed.
const NO_UPDATE: &str = "no update";

/// What the threads that fetch and read prices report to the heartbeat.
pub enum Report {
    /// An update was published.
    Updated,
    /// No update, for this reason.
    Failed(String),
}

pub struct Freshness {
    patience: Duration,
    /// Prices become stale at this instant unless an update arrives first.
    stale_at: Instant,
    reason: String,
    is_stale: bool,
}

/// A change to announce to clients.
#[derive(Debug, PartialEq)]
pub enum Change {
    Fresh,
    Stale(String),
}

impl Freshness {
    /// `interval` is how often an update is expected.
    pub fn new(interval: Duration, now: Instant) -> Freshness {
        let patience = interval * STALE_AFTER;
        let reason = NO_UPDATE.to_owned();
        Freshness { patience, stale_at: now + patience, reason, is_stale: false }
    }

    /// Takes a report into account.
    pub fn report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Updated => {
                self.stale_at = now + self.patience;
                NO_UPDATE.clone_into(&mut self.reason);
            }
            Report::Failed(reason) => self.reason = reason,
        }
    }

    /// Returns the change that is due, once.
    pub fn change(&mut self, now: Instant) -> Option<Change> {
        let is_stale = now >= self.stale_at;
        if is_stale == self.is_stale {
            return None;
        }
        self.is_stale = is_stale;
        Some(if is_stale { Change::Stale(self.reason.clone()) } else { Change::Fresh })
    }

    /// Returns when the next change is due if nothing is reported.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_stale { None } else { Some(self.stale_at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn prices_are_stale_four_intervals_after_the_last_update_and_only_once() {
        let start = Instant::now();
        let mut freshness = Freshness::new(SECOND, start);
        freshness.report(Report::Updated, start + SECOND);
        assert_eq!(freshness.deadline(), Some(start + 5 * SECOND));
        assert_eq!(freshness.change(start + 5 * SECOND - SECOND / 1000), None);
        let stale = Change::Stale(NO_UPDATE.to_owned());
        assert_eq!(freshness.change(start + 5 * SECOND), Some(stale));
        assert_eq!(freshness.change(start + 6 * SECOND), None);
        assert_eq!(freshness.deadline(), None);
    }

    #[test]
    fn the_last_failure_is_the_reason_until_an_update_arrives() {
        let start = Instant::now();
        let mut freshness = Freshness::new(SECOND, start);
        for reason in ["HTTP 500", "timed out"] {
            freshness.report(Report::Failed(reason.to_owned()), start);
        }
        assert_eq!(freshness.change(start), None, "a failure alone is not stale");
        let stale = Change::Stale("timed out".to_owned());
        assert_eq!(freshness.change(start + 4 * SECOND), Some(stale));
        freshness.report(Report::Updated, start + 5 * SECOND);
        assert_eq!(freshness.change(start + 5 * SECOND), Some(Change::Fresh));
        let stale = Change::Stale(NO_UPDATE.to_owned());
        assert_eq!(freshness.change(start + 9 * SECOND), Some(stale), "that failure is over");
    }
}
