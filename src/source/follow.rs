//! The follower: in a replica, the thread that reads the stream of the origin, as any client does, and
//! publishes what it brings, with the timestamps that it has. So all replicas have the same updates.
//! Owns the publisher, and so the journal; shares the feed, and with `main` the connection, which that
//! closes when the service ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown as Half, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use ureq::http::Uri;

use super::error::{FetchError, NO_CONNECTION, NOT_A_PRICE, NOT_A_STREAM, NOT_NEW, TOO_LARGE};
use super::outage::Outages;
use super::{MADE_UP, Source};
use crate::feed::{Feed, Publisher, Update};
use crate::system::{METRICS, Shutdown, latest_plausible};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An origin that has said nothing for so many heartbeats is gone.
const QUIET_HEARTBEATS: u32 = 3;
/// A line of a stream has some hundred bytes; what is longer is something else.
const MAX_LINE: u64 = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// Replicas are behind each other by some milliseconds. Who is behind by more than this has another
/// history: such as an origin whose clock was ahead, and which began anew.
const MOST_BEHIND: u64 = 60_000;

pub struct Follower {
    url: Uri,
    outages: Outages,
    feed: Arc<Feed>,
    publisher: Publisher,
    interval: Duration,
    /// How long the origin may be quiet.
    patience: Duration,
    /// The timestamp of the last update; 0 before the first, which asks for all there is.
    last: u64,
    /// Whether the origin has said that its own prices are stale, and that it has lost updates before the
    /// next one.
    origin_is_stale: bool,
    is_after_gap: bool,
    connection: Arc<Connection>,
}

/// The connection to the origin, if there is one. The lock is held to put it there and to close it.
#[derive(Default)]
pub struct Connection(Mutex<Option<TcpStream>>);

impl Connection {
    /// Ends the follower's thread, which may be waiting for a line. Called by `main`, after the
    /// shutdown.
    pub fn close(&self) {
        if let Some(socket) = &*self.0.lock() {
            // It may be closed already.
            let _ = socket.shutdown(Half::Both);
        }
    }
}

/// One event as it is read, line by line.
#[derive(Default)]
struct Message {
    name: String,
    data: String,
}

/// The data of a `status` event.
#[derive(Deserialize)]
struct Status {
    stale: bool,
    #[serde(default)]
    reason: String,
}

impl Follower {
    /// `heartbeat` is how often a quiet stream has a comment, here and at the origin.
    pub fn new(
        source: &Source,
        interval: Duration,
        heartbeat: Duration,
        feed: Arc<Feed>,
        publisher: Publisher,
    ) -> Follower {
        let latest = feed.snapshot().latest;
        Follower {
            url: source.url.parse().expect("the command line has checked it"),
            outages: Outages::new(source, interval, feed.clone()),
            feed,
            publisher,
            interval,
            patience: heartbeat * QUIET_HEARTBEATS,
            last: latest.map_or(0, |update| update.timestamp),
            origin_is_stale: false,
            is_after_gap: false,
            connection: Arc::default(),
        }
    }

    /// What `main` ends it by.
    pub fn connection(&self) -> Arc<Connection> {
        self.connection.clone()
    }

    /// Runs until shutdown.
    pub fn run(mut self, shutdown: &Shutdown) {
        while !shutdown.is_set() {
            let result = self.follow(shutdown);
            // The origin is to see that nobody reads any more.
            *self.connection.0.lock() = None;
            self.publisher.settle();
            let Err(error) = result else { return };
            if shutdown.is_set() {
                return;
            }
            let pause = self.outages.source_fails(&error).unwrap_or(self.interval);
            shutdown.wait_deadline(Instant::now() + pause);
        }
    }

