//! The feed: the history of updates, and the subscribers that wait for the next one.
//! Shared by the poller (publishes), the janitor (expires), the heartbeat (beats), every client's
//! thread and the journal (subscribe). This room is about updates: it knows nothing of HTTP or of the
//! source.

mod cursor;
mod event;
pub mod heartbeat;
mod history;
pub mod janitor;
mod journal;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};
use parking_lot::Mutex;

use crate::system::METRICS;
pub use cursor::Cursor;
pub use event::{Event, Update};
pub use history::{Backlog, Dating, History};
pub use journal::Journal;

/// How many events a subscriber may be behind before it loses its channel. Few, because the channel
/// is memory per client, and because one that lost it finds what it missed in the history.
const CHANNEL_CAPACITY: usize = 8;

/// How long an update waits at most for the journal to have it, before all others get it.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Two locks, always taken in the order in which they stand here.
pub struct Feed {
    /// The channels that an update is handed to. Held while all of them are served, so two updates
    /// cannot overtake each other: `try_send` only, which never waits, and a moment for the journal.
    /// Whoever subscribes or leaves meanwhile waits for the end of it.
    subscribers: Mutex<Subscribers>,
    /// Held for a look or a push, never for I/O and never while threads are woken.
    state: Mutex<State>,
    /// Closes when the feed has closed and the last subscriber has left.
    all_gone: Receiver<Infallible>,
}

struct State {
    history: History,
    /// The status that newcomers have to be told: an event while prices are stale.
    stale: Option<Arc<Event>>,
    /// When anything was last sent to all.
    last_sent: Instant,
    /// Every subscription holds a clone of it. Gone when the feed has closed: nobody may subscribe
    /// any more.
    open: Option<Sender<Infallible>>,
}

/// A channel ends when its subscriber leaves, when that falls so far behind that it is full, or when
/// the feed closes.
#[derive(Default)]
struct Subscribers {
    /// The journal, by a channel without room: what is sent waits until it is taken.
    first: Option<Sender<Arc<Event>>>,
    /// By the number of each, in the order of arrival.
    others: BTreeMap<u64, Sender<Arc<Event>>>,
    last_number: u64,
}

/// What `subscribe` hands to a client's thread: everything up to now, and a channel for the rest.
pub struct Subscription {
    /// The status to be told first, while prices are stale.
    pub stale: Option<Arc<Event>>,
    pub backlog: Backlog,
    /// Events after the backlog; disconnected when the client fell behind or the feed closed.
    pub live: Receiver<Arc<Event>>,
    number: u64,
    feed: Arc<Feed>,
    /// `None` where the feed has closed.
    open: Option<Sender<Infallible>>,
}

/// How the feed is doing at one moment.
pub struct Condition {
    /// The newest update that has not expired.
    pub latest: Option<Update>,
    /// How many updates are retained.
    pub updates: usize,
    /// Time since the last update; `None` before the first.
    pub age: Option<Duration>,
    /// Whether prices have stopped coming.
    pub stale: bool,
}

impl Feed {
    pub fn new(history: History) -> Arc<Feed> {
        let (open, all_gone) = bounded(0);
        let state = State { history, stale: None, last_sent: Instant::now(), open: Some(open) };
        Arc::new(Feed { subscribers: Mutex::default(), state: Mutex::new(state), all_gone })
    }

    /// Publishes a price, and tells whether it did: one that an origin has dated and that is not newer
    /// than the last is known already. The journal has it before anybody else can see it. Called by
    /// the poller alone; never waits for a client.
    pub fn publish(&self, update: Update) -> bool {
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        // Once the feed has closed, nobody may see an update that the journal will not have.
        let is_open = state.open.is_some();
        let Some(update) = state.history.date(update).filter(|_| is_open) else { return false };
        let (newest, unsure) = (state.history.newest, state.history.unsure);
        drop(state);
        let event = Arc::new(Event::update(update));
        let gap = (unsure && newest > 0).then(|| Arc::new(event.after_gap(newest)));
        let told = gap.unwrap_or(event.clone());
        subscribers.first = subscribers.first.take().filter(|first| has_written(first, &told));
        self.send(&mut subscribers, |state| {
            state.history.push(update, event, Duration::ZERO);
            METRICS.updates_published.inc();
            let recovered = state.stale.take().map(|_| Arc::new(Event::fresh()));
            recovered.into_iter().chain([told]).collect()
        });
        true
    }

