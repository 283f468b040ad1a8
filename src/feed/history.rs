//! The history: the updates that are retained, and what is known of those that are not.
//! Owned by the feed, under whose lock all of this runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cursor::Cursor;
use super::event::{Event, Update};
use crate::system::unix_millis;

/// A backlog up to this long is joined for the client; a longer one is cut out of what all share.
const SMALL_BACKLOG: usize = 64;

pub struct History {
    pub(super) updates: VecDeque<Entry>,
    /// The wire form of all `updates` back to back, made when a client first needs it and dropped
    /// at the next change: a crowd that comes back at once shares one copy.
    joined: Option<Arc<str>>,
    /// A cursor below this has missed something. It is the newest update that is gone, or the first one
    /// after a gap, or else the start of this process.
    horizon: u64,
    /// Whether updates may be missing between the newest and the next one. That one is then the horizon.
    pub(super) unsure: bool,
    /// The newest timestamp ever given (0: none), so that they increase even when the clock steps back.
    pub(super) newest: u64,
    /// When it was last known how old the newest update is, and what it was.
    pub(super) last_known: Option<(Instant, Duration)>,
    dating: Dating,
    retention: Duration,
    capacity: usize,
}

pub(super) struct Entry {
    pub(super) update: Update,
    event: Arc<Event>,
    /// By the clock that never steps, because it must not depend on the one that does.
    expires: Instant,
    /// Where its wire form begins, counted from where that of some earlier update did.
    begin: usize,
}

/// Where the timestamps of updates come from: the same for all updates of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dating {
    /// This machine's clock. Where that has stepped back, an update is dated just after the last.
    Own,
    /// An origin's word, kept as it is. Other replicas of it have the same updates, and a client may
    /// come from one that was ahead.
    Origin,
}

impl Dating {
    /// Clocks of replicas and origin may differ by so many milliseconds.
    const CLOCKS_DIFFER: u64 = 60_000;

    /// Whether an update above the newest may have this timestamp: nobody can have had one of the
    /// future, or one that our own clock has yet to date.
    fn expects(self, timestamp: u64) -> bool {
        self == Dating::Origin && timestamp < unix_millis() + Dating::CLOCKS_DIFFER
    }
}

/// What a client has missed: updates in their wire form, oldest first, ready to be written at once.
pub struct Backlog {
    /// Told first, where something between the cursor and these updates is gone.
    pub gap: Option<Event>,
    pub updates: usize,
    /// Where a client that has written all of this goes on.
    pub position: Cursor,
    pub(crate) joined: Arc<str>,
    pub(crate) start: usize,
}

impl Backlog {
    pub fn wire(&self) -> &str {
        &self.joined[self.start..]
    }
}

impl History {
    /// An empty history that keeps updates for `retention`, and never more than `capacity` of them.
    /// `started` is the present (Unix milliseconds): nothing is known of what came before.
    pub fn new(dating: Dating, started: u64, retention: Duration, capacity: usize) -> History {
        History {
            updates: VecDeque::new(),
            joined: None,
            // An origin may have published anything before, and by a clock of its own.
            horizon: if dating == Dating::Own { started } else { u64::MAX },
            unsure: dating == Dating::Origin,
            newest: 0,
            last_known: None,
            dating,
            retention,
            capacity,
        }
    }

    /// Takes in what an earlier process has journalled, oldest first, with its true age. Updates may be
    /// missing just before the index `complete_from` (the end: after all of them), and nowhere after it.
    /// Returns whether they may be missing at the end.
    pub fn restore(&mut self, updates: &[Update], complete_from: usize) -> bool {
        let now = unix_millis();
        for (index, &update) in updates.iter().enumerate() {
            self.unsure |= index == 0 || index == complete_from;
            let age = Duration::from_millis(now.saturating_sub(update.timestamp));
            self.push(update, Arc::new(Event::update(update)), age);
        }
        self.expire();
        let ends_in_gap = !updates.is_empty() && complete_from == updates.len();
        self.unsure = ends_in_gap || self.dating == Dating::Origin;
        ends_in_gap
    }

    /// The update with the timestamp that it is to have; `None` where it is not a new one. An origin that
    /// repeats the newest one shows that nothing came after it.
    pub fn date(&mut self, update: Update) -> Option<Update> {
        if self.dating == Dating::Origin {
            self.unsure &= update.timestamp != self.newest;
            return Some(update).filter(|update| update.timestamp > self.newest);
        }
        let timestamp = update.timestamp.max(self.newest.max(self.horizon) + 1);
        Some(Update { timestamp, ..update })
    }

    /// Adds an update that has been dated and is `age` old.
    pub fn push(&mut self, update: Update, event: Arc<Event>, age: Duration) {
        if self.unsure {
            (self.unsure, self.horizon) = (false, update.timestamp);
        }
        let now = Instant::now();
        (self.newest, self.last_known) = (update.timestamp, Some((now, age)));
        let expires = now + self.retention.saturating_sub(age);
        let begin = self.updates.back().map_or(0, |last| last.begin + last.event.wire.len());
        self.updates.push_back(Entry { update, event, expires, begin });
        self.joined = None;
        if self.updates.len() > self.capacity {
            self.forget_oldest();
        }
    }

    /// Forgets what is older than the retention, and returns when the next update will be.
    pub fn expire(&mut self) -> Instant {
        let now = Instant::now();
        while let Some(oldest) = self.updates.front() {
            if oldest.expires > now {
                return oldest.expires;
            }
            self.forget_oldest();
        }
        now + self.retention
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.updates.pop_front() {
            self.horizon = self.horizon.max(entry.update.timestamp);
            self.joined = None;
        }
    }

    /// What a client with this cursor has missed.
    pub fn backlog(&mut self, from: Cursor) -> Backlog {
        // 0 asks for what there is, so nothing can be missing from it.
        let (start, since) = match from {
            Cursor::Latest => (self.updates.len().saturating_sub(1), 0),
            Cursor::After(at) => (self.updates.partition_point(|it| it.update.timestamp <= at), at),
        };
        let oldest = self.updates.get(start).map(|entry| entry.update.timestamp);
        let gap = (1..self.horizon).contains(&since).then(|| Event::gap(since, oldest));
        let position = match from {
            // It has an update that another replica of the same origin had first.
            Cursor::After(at) if at > self.newest && self.dating.expects(at) => from,
            _ => Cursor::After(self.newest),
        };
        let updates = self.updates.len() - start;
        let (joined, start) = if updates <= SMALL_BACKLOG {
            (join(self.updates.range(start..)), 0)
        } else {
            let joined = self.joined.get_or_insert_with(|| join(self.updates.iter()));
            (joined.clone(), self.updates[start].begin - self.updates[0].begin)
        };
        Backlog { gap, updates, position, joined, start }
    }
}

fn join<'a>(entries: impl Iterator<Item = &'a Entry>) -> Arc<str> {
    entries.map(|entry| &*entry.event.wire).collect::<String>().into()
}
