//! The feed: the history of updates, and the subscribers that wait for the next one. Shared by the
//! poller or the follower (publishes), the janitor (expires), the heartbeat (beats) and every client's
//! thread (subscribes). This room is about updates: nothing here knows the source (only whether its
//! prices are made up), nor a client's connection. Of the way out it knows only the wire form of an
//! event.

mod cursor;
mod event;
pub mod heartbeat;
mod history;
pub mod janitor;
mod journal;
mod lock;
mod publisher;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::system::METRICS;
pub use cursor::Cursor;
pub use event::{Event, Update};
pub use history::{Backlog, History};
pub use journal::Journal;
use lock::Mutex;
pub use publisher::Publisher;

/// How many events a subscriber may be behind before it loses its channel. Few, because the channel
/// is memory per client, and because one that lost it finds what it missed in the history.
const CHANNEL_CAPACITY: usize = 8;

/// What is written to a client that has gone reaches its machine, which answers that nobody is there: only
/// the second write fails. So a full service searches for those who have gone by two comments, so far
/// apart.
const SEARCH_COMMENTS: u32 = 2;
const SEARCH_PAUSE: Duration = Duration::from_millis(750);
/// However many clients find no place, it searches no more often than this.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

/// Why there is no price, where nobody knows more.
const NO_NEW_PRICE: &str = "no new price";

/// Two locks, always taken in the order in which they stand here.
pub struct Feed {
    /// The channels that an event is handed to. Held while all of them are served, so two events cannot
    /// overtake each other: `try_send` only, which never waits. Held too while a newcomer takes its
    /// backlog. Whoever subscribes or leaves meanwhile waits.
    subscribers: Mutex<Subscribers>,
    /// Held for a look, a push, or at most one pass over the history (some ms at 100,000 updates), never
    /// for I/O and never while threads are woken.
    state: Mutex<State>,
    /// Wakes the heartbeat's thread before its time. Never ends: the feed has both ends.
    wake_heartbeat: Sender<()>,
    wakes: Receiver<()>,
    /// Nothing is sent on it (`Infallible` has no value). It closes when its other end, `State::presence`,
    /// and all clones of that are dropped: when the feed has closed and the last subscriber has left.
    all_gone: Receiver<Infallible>,
    /// Whether prices are made up: every status says so.
    made_up: bool,
}

struct State {
    history: History,
    /// From then on prices are stale, unless the source is heard before.
    stale_at: Instant,
    /// Why the source fails: told when prices become stale.
    reason: String,
    is_stale: bool,
    /// What newcomers are told of it.
    status: Arc<Event>,
    /// When anything was last sent to all.
    last_sent: Instant,
    /// The comments that the search for those who have gone still has to send, and when there may be
    /// another search.
    search_comments: u32,
    next_search: Instant,
    /// Every subscriber's `Channel` holds a clone of it. `None` when the feed has closed: nobody may
    /// subscribe any more.
    presence: Option<Sender<Infallible>>,
}

/// A channel ends when its subscriber leaves, when it is full because its subscriber is too slow, or when
/// the feed closes.
#[derive(Default)]
struct Subscribers {
    /// By the number of each, in the order of arrival.
    channels: BTreeMap<u64, Sender<Arc<Event>>>,
    last_number: u64,
}

/// What `subscribe` hands to a client's thread: everything up to now, and a channel for the rest.
pub struct Subscription {
    /// To be told first, where there is something to tell.
    pub status: Option<Arc<Event>>,
    pub backlog: Backlog,
    pub channel: Channel,
}

/// A subscriber's end of its channel. Who drops it has left.
pub struct Channel {
    /// Events after the backlog; disconnected when the client fell behind or the feed closed.
    pub live: Receiver<Arc<Event>>,
    number: u64,
    feed: Arc<Feed>,
    /// Tells `main` when the last one has gone.
    _presence: Sender<Infallible>,
}

/// How the feed is doing at one moment.
pub struct Snapshot {
    /// The newest update.
    pub latest: Option<Update>,
    /// How many updates are retained.
    pub updates: usize,
    /// How old the newest update is; `None` before the first.
    pub age: Option<Duration>,
    /// Whether prices have stopped coming.
    pub is_stale: bool,
}

