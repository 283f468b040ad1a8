//! The stream of one client: the backlog that it missed, then updates as they come.
//! Runs on the thread of the client's conversation, and shares the feed with all others.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use crossbeam_channel::{Receiver, select};

use crate::conversation::Incoming;
use crate::cursor::Cursor;
use crate::event::{Event, Kind};
use crate::feed::{Feed, Subscription};
use crate::metrics::METRICS;
use crate::reply::Reply;

/// Clients come back after 2 to 5 s, each after another time, or a restart would bring all at once.
const RETRY_MS: std::ops::Range<u64> = 2_000..5_000;

/// Why a stream ended; in small letters, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// The client has closed its connection.
    Gone,
    /// The client took nothing for too long.
    Stuck,
    /// The client sent another request behind its stream.
    Interrupted,
    /// The service ends.
    Shutdown,
}

/// Said of every price that is not a real one.
pub const MADE_UP: (&str, &str) = ("X-Price-Source", "demo (made up)");

/// The response head of a stream. Without a length, it ends when the connection does.
pub fn head(made_up: bool) -> Reply {
    let head = Reply::bare(200)
        .header("Content-Type", "text/event-stream")
        .header("Cache-Control", "no-store")
        .header("X-Accel-Buffering", "no")
        .header("Connection", "close")
        .header("Access-Control-Allow-Origin", "*");
    if made_up { head.header(MADE_UP.0, MADE_UP.1) } else { head }
}

/// A place among the clients that the service admits; given back when it is dropped.
pub struct Admission(());

impl Admission {
    /// `None` when `limit` clients are here already.
    pub fn ask(limit: usize) -> Option<Admission> {
        let admitted = METRICS.clients.inc_below(limit as u64);
        let count = if admitted { &METRICS.clients_accepted } else { &METRICS.clients_refused };
        count.inc();
        admitted.then(|| Admission(()))
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        METRICS.clients.dec();
    }
}

/// What a client's thread has while it streams.
pub struct Stream<'a> {
    out: Box<dyn Write + Send>,
    /// Requests behind this one on the same connection.
    further: &'a Receiver<Incoming>,
    /// The last update that was written, or what the client asked for.
    position: Cursor,
    /// Whether the last status that was written said that prices have stopped coming.
    told_stale: bool,
    /// A request that came from our client's address when its connection was dead.
    pub successor: Option<Incoming>,
}

impl<'a> Stream<'a> {
    pub fn new(
        out: Box<dyn Write + Send>,
        from: Cursor,
        further: &'a Receiver<Incoming>,
    ) -> Stream<'a> {
        Stream { out, further, position: from, told_stale: false, successor: None }
    }

    /// Streams until one side ends it. A client that fell behind subscribes again, from the last
    /// update that was written to it, just as if it had gone and come back.
    pub fn run(&mut self, feed: &Arc<Feed>, head: &Reply, made_up: bool) -> End {
        self.stream(feed, head, made_up).unwrap_or_else(End::from)
    }

    fn stream(&mut self, feed: &Arc<Feed>, head: &Reply, made_up: bool) -> io::Result<End> {
        self.open(head, made_up)?;
        let mut fell_behind = 0;
        while let Some(subscription) = feed.subscribe(self.position) {
            METRICS.clients_fell_behind.add(fell_behind);
            self.catch_up(&subscription)?;
            METRICS.clients_recovered.add(fell_behind);
            if let Some(end) = self.follow(&subscription.live)? {
                return Ok(end);
            }
            fell_behind = 1;
        }
        Ok(End::Shutdown)
    }

    // Not inlined, nor is the next, so that their frames are not a part of every client's stack.
    #[inline(never)]
    fn open(&mut self, head: &Reply, made_up: bool) -> io::Result<()> {
        let retry = RETRY_MS.start + random() % (RETRY_MS.end - RETRY_MS.start);
        head.write_head(&mut self.out)?;
        write!(self.out, "retry: {retry}\n\n")?;
        if made_up {
            write!(self.out, ": prices are made up (source: demo)\n\n")?;
        }
        Ok(())
    }

    #[inline(never)]
    fn catch_up(&mut self, subscription: &Subscription) -> io::Result<()> {
        let fresh = Event::fresh();
        let news = match &subscription.stale {
            Some(stale) => Some(&**stale).filter(|_| !self.told_stale),
            None => Some(&fresh).filter(|_| self.told_stale),
        };
        for event in news.into_iter().chain(&subscription.backlog.gap) {
            self.write(event)?;
        }
        self.out.write_all(subscription.backlog.wire())?;
        self.out.flush()?;
        self.position = subscription.backlog.position;
        METRICS.updates_replayed.add(subscription.backlog.updates as u64);
        Ok(())
    }

    /// Writes events as they come. `None` when the channel has ended: subscribe again.
    fn follow(&mut self, live: &Receiver<Arc<Event>>) -> io::Result<Option<End>> {
        loop {
            // A receive from one channel would spin and yield before it parks; a select parks.
            select! {
                recv(live) -> event => {
                    let Ok(event) = event else { return Ok(None) };
                    self.write(&event)?;
                }
                recv(self.further) -> request => {
                    // If the connection is dead, and only then, this is from another one, whose
                    // port was ours: a proxy takes few addresses and many ports.
                    self.successor = request.ok();
                    self.write(&Event::heartbeat())?;
                    self.out.flush()?;
                    self.successor = None;
                    return Ok(Some(End::Interrupted));
                }
            }
            self.out.flush()?;
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        if matches!((event.kind, self.position), (Kind::Update(u), Cursor::After(last)) if u.timestamp <= last)
        {
            return Ok(()); // Another replica was ahead of this one and has told it already.
        }
        self.out.write_all(event.wire.as_bytes())?;
        match event.kind {
            Kind::Update(update) => {
                self.position = Cursor::After(update.timestamp);
                METRICS.updates_delivered.inc();
            }
            Kind::Stale => self.told_stale = true,
            Kind::Fresh => self.told_stale = false,
            Kind::Gap | Kind::Heartbeat => {}
        }
        Ok(())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Stuck,
            _ => End::Gone,
        }
    }
}

/// A random number from the only source of them in std.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}
