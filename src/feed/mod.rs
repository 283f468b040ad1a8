//! Publish/subscribe for price updates. One `Publisher` appends to the history and fans out to all
//! subscribers; `subscribe` returns a page of backlog and, with the last page, a live channel. Taking the
//! last page and registering the channel is one critical section, so no update is lost or duplicated in
//! between. Called from the poller or the reader (publish), the janitor (expire), the heartbeat (announce)
//! and every client's thread (subscribe).

mod cursor;
mod event;
pub mod freshness;
pub mod heartbeat;
mod history;
pub mod janitor;
mod lock;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::system::{METRICS, unix_millis};
pub use cursor::Cursor;
pub use event::{Event, Gap, Kind, Status, Update, to_json};
pub use history::{Found, History, Page};
use lock::Mutex;

/// Events a subscriber may fall behind before it loses its channel. Small, because the channel is memory
/// per client, and a client that lost its channel reads what it missed from the history.
const CHANNEL_CAPACITY: usize = 8;

/// Creates a feed: the publisher, which is the only way to publish, and the shared handle for all other threads.
/// Called by `main`.
pub fn new(history: History, simulated: bool) -> (Publisher, Arc<Feed>) {
    let feed =
        Arc::new(Feed { subscribers: Mutex::default(), history: Mutex::new(history), simulated });
    (Publisher { feed: feed.clone() }, feed)
}

/// The history and its subscribers.
pub struct Feed {
    /// Guards the subscriber list. Held while an event is handed to every channel (`try_send` only, so
    /// it never blocks), which keeps events in order, and while a client takes a page. Acquire before
    /// `history`.
    subscribers: Mutex<Subscribers>,
    /// Guards the history. Held to append, to expire or to copy a page; never for I/O and never while
    /// threads are woken.
    history: Mutex<History>,
    /// Whether prices are simulated: every status says so.
    simulated: bool,
}

/// The write side of the feed. Not `Clone`, so a feed has one writer: the poller or the reader.
pub struct Publisher {
    feed: Arc<Feed>,
}

#[derive(Default)]
struct Subscribers {
    /// The sending ends, by number. A channel ends when its subscriber leaves, when it is full because its
    /// subscriber is too slow, when a batch is published, or when the feed closes.
    channels: BTreeMap<u64, Sender<Arc<Event>>>,
    last_number: u64,
    /// Why prices are stale; `None` while they are fresh.
    stale: Option<String>,
    /// How often that has changed.
    status_version: u64,
    is_closed: bool,
}

/// What `subscribe` hands to a client's thread.
pub struct Subscription {
    pub status: Status,
    /// The version of the status: a client that has received it need not receive it again.
    pub status_version: u64,
    pub page: Page,
    /// Events after the page; `None` if there are more pages.
    pub channel: Option<Channel>,
}

/// The state of the feed, for health and metrics.
pub struct Summary {
    pub latest: Option<Update>,
    /// The age of the newest update.
    pub age: Option<Duration>,
    /// The number of updates retained.
    pub updates: usize,
    /// Why prices are stale; `None` while they are fresh.
    pub stale: Option<String>,
    pub is_closed: bool,
}

/// A subscriber's end of its channel. Dropping it unsubscribes.
pub struct Channel {
    /// Disconnects when the subscriber has to subscribe again: it fell behind, a batch was published, or the
    /// feed has closed.
    pub live: Receiver<Arc<Event>>,
    number: u64,
    feed: Arc<Feed>,
}

impl Publisher {
    /// Publishes updates, oldest first, with timestamps above that of the newest update. A single update goes
    /// into every channel. More than one ends the channels instead, and every subscriber fetches the
    /// updates as pages, from its own position. Never waits for a client.
    pub fn publish(&mut self, updates: &[Update]) {
        self.append(None, updates);
    }

    /// Publishes updates after a possible gap: everything retained before is dropped. A client whose cursor
    /// is below `complete_since` (Unix milliseconds) may have missed something and receives a `gap`.
    pub fn start_over(&mut self, complete_since: u64, updates: &[Update]) {
        self.append(Some(complete_since), updates);
    }

