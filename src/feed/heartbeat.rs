//! The heartbeat: a thread that sends a comment to all streams when nothing else was sent for a
//! while, so that proxies keep them open and those whose client is gone are noticed.
//! Shares the feed. One timer for all: one for each client would cost as many as there are clients.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, select};

use super::Feed;
use crate::system::Shutdown;

/// While newcomers are turned away nothing is quiet for longer than this. That a client has gone shows
/// at the second write after it left: so its place is free within two seconds.
const WHEN_FULL: Duration = Duration::from_millis(750);
/// So long after the last sign that the service is full.
const FULL_FOR: Duration = Duration::from_secs(10);

/// Runs until shutdown. Sleeps until streams have been quiet for `heartbeat`. `full` brings a word
/// whenever somebody took the last place or found none.
pub fn run(feed: &Feed, heartbeat: Duration, full: &Receiver<()>, shutdown: &Shutdown) {
    let mut full_until = Instant::now();
    loop {
        let is_full = Instant::now() < full_until;
        let next = feed.beat(if is_full { heartbeat.min(WHEN_FULL) } else { heartbeat });
        select! {
            recv(shutdown.0) -> _ => return,
            recv(full) -> _ => full_until = Instant::now() + FULL_FOR,
            recv(at(next)) -> _ => {}
        }
    }
}
