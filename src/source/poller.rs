//! The poller: a thread that fetches the price at every tick and publishes it. Owns the publisher; shares
//! the feed. Blocks on the source, never on a client. (With a store, `turns` decides when to poll.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ureq::Agent;

use super::fetch::{self, Fetcher};
use super::outage::Outage;
use super::{Endpoint, Source};
use crate::feed::freshness::Report;
use crate::feed::{Feed, Publisher, Update};
use crate::system::Shutdown;

pub struct Poller {
    fetcher: Fetcher,
    pub outage: Outage,
    pub interval: Duration,
    reports: Sender<Report>,
}

impl Poller {
    pub fn new(
        source: Source,
        endpoint: Endpoint,
        interval: Duration,
        reports: Sender<Report>,
    ) -> Poller {
        let outage = Outage::new(&source, interval);
        let fetcher = Fetcher::new(source, endpoint, fetch::timeout(interval));
        Poller { fetcher, outage, interval, reports }
    }

    /// Returns the HTTP client. Shutting it down ends a fetch at once.
    pub fn agent(&self) -> Agent {
        self.fetcher.agent.clone()
    }

    /// Polls at every tick until shutdown.
    pub fn run(mut self, mut publisher: Publisher, feed: &Arc<Feed>, shutdown: &Shutdown) {
        let mut tick = Instant::now();
        while !shutdown.wait_deadline(tick) {
            if let Some(price) = self.poll(shutdown) {
                publisher.publish(&[Update { timestamp: feed.next_timestamp(), price }]);
                self.report(Report::Updated);
            }
            tick = next_tick(tick, self.interval).max(self.outage.retry_at);
        }
    }

    /// Fetches once. A failure is logged, counted and reported.
    pub fn poll(&mut self, shutdown: &Shutdown) -> Option<f64> {
        match self.fetcher.fetch() {
            Ok(price) => {
                self.outage.end();
                Some(price)
            }
            // The shutdown aborted the fetch: not a failure of the source.
            Err(_) if shutdown.is_set() => None,
            Err(error) => {
                self.outage.fail(&error);
                self.report(Report::Failed(error.reason.to_string()));
                None
            }
        }
    }

    /// Reports to the heartbeat.
    pub fn report(&self, report: Report) {
        // An error means that the service is stopping.
        let _ = self.reports.send(report);
    }
}

/// Returns the first tick after now. Ticks are one interval apart, so the schedule does not drift; a tick that
/// fell due during a fetch is skipped.
pub fn next_tick(tick: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let late = now.duration_since(tick).as_nanos() % interval.as_nanos();
    now + interval - Duration::from_nanos(late as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_that_fell_due_is_skipped_and_the_next_one_is_on_the_grid() {
        let hour = Duration::from_secs(3600);
        for (hours_ago, hours) in [(0.1, 1), (0.9, 1), (1.1, 2), (2.5, 3)] {
            let tick = Instant::now() - hour.mul_f64(hours_ago);
            assert_eq!(next_tick(tick, hour), tick + hour * hours, "{hours_ago} hours later");
        }
    }
}
