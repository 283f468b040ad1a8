//! The seam between history and live, on real threads: whoever joins at any instant gets every update
//! exactly once. (`seam` tries every order of a few threads; here are many, as they come.)

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use btc_ticker::feed::{Cursor, Feed, History, Subscription, Update};

const JOINERS: usize = 4;
const STARTED: u64 = 1_000_000;
/// All that is published, and room for all of it: however long a joiner is not run, nothing is gone.
const UPDATES: usize = 50_000;
const LAST: u64 = STARTED + UPDATES as u64;
/// Timestamps here are long ago.
const FOR_EVER: Duration = Duration::from_secs(1_000_000 * 3600);

/// Joins after `from` and follows up to `until`, again from the last update wherever the channel ends,
/// just as a client's thread does. Every update must be one above the one before.
fn follow(feed: &Arc<Feed>, from: u64, until: u64) {
    let mut last = from;
    while last < until {
        let Subscription { backlog, channel, .. } =
            feed.subscribe(Cursor::After(last)).expect("the feed is open");
        assert!(backlog.gap.is_none(), "nothing is gone");
        for id in backlog.wire().lines().filter_map(|line| line.strip_prefix("id: ")) {
            assert_eq!(id, (last + 1).to_string(), "in the backlog");
            last += 1;
        }
        while last < until {
            let Ok(event) = channel.live.recv() else {
                break; // It fell behind.
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
    let history = History::new(Some(STARTED), FOR_EVER, UPDATES);
    let feed = Feed::new(history, false, FOR_EVER);
    let joiners: Vec<_> = (0..JOINERS)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || {
                let mut joins = 0;
                loop {
                    let latest = feed.snapshot().latest;
                    let latest = latest.map_or(STARTED, |update| update.timestamp);
                    // Near the present, where the seam is; for a moment, or beyond a channel's length.
                    let from = latest.saturating_sub(joins % 40).max(STARTED);
                    follow(&feed, from, LAST.min(from + 1 + joins % 20));
                    joins += 1;
                    if latest == LAST {
                        return joins;
                    }
                }
            })
        })
        .collect();
    for timestamp in STARTED + 1..=LAST {
        feed.publish(Update { timestamp, price: timestamp as f64 });
    }
    for joiner in joiners {
        // What it has found wrong is said above.
        let joins = joiner.join().expect("a joiner that found all of it right");
        println!("{joins} joins");
    }
}
