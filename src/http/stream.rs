//! The stream of one client: the backlog that it missed, then updates as they come. Runs on the thread of
//! the client's connection, and shares the feed with all others.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::response::{CACHE_CONTROL, Response};
use super::writer::Writer;
use crate::feed::{Cursor, Event, Feed, Kind, Subscription};
use crate::source::{PRICE_SOURCE, SIMULATED};
use crate::system::{METRICS, Permit, random, unix_millis};

/// Clients reconnect after 2 to 5 s, with jitter: a restart would otherwise bring them back all at once.
const SHORTEST_RETRY_MS: f64 = 2_000.0;
const LONGEST_RETRY_MS: f64 = 5_000.0;

/// Returns the head of every stream. Without a length, the response ends when the connection does.
pub fn head(is_simulated: bool) -> Response {
    let head = Response::ok()
        .header("Content-Type", "text/event-stream")
        .header("Cache-Control", CACHE_CONTROL)
        .header("X-Accel-Buffering", "no")
        .header("Access-Control-Allow-Origin", "*");
    if is_simulated {
        head.header(PRICE_SOURCE, SIMULATED).body(": prices are simulated (source: demo)\n")
    } else {
        head
    }
}

/// The state of one stream.
pub struct Stream {
    feed: Arc<Feed>,
    /// The head of the response. Empty once it is written.
    opening: Vec<u8>,
    /// Where to subscribe: first the client's cursor, then the last update written.
    position: Cursor,
    /// Whether the position is the id of an event, rather than a time that the client chose.
    is_id: bool,
    /// How long the client's id may be above the newest update before it counts as foreign. Zero without a
    /// store; with one, another process may have issued the id.
    max_lead: Duration,
    /// Since when the client's id is above the newest update.
    ahead_since: Option<Instant>,
    /// The version of the last status written.
    status_version: Option<u64>,
    /// Returned when the stream ends.
    _permit: Permit,
}

impl Stream {
    /// `opening` is the head of the response.
    pub fn new(
        feed: Arc<Feed>,
        opening: Vec<u8>,
        position: Cursor,
        is_id: bool,
        max_lead: Duration,
        permit: Permit,
    ) -> Stream {
        Stream {
            feed,
            opening,
            position,
            is_id,
            max_lead,
            ahead_since: None,
            status_version: None,
            _permit: permit,
        }
    }

    /// Streams. Blocks until the stream ends.
    pub fn run(mut self, writer: &mut Writer) {
        METRICS.clients_accepted.inc();
        let reason = match self.stream(writer) {
            Ok(()) => "shutdown",
            Err(error) if error.kind() == ErrorKind::TimedOut => "stalled",
            Err(_) => "disconnected",
        };
        METRICS.streams_ended.inc(&[&reason]);
    }

    /// Returns when the feed has closed; fails if the client disconnects or stalls. A client that fell behind
    /// subscribes again from the last update written to it, as if it had reconnected.
    fn stream(&mut self, writer: &mut Writer) -> io::Result<()> {
        loop {
            let Some(subscription) = self.feed.subscribe(self.position) else { return Ok(()) };
            if self.replace_foreign_position(subscription.status.latest) {
                continue;
            }
            self.write_page(writer, &subscription)?;
            drop(subscription.page);
            if let Some(channel) = subscription.channel {
                self.follow(writer, &channel.live)?;
            }
        }
    }

    /// Replaces a position that this feed never issued by `Cursor::Foreign`, and returns true: the caller
    /// subscribes again, and the client receives a `gap`. `newest` is the newest timestamp in the feed. A client
    /// may be ahead of it for `max_lead`, because another process issued its id.
    fn replace_foreign_position(&mut self, newest: Option<u64>) -> bool {
        let Cursor::After(time) = self.position else { return false };
        // With a store, an empty feed says nothing about an id: the past is still to be read.
        let is_unread = newest.is_none() && !self.max_lead.is_zero();
        if is_unread || newest >= Some(time) {
            return false;
        }
        // `since` may be any time up to now; an id must have been issued.
        let is_suspect = self.is_id || time > unix_millis();
        if !is_suspect {
            return false;
        }
        let since = *self.ahead_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.max_lead {
            return false;
        }
        self.position = Cursor::Foreign(Some(time));
        true
    }