impl Feed {
    /// Prices are stale where no source is heard for `patience`. Where the history has updates already, the
    /// age of the newest is taken off that. Called by `main`.
    pub fn new(history: History, made_up: bool, patience: Duration) -> Arc<Feed> {
        let now = Instant::now();
        let (presence, all_gone) = bounded(0);
        let (wake_heartbeat, wakes) = bounded(1);
        let age = history.age().unwrap_or_default();
        let state = State {
            history,
            stale_at: now + patience.saturating_sub(age),
            reason: NO_NEW_PRICE.to_owned(),
            is_stale: false,
            status: Arc::new(Event::fresh(made_up)),
            last_sent: now,
            search_comments: 0,
            next_search: now,
            presence: Some(presence),
        };
        Arc::new(Feed {
            subscribers: Mutex::default(),
            state: Mutex::new(state),
            wake_heartbeat,
            wakes,
            all_gone,
            made_up,
        })
    }

    /// Publishes an update, whose timestamp is above that of the last. Called by the publisher alone;
    /// never waits for a client.
    pub fn publish(&self, update: Update) {
        self.add_and_send(update, false);
    }

    /// The same for an update before which others are missing: whoever needs them is told.
    pub fn publish_after_gap(&self, update: Update) {
        self.add_and_send(update, true);
    }

    fn add_and_send(&self, update: Update, is_after_gap: bool) {
        let event = Arc::new(Event::update(update));
        let mut outgoing = event.clone();
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        if is_after_gap {
            outgoing = Arc::new(event.after_gap(state.history.newest()));
            // Who asks for all there is (`since=0`, as a new replica does) is never told of a gap. So the
            // history must have no hole, and what came before this one is forgotten.
            state.history.start_anew(Some(update.timestamp));
        }
        state.history.push(update, event);
        METRICS.updates_published.inc();
        state.last_sent = Instant::now();
        drop(state);
        send(&mut subscribers, &outgoing);
    }

    /// The present as the timestamp of the next update, above all others. Called by the poller. No other
    /// thread publishes, so it is still free then.
    pub fn next_timestamp(&self) -> u64 {
        self.state.lock().history.next_timestamp()
    }

    /// The source was heard: prices count as fresh for `patience` from now. Tells everybody, where they
    /// were stale. Called by the poller or the follower.
    pub fn source_is_well(&self, patience: Duration) {
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        state.stale_at = Instant::now() + patience;
        NO_NEW_PRICE.clone_into(&mut state.reason);
        if state.is_stale {
            state.is_stale = false;
            state.status = Arc::new(Event::fresh(self.made_up));
            let status = state.status.clone();
            state.last_sent = Instant::now();
            drop(state);
            send(&mut subscribers, &status);
            // While prices were stale the heartbeat slept without regard to `stale_at`.
            self.wake();
        }
    }

    /// The source fails: prices are stale after `patience` at the latest, and this is the reason.
    /// Called by the poller or the follower; the heartbeat tells it when it is time.
    pub fn source_fails(&self, reason: &str, patience: Duration) {
        let mut state = self.state.lock();
        state.stale_at = state.stale_at.min(Instant::now() + patience);
        reason.clone_into(&mut state.reason);
        drop(state);
        self.wake();
    }

    /// The service is full, so those who have gone are to be found, unless that was just done. Called by
    /// the thread of a client who found no place.
    pub fn find_gone(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if now < state.next_search {
            return;
        }
        state.next_search = now + SEARCH_EVERY;
        state.search_comments = SEARCH_COMMENTS;
        drop(state);
        self.wake();
    }

    /// Wakes the heartbeat.
    fn wake(&self) {
        // Where a word is waiting already, it is enough: whoever is woken looks at everything.
        let _ = self.wake_heartbeat.try_send(());
    }

    /// Where prices have become stale and nobody was told yet: tells all, and returns why. Called by the
    /// heartbeat.
    pub fn tell_if_stale(&self) -> Option<String> {
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        if state.is_stale || Instant::now() < state.stale_at {
            return None;
        }
        let since = state.history.latest().map(|update| update.timestamp);
        let reason = state.reason.clone();
        let status = Arc::new(Event::stale(self.made_up, since, &reason));
        state.is_stale = true;
        state.status = status.clone();
        state.last_sent = Instant::now();
        drop(state);
        send(&mut subscribers, &status);
        Some(reason)
    }

