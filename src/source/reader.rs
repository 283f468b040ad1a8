//! The reader: with a store, the thread that publishes every entry of the stream, and nothing else. All
//! processes that share the store thus publish the same updates in the same order. Owns the publisher;
//! wakes the poller through a channel.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use redis::{RedisError, RedisResult};

use super::Standing;
use super::store::{Connection, Entry, EntryId, Store, describe};
use crate::feed::freshness::Report;
use crate::feed::{Publisher, Update};
use crate::system::{LogLimit, METRICS, Shutdown, latest_plausible, unix_millis};

/// The reason for stale prices that clients see while the store does not answer.
const STORE_FAILED: &str = "the store does not answer";
/// The pause between attempts to reconnect. The first one is immediate: a process that
/// was stopped and continued finds its connection broken, and should catch up at once.
const PAUSE: Duration = Duration::from_millis(500);

pub struct Reader {
    store: Store,
    publisher: Publisher,
    retention: Duration,
    standing: Arc<Standing>,
    reports: Sender<Report>,
    /// Wakes the poller when an update was published. Holds one wake-up: the value is in the feed. Ends with
    /// this thread.
    news: Sender<()>,
    /// Dropped after the past has been read, or the first attempt failed: `main` then accepts clients.
    starting: Option<Sender<Infallible>>,
    position: Position,
    foreign_entries: LogLimit,
    wrong_clocks: LogLimit,
}

/// How far the stream has been read.
#[derive(Default)]
struct Position {
    /// The last entry.
    last: Option<EntryId>,
    /// The timestamp of the last update that was published.
    newest: Option<u64>,
    /// Whether updates between `last` and the next entry may be missing.
    after_gap: bool,
    /// Whether the past has been read: what comes now is live.
    is_live: bool,
}

impl Reader {
    /// `news` wakes the poller. `starting` closes when `main` may accept clients.
    pub fn new(
        store: Store,
        publisher: Publisher,
        retention: Duration,
        standing: Arc<Standing>,
        reports: Sender<Report>,
        news: Sender<()>,
        starting: Sender<Infallible>,
    ) -> Reader {
        Reader {
            store,
            publisher,
            retention,
            standing,
            reports,
            news,
            starting: Some(starting),
            position: Position::default(),
            foreign_entries: LogLimit::default(),
            wrong_clocks: LogLimit::default(),
        }
    }

    /// Reads until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        let mut failures: u32 = 0;
        while !shutdown.is_set() {
            let Err(error) = self.read(&mut failures, shutdown) else { return };
            self.fail(&error, failures);
            if failures > 0 {
                shutdown.wait_deadline(Instant::now() + PAUSE);
            }
            failures = failures.saturating_add(1);
        }
    }

    /// Publishes entries until the connection fails; `Ok` means shutdown. `failures` are the attempts that
    /// failed before.
    fn read(&mut self, failures: &mut u32, shutdown: &Shutdown) -> RedisResult<()> {
        let mut connection = self.store.connect()?;
        if self.position.last.is_none() {
            self.find_beginning(&mut connection)?;
        }
        self.take(&mut connection)?;
        self.position.is_live = true;
        if self.starting.take().is_some() {
            self.standing.set_store_answers(true);
        }
        while !shutdown.is_set() {
            connection.wait_for_news(self.position.last)?;
            self.take(&mut connection)?;
            self.standing.set_store_answers(true);
            if *failures > 1 {
                log::info!("store: reachable again after {failures} failed attempts");
            }
            *failures = 0;
        }
        Ok(())
    }

    /// Finds the entry before the retained past: after that one, nothing is missing.
    fn find_beginning(&mut self, connection: &mut Connection) -> RedisResult<()> {
        let oldest = unix_millis().saturating_sub(self.retention.as_millis() as u64);
        let before = connection.newest(Some(oldest))?;
        if let Some(id) = before {
            self.publisher.start_over(id.millis, &[]);
        }
        self.position.last = before;
        self.position.after_gap |= before.is_none();
        Ok(())
    }

    /// Publishes the entries after the last one. Reads that one again: if it is no longer there, Redis has
    /// lost or trimmed entries, and updates may be missing.
    fn take(&mut self, connection: &mut Connection) -> RedisResult<()> {
        let entries = connection.entries_from(self.position.last)?;
        let mut fresh = entries.as_slice();
        match (self.position.last, entries.first()) {
            (Some(last), Some(first)) if first.id == last => fresh = &entries[1..],
            (Some(last), Some(_)) => self.note_gap(last),
            (Some(last), None) => {
                self.note_gap(last);
                // An entry may have been appended in between: read from the start of the stream.
                self.position.last = connection.newest(None)?.filter(|newest| *newest < last);
            }
            (None, _) => {}
        }
        if let Some(last) = fresh.last() {
            self.position.last = Some(last.id);
            self.publish(fresh);
        }
        Ok(())
    }

    fn note_gap(&mut self, last: EntryId) {
        log::warn!("store: entry {last} was trimmed or lost; affected clients receive a gap");
        self.position.after_gap = true;
        self.position.newest = None;
    }

    fn publish(&mut self, entries: &[Entry]) {
        let updates = self.updates_in(entries);
        let Some(newest) = updates.last() else { return };
        self.position.newest = Some(newest.timestamp);
        if newest.timestamp > latest_plausible() && self.wrong_clocks.allows() {
            log::warn!(
                "store: update {} is more than a day ahead of this machine's clock, and later ones follow it; \
                 check the clocks, then delete the key to start over",
                newest.timestamp
            );
        }
        if self.position.after_gap {
            self.publisher.start_over(updates[0].timestamp, &updates);
        } else {
            self.publisher.publish(&updates);
        }
        self.position.after_gap = false;
        // The past that is read at the start says nothing about the present.
        if self.position.is_live {
            // An error means that the service is stopping.
            let _ = self.reports.send(Report::Updated);
        }
        let _ = self.news.try_send(());
    }

    /// Returns the updates among the entries. Others are logged and skipped.
    fn updates_in(&self, entries: &[Entry]) -> Vec<Update> {
        let mut updates = Vec::with_capacity(entries.len());
        let mut newest = self.position.newest;
        for entry in entries {
            let timestamp = entry.id.millis;
            match entry.price {
                Some(price) if newest.is_none_or(|newest| timestamp > newest) => {
                    updates.push(Update { timestamp, price });
                    newest = Some(timestamp);
                }
                _ if self.foreign_entries.allows() => {
                    log::warn!("store: skipping unrecognized entry {}", entry.id);
                }
                _ => {}
            }
        }
        updates
    }

    fn fail(&mut self, error: &RedisError, failures: u32) {
        METRICS.store_errors.inc(&[&"read"]);
        self.starting = None;
        if failures == 1 {
            self.standing.set_store_answers(false);
            let error = describe(error);
            log::warn!("store: cannot read: {error}; no new prices until it recovers");
            let _ = self.reports.send(Report::Failed(STORE_FAILED.to_owned()));
        }
    }
}