    /// Writes a page, after the opening and the status if the client has not received them.
    // Not inlined, so that its frame is not part of every client's stack.
    #[inline(never)]
    fn write_page(&mut self, writer: &mut Writer, subscription: &Subscription) -> io::Result<()> {
        let Subscription { status, status_version, page, .. } = subscription;
        let mut opening = mem::take(&mut self.opening);
        if self.status_version != Some(*status_version) {
            status.encode(&mut opening);
            self.status_version = Some(*status_version);
        }
        if !opening.is_empty() {
            writer.write_all(&opening)?;
        }
        writer.write_all(page.wire.as_bytes())?;
        METRICS.updates_replayed.add(page.updates as u64);
        match page.last {
            Some(last) => self.advance(last),
            // The gap has been reported: it is not reported again with the first update.
            None if page.has_gap => self.position = Cursor::Beginning,
            // Without a position, a client receives the latest update of the next batch.
            None => {}
        }
        Ok(())
    }

    /// Writes events as they come, until the channel has ended or the position has turned out to be foreign.
    fn follow(&mut self, writer: &mut Writer, live: &Receiver<Arc<Event>>) -> io::Result<()> {
        loop {
            // The second arm never fires. It makes `select!` park the thread at once; a plain `recv` spins
            // first, which is too much for thousands of threads.
            let event = select! {
                recv(live) -> event => event,
                recv(never::<()>()) -> _ => continue,
            };
            let Ok(event) = event else { return Ok(()) };
            if let Kind::Update { timestamp } = event.kind {
                if self.replace_foreign_position(Some(timestamp)) {
                    return Ok(());
                }
                if let Cursor::After(position) = self.position
                    && timestamp <= position
                {
                    continue;
                }
            }
            writer.write_all(event.wire.as_bytes())?;
            match event.kind {
                Kind::Update { timestamp } => {
                    self.advance(timestamp);
                    METRICS.updates_delivered.inc();
                }
                Kind::Status { version } => self.status_version = Some(version),
                Kind::Comment => {}
            }
        }
    }

    fn advance(&mut self, timestamp: u64) {
        self.position = Cursor::After(timestamp);
        self.is_id = true;
        self.ahead_since = None;
    }
}

/// Returns the head, and how long a client is to wait before it reconnects.
// Not inlined, so that its frame is not part of every client's stack.
#[inline(never)]
pub fn opening(head: &Response) -> Vec<u8> {
    let retry = SHORTEST_RETRY_MS + random() * (LONGEST_RETRY_MS - SHORTEST_RETRY_MS);
    // More than 1 KiB, so that the allocator takes it back (see `connection`).
    let mut bytes = Vec::with_capacity(1280);
    // Writing to a Vec cannot fail.
    let _ = head.write_to(&mut bytes, false);
    // No empty line, here or after comments: some clients would dispatch an empty event.
    let _ = writeln!(bytes, "retry: {retry:.0}");
    bytes
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;
    use crate::feed::{self, History, Update};
    use crate::system::Semaphore;

    /// Reads lines up to one that contains `end`, and returns the last status among them.
    fn last_status(client: &mut BufReader<TcpStream>, end: &str) -> String {
        let (mut line, mut status) = (String::new(), String::new());
        while !line.contains(end) {
            line.clear();
            assert!(client.read_line(&mut line).unwrap() > 0, "the stream ended before {end}");
            if line.contains("\"stale\"") {
                status.clone_from(&line);
            }
        }
        status
    }

    #[test]
    fn a_status_that_changes_between_two_channels_reaches_every_client() {
        // Each client subscribes again before or after the change: some of them after it.
        const CLIENTS: usize = 100;
        let update = |timestamp| Update { timestamp, price: 1.0 };
        let retention = Duration::from_secs(1_000_000 * 3600);
        let (mut publisher, feed) = feed::new(History::new(Some(1), retention, 100), false);
        publisher.publish(&[update(2)]);
        let permits = Semaphore::new(CLIENTS as u64);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (served, _) = listener.accept().unwrap();
            let permit = permits.try_acquire().unwrap();
            let (opening, max_lead) = (Vec::new(), Duration::ZERO);
            let stream =
                Stream::new(feed.clone(), opening, Cursor::Latest, false, max_lead, permit);
            thread::spawn(move || {
                let mut writer = Writer::new(&served, Duration::from_secs(60)).unwrap();
                stream.run(&mut writer);
            });
            let mut client = BufReader::new(client);
            last_status(&mut client, "id: 2");
            clients.push(client);
        }
        feed.announce(Some("timed out".to_owned()));
        for client in &mut clients {
            last_status(client, "\"stale\":true");
        }
        publisher.publish(&[update(3), update(4)]);
        feed.announce(None);
        publisher.publish(&[update(5)]);
        for client in &mut clients {
            let status = last_status(client, "id: 5");
            assert!(status.contains("\"stale\":false"), "{status}");
        }
    }
}
