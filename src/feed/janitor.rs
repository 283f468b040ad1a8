//! The janitor: a thread that makes the feed forget what is older than the retention.
//! Shares the feed, whose lock of the state it holds only to drop what has expired.

use std::time::{Duration, Instant};

use super::Feed;
use crate::system::Shutdown;

/// A short nap, so that updates at a fast interval are swept in batches rather than one by one.
const NAP: Duration = Duration::from_millis(100);

/// Runs until shutdown. Sleeps until the oldest update expires, and costs nothing in between.
pub fn run(feed: &Feed, shutdown: &Shutdown) {
    while !shutdown.wait_until(feed.expire().max(Instant::now() + NAP)) {}
}
