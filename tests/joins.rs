//! The seam between history and live: whoever joins at any instant gets every update exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use btc_ticker::feed::{Cursor, Dating, Feed, History, Update};

const JOINERS: usize = 4;
const JOINS: usize = 5_000;
const STARTED: u64 = 1_000_000;

/// Joins after `from` and follows for a while, again from the last update wherever the channel ends,
/// just as a client's thread does. Every update must be one above the one before.
fn follow(feed: &Arc<Feed>, from: u64, updates: u64) {
    let mut last = from;
    while last < from + updates {
        let subscription = feed.subscribe(Cursor::After(last)).expect("the feed is open");
        assert!(subscription.backlog.gap.is_none(), "nothing has expired");
        let wire = subscription.backlog.wire();
        for id in wire.lines().filter_map(|line| line.strip_prefix("id: ")) {
            assert_eq!(id, (last + 1).to_string(), "in the backlog");
            last += 1;
        }
        while last < from + updates {
            let Ok(event) = subscription.live.recv() else {
                break;
            };
            let Some(update) = event.update else { panic!("{event:?}") };
            assert_eq!(update.timestamp, last + 1, "on the channel");
            assert_eq!(update.price, update.timestamp as f64);
            last += 1;
        }
    }
}

#[test]
fn every_update_comes_exactly_once_whenever_one_joins() {
    let feed = Feed::new(History::new(Dating::Own, STARTED, Duration::from_secs(3600), 10_000));
    let done = Arc::new(AtomicBool::new(false));
    let publisher = thread::spawn({
        let (feed, done) = (feed.clone(), done.clone());
        move || {
            let mut time = STARTED;
            while !done.load(Ordering::Relaxed) {
                time += 1;
                feed.publish(Update { timestamp: time, price: time as f64 });
            }
            time - STARTED
        }
    });
    let joiners: Vec<_> = (0..JOINERS)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || {
                for join in 0..JOINS {
                    // Near the present, where the seam is; for a moment, or beyond a channel's length.
                    let latest = feed.condition().latest.map_or(STARTED, |update| update.timestamp);
                    let from = latest.saturating_sub(join as u64 % 40).max(STARTED);
                    follow(&feed, from, 1 + join as u64 % 20);
                }
            })
        })
        .collect();
    for joiner in joiners {
        joiner.join().expect("a joiner lost or doubled an update");
    }
    done.store(true, Ordering::Relaxed);
    assert!(publisher.join().unwrap() > 0);
}
