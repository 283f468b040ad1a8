//! The heart: a thread that sends a comment to all streams when nothing else was sent for a while,
//! so that proxies keep them open and those whose client is gone are noticed.
//! Shares the feed. One timer for all: one for each client would cost as many as there are clients.

use std::time::Duration;

use crate::crew::Shutdown;
use crate::feed::Feed;

/// Runs until shutdown. Sleeps until streams have been quiet for `heartbeat`.
pub fn run(feed: &Feed, heartbeat: Duration, shutdown: &Shutdown) {
    while !shutdown.wait_until(feed.beat(heartbeat)) {}
}
