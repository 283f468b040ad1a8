//! One client: it asks, reads, and keeps account of what it has seen.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::TcpStream;

use crate::Result;
use crate::sse::{self, Decoder};

/// What all clients of a crowd ask for.
pub struct Question {
    pub address: SocketAddr,
    pub path: &'static str,
    /// The last update of the backlog, while the clock of a catch-up runs: bodies are kept then and
    /// read later, so that it is not the reading which is measured.
    pub keep_until: Option<usize>,
}

/// What a crowd has seen together.
#[derive(Default)]
pub struct Tally {
    /// Clients with a stream that has begun.
    pub streaming: usize,
    /// Clients that kept a body with the whole backlog.
    pub complete: usize,
    /// How many clients have the n-th price of the source.
    pub reached: Vec<usize>,
    /// Which price arrived when.
    pub deliveries: Vec<(usize, Instant)>,
}

#[derive(Default)]
pub struct Client {
    stream: Option<TcpStream>,
    stage: Stage,
    pub streaming_since: Option<Instant>,
    decoder: Decoder,
    body: Vec<u8>,
    /// Since when it has kept the whole backlog.
    pub complete_since: Option<Instant>,
    pub seen: Seen,
}

#[derive(Default)]
enum Stage {
    #[default]
    Connecting,
    Asked(Vec<u8>),
    Answered,
}

/// What a client has seen since it first came.
#[derive(Default)]
pub struct Seen {
    first: Option<usize>,
    last: Option<usize>,
    last_id: u64,
    pub count: usize,
    /// Updates that it had already, or that came out of order.
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

    /// Whether it has a connection that nothing was streamed on.
    pub fn is_waiting(&self) -> bool {
        self.is_connected() && self.streaming_since.is_none()
    }

    /// Does what an event allows. An error means that this connection is of no more use.
    pub fn attend(
        &mut self,
        question: &Question,
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
            stream.write_all(self.seen.request(question).as_bytes())?;
            self.stage = Stage::Asked(Vec::new());
        }
        while let Some(stream) = &mut self.stream {
            let length = match stream.read(scratch) {
                Ok(0) => return Err("the server ended it".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let bytes = &scratch[..length];
            if let Stage::Asked(head) = &mut self.stage {
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
                self.stage = Stage::Answered;
                // Whoever lost the connection before has to begin again.
                self.body.clear();
                self.take(question, &body, now, tally);
            } else {
                self.take(question, bytes, now, tally);
            }
            // A short read has emptied the socket: spares a second call that would only say so.
            if length < scratch.len() && !closing {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, question: &Question, bytes: &[u8], now: Instant, tally: &mut Tally) {
        if bytes.is_empty() {
            return;
        }
        if self.streaming_since.is_none() {
            self.streaming_since = Some(now);
            tally.streaming += 1;
        }
        let Some(last) = question.keep_until else {
            return self.decoder.feed(bytes, |id, number| {
                if self.seen.note(id, number) {
                    tally.note(number, now);
                }
            });
        };
        self.body.extend_from_slice(bytes);
        if self.complete_since.is_none() && sse::last_number(&self.body) == Some(last) {
            self.complete_since = Some(now);
            tally.complete += 1;
        }
    }

    /// Takes memory for a body, and touches it, so that it is not only promised.
    pub fn make_room(&mut self, length: usize) {
        self.body.resize(length, b' ');
        self.body.clear();
    }

    /// Reads what was kept.
    pub fn read_body(&mut self) {
        let body = std::mem::take(&mut self.body);
        self.decoder.feed(&body, |id, number| {
            self.seen.note(id, number);
        });
    }
}

impl Tally {
    /// How many clients have this update.
    pub fn have(&self, number: usize) -> usize {
        self.reached.get(number).copied().unwrap_or(0)
    }

    fn note(&mut self, number: usize, now: Instant) {
        if self.reached.len() <= number {
            self.reached.resize(number + 1, 0);
        }
        self.reached[number] += 1;
        self.deliveries.push((number, now));
    }
}

impl Seen {
    fn request(&self, question: &Question) -> String {
        let Question { address, path, .. } = question;
        let accept = "text/event-stream";
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n");
        if self.last.is_some() {
            request += &format!("Last-Event-ID: {}\r\n", self.last_id);
        }
        request + "\r\n"
    }

    /// Whether it is news.
    fn note(&mut self, id: u64, number: usize) -> bool {
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

    /// How many of the published numbers it should have seen by now, and has not.
    pub fn missed(&self, published: &[usize], last: Option<usize>) -> usize {
        let Some(last) = last.max(self.last) else {
            return 0;
        };
        let first = self.first.unwrap_or(0);
        let due = published.iter().filter(|number| (first..=last).contains(number));
        due.count().saturating_sub(self.count)
    }
}
