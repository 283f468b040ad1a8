//! The stream of one client: the backlog that it missed, then updates as they come.
//! Runs on the thread of the client's connection, and shares the feed with all others.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crossbeam_channel::{Receiver, never, select};

use super::response::Response;
use crate::feed::{Cursor, Event, Feed, Subscription};
use crate::source::MADE_UP;
use crate::system::{METRICS, random};

/// Clients come back after 2 to 5 s, each after another time, or a restart would bring all at once.
const RETRY_MS: (f64, f64) = (2_000.0, 5_000.0);

/// How every stream begins. Without a length, it ends when the connection does.
pub fn beginning(made_up: bool) -> Response {
    let head = Response::bare(200)
        .header("Content-Type", "text/event-stream")
        .header("Cache-Control", "no-store")
        .header("X-Accel-Buffering", "no")
        .header("Access-Control-Allow-Origin", "*");
    let comment = ": prices are made up (source: demo)\n".to_owned();
    if made_up { head.header(MADE_UP.0, MADE_UP.1).body(comment) } else { head }
}

/// What a client's thread has while it streams.
pub struct Stream<'a> {
    pub socket: &'a TcpStream,
    /// The last update that was written, or what the client asked for.
    pub position: Cursor,
}

impl Stream<'_> {
    /// Streams until one side ends it, and tells why it ended, as the metrics name it. A client that
    /// fell behind subscribes again, from the last update that was written to it, just as if it had
    /// gone and come back.
    pub fn run(mut self, feed: &Arc<Feed>, beginning: &Response) -> &'static str {
        match self.stream(feed, beginning).map_err(|error| error.kind()) {
            Ok(()) => "shutdown",
            // It took nothing for too long.
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => "stuck",
            // It has closed its connection.
            Err(_) => "gone",
        }
    }

    /// Ends when the feed has closed, or when the client fails.
    fn stream(&mut self, feed: &Arc<Feed>, beginning: &Response) -> io::Result<()> {
        self.open(beginning)?;
        let mut fell_behind = false;
        while let Some(mut subscription) = feed.subscribe(self.position) {
            self.catch_up(&mut subscription, fell_behind)?;
            self.follow(&subscription.live)?;
            fell_behind = true;
        }
        Ok(())
    }

    // Not inlined, nor is the next, so that their frames are not a part of every client's stack.
    #[inline(never)]
    fn open(&mut self, beginning: &Response) -> io::Result<()> {
        let retry = RETRY_MS.0 + random() * (RETRY_MS.1 - RETRY_MS.0);
        // More than 1 KiB, or the allocator would keep it for this thread.
        let mut bytes = Vec::with_capacity(1280);
        beginning.append_to(&mut bytes, true, false);
        // No empty line, here as after comments: for some clients it would be an event of its own.
        writeln!(bytes, "retry: {retry:.0}")?;
        self.socket.write_all(&bytes)
    }

    #[inline(never)]
    fn catch_up(&mut self, subscription: &mut Subscription, fell_behind: bool) -> io::Result<()> {
        let Subscription { stale, backlog, .. } = subscription;
        METRICS.clients_fell_behind.add(fell_behind.into());
        // The end of an outage may have been among what it missed.
        let fresh = fell_behind.then(Event::fresh);
        let status = stale.as_deref().or(fresh.as_ref());
        status.into_iter().chain(&backlog.gap).try_for_each(|event| self.write(event))?;
        self.socket.write_all(backlog.wire().as_bytes())?;
        self.position = backlog.position;
        METRICS.updates_replayed.add(backlog.updates as u64);
        // It may be the whole history, which would be kept for as long as the stream lasts.
        (backlog.joined, backlog.start) = Default::default();
        Ok(())
    }

    /// Writes events as they come, until the channel has ended.
    fn follow(&mut self, live: &Receiver<Arc<Event>>) -> io::Result<()> {
        loop {
            // A receive from one channel would spin and yield before it parks, and so would a select
            // from one: from two it parks at once.
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
        if let Some(update) = event.update {
            if matches!(self.position, Cursor::After(last) if update.timestamp <= last) {
                return Ok(()); // Another replica was ahead of this one and has told it already.
            }
            self.position = Cursor::After(update.timestamp);
            METRICS.updates_delivered.inc();
        }
        self.socket.write_all(event.wire.as_bytes())
    }
}
