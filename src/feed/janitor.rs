//! The janitor: a thread that makes the feed forget what is older than the retention.
//! Shares the feed, whose lock of the state it holds only to drop what has expired.

use std::time::{Duration, Instant};

use super::Feed;
use crate::system::Shutdown;

/// It sleeps at least so long: where updates come fast they are dropped in batches, not one by one.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Runs until shutdown. Sleeps until the oldest update expires, or for at most a second where there is
/// only one.
pub fn run(feed: &Feed, shutdown: &Shutdown) {
    loop {
        let next = feed.expire().max(Instant::now() + MIN_PAUSE);
        if shutdown.wait_deadline(next) {
            return;
        }
    }
}
