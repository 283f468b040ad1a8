//! The janitor: a thread that evicts expired updates. Shares the feed, whose history it locks only to drop
//! what has expired.

use std::time::{Duration, Instant};

use super::Feed;
use crate::system::Shutdown;

/// The shortest sleep: if updates come fast they are evicted in batches, not one by one.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Runs until shutdown. Sleeps until the oldest update expires.
pub fn run(feed: &Feed, shutdown: &Shutdown) {
    loop {
        let next = feed.expire().max(Instant::now() + MIN_PAUSE);
        if shutdown.wait_deadline(next) {
            return;
        }
    }
}
