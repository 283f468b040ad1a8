//! All clients, on one thread. Like a browser's `EventSource`, a client that loses its connection reconnects
//! after a pause, with the id of its last update.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::client::{Client, Request, Tally};

/// Chrome's pause before it reconnects.
const RETRY: Duration = Duration::from_secs(3);

/// The timeout for a response, after which a client reconnects, as a user would reload the page.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of connections to open between two polls of those that are open.
const OPENED_AT_ONCE: usize = 64;

pub struct Crowd {
    request: Request,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    pub clients: Vec<Client>,
    /// For each client that should be connected: when it last began to connect.
    wanted: Vec<Option<Instant>>,
    reconnects: VecDeque<(Instant, usize)>,
    next_look: Instant,
    pub tally: Tally,
    /// Attempts that failed before anything was streamed.
    pub retries: usize,
    /// Streams that ended without being closed by the client.
    pub lost: usize,
}

impl Crowd {
    pub fn new(address: SocketAddr, path: &'static str, size: usize) -> Result<Crowd> {
        Ok(Crowd {
            request: Request { address, path, keep_until: None },
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; 64 * 1024],
            clients: (0..size).map(|_| Client::default()).collect(),
            wanted: vec![None; size],
            reconnects: VecDeque::new(),
            next_look: Instant::now(),
            tally: Tally::default(),
            retries: 0,
            lost: 0,
        })
    }

    /// See [`Request::keep_until`]. Allocates the memory before the measurement.
    pub fn keep_bodies_until(&mut self, number: usize, length: usize) {
        self.request.keep_until = Some(number);
        self.clients.iter_mut().for_each(|client| client.allocate_body(length));
    }

    pub fn open(&mut self, indices: impl IntoIterator<Item = usize>) -> Result<()> {
        for (nth, index) in indices.into_iter().enumerate() {
            self.connect(index)?;
            if nth % OPENED_AT_ONCE == 0 {
                self.pump(Duration::ZERO)?;
            }
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> Result<()> {
        let mut stream = TcpStream::connect(self.request.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut stream, Token(index), interest)?;
        self.clients[index].open(stream);
        self.wanted[index] = Some(Instant::now());
        Ok(())
    }

    /// Returns the open connection, for the caller to close or reset.
    pub fn close(&mut self, index: usize) -> Option<TcpStream> {
        self.wanted[index] = None;
        self.clients[index].close(&mut self.tally)
    }

    pub fn is_wanted(&self, index: usize) -> bool {
        self.wanted[index].is_some()
    }

    /// Runs all clients until `done`. Returns false after `limit`.
    pub fn pump_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Crowd) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + limit;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.pump(left.min(Duration::from_millis(100)))?;
        }
        Ok(true)
    }

    fn pump(&mut self, timeout: Duration) -> Result<()> {
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + Duration::from_secs(1);
            self.time_out(now);
        }
        // A client may get a new socket only between two batches of events, when no event of its old one is
        // pending.
        while self.reconnects.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, index)) = self.reconnects.pop_front()
                && self.is_wanted(index)
                && !self.clients[index].is_connected()
            {
                self.connect(index)?;
            }
        }

        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let mut failed = Vec::new();
        for event in &self.events {
            let Token(index) = event.token();
            let outcome = self.clients[index].advance(
                &self.request,
                event.is_read_closed(),
                &mut self.scratch,
                &mut self.tally,
            );
            if outcome.is_err() {
                failed.push(index);
            }
        }
        for index in failed {
            self.fail(index, now);
        }
        Ok(())
    }

    fn time_out(&mut self, now: Instant) {
        for index in 0..self.clients.len() {
            let silent = self.clients[index].is_waiting();
            if silent && self.wanted[index].is_some_and(|since| now - since > PATIENCE) {
                self.fail(index, now);
            }
        }
    }

    fn fail(&mut self, index: usize, now: Instant) {
        if self.clients[index].is_waiting() {
            self.retries += 1;
        } else {
            self.lost += 1;
        }
        self.clients[index].close(&mut self.tally);
        self.reconnects.push_back((now + RETRY, index));
    }

    /// Counts, for each of these clients, the updates that any client has received and it has not: up to
    /// `last` or, without it, up to its own last one.
    pub fn missed(&self, clients: Range<usize>, last: Option<usize>) -> usize {
        let counts = self.tally.reached.iter().enumerate();
        let published: Vec<usize> =
            counts.filter_map(|(number, &count)| (count > 0).then_some(number)).collect();
        let clients = self.clients[clients].iter();
        clients.map(|client| client.seen.missed(&published, last)).sum()
    }

    pub fn repeated(&self) -> usize {
        self.clients.iter().map(|client| client.seen.repeated).sum()
    }
}
