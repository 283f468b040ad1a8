//! The poller: a thread that asks the source for the price at every tick and publishes it.
//! Shares the feed; nobody waits for it, and it waits for nobody but the source.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;
use crate::crew::Shutdown;
use crate::feed::Feed;
use crate::history::Stamp;
use crate::metrics::METRICS;
use crate::source::{Failure, Fetcher, Quote, Source};
use crate::trouble::Trouble;

/// After so many intervals without an update the price is stale.
const STALE_AFTER: u32 = 3;
/// An origin has a pace of its own, which is not our interval. It is learned, from this up, and not
/// from a pause so long that it was an outage.
const ORIGIN_PACE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

pub struct Poller {
    name: &'static str,
    fetcher: Fetcher,
    feed: Arc<Feed>,
    interval: Duration,
    shutdown: Shutdown,
    trouble: Option<Trouble>,
    /// When the last update was published, or polling began.
    last_update: Instant,
    /// How long after the last update the price is stale.
    patience: Duration,
    stale: bool,
}

impl Poller {
    pub fn new(source: Source, config: &Config, feed: Arc<Feed>, shutdown: Shutdown) -> Poller {
        let interval = config.interval;
        let patience = pace(&source, interval);
        Poller {
            name: source.name,
            fetcher: Fetcher::new(source, config.source_timeout()),
            feed,
            interval,
            shutdown,
            trouble: None,
            last_update: Instant::now(),
            patience: patience * STALE_AFTER,
            stale: false,
        }
    }

    /// Runs until shutdown.
    pub fn run(mut self) {
        let start = Instant::now();
        let mut due = start;
        while self.wait_until(due) {
            let began = Instant::now();
            let result = self.fetcher.fetch();
            METRICS.fetch_duration.observe(began.elapsed().as_secs_f64());
            let pause = match result {
                Ok(quote) => self.publish(quote),
                Err(failure) => self.fail(&failure),
            };
            due = match pause {
                None => next_tick(start, self.interval),
                Some(pause) => Instant::now() + pause,
            };
        }
    }

    /// Sleeps until the next tick, and tells in time when the price has become stale. False when
    /// the service ends.
    fn wait_until(&mut self, due: Instant) -> bool {
        loop {
            let stale_at = self.last_update + self.patience;
            if !self.stale && stale_at <= Instant::now() {
                self.stale = true;
                let reason =
                    self.trouble.as_ref().map_or("no new price", |trouble| &trouble.reason);
                self.feed.mark_stale(reason);
                log::warn!("the price is stale: {reason}");
            }
            let next = if self.stale { due } else { due.min(stale_at) };
            if self.shutdown.wait_until(next) {
                return false;
            }
            if Instant::now() >= due {
                return true;
            }
        }
    }

    fn publish(&mut self, quote: Quote) -> Option<Duration> {
        METRICS.fetches.inc("outcome=\"ok\"".into());
        if let Some(trouble) = self.trouble.take() {
            trouble.end(self.name);
        }
        let stamp = quote.timestamp.map_or_else(|| Stamp::Retrieved(unix_millis()), Stamp::Dated);
        if self.feed.publish(stamp, quote.price) {
            if quote.timestamp.is_some() {
                let pace = self.last_update.elapsed().clamp(ORIGIN_PACE.0, ORIGIN_PACE.1);
                self.patience = pace.max(self.interval) * STALE_AFTER;
            }
            self.last_update = Instant::now();
            self.stale = false;
        }
        None
    }

    fn fail(&mut self, failure: &Failure) -> Option<Duration> {
        METRICS.fetches.inc(format!("outcome=\"{}\"", failure.reason));
        let name = self.name;
        let trouble = self.trouble.get_or_insert_with(|| Trouble::new(name, failure));
        trouble.note(name, failure, self.interval)
    }
}

/// Ticks are counted from the start, so the time that fetches take does not add up.
fn next_tick(start: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let since_last = (now - start).as_nanos() % interval.as_nanos();
    now + interval - Duration::from_nanos(since_last as u64)
}

/// How often updates can be expected at least: an origin's come at a pace that is not our interval.
pub fn pace(source: &Source, interval: Duration) -> Duration {
    if source.timestamp_at.is_some() { interval.max(ORIGIN_PACE.0) } else { interval }
}

/// This machine's clock in Unix milliseconds.
pub fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
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
