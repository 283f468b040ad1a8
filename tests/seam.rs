//! The seam between history and live, under every schedule: shuttle replaces the locks and the threads, and
//! runs a test once for each order in which they may run (`check_dfs`), or for a sample of them. Joiners hand back their channels, which are checked after all threads have ended, so no thread waits. The
//! same orders are tried every time, and one that fails is printed:
//! `cargo test --release --features shuttle --target-dir target/shuttle --test seam`.

use std::sync::Arc;
use std::time::Duration;

use btc_ticker::feed::{
    self, Channel, Cursor, Feed, History, Kind, Publisher, Subscription, Update,
};
use crossbeam_channel::TryRecvError;
use shuttle::thread;

const STARTED: u64 = 1_000;
/// Timestamps here are long ago: nothing expires by its age.
const FOREVER: Duration = Duration::from_secs(1_000_000 * 3600);
/// More events than a channel holds.
const TOO_MANY: u64 = 10;
/// More updates than two pages hold.
const TWO_PAGES: u64 = 3_000;

fn new_feed(capacity: usize) -> (Publisher, Arc<Feed>) {
    feed::new(History::new(Some(STARTED), FOREVER, capacity), false)
}

fn update(number: u64) -> Update {
    Update { timestamp: STARTED + number, price: number as f64 }
}

/// How updates are published.
#[derive(Clone, Copy)]
enum By {
    /// One at a time, as the poller does.
    One,
    /// Two at a time, as the reader of a store may do.
    Batches,
}

fn publish(publisher: &mut Publisher, numbers: std::ops::RangeInclusive<u64>, by: By) {
    let updates: Vec<Update> = numbers.map(update).collect();
    let size = match by {
        By::One => 1,
        By::Batches => 2,
    };
    for batch in updates.chunks(size) {
        publisher.publish(batch);
    }
}

/// A client and what it has received.
struct Client {
    /// The timestamp of its last update.
    last: u64,
    /// `None` between two pages, and when the feed has closed.
    channel: Option<Channel>,
}

impl Client {
    /// Joins as a client's thread does: page after page, until there is a channel.
    fn join(feed: &Arc<Feed>, from: u64) -> Client {
        let mut client = Client { last: from, channel: None };
        client.subscribe(feed);
        client
    }

    fn subscribe(&mut self, feed: &Arc<Feed>) {
        loop {
            let Some(subscription) = feed.subscribe(Cursor::After(self.last)) else { return };
            let Subscription { page, channel, .. } = subscription;
            assert!(!page.has_gap, "nothing has expired");
            assert_eq!(page.is_last, channel.is_some(), "a channel comes with the last page only");
            for id in page.wire.lines().filter_map(|line| line.strip_prefix("id: ")) {
                self.take(id.parse().expect("a timestamp"));
            }
            self.channel = channel;
            if self.channel.is_some() {
                return;
            }
        }
    }

    /// Every update is the one after the last: none is missing, none comes twice.
    fn take(&mut self, timestamp: u64) {
        assert_eq!(timestamp, self.last + 1, "lost, doubled or out of order");
        self.last = timestamp;
    }

    /// Takes what is in the channel. Returns whether the channel is still open.
    fn drain(&mut self) -> bool {
        let Some(channel) = &self.channel else { return false };
        let events: Vec<_> = channel.live.try_iter().collect();
        let end = channel.live.try_recv();
        for event in events {
            if let Kind::Update { timestamp } = event.kind {
                self.take(timestamp);
            }
        }
        matches!(end, Err(TryRecvError::Empty))
    }

    /// Resumes, if its channel has ended, until it has everything.
    fn catch_up(&mut self, feed: &Arc<Feed>) {
        while !self.drain() {
            // The old one first, as in a client's thread.
            drop(self.channel.take());
            self.subscribe(feed);
        }
    }
}

/// Joiners and a publisher, each on a thread; every client must end with all updates.
fn race(joiners: usize, updates: u64, by: By) {
    let (mut publisher, feed) = new_feed(100);
    let joiners: Vec<_> = (0..joiners)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || Client::join(&feed, STARTED))
        })
        .collect();
    publish(&mut publisher, 1..=updates, by);
    for joiner in joiners {
        let mut client = joiner.join().unwrap();
        client.catch_up(&feed);
        assert_eq!(client.last, STARTED + updates, "lost");
    }
}

