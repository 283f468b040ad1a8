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
        if let Some(reason) = feed.tell_if_stale() {
            log::warn!("the price is stale: {reason}");
        }
        feed.keep_open(heartbeat);
        select! {
            recv(shutdown.closed) -> _ => return,
            recv(feed.wakes) -> _ => {}
            recv(at(feed.next_deadline(heartbeat))) -> _ => {}
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::thread;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::feed::{Cursor, History};

    #[test]
    fn a_search_for_the_gone_is_two_comments_and_not_again_at_once() {
        const HOUR: Duration = Duration::from_secs(3600);
        let feed = Feed::new(History::new(Some(1), HOUR, 10), false, HOUR);
        let here = feed.subscribe(Cursor::Latest).unwrap();
        let (open, shutdown) = bounded(0);
        let heartbeat = thread::spawn({
            let feed = feed.clone();
            move || run(&feed, HOUR, &Shutdown { closed: shutdown })
        });
        feed.find_gone();
        for _ in 0..2 {
            assert_eq!(here.channel.live.recv().unwrap().wire.as_ref(), ":\n");
        }
        feed.find_gone();
        while !feed.wakes.is_empty() {
            thread::yield_now();
        }
        drop(open);
        heartbeat.join().unwrap();
        assert!(here.channel.live.is_empty(), "it has just looked");
    }
}
