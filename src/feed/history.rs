//! The history: the retained updates, and the point from which they are complete. Owned by the feed, which
//! calls all of this under its lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cursor::Cursor;
use super::event::{Event, Gap, Update};
use crate::system::unix_millis;

/// The size of a page, in bytes: it ends with the update that reaches it. The larger the page, the fewer times a
/// client that catches up takes the locks, and the more memory it holds while it reads slowly.
const PAGE_SIZE: usize = 64 * 1024;
/// The smallest capacity of a page. More than 1 KiB: glibc keeps smaller blocks in a cache of the thread, and
/// the thread of a stream lives for hours.
const SMALL_PAGE: usize = 1280;
/// How often to look for a newer update while only the newest one is left, which does not expire.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

pub struct History {
    /// Oldest first. The newest one stays, however old: it is the latest known price.
    entries: VecDeque<Entry>,
    /// A cursor below this timestamp may have missed something. `None` until the store has been read: no gap is
    /// reported until then.
    complete_since: Option<u64>,
    retention: Duration,
    capacity: usize,
}

struct Entry {
    update: Update,
    event: Arc<Event>,
    /// When it was added, by the monotonic clock, and how old it was then.
    added: Instant,
    age_then: Duration,
}

impl Entry {
    fn age(&self) -> Duration {
        self.age_then + self.added.elapsed()
    }
}

/// Part of a client's backlog, ready to be written.
#[derive(Default)]
pub struct Page {
    /// The `gap` event, if something between the cursor and this page is missing, then the updates.
    pub wire: String,
    pub has_gap: bool,
    pub updates: usize,
    /// The timestamp of the last update of the page.
    pub last: Option<u64>,
    /// Whether the page reaches the newest update.
    pub is_last: bool,
}

/// Updates after a cursor.
pub struct Found {
    pub updates: Vec<Update>,
    pub gap: Option<Gap>,
}

impl History {
    /// Creates an empty history that keeps updates for `retention`, and at most `capacity` of them.
    /// `complete_since` is the present (Unix milliseconds) if all updates are made by this process, and
    /// `None` if its past is still to be read.
    pub fn new(complete_since: Option<u64>, retention: Duration, capacity: usize) -> History {
        History { entries: VecDeque::new(), complete_since, retention, capacity }
    }

    /// Drops all updates. The history is complete from `complete_since` (Unix milliseconds).
    pub fn start_over(&mut self, complete_since: u64) {
        self.entries.clear();
        self.complete_since = Some(complete_since);
    }

    pub fn latest(&self) -> Option<Update> {
        self.entries.back().map(|entry| entry.update)
    }

    /// Returns the age of the newest update.
    pub fn age(&self) -> Option<Duration> {
        self.entries.back().map(Entry::age)
    }

    /// Returns the number of updates retained.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the present as the timestamp of the next update. Timestamps rise even if the clock steps
    /// back.
    pub fn next_timestamp(&self) -> u64 {
        let newest = self.latest().map(|update| update.timestamp);
        match newest.max(self.complete_since) {
            Some(last) => unix_millis().max(last.saturating_add(1)),
            None => unix_millis(),
        }
    }

    /// Appends an update, whose timestamp is above that of the newest.
    pub fn push(&mut self, update: Update, event: Arc<Event>) {
        let age_then = Duration::from_millis(unix_millis().saturating_sub(update.timestamp));
        self.entries.push_back(Entry { update, event, added: Instant::now(), age_then });
        if self.entries.len() > self.capacity {
            self.drop_oldest();
        }
    }

    /// Drops updates older than the retention, and returns when to do so again.
    pub fn expire(&mut self) -> Instant {
        while self.entries.len() > 1 {
            let left = self.retention.saturating_sub(self.entries[0].age());
            if !left.is_zero() {
                return Instant::now() + left;
            }
            self.drop_oldest();
        }
        Instant::now() + self.retention.min(RECHECK_AFTER)
    }

    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.entries.pop_front() {
            self.complete_since = Some(dropped.update.timestamp);
        }
    }

    /// Returns the first page after a cursor.
    pub fn page(&self, from: Cursor) -> Page {
        let start = self.start(from, 1);
        let entries = self.entries.range(start..);
        // Allocated once, if all events are as long as the first.
        let length = self.entries.get(start).map_or(0, |entry| entry.event.wire.len());
        let capacity = (entries.len() * length).clamp(SMALL_PAGE, PAGE_SIZE + SMALL_PAGE);
        let wire = String::with_capacity(capacity);
        let mut page = Page { wire, is_last: true, ..Page::default() };
        if let Some(gap) = self.gap(from, start) {
            page.wire += &gap.encode();
            page.has_gap = true;
        }
        for entry in entries {
            if page.wire.len() >= PAGE_SIZE {
                page.is_last = false;
                break;
            }
            page.wire += &entry.event.wire;
            page.updates += 1;
            page.last = Some(entry.update.timestamp);
        }
        page
    }

    /// Returns the first `limit` updates after a cursor, or the latest ones.
    pub fn find(&self, from: Cursor, limit: usize) -> Found {
        let start = self.start(from, limit);
        let after = self.entries.range(start..);
        Found {
            updates: after.take(limit).map(|entry| entry.update).collect(),
            gap: self.gap(from, start),
        }
    }

    /// Returns the index of the first update for a cursor; `count` is how many of the latest ones a client
    /// without a position receives.
    fn start(&self, from: Cursor, count: usize) -> usize {
        match from {
            Cursor::Latest | Cursor::Foreign(_) => self.entries.len().saturating_sub(count),
            Cursor::Beginning => 0,
            Cursor::After(time) => {
                self.entries.partition_point(|entry| entry.update.timestamp <= time)
            }
        }
    }

    /// Returns a gap if something between the cursor and the update at index `start` may be
    /// missing.
    fn gap(&self, from: Cursor, start: usize) -> Option<Gap> {
        let since = match from {
            Cursor::Latest | Cursor::Beginning => return None,
            Cursor::Foreign(id) => id,
            Cursor::After(time) if self.complete_since.is_some_and(|from| time < from) => {
                Some(time)
            }
            Cursor::After(_) => return None,
        };
        let oldest = self.entries.get(start).map(|entry| entry.update.timestamp);
        Some(Gap { oldest, since })
    }
}