    /// Sends all a comment, which says nothing, where streams have been quiet for too long. Called by the
    /// heartbeat.
    pub fn keep_open(&self, heartbeat: Duration) {
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        if Instant::now() < state.quiet_until(heartbeat) {
            return;
        }
        state.search_comments = state.search_comments.saturating_sub(1);
        state.last_sent = Instant::now();
        drop(state);
        send(&mut subscribers, &Arc::new(Event::heartbeat()));
    }

    /// When streams have been quiet for too long, or prices are stale, whichever comes first. Called by
    /// the heartbeat.
    pub fn next_deadline(&self, heartbeat: Duration) -> Instant {
        let state = self.state.lock();
        let quiet_until = state.quiet_until(heartbeat);
        if state.is_stale { quiet_until } else { quiet_until.min(state.stale_at) }
    }

    /// Takes the backlog after `from` and registers a channel for what follows, both while it has the
    /// lock without which nothing is published: an update is in one of the two and never in both.
    /// `None` when the feed has closed. Called by a client's thread, again whenever its channel has
    /// ended.
    pub fn subscribe(self: &Arc<Self>, from: Cursor) -> Option<Subscription> {
        let (sender, live) = bounded(CHANNEL_CAPACITY);
        let mut subscribers = self.subscribers.lock();
        let mut state = self.state.lock();
        let presence = state.presence.clone()?;
        let is_new = from == Cursor::Latest;
        let limit = if is_new { 1 } else { usize::MAX };
        let backlog = state.history.backlog(from, limit);
        // A new client takes prices for real and fresh. One that comes back may have been told otherwise.
        let needs_status = !is_new || state.is_stale || self.made_up;
        let status = if needs_status { Some(state.status.clone()) } else { None };
        subscribers.last_number += 1;
        let number = subscribers.last_number;
        subscribers.channels.insert(number, sender);
        let channel = Channel { live, number, feed: self.clone(), _presence: presence };
        Some(Subscription { status, backlog, channel })
    }

    /// Some of the history: the first `limit` updates after a cursor, or the latest ones. Called by a
    /// client's thread, and by the publisher, whose journal is written anew from it.
    pub fn backlog(&self, from: Cursor, limit: usize) -> Backlog {
        self.state.lock().history.backlog(from, limit)
    }

    /// Forgets what is older than the retention; returns when to do so again. Called by the janitor.
    pub fn expire(&self) -> Instant {
        self.state.lock().history.expire()
    }

    /// Ends every subscription and admits no other. The channel that it returns closes when the last
    /// subscriber has left. Called once, by `main`, when the service stops.
    pub fn close(&self) -> Receiver<Infallible> {
        let mut subscribers = self.subscribers.lock();
        self.state.lock().presence = None;
        // Dropping the channels wakes them all: not while a lock is held.
        let leaving = mem::take(&mut *subscribers);
        drop(subscribers);
        drop(leaving);
        self.all_gone.clone()
    }

    /// How the feed is doing, for health, metrics and whoever publishes.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        let history = &state.history;
        Snapshot {
            latest: history.latest(),
            updates: history.count(),
            age: history.age(),
            is_stale: state.is_stale,
        }
    }
}

impl State {
    /// When streams will have been quiet for too long: for `heartbeat`, or during a search for less.
    fn quiet_until(&self, heartbeat: Duration) -> Instant {
        let longest =
            if self.search_comments > 0 { SEARCH_PAUSE.min(heartbeat) } else { heartbeat };
        self.last_sent + longest
    }
}

