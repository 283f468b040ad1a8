//! The idea, in 67 lines: publish/subscribe in which a slow subscriber loses its channel, and no
//! update.
//!
//! One publisher, one janitor and any number of subscribers, each on a thread of its own. They share a
//! history behind one lock; everything else is a channel. The tests below the code are its promises:
//! take the backlog and the channel in two critical sections, or let `publish` wait, and one of them
//! fails. `cargo test --test idea`

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

/// How many updates a subscriber may be behind before it loses its channel.
const CHANNEL_CAPACITY: usize = 8;
const JANITOR_PAUSE: Duration = Duration::from_millis(100);

/// Production form: `src/feed/event.rs`, in which the id is the time of the price.
#[derive(Clone, Copy, Debug)]
struct Update {
    id: u64,
    price: f64,
    published: Instant,
}

/// Production form: `src/feed/mod.rs`: two locks, so that the history is unlocked during the fan-out, and a
/// backlog in pages.
#[derive(Default)]
struct Feed {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Oldest first. Production form: `src/feed/history.rs`.
    history: VecDeque<Update>,
    /// The sending end of each subscriber's channel.
    subscribers: Vec<Sender<Update>>,
    is_closed: bool,
}

impl Feed {
    /// Appends to the history and fans out, in one critical section. Never waits for a subscriber: a channel that is full is
    /// dropped, and so is one whose subscriber has left.
    fn publish(&self, id: u64, price: f64) {
        let update = Update { id, price, published: Instant::now() };
        let mut state = self.state.lock();
        state.history.push_back(update);
        state.subscribers.retain(|channel| channel.try_send(update).is_ok());
    }

    /// Returns every update after `last`, and a channel for all that follow. Both are taken in one
    /// critical section: an update is in one of the two, and never in both. `None` after the shutdown.
    fn subscribe(&self, last: u64) -> Option<(Vec<Update>, Receiver<Update>)> {
        let (sender, live) = bounded(CHANNEL_CAPACITY);
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        state.subscribers.push(sender);
        let first = state.history.partition_point(|update| update.id <= last);
        let backlog = state.history.range(first..).copied().collect();
        Some((backlog, live))
    }

    /// Evicts what has expired. A subscriber further behind than that misses it, which the production form reports.
    fn expire(&self, retention: Duration) {
        let mut state = self.state.lock();
        let expired = state.history.partition_point(|it| it.published.elapsed() >= retention);
        state.history.drain(..expired);
    }

    /// Drops every channel, which ends every subscriber, and admits no other.
    fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.subscribers.clear();
    }
}

/// A subscriber's thread: the backlog, then live updates. The iterator over `live` ends when the sender is
/// dropped, but only after the updates in the channel have been received. Then it subscribes again from its
/// last update. Production form: `Stream::stream` in `src/http/stream.rs`.
fn follow(feed: &Feed, mut last: u64, client: &Sender<Update>) {
    while let Some((backlog, live)) = feed.subscribe(last) {
        for update in backlog.into_iter().chain(live) {
            if client.send(update).is_err() {
                return; // The client has left.
            }
            last = update.id;
        }
    }
}

/// The janitor's thread. Nothing is ever sent on `shutdown` (`Infallible` has no value). It closes, and
/// that ends the wait at once. Production form: `src/feed/janitor.rs`, `src/system/threads.rs`.
fn janitor(feed: &Feed, retention: Duration, shutdown: &Receiver<Infallible>) {
    while shutdown.recv_timeout(JANITOR_PAUSE) == Err(RecvTimeoutError::Timeout) {
        feed.expire(retention);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Waits until a thread has ended, and passes its panic on.
    fn join(thread: JoinHandle<()>) {
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            assert!(Instant::now() < deadline, "a thread does not end");
            thread::yield_now();
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_slow_subscriber_loses_its_channel_and_no_update() {
        const UPDATES: u64 = 5 * CHANNEL_CAPACITY as u64;
        let feed = Arc::new(Feed::default());
        // A client that takes an update only when the test asks for one.
        let (client, received) = bounded(0);
        let next = || received.recv_timeout(PATIENCE).map(|update: Update| update.id);
        let subscriber = thread::spawn({
            let feed = feed.clone();
            move || follow(&feed, 0, &client)
        });
        feed.publish(1, 97_000.0);
        assert_eq!(next(), Ok(1), "it has subscribed");
        let publisher = thread::spawn({
            let feed = feed.clone();
            move || (2..=UPDATES).for_each(|id| feed.publish(id, 97_000.0))
        });
        join(publisher);
        assert_eq!(feed.state.lock().subscribers.len(), 0, "its channel was full");
        for id in 2..=UPDATES {
            assert_eq!(next(), Ok(id));
        }
        feed.close();
        join(subscriber);
    }

    #[test]
    fn every_update_comes_exactly_once_whenever_a_subscriber_joins() {
        // The race is between taking the backlog and registering the channel; a fault there shows in about
        // every second run.
        for _ in 0..20 {
            race();
        }
    }

    /// Publishes while two subscribers join again and again.
    fn race() {
        let feed = Arc::new(Feed::default());
        let joiners = [(); 2].map(|()| {
            let feed = feed.clone();
            thread::spawn(move || {
                let mut last = 0;
                while let Some((backlog, live)) = feed.subscribe(last) {
                    // Joins again after two live updates.
                    for update in backlog.into_iter().chain(live.into_iter().take(2)) {
                        assert_eq!(update.id, last + 1, "lost, doubled or out of order");
                        assert_eq!(update.price, update.id as f64);
                        last = update.id;
                    }
                }
            })
        });
        for id in 1..=200_000 {
            feed.publish(id, id as f64);
        }
        feed.close();
        joiners.into_iter().for_each(join);
    }

    #[test]
    fn the_janitor_evicts_what_has_expired_until_its_channel_closes() {
        let feed = Arc::new(Feed::default());
        let (open, shutdown) = bounded(0);
        feed.publish(1, 97_000.0);
        feed.expire(HOUR);
        assert_eq!(feed.state.lock().history.len(), 1, "it has not expired");
        let janitor = thread::spawn({
            let feed = feed.clone();
            move || janitor(&feed, Duration::ZERO, &shutdown)
        });
        let deadline = Instant::now() + PATIENCE;
        while !feed.state.lock().history.is_empty() {
            assert!(Instant::now() < deadline, "it was never evicted");
            thread::yield_now();
        }
        drop(open);
        join(janitor);
    }

    #[test]
    fn after_the_shutdown_every_subscriber_ends_and_no_other_is_admitted() {
        let feed = Arc::new(Feed::default());
        let (client, received) = bounded(1);
        let subscriber = thread::spawn({
            let feed = feed.clone();
            move || follow(&feed, 0, &client)
        });
        feed.publish(1, 97_000.0);
        received.recv_timeout(PATIENCE).expect("the first update");
        feed.close();
        join(subscriber);
        assert!(feed.subscribe(0).is_none());
    }
}
