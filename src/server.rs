//! The server: what keeps `tiny_http` alive under traffic that it does not survive by itself.
//!
//! `tiny_http` accepts connections on a thread that ends at the first error, or panics, and it has
//! no time limits. So the listener is ours: its time limits are inherited by each connection, and
//! when an accept loop has ended, the next generation of it starts on a duplicate of the listener.
//! The old generation answers the connections that it has; open streams do not notice.
//!
//! Threads: `warden` (starts generations and watches them) and one `server` for each generation
//! (takes its requests to their conversations). Shared: the listener, the queue of each generation,
//! and the channel by which a generation asks for a knock.

use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select, tick};
use tiny_http::{Request, Server};

use crate::conversation::Conversations;
use crate::crew::Crew;
use crate::limits::{Limits, OWN_DESCRIPTORS, descriptors_now};
use crate::listener::{SILENCE, reachable};
use crate::metrics::METRICS;

/// The inherited limit makes `accept` fail too, when nobody has come for so long; so somebody comes.
const KNOCK_EVERY: Duration = Duration::from_secs(1);
/// The same while a connection may be waiting for a thread that looks.
const KNOCK_SOON: Duration = Duration::from_millis(20);
/// How long to wait for the end of a knock. It may be waiting for a thread itself.
const KNOCK_PATIENCE: Duration = Duration::from_millis(20);
/// After an error of `accept`, which often means that something is used up.
const PAUSE: Duration = Duration::from_millis(100);
/// How long it waits for descriptors at most: some may never be given back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long requests are looked for that a very slow connection may still bring to an old generation.
const RETIREMENT: Duration = Duration::from_secs(3600);

/// Keeps the listener served until shutdown.
pub struct Warden {
    listener: TcpListener,
    conversations: Arc<Conversations>,
    /// How many descriptors the process may have.
    descriptors: u64,
    crew: Crew,
    /// Asks for a knock; open as long as the warden and its generations are.
    knocks: (Sender<()>, Receiver<()>),
    /// Generations whose accept loop has ended, and when that was, or when each last brought a
    /// request after its thread had ended too. Dropping one too early would drop what a very slow
    /// connection may still send to it.
    former: Vec<(Arc<Server>, Instant)>,
}

/// The generation that accepts.
struct Current {
    server: Arc<Server>,
    /// The descriptor by which its accept loop holds the listener, and closes it when it ends.
    descriptor: RawFd,
    /// Brings the error that ended the accept loop; ends with the thread that sends it.
    ended: Receiver<io::Error>,
}

impl Warden {
    pub fn new(
        listener: TcpListener,
        conversations: Arc<Conversations>,
        limits: Limits,
        crew: Crew,
    ) -> Warden {
        // One is enough for all connections that begin before it is made.
        let knocks = bounded(1);
        Warden {
            listener,
            conversations,
            descriptors: limits.descriptors,
            crew,
            knocks,
            former: Vec::new(),
        }
    }

    /// Runs until shutdown, on the thread `warden`.
    pub fn run(mut self) {
        let ticks = tick(KNOCK_EVERY);
        let mut restless_until = Instant::now();
        while let Some(current) = self.start_generation() {
            let reason = loop {
                let soon = match Instant::now() < restless_until {
                    true => after(KNOCK_SOON),
                    false => never(),
                };
                select! {
                    recv(current.ended) -> error => break error.ok(),
                    recv(self.crew.shutdown.0) -> _ => break None,
                    recv(self.knocks.1) -> _ => restless_until = Instant::now() + SILENCE,
                    recv(soon) -> _ => {}
                    recv(ticks) -> _ => {
                        self.hear_former();
                        self.conversations.forget_silent();
                        // One without a request would wait unseen, but for its descriptors.
                        if descriptors_now() > METRICS.clients.get() + OWN_DESCRIPTORS {
                            restless_until = Instant::now() + SILENCE;
                        }
                        if !self.is_open(current.descriptor) {
                            // An error may be on its way; a panic says nothing.
                            break current.ended.recv_timeout(KNOCK_EVERY / 2).ok();
                        }
                    }
                }
                if self.knock().is_ok_and(|answered| answered) {
                    // Dropping a server connects to the listener, which waits if nobody accepts.
                    self.former.retain(|(server, heard)| {
                        is_heard_by_its_thread(server) || heard.elapsed() < RETIREMENT
                    });
                }
            };
            if reason.is_none() {
                // Nothing has told its thread, which still waits for a request.
                current.server.unblock();
            }
            self.former.push((current.server, Instant::now()));
            self.pause_after(reason);
        }
        for (server, _) in &self.former {
            server.unblock();
        }
    }

    /// Starts an accept loop and the thread that takes its requests, trying again as long as the
    /// system has no room for them. `None` when the service ends.
    fn start_generation(&self) -> Option<Current> {
        while !self.crew.shutdown.has_come() {
            match self.try_generation() {
                Ok(current) => return Some(current),
                Err(error) => self.crew.warn(&format!("cannot accept connections: {error}")),
            }
            self.crew.shutdown.wait_until(Instant::now() + PAUSE);
        }
        None
    }