    /// Tells every subscriber, and whoever comes later, that prices have stopped coming.
    /// Called by the poller, once per outage; the next `publish` ends it.
    pub fn mark_stale(&self, reason: &str) {
        self.send(&mut self.subscribers.lock(), |state| {
            let newest = Some(state.history.newest).filter(|newest| *newest > 0);
            let event = Arc::new(Event::stale(newest, reason));
            state.stale = Some(event.clone());
            vec![event]
        });
    }

    /// Sends a heartbeat to every subscriber if nothing was sent for so long; returns when to look
    /// again. Called by the heartbeat.
    pub fn beat(&self, heartbeat: Duration) -> Instant {
        self.send(&mut self.subscribers.lock(), |state| {
            let is_due = state.last_sent.elapsed() >= heartbeat;
            is_due.then(|| Arc::new(Event::heartbeat())).into_iter().collect()
        });
        self.state.lock().last_sent + heartbeat
    }

    /// Hands to every channel what `make` finds to be told, if anything; a channel that is full is
    /// dropped, which its subscriber will notice.
    fn send(&self, to: &mut Subscribers, make: impl FnOnce(&mut State) -> Vec<Arc<Event>>) {
        let mut state = self.state.lock();
        let events = make(&mut state);
        if !events.is_empty() {
            state.last_sent = Instant::now();
        }
        drop(state);
        for event in events {
            to.others.retain(|_, channel| channel.try_send(event.clone()).is_ok());
        }
    }

    /// Takes the backlog after `from` and registers a channel for what follows, both under one lock:
    /// an update is in one of the two and never in both. `None` when the feed has closed.
    /// Called by a client's thread, again whenever its channel has ended.
    pub fn subscribe(self: &Arc<Self>, from: Cursor) -> Option<Subscription> {
        Some(self.register(from, CHANNEL_CAPACITY)).filter(|it| it.open.is_some())
    }

    /// The same for the journal, which is served before all others. Once the feed has closed, it is
    /// the last backlog and a channel that has ended. Called by its thread.
    pub fn subscribe_first(self: &Arc<Self>, from: Cursor) -> Subscription {
        self.register(from, 0)
    }

    /// The journal's `capacity` is 0: what is sent to it waits until it is taken.
    fn register(self: &Arc<Self>, from: Cursor, capacity: usize) -> Subscription {
        let (channel, live) = bounded(capacity);
        let mut subscribers = self.subscribers.lock();
        subscribers.last_number += 1;
        let number = subscribers.last_number;
        let mut state = self.state.lock();
        let (open, stale) = (state.open.clone(), state.stale.clone());
        if open.is_some() && capacity == 0 {
            subscribers.first = Some(channel);
        } else if open.is_some() {
            subscribers.others.insert(number, channel);
        }
        let backlog = state.history.backlog(from);
        Subscription { stale, backlog, live, number, feed: self.clone(), open }
    }

    /// Forgets what is older than the retention; returns when to do so again. Called by the janitor.
    pub fn expire(&self) -> Instant {
        self.state.lock().history.expire()
    }

    /// Ends every subscription and admits no other. The channel that it returns closes when the last
    /// subscriber has left. Called once, by `main`, when the service stops.
    pub fn close(&self) -> Receiver<Infallible> {
        let mut subscribers = self.subscribers.lock();
        self.state.lock().open = None;
        // Dropping the channels wakes them all: not while a lock is held.
        let leaving = mem::take(&mut *subscribers);
        drop(subscribers);
        drop(leaving);
        self.all_gone.clone()
    }

    /// How the feed is doing, for health and metrics.
    pub fn condition(&self) -> Condition {
        let state = self.state.lock();
        let (history, stale) = (&state.history, state.stale.is_some());
        let latest = history.updates.back().map(|entry| entry.update);
        let age = history.last_known.map(|(at, age)| age + at.elapsed());
        Condition { latest, updates: history.updates.len(), age, stale }
    }
}

