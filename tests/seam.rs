//! The seam between history and live, in every order in which threads may take the locks of the feed.
//! The channels are real; a joiner hands back what it has, and that is looked at when all threads have
//! ended, so that nobody waits. The same orders come every time, and one that fails is printed:
//! `cargo test --release --features shuttle --test seam`.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use btc_ticker::feed::{Channel, Cursor, Feed, History, Subscription, Update};
use crossbeam_channel::TryRecvError;
use shuttle::thread;

const STARTED: u64 = 1_000;
/// Timestamps here are long ago: nothing expires by its age.
const FOR_EVER: Duration = Duration::from_secs(1_000_000 * 3600);
/// What a channel holds, and two more.
const TOO_MANY: u64 = 10;

fn feed(capacity: usize) -> Arc<Feed> {
    Feed::new(History::new(Some(STARTED), FOR_EVER, capacity), false, FOR_EVER)
}

/// Publishes so many updates, one millisecond after the other.
fn publish(feed: &Feed, updates: u64) {
    for number in 1..=updates {
        feed.publish(Update { timestamp: STARTED + number, price: number as f64 });
    }
}

/// What a client has by now.
struct Client {
    /// The timestamp of its last update.
    last: u64,
    /// `None` after it has left, or where the feed was closed.
    channel: Option<Channel>,
}

impl Client {
    /// Subscribes as a client's thread does, and takes the backlog.
    fn join(feed: &Arc<Feed>) -> Client {
        let mut client = Client { last: STARTED, channel: None };
        client.subscribe(feed);
        client
    }

    fn subscribe(&mut self, feed: &Arc<Feed>) {
        let Some(subscription) = feed.subscribe(Cursor::After(self.last)) else {
            self.channel = None;
            return;
        };
        let Subscription { backlog, channel, .. } = subscription;
        self.channel = Some(channel);
        assert!(backlog.gap.is_none(), "nothing is gone");
        for id in backlog.wire().lines().filter_map(|line| line.strip_prefix("id: ")) {
            self.take(id.parse().expect("a timestamp"));
        }
    }

    /// Every update is the one after the last: none is missing, none comes twice.
    fn take(&mut self, timestamp: u64) {
        assert_eq!(timestamp, self.last + 1, "lost, doubled or out of order");
        self.last = timestamp;
    }

    /// Takes what is on the channel. True where that is still open.
    fn drain(&mut self) -> bool {
        let Some(channel) = &self.channel else { return false };
        let events: Vec<_> = channel.live.try_iter().collect();
        let end = channel.live.try_recv();
        for update in events.iter().filter_map(|event| event.update) {
            self.take(update.timestamp);
        }
        matches!(end, Err(TryRecvError::Empty))
    }

    /// Goes on as one that fell behind, until it has everything.
    fn catch_up(&mut self, feed: &Arc<Feed>) {
        while !self.drain() {
            // The old one first, as in a client's thread.
            drop(self.channel.take());
            self.subscribe(feed);
        }
    }
}

/// Joiners and a publisher, each on a thread; returns the clients when all have ended.
fn race(feed: &Arc<Feed>, joiners: usize, updates: u64) -> Vec<Client> {
    let joiners: Vec<_> = (0..joiners)
        .map(|_| {
            let feed = feed.clone();
            thread::spawn(move || Client::join(&feed))
        })
        .collect();
    publish(feed, updates);
    joiners.into_iter().map(|joiner| joiner.join().unwrap()).collect()
}

fn everybody_has_everything(joiners: usize, updates: u64) {
    let feed = feed(100);
    for mut client in race(&feed, joiners, updates) {
        client.catch_up(&feed);
        assert_eq!(client.last, STARTED + updates, "lost");
    }
}

#[test]
fn one_who_joins_has_each_of_two_updates_once_in_every_order() {
    shuttle::check_dfs(|| everybody_has_everything(1, 2), None);
}

#[test]
fn two_who_join_have_the_update_once_in_every_order() {
    shuttle::check_dfs(|| everybody_has_everything(2, 1), None);
}

#[test]
fn after_a_close_nobody_is_subscribed_in_every_order() {
    let run = || {
        let feed = feed(100);
        let closer = thread::spawn({
            let feed = feed.clone();
            move || mem::drop(feed.close())
        });
        let clients = race(&feed, 1, 1);
        closer.join().unwrap();
        for mut client in clients {
            assert!(!client.drain(), "a channel is open after the end");
        }
        assert!(feed.subscribe(Cursor::Latest).is_none(), "somebody came in after the end");
    };
    shuttle::check_dfs(run, None);
}

#[test]
fn one_who_joins_while_the_history_forgets_has_the_rest_or_is_told_in_every_order() {
    let run = || {
        // It has room for one: the second update drives the first one out.
        let feed = feed(1);
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
        publish(&feed, 2);
        janitor.join().unwrap();
        let Subscription { backlog, channel, .. } = joiner.join().unwrap();
        let live: Vec<_> = channel.live.try_iter().filter_map(|it| it.update).collect();
        let is_told = backlog.gap.is_some();
        let lost = if is_told { 1 } else { 0 };
        assert_eq!(backlog.updates + live.len() + lost, 2, "lost without a word, or doubled");
    };
    shuttle::check_dfs(run, None);
}

/// More threads than can be tried in every order: a crowd that joins, one that is slow and falls behind,
/// one that leaves, the heartbeat and the janitor.
fn a_busy_day() {
    let feed = feed(100);
    let others = [
        thread::spawn({
            let feed = feed.clone();
            move || {
                feed.keep_open(Duration::ZERO);
                feed.expire();
            }
        }),
        thread::spawn({
            let feed = feed.clone();
            move || mem::drop(Client::join(&feed))
        }),
    ];
    let mut slow = Client::join(&feed);
    let clients = race(&feed, 3, TOO_MANY);
    for other in others {
        other.join().unwrap();
    }
    assert!(!slow.drain(), "its channel holds less than that");
    for mut client in clients.into_iter().chain([slow]) {
        client.catch_up(&feed);
        assert_eq!(client.last, STARTED + TOO_MANY, "lost");
    }
}

#[test]
fn a_crowd_has_everything_in_thousands_of_random_orders() {
    shuttle::check_random(|| everybody_has_everything(3, 5), 20_000);
    shuttle::check_random(a_busy_day, 5_000);
}

#[test]
fn a_crowd_has_everything_in_thousands_of_unlucky_orders() {
    shuttle::check_pct(|| everybody_has_everything(3, 5), 10_000, 3);
    shuttle::check_pct(a_busy_day, 5_000, 3);
}
