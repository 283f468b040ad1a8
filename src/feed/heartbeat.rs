//! The heartbeat: a thread that keeps quiet streams open, and tells when prices have stopped coming.
//! Shares the feed, and waits for nobody else: so clients are told even where the poller hangs.

use std::time::Duration;

use crossbeam_channel::{at, select};

use super::Feed;
use crate::system::Shutdown;

/// Runs until shutdown. Streams that have been quiet for `heartbeat` get a comment: proxies keep them
/// open, and a client that has gone is noticed. One timer for all, because one for each client would
/// cost as many threads or wake-ups as there are clients.
pub fn run(feed: &Feed, heartbeat: Duration, shutdown: &Shutdown) {
    loop {
        let next = feed.beat(heartbeat);
        select! {
            recv(shutdown.0) -> _ => return,
            recv(feed.beat_sooner) -> _ => {}
            recv(at(next)) -> _ => {}
        }
    }
}
