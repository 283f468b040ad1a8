//! The poller: a thread that asks the source for the price at every tick and publishes it.
//! Shares the feed; nobody waits for it, and it waits for nobody but the source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Source;
use super::fetch::{Failure, Fetcher};
use super::outage::Outage;
use crate::feed::{Dating, Feed, Update};
use crate::system::{METRICS, Shutdown};

/// After so many intervals without an update the price is stale.
const STALE_AFTER: u32 = 3;
/// How much of the interval an answer may take.
const TIMEOUT: f64 = 0.8;
/// An origin has a pace of its own, which is not our interval. It is learned, from this up, and not
/// from a pause so long that it was an outage.
const ORIGIN_PACE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

pub struct Poller {
    fetcher: Fetcher,
    feed: Arc<Feed>,
    interval: Duration,
    outage: Option<Outage>,
    /// When the last update was published, or polling began.
    last_update: Instant,
    /// When the price becomes stale; `None` while it is.
    fresh_until: Option<Instant>,
}

impl Poller {
    pub fn new(source: Source, interval: Duration, feed: Arc<Feed>) -> Poller {
        // A price that was read from the journal counts with its age.
        let patience = pace(source.dating(), interval) * STALE_AFTER;
        let left = patience.saturating_sub(feed.condition().age.unwrap_or_default());
        Poller {
            fetcher: Fetcher::new(source, interval.mul_f64(TIMEOUT)),
            feed,
            interval,
            outage: None,
            last_update: Instant::now(),
            fresh_until: Some(Instant::now() + left),
        }
    }

    /// Runs until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        let start = Instant::now();
        let mut due = start;
        while self.wait_until(due, shutdown) {
            let pause = match self.fetcher.fetch() {
                Ok(update) => self.publish(update),
                Err(failure) => self.fail(&failure),
            };
            due = pause.map_or_else(|| next_tick(start, self.interval), |it| Instant::now() + it);
        }
    }

    /// Sleeps until the next tick, and tells in time when the price has become stale. False when
    /// the service ends.
    fn wait_until(&mut self, due: Instant, shutdown: &Shutdown) -> bool {
        if let Some(end) = self.fresh_until.filter(|end| *end < due) {
            if shutdown.wait_until(end) {
                return false;
            }
            self.fresh_until = None;
            let reason = self.outage.as_ref().map_or("no new price", |outage| &outage.reason);
            self.feed.mark_stale(reason);
            log::warn!("the price is stale: {reason}");
        }
        !shutdown.wait_until(due)
    }

    fn publish(&mut self, update: Update) -> Option<Duration> {
        METRICS.fetches.inc(&[&"ok"]);
        if let Some(outage) = self.outage.take() {
            outage.end();
        }
        if self.feed.publish(update) {
            let pace = match self.fetcher.source.dating() {
                Dating::Own => self.interval,
                Dating::Origin => self.last_update.elapsed().clamp(ORIGIN_PACE.0, ORIGIN_PACE.1),
            };
            self.last_update = Instant::now();
            self.fresh_until = Some(self.last_update + pace.max(self.interval) * STALE_AFTER);
        }
        None
    }

    fn fail(&mut self, failure: &Failure) -> Option<Duration> {
        METRICS.fetches.inc(&[&failure.reason]);
        let outage =
            self.outage.get_or_insert_with(|| Outage::new(self.fetcher.source.name, failure));
        outage.note(failure, self.interval)
    }
}

/// Ticks are counted from the start, so the time that fetches take does not add up.
fn next_tick(start: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let since_last = (now - start).as_nanos() % interval.as_nanos();
    now + interval - Duration::from_nanos(since_last as u64)
}

/// How often updates can be expected at least: an origin's come at a pace that is not our interval.
pub fn pace(dating: Dating, interval: Duration) -> Duration {
    if dating == Dating::Origin { interval.max(ORIGIN_PACE.0) } else { interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stay_on_the_grid_however_long_a_fetch_took() {
        let interval = Duration::from_millis(70);
        let start = Instant::now() - Duration::from_millis(3 * 70 + 30);
        let next = next_tick(start, interval);
        assert_eq!((next - start).as_nanos() % interval.as_nanos(), 0);
        assert!((next - start) >= 4 * interval);
    }
}
