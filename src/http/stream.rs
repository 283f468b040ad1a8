//! The stream of one client: the backlog that it missed, then updates as they come. Runs on the thread
//! of the client's connection, and shares the feed with all others.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crossbeam_channel::{Receiver, never, select};

use super::response::{CACHE_CONTROL, Response};
use crate::feed::{Backlog, Cursor, Event, Feed, Subscription};
use crate::source::{MADE_UP, PRICE_SOURCE};
use crate::system::{METRICS, random};

/// Clients come back after 2 to 5 s, each after another time, or a restart would bring all at once.
const SHORTEST_RETRY_MS: f64 = 2_000.0;
const LONGEST_RETRY_MS: f64 = 5_000.0;

/// How every stream begins. Without a length, it ends when the connection does.
pub fn head(made_up: bool) -> Response {
    let head = Response::bare(200)
        .header("Content-Type", "text/event-stream")
        .header("Cache-Control", CACHE_CONTROL)
        .header("X-Accel-Buffering", "no")
        .header("Access-Control-Allow-Origin", "*");
    if made_up {
        let comment = ": prices are made up (source: demo)\n";
        head.header(PRICE_SOURCE, MADE_UP).body(comment)
    } else {
        head
    }
}

/// What a client's thread has while it streams.
pub struct Stream<'a> {
    pub socket: &'a TcpStream,
    /// From where to subscribe: first from what the client has asked for, then from the last update that
    /// it has had, or that was there when it came.
    pub position: Cursor,
    /// Updates up to this timestamp are not sent: the client has had them, perhaps from another replica that
    /// was ahead of this one. See `Routes::skip_until`.
    pub skip_until: u64,
}

impl Stream<'_> {
    /// Streams until one side ends it, and tells why it ended, as the metrics name it.
    pub fn run(mut self, feed: &Arc<Feed>, head: &Response) -> &'static str {
        match self.stream(feed, head) {
            Ok(()) => "shutdown",
            Err(error) => match error.kind() {
                // It took, or acknowledged, nothing for too long.
                ErrorKind::WouldBlock | ErrorKind::TimedOut => "stuck",
                // It has closed its connection.
                _ => "gone",
            },
        }
    }

    /// Ends when the feed has closed, or when the client fails. A client that fell behind subscribes
    /// again, from the last update that was written to it, just as if it had gone and come back.
    fn stream(&mut self, feed: &Arc<Feed>, head: &Response) -> io::Result<()> {
        let mut opening = first_bytes(head)?;
        loop {
            let Some(subscription) = feed.subscribe(self.position) else { return Ok(()) };
            let Subscription { status, backlog, channel } = subscription;
            self.catch_up(opening, status, backlog)?;
            self.follow(&channel.live)?;
            // The channel has ended: the feed has closed, or this client fell behind.
            opening = Vec::new();
        }
    }

    /// Writes `opening`, which only a new client is to have, and what the client has missed.
    // Not inlined, so that its frame is not a part of every client's stack.
    #[inline(never)]
    fn catch_up(
        &mut self,
        opening: Vec<u8>,
        status: Option<Arc<Event>>,
        backlog: Backlog,
    ) -> io::Result<()> {
        let mut bytes = opening;
        if let Some(status) = status {
            bytes.extend_from_slice(status.wire.as_bytes());
        }
        if let Some(gap) = &backlog.gap {
            bytes.extend_from_slice(gap.wire.as_bytes());
        }
        self.socket.write_all(&bytes)?;
        self.socket.write_all(backlog.wire().as_bytes())?;
        // The client has all up to `backlog.last` now, so its next subscription goes on from there, even
        // where it has asked for a `since` in the future: updates before that time are sent to it live, so
        // they must not be missing if it falls behind. What it has had from another replica is not repeated.
        self.position = Cursor::After(backlog.last.max(self.skip_until));
        METRICS.updates_replayed.add(backlog.updates as u64);
        Ok(())
    }

    /// Writes events as they come, until the channel has ended.
    fn follow(&mut self, live: &Receiver<Arc<Event>>) -> io::Result<()> {
        loop {
            // A receive from one channel first burns CPU in waiting (it spins), before the thread sleeps,
            // and so does a select from one. That is too much for thousands of threads. From two channels
            // it sleeps at once: on the second one nothing ever comes.
            select! {
                recv(live) -> event => match event {
                    Ok(event) => self.write(&event)?,
                    Err(_) => return Ok(()),
                },
                recv(never::<()>()) -> _ => {}
            }
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let Some(update) = event.update else {
            return self.socket.write_all(event.wire.as_bytes());
        };
        if update.timestamp <= self.skip_until {
            return Ok(());
        }
        self.socket.write_all(event.wire.as_bytes())?;
        self.position = Cursor::After(update.timestamp);
        METRICS.updates_delivered.inc();
        Ok(())
    }
}

/// The head of the response, and how long a client is to wait before it comes back.
// Not inlined, so that its frame is not a part of every client's stack.
#[inline(never)]
fn first_bytes(head: &Response) -> io::Result<Vec<u8>> {
    let retry = SHORTEST_RETRY_MS + random() * (LONGEST_RETRY_MS - SHORTEST_RETRY_MS);
    // More than 1 KiB, so that the allocator takes it back (see `connection`).
    let mut bytes = Vec::with_capacity(1280);
    head.write_to(&mut bytes, false)?;
    // No empty line, here as after comments: for some clients it would be an event of its own.
    writeln!(bytes, "retry: {retry:.0}")?;
    Ok(bytes)
}