#[test]
fn a_joiner_has_each_update_once_in_every_order() {
    shuttle::check_dfs(|| race(1, 2, By::One), None);
    shuttle::check_dfs(|| race(2, 1, By::One), None);
}

#[test]
fn a_joiner_has_each_update_of_a_batch_once_in_every_order() {
    shuttle::check_dfs(|| race(1, 4, By::Batches), None);
    shuttle::check_dfs(|| race(2, 2, By::Batches), None);
}

#[test]
fn a_joiner_with_several_pages_has_each_update_once_in_every_order() {
    for by in [By::One, By::Batches] {
        let run = move || {
            let (mut publisher, feed) = new_feed(2 * TWO_PAGES as usize);
            publisher.publish(&(1..=TWO_PAGES).map(update).collect::<Vec<_>>());
            let joiner = thread::spawn({
                let feed = feed.clone();
                move || Client::join(&feed, STARTED)
            });
            publish(&mut publisher, TWO_PAGES + 1..=TWO_PAGES + 2, by);
            let mut client = joiner.join().unwrap();
            client.catch_up(&feed);
            assert_eq!(client.last, STARTED + TWO_PAGES + 2, "lost");
        };
        shuttle::check_dfs(run, None);
    }
}

#[test]
fn after_a_close_nothing_is_subscribed_in_every_order() {
    let run = || {
        let (mut publisher, feed) = new_feed(100);
        let closer = thread::spawn({
            let feed = feed.clone();
            move || feed.close()
        });
        let joiner = thread::spawn({
            let feed = feed.clone();
            move || Client::join(&feed, STARTED)
        });
        publish(&mut publisher, 1..=1, By::One);
        closer.join().unwrap();
        assert!(!joiner.join().unwrap().drain(), "a channel is open after the close");
        assert!(feed.subscribe(Cursor::Latest).is_none(), "subscribed after the close");
    };
    shuttle::check_dfs(run, None);
}

#[test]
fn a_joiner_during_eviction_has_the_rest_or_a_gap_in_every_order() {
    let run = || {
        // It has room for one: the second update evicts the first.
        let (mut publisher, feed) = new_feed(1);
        let janitor = thread::spawn({
            let feed = feed.clone();
            move || {
                feed.expire();
            }
        });
        let joiner = thread::spawn({
            let feed = feed.clone();
            move || feed.subscribe(Cursor::After(STARTED)).expect("it is open")
        });
        publish(&mut publisher, 1..=2, By::One);
        janitor.join().unwrap();
        let Subscription { page, channel, .. } = joiner.join().unwrap();
        let live = channel.expect("the last page").live.try_iter().count();
        let lost = usize::from(page.has_gap);
        assert_eq!(page.updates + live + lost, 2, "lost without a gap, or doubled");
    };
    shuttle::check_dfs(run, None);
}

/// More threads than can be tried in every order: clients that join, that fall behind and that leave, the
/// heartbeat and the janitor.
fn many_roles(by: By) {
    let (mut publisher, feed) = new_feed(100);
    let mut others = vec![
        thread::spawn({
            let feed = feed.clone();
            move || {
                feed.keep_alive();
                feed.announce(None);
                feed.expire();
            }
        }),
        thread::spawn({
            let feed = feed.clone();
            move || drop(Client::join(&feed, STARTED))
        }),
    ];
    let mut clients = vec![Client::join(&feed, STARTED)];
    let joiners: Vec<_> = (0..3)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || Client::join(&feed, STARTED))
        })
        .collect();
    publish(&mut publisher, 1..=TOO_MANY, by);
    others.drain(..).for_each(|other| other.join().unwrap());
    clients.extend(joiners.into_iter().map(|joiner| joiner.join().unwrap()));
    assert!(!clients[0].drain(), "its channel holds less than that");
    for mut client in clients {
        client.catch_up(&feed);
        assert_eq!(client.last, STARTED + TOO_MANY, "lost");
    }
}

#[test]
fn a_crowd_has_everything_in_thousands_of_random_orders() {
    for by in [By::One, By::Batches] {
        shuttle::check_random(move || race(3, 6, by), 10_000);
        shuttle::check_random(move || many_roles(by), 2_500);
        shuttle::check_pct(move || race(3, 6, by), 5_000, 3);
        shuttle::check_pct(move || many_roles(by), 2_500, 3);
    }
}
