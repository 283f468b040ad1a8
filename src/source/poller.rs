//! The poller: a thread that asks the source for the price at every tick and publishes it.
//! Owns the publisher, and so the journal; shares the feed. It waits for the source and the disk, and
//! never for a client.

use std::time::{Duration, Instant};

use ureq::Agent;

use super::fetch::Fetcher;
use super::outage::Outages;
use super::{STALE_AFTER, Source};
use crate::feed::{Publisher, Update};
use crate::system::{METRICS, Shutdown};

/// How much of the interval an answer may take.
const TIMEOUT_SHARE: f64 = 0.8;
/// But never longer than this.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Poller {
    fetcher: Fetcher,
    outages: Outages,
    publisher: Publisher,
    interval: Duration,
}

impl Poller {
    pub fn new(source: Source, interval: Duration, publisher: Publisher) -> Poller {
        let outages = Outages::new(&source, interval, publisher.feed.clone());
        let timeout = interval.mul_f64(TIMEOUT_SHARE).min(LONGEST_TIMEOUT);
        let fetcher = Fetcher::new(source, timeout);
        Poller { fetcher, outages, publisher, interval }
    }

    /// What `main` shuts down, which ends a fetch at once.
    pub fn agent(&self) -> Agent {
        self.fetcher.agent.clone()
    }

    /// Runs until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        // Counted from tick to tick, so the time that fetches take does not add up.
        let mut tick = Instant::now();
        while !shutdown.wait_deadline(tick) {
            let pause = self.poll(shutdown);
            tick = (tick + self.interval).max(Instant::now() + pause);
        }
    }

    /// Asks once. Returns for how long at least to leave the source alone.
    fn poll(&mut self, shutdown: &Shutdown) -> Duration {
        let price = match self.fetcher.fetch() {
            Ok(price) => price,
            // It was broken off, which is no failure of the source.
            Err(_) if shutdown.is_set() => return Duration::ZERO,
            Err(error) => {
                // No update is waiting, so the journal may take its time.
                self.publisher.settle();
                return self.outages.source_fails(&error);
            }
        };
        METRICS.fetches.inc(&[&"ok"]);
        self.outages.source_is_well(self.interval * STALE_AFTER);
        let timestamp = self.publisher.feed.next_timestamp();
        self.publisher.publish(Update { timestamp, price });
        self.publisher.settle();
        Duration::ZERO
    }
}
