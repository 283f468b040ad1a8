//! Threads: how the lasting ones are started, stopped and waited for.
//! Stopping is a channel that closes. Having stopped is another, which closes when the last thread
//! has let go of its end.

use std::convert::Infallible;
use std::io;
use std::thread::Builder;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};

/// The end of the service as every thread sees it: a channel on which nothing is ever sent.
#[derive(Clone)]
pub struct Shutdown(pub Receiver<Infallible>);

impl Shutdown {
    /// The end that comes with SIGINT or SIGTERM.
    pub fn on_signal() -> Result<Shutdown, ctrlc::Error> {
        let (open, shutdown) = bounded(0);
        let mut open = Some(open);
        ctrlc::set_handler(move || drop(open.take()))?;
        Ok(Shutdown(shutdown))
    }

    /// Sleeps until `deadline`, or until the service ends: then the answer is true.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        self.0.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }

    /// Whether the service is ending.
    pub fn has_come(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// The threads that run as long as the service does. Owned by `main`.
pub struct Threads {
    shutdown: Shutdown,
    /// Each thread holds a clone of it as long as it runs.
    running: Sender<&'static str>,
    /// Brings the name of a thread that has ended; closes when all have.
    ended: Receiver<&'static str>,
}

/// Tells that a thread has ended, be it by a panic.
struct Obituary(&'static str, Sender<&'static str>);

impl Drop for Obituary {
    fn drop(&mut self) {
        // One name is enough: where there is another already, the service is ending anyway.
        let _ = self.1.try_send(self.0);
    }
}

impl Threads {
    pub fn new(shutdown: Shutdown) -> Threads {
        let (running, ended) = bounded(1);
        Threads { shutdown, running, ended }
    }

    /// Starts a thread, which must end when the shutdown channel closes and not before.
    pub fn spawn<W>(&self, name: &'static str, work: W) -> io::Result<()>
    where
        W: FnOnce(&Shutdown) + Send + 'static,
    {
        let (obituary, shutdown) = (Obituary(name, self.running.clone()), self.shutdown.clone());
        let run = move || (work(&shutdown), drop(obituary));
        Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }

    /// Sleeps until the service is to end: by a signal, or because the thread named in the error has
    /// ended, without which the service would stand still and nobody might notice.
    pub fn wait(&self) -> Result<(), &'static str> {
        let ended = select! {
            recv(self.shutdown.0) -> _ => None,
            recv(self.ended) -> name => name.ok(),
        };
        ended.filter(|_| !self.shutdown.has_come()).map_or(Ok(()), Err)
    }

    /// Waits until every thread has ended; false if some have not at `deadline`.
    pub fn join(self, deadline: Instant) -> bool {
        drop(self.running);
        while self.ended.recv_deadline(deadline).is_ok() {}
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }
}
