//! The follower: in a replica, the thread that reads the stream of the origin, as any client does, and
//! publishes what it brings, with the timestamps that it has. So all replicas have the same updates.
//! Owns the publisher, and so the journal. Shares the feed, and the HTTP client with `main`, which shuts
//! it down.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use ureq::Agent;

use super::client::client_config;
use super::error::{FetchError, NOT_A_PRICE, NOT_NEW};
use super::origin::{Message, OriginStream, Status};
use super::outage::{LONGEST_PAUSE, Outages};
use super::{STALE_AFTER, Source};
use crate::feed::{Publisher, Update};
use crate::system::{METRICS, Shutdown, latest_plausible};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An origin that has said nothing for so many heartbeats is gone.
const QUIET_HEARTBEATS: u32 = 3;
/// Where an origin began anew with its clock set back, its updates are older than our last one. They are
/// passed over until its clock has caught up. One that is older by more than this (in ms) is an error
/// instead, so that clients are told that prices are stale until then.
const MOST_BEHIND: u64 = 60_000;

pub struct Follower {
    url: String,
    agent: Agent,
    outages: Outages,
    publisher: Publisher,
    interval: Duration,
    /// How long prices are fresh after a word of the origin.
    patience: Duration,
    /// The timestamp of the last update; 0 before the first, which asks for all there is.
    last: u64,
    /// Whether the origin has said that its own prices are stale.
    origin_is_stale: bool,
    /// Whether it has said that updates before the next one are gone.
    is_after_gap: bool,
    /// Whether its last update was refused. Until one is taken nothing that it says ends the outage.
    was_refused: bool,
}

impl Follower {
    /// `heartbeat` is how often a quiet stream has a comment, here and at the origin.
    pub fn new(
        source: &Source,
        interval: Duration,
        heartbeat: Duration,
        publisher: Publisher,
    ) -> Follower {
        let latest = publisher.feed.snapshot().latest;
        let longest_quiet = heartbeat * QUIET_HEARTBEATS;
        let config = client_config()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(longest_quiet));
        Follower {
            url: source.url.clone(),
            agent: config.build().into(),
            outages: Outages::new(source, interval, publisher.feed.clone()),
            publisher,
            interval,
            patience: longest_quiet.max(interval * STALE_AFTER),
            last: latest.map_or(0, |update| update.timestamp),
            origin_is_stale: false,
            is_after_gap: false,
            was_refused: false,
        }
    }

    /// What `main` shuts down, which ends the stream at once.
    pub fn agent(&self) -> Agent {
        self.agent.clone()
    }

    /// Runs until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        while !shutdown.is_set() {
            // It only ever returns an error: its `Ok` has no value, so this pattern always matches.
            let Err(error) = self.follow();
            self.publisher.settle();
            if !shutdown.is_set() {
                let pause = self.outages.source_fails(&error);
                // `Outages` has no pause after a first failure, because a poller waits for its tick then. A
                // follower has no ticks: it waits for an interval, but never longer than the longest pause.
                let pause = pause.max(self.interval).min(LONGEST_PAUSE);
                shutdown.wait_deadline(Instant::now() + pause);
            }
        }
    }

    /// Connects, and publishes what comes until the connection fails.
    fn follow(&mut self) -> Result<Infallible, FetchError> {
        let mut stream = OriginStream::open(&self.agent, &self.url, self.last)?;
        self.origin_is_stale = false;
        self.is_after_gap = false;
        loop {
            match stream.next()? {
                Message::Update(update) => self.take(update)?,
                Message::Comment => self.origin_is_there(),
                Message::Gap => self.is_after_gap = true,
                Message::Status(status) => self.pass_on(&status),
            }
            if stream.is_drained() {
                // There is time until more comes.
                self.publisher.settle();
            }
        }
    }

    fn take(&mut self, update: Update) -> Result<(), FetchError> {
        let checked = self.check(update);
        self.was_refused = checked.is_err();
        checked?;
        self.origin_is_there();
        if update.timestamp > self.last {
            self.publish(update);
        }
        Ok(())
    }

    fn check(&self, update: Update) -> Result<(), FetchError> {
        // After one of the far future no other would be newer.
        if update.price <= 0.0 || update.timestamp > latest_plausible() {
            let what = "has a time more than a day ahead (Unix ms), or no price above zero";
            return Err(FetchError::new(NOT_A_PRICE, format!("{update:?} {what}")));
        }
        if update.timestamp + MOST_BEHIND < self.last {
            let what = format!("{update:?} is long before the last one, {}", self.last);
            return Err(FetchError::new(NOT_NEW, what));
        }
        Ok(())
    }

    fn publish(&mut self, update: Update) {
        METRICS.fetches.inc(&[&"ok"]);
        if self.is_after_gap {
            log::warn!("the origin no longer has all that came after {}", self.last);
            self.publisher.publish_after_gap(update);
        } else {
            self.publisher.publish(update);
        }
        self.is_after_gap = false;
        self.last = update.timestamp;
    }

    /// The origin was heard. So prices are fresh, unless it has said that its own are stale.
    fn origin_is_there(&mut self) {
        if !self.origin_is_stale && !self.was_refused {
            self.outages.source_is_well(self.patience);
        }
    }

    fn pass_on(&mut self, status: &Status) {
        self.origin_is_stale = status.stale;
        if status.stale {
            // Our connection is well. So for `Outages` nothing has failed: only clients are told, at once.
            self.publisher.feed.source_fails(&status.reason, Duration::ZERO);
        } else {
            self.origin_is_there();
        }
    }
}