    fn try_generation(&self) -> io::Result<Current> {
        let (end, ended) = bounded(1);
        let (give, given) = bounded::<Arc<Server>>(1);
        let (conversations, knocks) = (self.conversations.clone(), self.knocks.0.clone());
        let generation = Generation { conversations, knocks };
        // Before there is a server to drop: that connects to the listener, where nobody accepts.
        self.crew.spawn("server", move || {
            if let Ok(server) = given.recv() {
                generation.run(&server, &end);
            }
        })?;
        let listener = self.listener.try_clone()?;
        let descriptor = listener.as_raw_fd();
        // Where no thread is to be had `tiny_http` panics rather than tells.
        let server = catch_unwind(AssertUnwindSafe(|| Server::from_listener(listener, None)))
            .map_err(|_| io::Error::other("no thread to be had"))?
            .map_err(io::Error::other)?;
        let server = Arc::new(server);
        let _ = give.send(server.clone());
        Ok(Current { server, descriptor, ended })
    }

    /// A connection from ourselves that ends at once. It keeps `accept` from its time limit, and it
    /// makes a thread of the library look whether a connection is waiting for one: the library may
    /// have queued it behind a thread that was idle but is busy with another connection by now.
    /// If so, and it has a request, that will make another knock due, until nobody is waiting.
    /// Tells whether it was answered.
    fn knock(&self) -> io::Result<bool> {
        let address = reachable(self.listener.local_addr()?);
        let mut knock = TcpStream::connect_timeout(&address, KNOCK_PATIENCE)?;
        knock.set_read_timeout(Some(KNOCK_PATIENCE))?;
        knock.shutdown(Shutdown::Write)?;
        // It ends when that thread is about to look.
        let answered = knock.read(&mut [0]).is_ok();
        if !answered {
            let _ = self.knocks.0.try_send(());
        }
        Ok(answered)
    }

    /// Whether an accept loop, which may have panicked without a word, still holds its listener.
    #[cfg(target_os = "linux")]
    fn is_open(&self, descriptor: RawFd) -> bool {
        let socket = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        // Where even that cannot be read, descriptors are used up, and it will tell by itself.
        socket(self.listener.as_raw_fd()).is_none_or(|ours| socket(descriptor) == Some(ours))
    }

    /// Elsewhere only an accept loop that reports its end is replaced, not one that panicked.
    #[cfg(not(target_os = "linux"))]
    fn is_open(&self, _: RawFd) -> bool {
        true
    }

    /// Takes the requests that come to former generations whose threads have ended.
    fn hear_former(&mut self) {
        for (server, heard) in &mut self.former {
            // Two who take the requests of one connection might confuse their order.
            if is_heard_by_its_thread(server) {
                continue;
            }
            while let Ok(Some(request)) = server.try_recv() {
                self.conversations.bring(request);
                *heard = Instant::now();
            }
        }
    }

    /// Waits until another generation would find descriptors, where the last one ended by a fault.
    fn pause_after(&mut self, error: Option<io::Error>) {
        if self.crew.shutdown.has_come() {
            return;
        }
        let reason = match &error {
            Some(error) if error.kind() == io::ErrorKind::WouldBlock => "idle",
            Some(_) => "error",
            None => "panic",
        };
        METRICS.accept_restarts.inc(format!("reason=\"{reason}\""));
        if reason == "idle" {
            return;
        }
        let error = error.map_or("its thread panicked".to_owned(), |error| error.to_string());
        self.crew.warn(&format!("the accept loop ended ({error}); starting another"));
        // One that finds no descriptors fails at once, and the library may forget to end its threads.
        let few = self.descriptors / 16;
        let deadline = Instant::now() + LONGEST_PAUSE;
        while !self.crew.shutdown.wait_until(Instant::now() + PAUSE)
            && descriptors_now() + few > self.descriptors
            && Instant::now() < deadline
        {
            // What a former generation has is held by descriptors too.
            self.hear_former();
        }
    }
}

fn is_heard_by_its_thread(server: &Arc<Server>) -> bool {
    Arc::strong_count(server) > 1
}

/// What the thread `server` works with: one for each generation.
struct Generation {
    conversations: Arc<Conversations>,
    knocks: Sender<()>,
}

impl Generation {
    /// Takes requests to their conversations until the accept loop has ended and its connections
    /// have said what they had to say.
    fn run(self, server: &Server, end: &Sender<io::Error>) {
        let error = loop {
            match server.recv() {
                Ok(request) => self.take(request),
                Err(error) => break error,
            }
        };
        let _ = end.send(error);
        while let Ok(Some(request)) = server.recv_timeout(2 * SILENCE) {
            self.take(request);
        }
    }

    fn take(&self, request: Request) {
        if self.conversations.bring(request) {
            // It has taken a thread of the library's, for which another may be waiting.
            let _ = self.knocks.try_send(());
        }
    }
}