/// Hands an update to the journal and waits until it is written, but not for long. False where it is
/// not; then the journal has lost its channel, and subscribes again when it can.
fn has_written(first: &Sender<Arc<Event>>, event: &Arc<Event>) -> bool {
    let deadline = Instant::now() + LONGEST_WAIT;
    // It takes the second when it is done with the first.
    let both = [event.clone(), Arc::new(Event::heartbeat())];
    let done = both.into_iter().all(|event| first.send_deadline(event, deadline).is_ok());
    METRICS.journal_late.add((!done && Instant::now() >= deadline).into());
    done
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // First, so that nobody who holds the lock waits for a journal that has given up.
        self.live = never();
        self.feed.subscribers.lock().others.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;

    const STARTED: u64 = 1_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn update(timestamp: u64) -> Update {
        Update { timestamp, price: timestamp as f64 }
    }

    fn feed_with(times: &[u64], capacity: usize) -> Arc<Feed> {
        let feed = Feed::new(History::new(Dating::Own, STARTED, HOUR, capacity));
        for &time in times {
            assert!(feed.publish(update(time)));
        }
        feed
    }

    /// The ids of the backlog, and what the gap says.
    fn ask(feed: &Arc<Feed>, from: Cursor) -> (Vec<u64>, Option<String>) {
        let subscription = feed.subscribe(from).unwrap();
        let text = subscription.backlog.wire();
        let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        let ids: Vec<u64> = ids.map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids.len(), subscription.backlog.updates);
        (ids, subscription.backlog.gap.as_ref().map(|gap| gap.wire.to_string()))
    }

    fn gap(since: u64, oldest: Option<u64>) -> Option<String> {
        Some(Event::gap(since, oldest).wire.to_string())
    }

    #[test]
    fn since_is_exclusive_and_the_latest_is_one() {
        let feed = feed_with(&[2_000, 3_000, 4_000], 10);
        assert_eq!(ask(&feed, Cursor::Latest), (vec![4_000], None));
        assert_eq!(ask(&feed, Cursor::After(2_000)), (vec![3_000, 4_000], None));
        assert_eq!(ask(&feed, Cursor::After(1_999)), (vec![2_000, 3_000, 4_000], None));
        assert_eq!(ask(&feed, Cursor::After(4_000)), (vec![], None));
        assert_eq!(ask(&feed, Cursor::After(9_000)), (vec![], None));
    }

    #[test]
    fn before_the_first_update_there_is_nothing_and_nothing_is_missing() {
        let feed = feed_with(&[], 10);
        assert_eq!(ask(&feed, Cursor::Latest), (vec![], None));
        assert_eq!(ask(&feed, Cursor::After(0)), (vec![], None));
        assert_eq!(ask(&feed, Cursor::After(STARTED)), (vec![], None));
        assert_eq!(ask(&feed, Cursor::After(STARTED - 1)), (vec![], gap(999, None)));
    }

    #[test]
    fn a_gap_is_told_exactly_when_something_is_gone() {
        let feed = feed_with(&[2_000, 3_000, 4_000, 5_000], 2);
        assert_eq!(ask(&feed, Cursor::After(3_000)), (vec![4_000, 5_000], None));
        assert_eq!(ask(&feed, Cursor::After(2_999)), (vec![4_000, 5_000], gap(2_999, Some(4_000))));
        assert_eq!(ask(&feed, Cursor::After(0)), (vec![4_000, 5_000], None));
        assert_eq!(ask(&feed, Cursor::Latest), (vec![5_000], None));
    }

    #[test]
    fn what_is_older_than_the_retention_expires() {
        let feed = Feed::new(History::new(Dating::Own, STARTED, Duration::ZERO, 10));
        feed.publish(update(2_000));
        feed.expire();
        assert_eq!(feed.condition().latest, None);
        assert_eq!(ask(&feed, Cursor::After(2_000)), (vec![], None));
        assert_eq!(ask(&feed, Cursor::After(1_500)), (vec![], gap(1_500, None)));
    }

    #[test]
    fn timestamps_rise_when_the_clock_steps_back() {
        let feed = feed_with(&[5_000, 2_000, 2_000, 5_001, 7_000], 10);
        assert_eq!(ask(&feed, Cursor::After(0)).0, [5_000, 5_001, 5_002, 5_003, 7_000]);
        let feed = feed_with(&[STARTED - 500], 10);
        assert_eq!(ask(&feed, Cursor::After(STARTED)).0, [STARTED + 1]);
    }

    #[test]
    fn a_dated_update_keeps_its_time_and_is_published_once() {
        let feed = Feed::new(History::new(Dating::Origin, STARTED, HOUR, 10));
        for (time, is_new) in [(400, true), (400, false), (300, false), (2_000, true)] {
            assert_eq!(feed.publish(update(time)), is_new);
        }
        assert_eq!(ask(&feed, Cursor::After(0)).0, [400, 2_000]);
        // It is older than this process, but nothing after it was lost.
        assert_eq!(ask(&feed, Cursor::After(400)), (vec![2_000], None));
        assert_eq!(ask(&feed, Cursor::After(399)), (vec![400, 2_000], gap(399, Some(400))));
    }

    #[test]
    fn after_a_restart_a_gap_is_told_when_it_is_known() {
        for (next, is_gap) in [(2_000, false), (5_000, true)] {
            let mut history = History::new(Dating::Origin, STARTED, HOUR * 24 * 365 * 100, 10);
            history.restore(&[update(1_000), update(2_000)], 0);
            let feed = Feed::new(history);
            let early = feed.subscribe(Cursor::After(2_000)).unwrap();
            assert!(early.backlog.gap.is_none(), "nobody can know yet");
            feed.publish(update(next));
            feed.publish(update(6_000));
            let told: String = early.live.try_iter().map(|event| event.wire.clone()).collect();
            let gap = gap(2_000, Some(5_000)).filter(|_| is_gap);
            assert!(told.starts_with(gap.as_deref().unwrap_or("id: 6000")), "{told}");
            assert_eq!(ask(&feed, Cursor::After(2_000)).1.is_some(), is_gap);
        }
    }

    #[test]
    fn a_long_backlog_is_the_same_as_a_short_one() {
        let times: Vec<u64> = (2_000..2_100).collect();
        let feed = feed_with(&times, 1_000);
        for start in 0..times.len() {
            assert_eq!(ask(&feed, Cursor::After(1_999 + start as u64)).0, times[start..]);
        }
    }

    #[test]
    fn who_falls_behind_loses_the_channel_and_nothing_else() {
        let feed = feed_with(&[], 1_000);
        let slow = feed.subscribe(Cursor::Latest).unwrap();
        for time in 0..100 {
            feed.publish(update(2_000 + time));
        }
        let received = slow.live.iter().count() as u64;
        assert!(received < 100, "a bounded channel");
        let position = Cursor::After(2_000 + received - 1);
        assert_eq!(ask(&feed, position).0.len() as u64, 100 - received);
    }

    #[test]
    fn stale_is_told_to_those_who_are_here_and_those_who_come() {
        let feed = feed_with(&[2_000], 10);
        let here = feed.subscribe(Cursor::Latest).unwrap();
        feed.mark_stale("timed out");
        let late = feed.subscribe(Cursor::Latest).unwrap();
        let stale = Event::stale(Some(2_000), "timed out").wire;
        assert_eq!(late.stale.as_ref().unwrap().wire, stale);
        feed.publish(update(3_000));
        let told = |subscription: &Subscription| -> Vec<_> {
            subscription.live.try_iter().map(|event| event.wire.clone()).collect()
        };
        let (fresh, told_late) = (Event::fresh().wire, told(&late));
        assert_eq!(told_late[0], fresh);
        assert_eq!(told(&here), [&[stale][..], &told_late].concat());
        assert!(feed.subscribe(Cursor::Latest).unwrap().stale.is_none());
    }

    #[test]
    fn who_leaves_costs_nothing_any_more() {
        let feed = feed_with(&[], 10);
        let settled = feed.subscribe(Cursor::Latest).unwrap();
        feed.publish(update(2_000));
        let fresh = feed.subscribe(Cursor::Latest).unwrap();
        drop((settled, fresh));
        assert!(feed.subscribers.lock().others.is_empty());
    }

    #[test]
    fn the_history_is_free_while_subscribers_are_served() {
        let feed = feed_with(&[2_000], 1_000);
        let all: Vec<_> =
            (0..20_000).map(|_| feed.subscribe(Cursor::After(2_000)).unwrap()).collect();
        // Whoever looks at the right moment sees the update while the last subscriber waits for it.
        let is_seen_early = |time: u64| {
            let publisher = std::thread::spawn({
                let feed = feed.clone();
                move || feed.publish(update(time))
            });
            while feed.condition().latest != Some(update(time)) {}
            let is_early = all[all.len() - 1].live.is_empty();
            publisher.join().unwrap();
            all.iter().for_each(|subscriber| drop(subscriber.live.try_recv()));
            is_early
        };
        assert!((2_001..2_200).any(is_seen_early), "only after all were served");
    }

    #[test]
    fn an_event_is_encoded_once_and_shared() {
        let feed = feed_with(&[], 10);
        let [one, other] = [(); 2].map(|()| feed.subscribe(Cursor::Latest).unwrap());
        feed.publish(update(2_000));
        assert!(Arc::ptr_eq(&one.live.recv().unwrap(), &other.live.recv().unwrap()));
    }

    #[test]
    fn nobody_sees_an_update_before_the_journal_has_written_it() {
        let feed = feed_with(&[2_000], 10);
        let other = feed.subscribe(Cursor::After(2_000)).unwrap();
        let journal = feed.subscribe_first(Cursor::After(0));
        assert_eq!(journal.backlog.updates, 1);
        let publisher = std::thread::spawn({
            let feed = feed.clone();
            move || feed.publish(update(3_000))
        });
        assert_eq!(journal.live.recv().unwrap().update, Some(update(3_000)));
        // It is being written now.
        assert_eq!(feed.condition().latest, Some(update(2_000)));
        assert!(other.live.is_empty());
        assert_eq!(journal.live.recv().unwrap().update, None);
        assert!(publisher.join().unwrap());
        assert_eq!(other.live.recv().unwrap().update, Some(update(3_000)));
    }

    #[test]
    fn a_journal_that_hangs_stops_nobody_and_loses_nothing() {
        let feed = feed_with(&[], 100);
        let other = feed.subscribe(Cursor::Latest).unwrap();
        let journal = feed.subscribe_first(Cursor::After(0));
        for time in 2_000..2_005 {
            feed.publish(update(time));
            assert_eq!(other.live.recv().unwrap().update, Some(update(time)));
        }
        assert!(journal.live.recv().is_err(), "it has lost its channel");
        assert!(METRICS.journal_late.get() > 0);
        let again = feed.subscribe_first(Cursor::After(2_001));
        assert_eq!(again.backlog.updates, 3);
    }

    #[test]
    fn closing_ends_every_subscription_and_admits_no_other() {
        let feed = feed_with(&[], 10);
        let settled = feed.subscribe(Cursor::Latest).unwrap();
        feed.publish(update(2_000));
        let fresh = feed.subscribe(Cursor::Latest).unwrap();
        let all_gone = feed.close();
        assert_eq!((settled.live.iter().count(), fresh.live.iter().count()), (1, 0));
        assert!(feed.subscribe(Cursor::Latest).is_none());
        assert!(!feed.publish(update(3_000)), "the journal would not have it");
        // Which has one more look at what it may have missed.
        let rest = feed.subscribe_first(Cursor::After(STARTED));
        assert_eq!((rest.backlog.updates, rest.live.iter().count()), (1, 0));
        drop(settled);
        assert_eq!(all_gone.try_recv(), Err(TryRecvError::Empty), "one is still here");
        drop(fresh);
        assert_eq!(all_gone.try_recv(), Err(TryRecvError::Disconnected));
    }
}
