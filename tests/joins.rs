//! The seam between history and live, on real threads: a client that joins at any instant receives every
//! update exactly once. (`seam` tries every order of a few threads; here are many, as they come.)

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use btc_ticker::feed::{self, Cursor, Feed, History, Kind, Subscription, Update};

const JOINERS: usize = 4;
const STARTED: u64 = 1_000_000;
/// The number of updates, and the capacity: nothing expires, however long a joiner is not scheduled.
const UPDATES: usize = 50_000;
const LAST: u64 = STARTED + UPDATES as u64;
/// Timestamps here are long ago.
const FOREVER: Duration = Duration::from_secs(1_000_000 * 3600);

/// Joins after `from` and follows up to `until`, subscribing again from the last update as a client's thread
/// does. Every update must be one above the last.
fn follow(feed: &Arc<Feed>, from: u64, until: u64) {
    let mut last = from;
    while last < until {
        let Subscription { page, channel, .. } =
            feed.subscribe(Cursor::After(last)).expect("the feed is open");
        assert!(!page.has_gap, "nothing has expired");
        for id in page.wire.lines().filter_map(|line| line.strip_prefix("id: ")) {
            assert_eq!(id, (last + 1).to_string(), "in a page");
            last += 1;
        }
        let Some(channel) = channel else { continue };
        while last < until {
            // An error means that it fell behind.
            let Ok(event) = channel.live.recv() else { break };
            assert_eq!(event.kind, Kind::Update { timestamp: last + 1 }, "on the channel");
            last += 1;
        }
    }
}

#[test]
fn every_update_arrives_exactly_once_whenever_a_client_joins() {
    let history = History::new(Some(STARTED), FOREVER, UPDATES);
    let (mut publisher, feed) = feed::new(history, false);
    let joiners: Vec<_> = (0..JOINERS)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || {
                let mut joins = 0;
                loop {
                    let latest = feed.latest();
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
        publisher.publish(&[Update { timestamp, price: timestamp as f64 }]);
    }
    for joiner in joiners {
        let joins = joiner.join().expect("it lost, doubled or reordered an update");
        println!("{joins} joins");
    }
}
