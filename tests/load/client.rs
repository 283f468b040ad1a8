//! A client: sends a request, reads the stream, and records the updates it receives.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::TcpStream;

use crate::Result;
use crate::sse::{self, Decoder};

/// The request that all clients of a crowd send.
pub struct Request {
    pub address: SocketAddr,
    pub path: &'static str,
    /// The last update of the backlog, during a catch-up: bodies are then stored and parsed later, so that
    /// parsing is not measured.
    pub keep_until: Option<usize>,
}

/// The totals of a crowd.
#[derive(Default)]
pub struct Tally {
    /// Clients whose stream has begun.
    pub streaming: usize,
    /// Clients that have stored the whole backlog.
    pub complete: usize,
    /// For each price of the source, the number of clients that have received it.
    pub reached: Vec<usize>,
    /// The number of each delivered price, and when it was delivered.
    pub deliveries: Vec<(usize, Instant)>,
}

#[derive(Default)]
pub struct Client {
    stream: Option<TcpStream>,
    stage: Stage,
    pub streaming_since: Option<Instant>,
    decoder: Decoder,
    body: Vec<u8>,
    /// When it had stored the whole backlog.
    pub complete_since: Option<Instant>,
    pub seen: Seen,
}

#[derive(Default)]
enum Stage {
    #[default]
    Connecting,
    Requested(Vec<u8>),
    Responded,
}

/// The updates that a client has received, over all its connections.
#[derive(Default)]
pub struct Seen {
    first: Option<usize>,
    last: Option<usize>,
    last_id: u64,
    pub count: usize,
    /// Updates received again or out of order.
    pub repeated: usize,
}

impl Client {
    pub fn open(&mut self, stream: TcpStream) {
        self.stream = Some(stream);
        self.stage = Stage::Connecting;
    }

    pub fn close(&mut self, tally: &mut Tally) -> Option<TcpStream> {
        if self.streaming_since.take().is_some() {
            tally.streaming -= 1;
        }
        self.stream.take()
    }

    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether it is connected, but its stream has not begun.
    pub fn is_waiting(&self) -> bool {
        self.is_connected() && self.streaming_since.is_none()
    }

    /// Writes and reads as far as the socket allows. On an error, the caller closes the connection.
    pub fn advance(
        &mut self,
        request: &Request,
        closing: bool,
        scratch: &mut [u8],
        tally: &mut Tally,
    ) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if let Stage::Connecting = self.stage {
            if let Some(error) = stream.take_error()? {
                return Err(error.into());
            }
            if stream.peer_addr().is_err() {
                return Ok(());
            }
            stream.write_all(self.seen.request(request).as_bytes())?;
            self.stage = Stage::Requested(Vec::new());
        }
        while let Some(stream) = &mut self.stream {
            let length = match stream.read(scratch) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let bytes = &scratch[..length];
            if let Stage::Requested(head) = &mut self.stage {
                head.extend_from_slice(bytes);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                let body = head.split_off(end + 4);
                let head = String::from_utf8_lossy(head).to_lowercase();
                if !head.starts_with("http/1.1 200") {
                    return Err("refused".into());
                }
                self.decoder = Decoder::new(head.contains("transfer-encoding: chunked"));
                self.stage = Stage::Responded;
                // After a lost connection, the body starts from the beginning.
                self.body.clear();
                self.take(request, &body, now, tally);
            } else {
                self.take(request, bytes, now, tally);
            }
            // A short read has emptied the socket, so another read would only return `WouldBlock`.
            if length < scratch.len() && !closing {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, request: &Request, bytes: &[u8], now: Instant, tally: &mut Tally) {
        if bytes.is_empty() {
            return;
        }
        if self.streaming_since.is_none() {
            self.streaming_since = Some(now);
            tally.streaming += 1;
        }
        let Some(last) = request.keep_until else {
            return self.decoder.feed(bytes, |id, number| {
                if self.seen.record(id, number) {
                    tally.record(number, now);
                }
            });
        };
        self.body.extend_from_slice(bytes);
        if self.complete_since.is_none() && sse::last_number(&self.body) == Some(last) {
            self.complete_since = Some(now);
            tally.complete += 1;
        }
    }

    /// Allocates memory for a body, and touches it, so that the kernel maps it now.
    pub fn allocate_body(&mut self, length: usize) {
        self.body.resize(length, b' ');
        self.body.clear();
    }

    /// Parses the stored body.
    pub fn read_body(&mut self) {
        let body = std::mem::take(&mut self.body);
        self.decoder.feed(&body, |id, number| {
            self.seen.record(id, number);
        });
    }
}

impl Tally {
    /// Returns the number of clients that have received this update.
    pub fn received_by(&self, number: usize) -> usize {
        self.reached.get(number).copied().unwrap_or(0)
    }

    fn record(&mut self, number: usize, now: Instant) {
        if self.reached.len() <= number {
            self.reached.resize(number + 1, 0);
        }
        self.reached[number] += 1;
        self.deliveries.push((number, now));
    }
}

impl Seen {
    fn request(&self, request: &Request) -> String {
        let Request { address, path, .. } = request;
        let accept = "text/event-stream";
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n");
        if self.last.is_some() {
            request += &format!("Last-Event-ID: {}\r\n", self.last_id);
        }
        request + "\r\n"
    }

    /// Records an update. Returns whether it is new.
    fn record(&mut self, id: u64, number: usize) -> bool {
        if self.last.is_some_and(|last| number <= last || id <= self.last_id) {
            self.repeated += 1;
            return false;
        }
        self.first.get_or_insert(number);
        self.last = Some(number);
        self.last_id = id;
        self.count += 1;
        true
    }

    /// Counts the published updates that this client should have received and has not.
    pub fn missed(&self, published: &[usize], last: Option<usize>) -> usize {
        let Some(last) = last.max(self.last) else {
            return 0;
        };
        let first = self.first.unwrap_or(0);
        let due = published.iter().filter(|number| (first..=last).contains(number));
        due.count().saturating_sub(self.count)
    }
}