    /// Connects, and publishes what comes until the connection fails, or until shutdown.
    fn follow(&mut self, shutdown: &Shutdown) -> Result<(), FetchError> {
        let socket = self.connect()?;
        *self.connection.0.lock() = Some(socket.try_clone()?);
        // Where it was set before, nobody closes this connection any more.
        if shutdown.is_set() {
            return Ok(());
        }
        let mut reader = BufReader::new(socket);
        read_head(&mut reader)?;
        self.origin_is_stale = false;
        self.is_after_gap = false;
        let mut message = Message::default();
        loop {
            let line = read_line(&mut reader)?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => message.name = value.to_owned(),
                "data" => message.data = value.to_owned(),
                "" if line.is_empty() => {
                    self.take(&message)?;
                    message = Message::default();
                }
                "" => self.hear(), // A comment: nothing is new, and the origin is there.
                _ => {}            // The id is in the data, too.
            }
            if reader.buffer().is_empty() {
                // There is time until more comes.
                self.publisher.settle();
            }
        }
    }

    /// Asks for all updates after the last one.
    fn connect(&self) -> Result<TcpStream, FetchError> {
        let host = self.url.host().unwrap_or_default();
        let port = self.url.port_u16().unwrap_or(80);
        // An IPv6 address has brackets in a URL.
        let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs()?;
        let mut last_error = FetchError::new(NO_CONNECTION, "the name has no address");
        for address in addresses {
            let mut socket = match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(socket) => socket,
                Err(error) => {
                    last_error = error.into();
                    continue;
                }
            };
            socket.set_read_timeout(Some(self.patience))?;
            let path = self.url.path().trim_end_matches('/');
            // In HTTP/1.0, in which nobody answers in chunks.
            let request = format!(
                "GET {path}/stream HTTP/1.0\r\nHost: {host}:{port}\r\nLast-Event-ID: {}\r\n\r\n",
                self.last
            );
            socket.write_all(request.as_bytes())?;
            return Ok(socket);
        }
        Err(last_error)
    }

    fn take(&mut self, message: &Message) -> Result<(), FetchError> {
        let data = &message.data;
        match message.name.as_str() {
            "" if data.is_empty() => return Ok(()),
            "" => self.publish(data)?,
            "gap" => self.is_after_gap = true,
            "status" => self.pass_on(data)?,
            _ => return Ok(()),
        }
        self.hear();
        Ok(())
    }

    fn publish(&mut self, data: &str) -> Result<(), FetchError> {
        let Ok(update) = serde_json::from_str::<Update>(data) else {
            return Err(FetchError::new(NOT_A_PRICE, format!("{data:?} is no update")));
        };
        // After one of the far future no other would be newer.
        if update.price <= 0.0 || update.timestamp > latest_plausible() {
            let what = "has a time more than a day ahead (Unix ms), or no price above zero";
            return Err(FetchError::new(NOT_A_PRICE, format!("{data:?} {what}")));
        }
        if update.timestamp + MOST_BEHIND < self.last {
            let what = format!("{data:?} is long before the last one, {}", self.last);
            return Err(FetchError::new(NOT_NEW, what));
        }
        if update.timestamp <= self.last {
            return Ok(());
        }
        if self.is_after_gap {
            log::warn!("the origin no longer has all that came after {}", self.last);
            self.publisher.mark_gap(update.timestamp);
            self.is_after_gap = false;
        }
        self.last = update.timestamp;
        METRICS.fetches.inc(&[&"ok"]);
        self.publisher.publish(update);
        Ok(())
    }

    fn pass_on(&mut self, data: &str) -> Result<(), FetchError> {
        let Ok(status) = serde_json::from_str::<Status>(data) else {
            return Err(FetchError::new(NOT_A_STREAM, format!("{data:?} is no status")));
        };
        self.origin_is_stale = status.stale;
        if status.stale {
            self.feed.source_fails(&status.reason, Duration::ZERO);
        }
        Ok(())
    }

    /// The origin is there. Whether its prices are stale it says itself.
    fn hear(&mut self) {
        if !self.origin_is_stale {
            self.outages.source_is_well(self.patience);
        }
    }
}

/// Reads the head of the response, which must be that of a stream of real prices.
fn read_head(reader: &mut BufReader<TcpStream>) -> Result<(), FetchError> {
    let status = read_line(reader)?;
    let mut is_stream = false;
    for _ in 0..MAX_HEADERS {
        let line = read_line(reader)?.to_ascii_lowercase();
        if line.starts_with(&MADE_UP.header.to_ascii_lowercase()) {
            return Err(FetchError::made_up());
        }
        is_stream |= line.starts_with("content-type: text/event-stream");
        if line.is_empty() && is_stream && status.contains(" 200 ") {
            return Ok(());
        }
        if line.is_empty() {
            break;
        }
    }
    let detail = format!("it answers {status:?}; --follow is for the address of a btc-ticker");
    Err(FetchError::new(NOT_A_STREAM, detail))
}

/// Reads a line within bounds, without its end.
fn read_line(reader: &mut BufReader<TcpStream>) -> Result<String, FetchError> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(if line.len() as u64 == MAX_LINE {
            FetchError::new(TOO_LARGE, "a line of the stream has no end")
        } else {
            FetchError::new(NO_CONNECTION, "the origin has ended the stream")
        });
    }
    let line = String::from_utf8_lossy(&line);
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
