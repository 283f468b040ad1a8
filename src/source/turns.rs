//! Turns: with a store, decides when this process polls, so that only one process does at a time. The process
//! that appended the newest update is due one interval after it; any other one if it sees no update
//! for slightly longer. Runs on the thread `poller`; shares the feed, and is woken by the reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, select_biased};
use redis::{RedisError, RedisResult};

use super::Standing;
use super::fetch;
use super::poller::{Poller, next_tick};
use super::store::{Claim, Connection, Store, describe};
use crate::feed::freshness::Report;
use crate::feed::{Feed, Update};
use crate::system::{LogLimit, METRICS, Shutdown, random, unix_millis};

/// How long any other process waits for news before it claims the turn, in intervals: `SHORTEST_SILENCE` plus
/// a random part of up to `RANDOM_SILENCE`, so that they do not all claim it at once.
const SHORTEST_SILENCE: f64 = 1.1;
const RANDOM_SILENCE: f64 = 0.2;
/// The lease, in fetch timeouts. It only spares the source: Redis refuses an id that is not new.
const LEASE: f64 = 1.1;
/// The reason for stale prices that clients see if updates cannot be appended.
const STORE_FAILED: &str = "the store refuses updates";

pub struct Turns {
    poller: Poller,
    store: Store,
    feed: Arc<Feed>,
    standing: Arc<Standing>,
    news: Receiver<()>,
    lease: Duration,
    /// The timestamp of the last update that this process appended.
    own: Option<u64>,
    /// The newest entry of the stream that this process knows of. It may be one that the reader skips.
    seen: Option<u64>,
    /// When this process last began to poll.
    tick: Instant,
    errors: LogLimit,
    refusals: LogLimit,
}

impl Turns {
    pub fn new(
        poller: Poller,
        store: Store,
        feed: Arc<Feed>,
        standing: Arc<Standing>,
        news: Receiver<()>,
    ) -> Turns {
        let lease = fetch::timeout(poller.interval).mul_f64(LEASE);
        Turns {
            poller,
            store,
            feed,
            standing,
            news,
            lease,
            own: None,
            seen: None,
            tick: Instant::now(),
            errors: LogLimit::default(),
            refusals: LogLimit::default(),
        }
    }

    /// Polls whenever it is this process's turn, until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        // Discards the wake-up for the past that was read at the start.
        let _ = self.news.try_recv();
        let mut due = match self.feed.summary().age {
            Some(age) => Instant::now() + self.silence().saturating_sub(age),
            None => Instant::now(),
        };
        loop {
            // News first: a process that was stopped finds both news and an expired timer.
            select_biased! {
                recv(shutdown.closed) -> _ => return,
                recv(self.news) -> news => match news {
                    Ok(()) => due = self.due_after_news(),
                    // The reader has ended: the service is stopping.
                    Err(_) => return,
                },
                recv(at(due)) -> _ => due = self.take_turn(shutdown),
            }
        }
    }

    /// A random time to wait for news.
    fn silence(&self) -> Duration {
        self.poller.interval.mul_f64(SHORTEST_SILENCE + random() * RANDOM_SILENCE)
    }

    fn due_after_news(&mut self) -> Instant {
        let newest = self.feed.latest().map(|update| update.timestamp);
        let polls = newest == self.own;
        if self.standing.set_polls(polls) {
            let who = if polls { "this" } else { "another" };
            log::info!("store: {who} process polls now");
        }
        let due = if polls {
            next_tick(self.tick, self.poller.interval)
        } else {
            Instant::now() + self.silence()
        };
        due.max(self.poller.outage.retry_at)
    }

    /// Claims the turn and, if it is granted, polls. Returns when this process is due again, unless news
    /// arrive first.
    fn take_turn(&mut self, shutdown: &Shutdown) -> Instant {
        let due = match self.try_turn(shutdown) {
            Ok(due) => due,
            Err(error) => {
                METRICS.store_errors.inc(&[&"claim"]);
                self.fail("claim the turn", &error);
                Instant::now() + self.silence()
            }
        };
        due.max(self.poller.outage.retry_at)
    }

    fn try_turn(&mut self, shutdown: &Shutdown) -> RedisResult<Instant> {
        let known = self.feed.latest().map(|update| update.timestamp);
        // A connection for each turn: its state is never in doubt, and while the store is unreachable nothing is
        // fetched.
        let mut connection = self.store.connect()?;
        let begun = Instant::now();
        let newest = match connection.claim(self.lease)? {
            Claim::Granted { newest } => newest.map(|id| id.millis),
            Claim::Held(time) => {
                if time > self.lease && self.refusals.allows() {
                    log::warn!(
                        "store: another client holds the turn for longer than any lease; delete its key, {}",
                        connection.turn()
                    );
                }
                return Ok(begun + time.min(self.lease));
            }
        };
        if newest > known.max(self.seen) {
            // The reader is about to bring news: this process was not due.
            self.seen = newest;
            self.release(&mut connection);
            return Ok(Instant::now() + self.silence());
        }
        self.tick = begun;
        let price = self.poller.poll(shutdown);
        // Above the newest entry of the stream, which may have been emptied, rather than of the feed.
        let after_newest = newest.map_or(0, |newest| newest.saturating_add(1));
        let timestamp = unix_millis().max(after_newest);
        if let Some(price) = price
            && begun.elapsed() < self.lease
        {
            self.append(&mut connection, Update { timestamp, price });
        }
        // Past the lease (this process was stopped, or the store was slow), another process may hold the turn.
        if begun.elapsed() < self.lease {
            self.release(&mut connection);
        }
        Ok(next_tick(self.tick, self.poller.interval))
    }

    fn append(&mut self, connection: &mut Connection, update: Update) {
        // Noted first: if the answer is lost, the update may be there all the same, and this process is due
        // again.
        self.own = Some(update.timestamp);
        match connection.append(update) {
            Ok(true) => {}
            Ok(false) => {
                self.own = None;
                if self.refusals.allows() {
                    log::warn!(
                        "store: update {} dropped, because an entry is newer; if that entry's id is in the future, \
                         delete the key to start over",
                        update.timestamp
                    );
                }
            }
            Err(error) => {
                METRICS.store_errors.inc(&[&"append"]);
                self.fail("append", &error);
            }
        }
    }

    fn release(&self, connection: &mut Connection) {
        if let Err(error) = connection.release() {
            METRICS.store_errors.inc(&[&"release"]);
            if self.errors.allows() {
                log::warn!("store: cannot release the turn: {}", describe(&error));
            }
        }
    }

    fn fail(&self, action: &str, error: &RedisError) {
        if self.errors.allows() {
            log::warn!("store: cannot {action}: {}", describe(error));
        }
        // If the store does not answer at all, the reader reports it.
        if !error.is_io_error() {
            self.poller.report(Report::Failed(STORE_FAILED.to_owned()));
        }
    }
}
