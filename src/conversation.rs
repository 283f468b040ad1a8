//! Conversations: one for each connection that has a request to answer, on a thread of its own.
//! Answers on one connection come in order, so they share a thread; nobody else waits for them.
//! Shared: the register of conversations, by which a later request finds its connection's thread.

use std::collections::HashMap;
use std::io::{self, Write};
use std::mem::{self, ManuallyDrop};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use tiny_http::{ReadWrite, Request, Response};

use crate::crew::Crew;
use crate::listener::SILENCE;
use crate::metrics::METRICS;

/// A longer body is not read: dropping its request would first allocate what is left of it.
const MAX_BODY: usize = 1024 * 1024;
/// Requests that one connection may send ahead of their answers.
const MAX_AHEAD: usize = 64;

/// What is to become of a connection after an answer.
pub enum After {
    KeepOpen,
    /// That was the last word: requests behind it are dropped.
    Close,
    /// It was dead already, and its address is that of a new one, which asks this.
    Reopen(Incoming),
}

/// Answers one request. The channel brings what the connection asks meanwhile.
type Answer = dyn Fn(Incoming, &Receiver<Incoming>) -> After + Send + Sync;

/// Where the server brings its requests.
pub struct Conversations {
    /// What is known of each connection. Held for a look-up and a send that never waits; a channel
    /// ends when its thread, under this lock, finds it empty and leaves.
    register: Mutex<HashMap<SocketAddr, Connection>>,
    answer: Box<Answer>,
    crew: Crew,
}

/// What is known of a connection.
enum Connection {
    /// The way to its thread.
    Talking(Sender<Incoming>),
    /// It has its answers, the last of them at that time.
    Idle(Instant),
    /// It has had its last answer; what it still sends, most recently then, is dropped.
    Over(Instant),
}

impl Conversations {
    pub fn new(
        crew: Crew,
        answer: impl Fn(Incoming, &Receiver<Incoming>) -> After + Send + Sync + 'static,
    ) -> Arc<Conversations> {
        let answer = Box::new(answer);
        Arc::new(Conversations { register: Mutex::default(), answer, crew })
    }

    /// Takes a request to its connection's thread, starting one where there is none, and tells
    /// whether this is the first request of its connection. Never waits for a client.
    pub fn bring(self: &Arc<Self>, request: Request) -> bool {
        let Some(&address) = request.remote_addr() else {
            return false; // Only a Unix socket has none.
        };
        let request = Incoming(Some(Box::new(request)));
        let mut register = self.register.lock();
        match register.get_mut(&address) {
            // Beyond the bound requests are lost, for which their thread will end the conversation.
            Some(Connection::Talking(thread)) if thread.len() >= MAX_AHEAD => self.dismiss(request),
            Some(Connection::Talking(thread)) => drop(thread.send(request)),
            Some(Connection::Over(heard)) => {
                *heard = Instant::now();
                self.dismiss(request);
            }
            None | Some(Connection::Idle(_)) => {
                let (thread, further) = unbounded();
                let known = register.insert(address, Connection::Talking(thread));
                drop(register);
                let this = self.clone();
                let talk = move || this.converse(address, request, &further);
                if let Err(error) = self.crew.spawn("client", talk) {
                    METRICS.threads_refused.inc();
                    self.crew.warn(&format!("no thread for a client: {error}"));
                    // What it asks next would get the answer that this one did not.
                    self.register.lock().insert(address, Connection::Over(Instant::now()));
                }
                return known.is_none();
            }
        }
        false
    }

    /// Drops a request; on a thread of its own where that may wait for a body, and never where
    /// there is no thread.
    fn dismiss(&self, request: Incoming) {
        if request.has_body() {
            let request = ManuallyDrop::new(request);
            let dismissal = || drop(ManuallyDrop::into_inner(request));
            if self.crew.spawn("client", dismissal).is_err() {
                METRICS.requests_abandoned.inc();
            }
        }
    }

    /// Forgets connections that have been silent for so long that the server has closed them.
    pub fn forget_silent(&self) {
        self.register.lock().retain(|_, connection| match connection {
            Connection::Talking(_) => true,
            Connection::Idle(heard) | Connection::Over(heard) => heard.elapsed() < 2 * SILENCE,
        });
    }

    fn converse(&self, address: SocketAddr, first: Incoming, further: &Receiver<Incoming>) {
        let mut next = Some(first);
        while let Some(request) = next {
            let after = (self.answer)(request, further);
            next = self.next_or_leave(address, further, after);
        }
    }

    fn next_or_leave(
        &self,
        address: SocketAddr,
        further: &Receiver<Incoming>,
        after: After,
    ) -> Option<Incoming> {
        if let After::Reopen(request) = after {
            return Some(request);
        }
        let mut register = self.register.lock();
        if matches!(after, After::Close) || further.len() >= MAX_AHEAD {
            register.insert(address, Connection::Over(Instant::now()));
            drop(register);
            further.try_iter().for_each(drop);
            return None;
        }
        let next = further.try_recv().ok();
        if next.is_none() {
            register.insert(address, Connection::Idle(Instant::now()));
        }
        next
    }
}

/// A request that is safe to drop on any thread that may wait for its client.
///
/// `tiny_http` answers a request that is dropped, and reads what is left of its body into memory
/// that it allocates for all of it at once: an announced body of exabytes would abort the process.
/// Such a request can only be forgotten, at the price of its connection's two descriptors and thread.
pub struct Incoming(Option<Box<Request>>);

impl Incoming {
    pub fn has_body(&self) -> bool {
        self.body_length().is_some_and(|length| length > 0)
    }

    pub fn has_absurd_body(&self) -> bool {
        self.body_length().is_some_and(|length| length > MAX_BODY)
    }

    /// The way to the client. The rest of the request is dropped, which may wait for its body.
    pub fn into_writer(mut self) -> Box<dyn Write + Send> {
        let absurd = self.has_absurd_body();
        let request = self.0.take().expect("only consumed requests are empty");
        if !absurd {
            return request.into_writer();
        }
        METRICS.requests_abandoned.inc();
        // The one way to keep both halves of a connection is to upgrade it; the interim response
        // that comes with it is one that clients pass over.
        let interim = Response::empty(103);
        Box::new(Forgotten(ManuallyDrop::new(request.upgrade("none", interim))))
    }
}

impl Deref for Incoming {
    type Target = Request;

    fn deref(&self) -> &Request {
        self.0.as_ref().expect("only consumed requests are empty")
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let absurd = self.0.is_some() && self.has_absurd_body();
        match self.0.take() {
            Some(request) if absurd => {
                METRICS.requests_abandoned.inc();
                mem::forget(request);
            }
            // Without an answer: nobody expects one any more.
            Some(request) => drop(request.into_writer()),
            None => {}
        }
    }
}

/// Both halves of a connection that is never to be dropped.
struct Forgotten(ManuallyDrop<Box<dyn ReadWrite + Send>>);

impl Write for Forgotten {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
