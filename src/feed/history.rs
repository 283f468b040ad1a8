//! The history: the updates that are retained, and what is known of those that are not.
//! Owned by the feed, under whose lock all of this runs.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cursor::Cursor;
use super::event::{Event, Update, data_lines};
use crate::system::unix_millis;

/// A backlog up to this long is joined for the client; a longer one is cut out of what all share.
const SMALL_BACKLOG: usize = 64;
/// The newest update stays though it has expired, until there is a newer one: how often to look for that.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub struct History {
    /// Oldest first. The newest one stays, however old it is: it is the latest price that is known.
    updates: VecDeque<Entry>,
    /// The wire form of all `updates` back to back, made when a client first needs it and dropped
    /// at the next change: a crowd that comes back at once shares one copy.
    joined: Option<Arc<str>>,
    /// Since when nothing is missing: a cursor below this timestamp may have missed something. `None` where
    /// nobody knows: the first update sets it.
    complete_since: Option<u64>,
    /// Whether the updates are made by this process, rather than by an origin.
    makes_updates: bool,
    retention: Duration,
    capacity: usize,
}

struct Entry {
    update: Update,
    event: Arc<Event>,
    /// When it was added, by the clock that never steps, and how old it was then.
    added: Instant,
    age_then: Duration,
    /// Where its wire form would begin if all updates since the start or the last gap stood in one text. It
    /// stays right when older ones are forgotten, because `offset` subtracts the `begin` of the oldest.
    /// Without it the lengths of all before an update would be summed up for each client that comes back,
    /// under the lock.
    begin: usize,
}

impl Entry {
    fn age(&self) -> Duration {
        self.age_then + self.added.elapsed()
    }
}

/// Updates in their wire form, oldest first, ready to be written at once.
#[derive(Clone, Default)]
pub struct Backlog {
    /// Told first, where something between the cursor and these updates is gone.
    pub gap: Option<Arc<Event>>,
    /// A cursor below this may have missed something. `None` where the first update decides.
    pub complete_since: Option<u64>,
    pub updates: usize,
    /// The timestamp of the last of them. Where this backlog is empty, that of the newest update in the
    /// history; 0 where that is empty, too. A client that has written all of this goes on from it.
    pub last: u64,
    joined: Arc<str>,
    range: Range<usize>,
}

impl Backlog {
    /// Without any update.
    pub fn empty(complete_since: u64) -> Backlog {
        Backlog { complete_since: Some(complete_since), ..Backlog::default() }
    }

    pub fn wire(&self) -> &str {
        &self.joined[self.range.clone()]
    }

    /// The JSON of each update.
    pub fn json(&self) -> impl Iterator<Item = &str> {
        data_lines(self.wire())
    }
}

impl History {
    /// An empty history that keeps updates for `retention`, and never more than `capacity` of them.
    /// `complete_since` is the present (Unix milliseconds) where this process makes the updates: it
    /// knows nothing of before. `None` where they come from elsewhere.
    pub fn new(complete_since: Option<u64>, retention: Duration, capacity: usize) -> History {
        History {
            updates: VecDeque::new(),
            joined: None,
            complete_since,
            makes_updates: complete_since.is_some(),
            retention,
            capacity,
        }
    }

    /// Forgets all updates. From `complete_since` on (Unix milliseconds) nothing is missing; where that is
    /// `None`, from the next update on.
    pub fn start_anew(&mut self, complete_since: Option<u64>) {
        self.updates.clear();
        self.joined = None;
        self.complete_since = complete_since;
    }

    /// Called by the journal when it has added all that it can read. `is_end_lost`: there may have been
    /// later updates, with any timestamp up to now. To a replica that is no loss: it asks its origin for all
    /// that comes after its newest update.
    pub fn end_of_journal(&mut self, is_end_lost: bool) {
        if self.makes_updates {
            if is_end_lost {
                self.start_anew(Some(self.next_timestamp()));
            }
        } else if self.updates.is_empty() {
            // This replica asks for everything, and the first update sets it.
            self.complete_since = None;
        }
    }