/// Hands an event to every channel. Called when the state is free again. A channel that is full is
/// dropped, which its subscriber will notice.
fn send(subscribers: &mut Subscribers, event: &Arc<Event>) {
    let mut fell_behind = Vec::new();
    for (number, channel) in &subscribers.channels {
        if channel.try_send(event.clone()).is_err() {
            fell_behind.push(*number);
        }
    }
    for number in fell_behind {
        subscribers.channels.remove(&number);
        METRICS.clients_fell_behind.inc();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.feed.subscribers.lock().channels.remove(&self.number);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;
    use crate::system::unix_millis;

    const STARTED: u64 = 1_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn update(timestamp: u64) -> Update {
        Update { timestamp, price: timestamp as f64 }
    }

    fn empty_feed(complete_since: Option<u64>, retention: Duration, capacity: usize) -> Arc<Feed> {
        Feed::new(History::new(complete_since, retention, capacity), false, HOUR)
    }

    /// These timestamps are long ago: the retention is longer.
    fn feed_with(times: &[u64], capacity: usize) -> Arc<Feed> {
        let feed = empty_feed(Some(STARTED), 1_000_000 * HOUR, capacity);
        for &time in times {
            feed.publish(update(time));
        }
        feed
    }

    /// The ids of the backlog, and what the gap says.
    fn ask(feed: &Arc<Feed>, from: Cursor) -> (Vec<u64>, Option<String>) {
        let backlog = feed.subscribe(from).unwrap().backlog;
        let text = backlog.wire();
        let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        let ids: Vec<u64> = ids.map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids.len(), backlog.updates);
        (ids, backlog.gap.map(|gap| gap.wire.to_string()))
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
    fn what_is_older_than_the_retention_expires_but_for_the_newest() {
        let feed = empty_feed(Some(STARTED), Duration::ZERO, 10);
        feed.publish(update(2_000));
        feed.expire();
        assert_eq!(feed.snapshot().latest, Some(update(2_000)));
        feed.publish(update(3_000));
        feed.expire();
        assert_eq!(ask(&feed, Cursor::After(2_000)), (vec![3_000], None));
        assert_eq!(ask(&feed, Cursor::After(1_500)), (vec![3_000], gap(1_500, Some(3_000))));
        assert_eq!(ask(&feed, Cursor::Latest), (vec![3_000], None));
    }

    #[test]
    fn timestamps_are_the_present_and_rise_when_the_clock_steps_back() {
        let before = unix_millis();
        let feed = feed_with(&[], 10);
        assert!((before..=unix_millis()).contains(&feed.next_timestamp()));
        let ahead = before + 3_600_000;
        feed.publish(update(ahead));
        assert_eq!(feed.next_timestamp(), ahead + 1);
        let feed = empty_feed(Some(ahead), HOUR, 10);
        assert_eq!(feed.next_timestamp(), ahead + 1, "after all that may have been before");
    }

    #[test]
    fn where_nobody_knows_what_was_before_the_first_update_decides() {
        let feed = empty_feed(None, HOUR * 1_000_000, 10);
        feed.publish(update(400));
        feed.publish(update(2_000));
        assert_eq!(ask(&feed, Cursor::After(0)), (vec![400, 2_000], None));
        assert_eq!(ask(&feed, Cursor::After(400)), (vec![2_000], None));
        assert_eq!(ask(&feed, Cursor::After(399)), (vec![400, 2_000], gap(399, Some(400))));
    }

    #[test]
    fn a_gap_in_the_middle_is_told_to_all_who_are_before_it() {
        let feed = feed_with(&[2_000, 3_000], 10);
        let here = feed.subscribe(Cursor::After(3_000)).unwrap();
        feed.publish_after_gap(update(5_000));
        feed.publish(update(6_000));
        let live: String = here.channel.live.try_iter().map(|event| event.wire.clone()).collect();
        let [first, second] = [5_000, 6_000].map(|time| Event::update(update(time)).wire);
        assert_eq!(live, format!("{}{first}{second}", gap(3_000, Some(5_000)).unwrap()));
        assert_eq!(ask(&feed, Cursor::After(3_000)).1, gap(3_000, Some(5_000)));
        assert_eq!(ask(&feed, Cursor::After(2_000)).1, gap(2_000, Some(5_000)));
        assert_eq!(ask(&feed, Cursor::After(0)), (vec![5_000, 6_000], None), "one piece");
        assert_eq!(ask(&feed, Cursor::After(5_000)), (vec![6_000], None));
        assert_eq!(ask(&feed, Cursor::After(4_999)).1, gap(4_999, Some(5_000)));
    }

    #[test]
    fn a_limit_cuts_off_what_comes_after_it_or_before_the_latest() {
        let feed = feed_with(&[2_000, 3_000, 4_000, 5_000, 6_000], 4);
        let times = |from, limit| {
            let backlog = feed.backlog(from, limit);
            let json = backlog.json().map(|json| serde_json::from_str::<Update>(json).unwrap());
            let times: Vec<u64> = json.map(|update| update.timestamp).collect();
            assert_eq!(times.len(), backlog.updates);
            (times, backlog.gap.map(|gap| gap.wire.to_string()))
        };
        assert_eq!(times(Cursor::Latest, 10), (vec![3_000, 4_000, 5_000, 6_000], None));
        assert_eq!(times(Cursor::Latest, 2), (vec![5_000, 6_000], None));
        assert_eq!(times(Cursor::After(0), 2), (vec![3_000, 4_000], None));
        assert_eq!(times(Cursor::After(4_000), usize::MAX), (vec![5_000, 6_000], None));
        assert_eq!(times(Cursor::After(6_000), 1), (vec![], None));
        assert_eq!(times(Cursor::After(1_999), 1), (vec![3_000], gap(1_999, Some(3_000))));
        assert_eq!(feed_with(&[], 4).backlog(Cursor::Latest, 5).updates, 0);
    }

    #[test]
    fn a_backlog_is_cut_out_of_all_that_is_joined() {
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
        let received = slow.channel.live.iter().count() as u64;
        assert!(received < 100, "a bounded channel");
        let position = Cursor::After(2_000 + received - 1);
        assert_eq!(ask(&feed, position).0.len() as u64, 100 - received);
    }

    #[test]
    fn stale_is_told_when_its_time_has_come_to_those_who_are_here_and_those_who_come() {
        let feed = feed_with(&[2_000], 10);
        let wires = |subscription: &Subscription| -> Vec<String> {
            subscription.channel.live.try_iter().map(|event| event.wire.to_string()).collect()
        };
        let told_first = |from| Some(feed.subscribe(from)?.status.as_ref()?.wire.clone());
        let here = feed.subscribe(Cursor::Latest).unwrap();
        feed.source_is_well(HOUR);
        feed.source_fails("timed out", HOUR);
        feed.tell_if_stale();
        assert!(wires(&here).is_empty(), "there is time");
        assert_eq!(told_first(Cursor::Latest), None);

        feed.source_fails("timed out", Duration::ZERO);
        // It is said once.
        for _ in 0..3 {
            feed.tell_if_stale();
        }
        let stale = Event::stale(false, Some(2_000), "timed out").wire;
        assert_eq!(wires(&here).concat(), *stale);
        for from in [Cursor::Latest, Cursor::After(2_000)] {
            assert_eq!(told_first(from), Some(stale.clone()));
        }
        feed.source_is_well(HOUR);
        let fresh = Event::fresh(false).wire;
        assert_eq!(wires(&here).concat(), *fresh);
        assert_eq!(told_first(Cursor::Latest), None);
        assert_eq!(told_first(Cursor::After(2_000)), Some(fresh), "it may have heard otherwise");
    }

    #[test]
    fn who_leaves_costs_nothing_any_more() {
        let feed = feed_with(&[], 10);
        let settled = feed.subscribe(Cursor::Latest).unwrap();
        feed.publish(update(2_000));
        let fresh = feed.subscribe(Cursor::Latest).unwrap();
        drop((settled, fresh));
        assert!(feed.subscribers.lock().channels.is_empty());
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
            while feed.snapshot().latest != Some(update(time)) {}
            let is_early = all[all.len() - 1].channel.live.is_empty();
            publisher.join().unwrap();
            all.iter().for_each(|subscriber| drop(subscriber.channel.live.try_recv()));
            is_early
        };
        assert!((2_001..2_200).any(is_seen_early), "only after all were served");
    }

    #[test]
    fn an_event_is_encoded_once_and_shared() {
        let feed = feed_with(&[], 10);
        let [one, other] = [(); 2].map(|()| feed.subscribe(Cursor::Latest).unwrap());
        feed.publish(update(2_000));
        assert!(Arc::ptr_eq(
            &one.channel.live.recv().unwrap(),
            &other.channel.live.recv().unwrap()
        ));
    }

    #[test]
    fn closing_ends_every_subscription_and_admits_no_other() {
        let feed = feed_with(&[], 10);
        let settled = feed.subscribe(Cursor::Latest).unwrap();
        feed.publish(update(2_000));
        let fresh = feed.subscribe(Cursor::Latest).unwrap();
        let all_gone = feed.close();
        assert_eq!(
            (settled.channel.live.iter().count(), fresh.channel.live.iter().count()),
            (1, 0)
        );
        assert!(feed.subscribe(Cursor::Latest).is_none());
        drop(settled);
        assert_eq!(all_gone.try_recv(), Err(TryRecvError::Empty), "one is still here");
        drop(fresh);
        assert_eq!(all_gone.try_recv(), Err(TryRecvError::Disconnected));
    }
}