    fn append(&self, complete_since: Option<u64>, updates: &[Update]) {
        let events: Vec<_> =
            updates.iter().map(|&update| Arc::new(Event::update(update))).collect();
        // Held from before the append until after the fan-out, so that `subscribe` sees both or neither. The
        // history is released earlier: reading it need not wait for the fan-out.
        let mut subscribers = self.feed.subscribers.lock();
        let mut history = self.feed.history.lock();
        if let Some(complete_since) = complete_since {
            history.start_over(complete_since);
        }
        for (&update, event) in updates.iter().zip(&events) {
            history.push(update, event.clone());
        }
        drop(history);
        METRICS.updates_published.add(updates.len() as u64);
        match events.as_slice() {
            [event] if complete_since.is_none() => subscribers.send(event),
            _ => {
                let ended = mem::take(&mut subscribers.channels);
                // Dropping the channels wakes their subscribers: not while a lock is held. They find the updates in
                // the history.
                drop(subscribers);
                drop(ended);
            }
        }
    }
}

impl Feed {
    /// Returns the page of backlog after `from` and, if it is the last one, a channel for what follows.
    /// Returns `None` once the feed has closed. Called by a client's thread, again after each page that
    /// comes without a channel, and whenever its channel has ended.
    pub fn subscribe(self: &Arc<Self>, from: Cursor) -> Option<Subscription> {
        let mut subscribers = self.subscribers.lock();
        if subscribers.is_closed {
            return None;
        }
        let history = self.history.lock();
        let page = history.page(from);
        let status = self.status(&subscribers, &history);
        let status_version = subscribers.status_version;
        drop(history);
        let channel = if page.is_last {
            let (sender, live) = bounded(CHANNEL_CAPACITY);
            let number = subscribers.add(sender);
            Some(Channel { live, number, feed: self.clone() })
        } else {
            None
        };
        Some(Subscription { status, status_version, page, channel })
    }

    /// Returns the first `limit` updates after a cursor, or the latest ones.
    pub fn find(&self, from: Cursor, limit: usize) -> Found {
        self.history.lock().find(from, limit)
    }

    /// Returns the newest update.
    pub fn latest(&self) -> Option<Update> {
        self.history.lock().latest()
    }

    /// Returns the state of the feed.
    pub fn summary(&self) -> Summary {
        let subscribers = self.subscribers.lock();
        let history = self.history.lock();
        Summary {
            latest: history.latest(),
            age: history.age(),
            updates: history.count(),
            stale: subscribers.stale.clone(),
            is_closed: subscribers.is_closed,
        }
    }

    /// Returns the timestamp for the next update: now, or one above the newest. Called by the thread that
    /// owns the publisher, so the timestamp is still free when it publishes.
    pub fn next_timestamp(&self) -> u64 {
        self.history.lock().next_timestamp()
    }

    /// Drops updates older than the retention; returns when to do so again. Called by the janitor.
    pub fn expire(&self) -> Instant {
        self.history.lock().expire()
    }

    /// Tells every client, now or when it subscribes, why prices are stale, or that they are fresh again
    /// (`None`). Called by the heartbeat.
    pub fn announce(&self, stale: Option<String>) {
        let mut subscribers = self.subscribers.lock();
        subscribers.stale = stale;
        subscribers.status_version += 1;
        let status = self.status(&subscribers, &self.history.lock());
        let event = Event::status(&status, subscribers.status_version);
        subscribers.send(&Arc::new(event));
    }

    /// Sends every client a comment, which keeps idle connections open. Called by the heartbeat.
    pub fn keep_alive(&self) {
        self.subscribers.lock().send(&Arc::new(Event::keep_alive()));
    }

    /// Ends all subscriptions and admits no more. Called once, by `main`.
    pub fn close(&self) {
        let mut subscribers = self.subscribers.lock();
        subscribers.is_closed = true;
        let ended = mem::take(&mut subscribers.channels);
        // Dropping the channels wakes their subscribers: not while a lock is held.
        drop(subscribers);
        drop(ended);
    }

    fn status(&self, subscribers: &Subscribers, history: &History) -> Status {
        let reason = subscribers.stale.clone();
        Status {
            simulated: self.simulated,
            stale: reason.is_some(),
            reason,
            latest: history.latest().map(|update| update.timestamp),
            now: unix_millis(),
        }
    }
}

impl Subscribers {
    fn add(&mut self, channel: Sender<Arc<Event>>) -> u64 {
        self.last_number += 1;
        self.channels.insert(self.last_number, channel);
        self.last_number
    }

    /// Hands an event to every channel. A full channel is dropped, which its subscriber notices.
    fn send(&mut self, event: &Arc<Event>) {
        let before = self.channels.len();
        self.channels.retain(|_, channel| channel.try_send(event.clone()).is_ok());
        METRICS.clients_fell_behind.add((before - self.channels.len()) as u64);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.feed.subscribers.lock().channels.remove(&self.number);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