    /// How many updates are retained.
    pub fn count(&self) -> usize {
        self.updates.len()
    }

    pub fn latest(&self) -> Option<Update> {
        self.updates.back().map(|entry| entry.update)
    }

    /// How old the newest update is.
    pub fn age(&self) -> Option<Duration> {
        self.updates.back().map(Entry::age)
    }

    /// The timestamp of the newest update; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.latest().map_or(0, |update| update.timestamp)
    }

    /// The present as the timestamp of the next update. They rise even when the clock steps back.
    pub fn next_timestamp(&self) -> u64 {
        let last = self.newest().max(self.complete_since.unwrap_or(0));
        unix_millis().max(last + 1)
    }

    /// Adds an update, whose timestamp is above that of the newest.
    pub fn push(&mut self, update: Update, event: Arc<Event>) {
        if self.complete_since.is_none() {
            self.complete_since = Some(update.timestamp);
        }
        let age_then = Duration::from_millis(unix_millis().saturating_sub(update.timestamp));
        let begin = self.updates.back().map_or(0, |last| last.begin + last.event.wire.len());
        let added = Instant::now();
        self.updates.push_back(Entry { update, event, added, age_then, begin });
        self.joined = None;
        if self.updates.len() > self.capacity {
            self.forget_oldest();
        }
    }

    /// Forgets what is older than the retention, and returns when to do so again.
    pub fn expire(&mut self) -> Instant {
        while self.updates.len() > 1 {
            let left = self.retention.saturating_sub(self.updates[0].age());
            if !left.is_zero() {
                return Instant::now() + left;
            }
            self.forget_oldest();
        }
        // The newest one may have expired already, and goes when there is a newer one.
        Instant::now() + self.retention.min(LOOK_AGAIN)
    }

    fn forget_oldest(&mut self) {
        let Some(forgotten) = self.updates.pop_front() else { return };
        self.joined = None;
        self.complete_since = Some(forgotten.update.timestamp);
    }

    /// The first `limit` updates after a cursor, or the latest ones.
    pub fn backlog(&mut self, from: Cursor, limit: usize) -> Backlog {
        let count = self.updates.len();
        let (start, gap) = match from {
            Cursor::Latest => (count.saturating_sub(limit), None),
            Cursor::After(since) => {
                let start = self.updates.partition_point(|entry| entry.update.timestamp <= since);
                (start, self.gap(since, start))
            }
        };
        let end = start.saturating_add(limit).min(count);
        let last = match self.updates.range(..end).next_back() {
            Some(last) => last.update.timestamp,
            None => 0,
        };
        let updates = end - start;
        let joined;
        let range;
        if updates <= SMALL_BACKLOG {
            joined = join(self.updates.range(start..end));
            range = 0..joined.len();
        } else {
            joined = self.joined.get_or_insert_with(|| join(self.updates.iter())).clone();
            range = self.offset(start, &joined)..self.offset(end, &joined);
        }
        Backlog { gap, complete_since: self.complete_since, updates, last, joined, range }
    }

    /// The event for a client whose cursor is `since`, where something between that and the update with
    /// the index `start` is gone.
    fn gap(&self, since: u64, start: usize) -> Option<Arc<Event>> {
        // 0 asks for what there is, so nothing can be missing from it.
        if since == 0 || self.complete_since.is_some_and(|time| since >= time) {
            return None;
        }
        let oldest = self.updates.get(start).map(|entry| entry.update.timestamp);
        Some(Arc::new(Event::gap(since, oldest)))
    }

    /// Where the update with this index begins in what is joined.
    fn offset(&self, index: usize, joined: &str) -> usize {
        match self.updates.get(index) {
            Some(entry) => entry.begin - self.updates[0].begin,
            None => joined.len(),
        }
    }
}

/// The wire form of these updates in one piece.
fn join<'a>(entries: impl Iterator<Item = &'a Entry>) -> Arc<str> {
    let joined: String = entries.map(|entry| &*entry.event.wire).collect();
    joined.into()
}
