//! Threads: how the lasting ones are started, stopped and waited for.
//! Stopping is a channel that closes. That all have ended is told by another, which closes when the
//! last thread has let go of its end.

use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};

/// The end of the service as every thread sees it: a channel on which nothing is ever sent, and which
/// closes at the signal.
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
    pub fn wait_deadline(&self, deadline: Instant) -> bool {
        self.0.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }

    /// Whether the service is ending.
    pub fn is_set(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// The threads that run as long as the service does. Owned by `main`, which joins them.
pub struct Threads {
    shutdown: Shutdown,
    handles: Vec<JoinHandle<()>>,
    /// Each thread holds a clone of it as long as it runs.
    running: Sender<&'static str>,
    /// Brings the name of a thread that has ended; closes when all have.
    ended: Receiver<&'static str>,
}

/// Tells that a thread has ended, be it by a panic.
struct ExitGuard {
    name: &'static str,
    running: Sender<&'static str>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // One name is enough: where there is another already, the service is ending anyway.
        let _ = self.running.try_send(self.name);
    }
}

impl Threads {
    pub fn new(shutdown: Shutdown) -> Threads {
        let (running, ended) = bounded(1);
        Threads { shutdown, handles: Vec::new(), running, ended }
    }

    /// Starts a thread, which must end when the shutdown channel closes and not before.
    pub fn spawn<W>(&mut self, name: &'static str, work: W) -> io::Result<()>
    where
        W: FnOnce(&Shutdown) + Send + 'static,
    {
        let guard = ExitGuard { name, running: self.running.clone() };
        let shutdown = self.shutdown.clone();
        let run = move || {
            work(&shutdown);
            drop(guard);
        };
        self.handles.push(Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Sleeps until the service is to end: by a signal, or because the thread named in the error has
    /// ended, without which the service would stand still and nobody might notice.
    pub fn wait(&self) -> Result<(), &'static str> {
        select! {
            recv(self.shutdown.0) -> _ => Ok(()),
            recv(self.ended) -> name => match name {
                // At the signal every thread ends.
                Ok(name) if !self.shutdown.is_set() => Err(name),
                _ => Ok(()),
            },
        }
    }

    /// Joins all threads; false where some have not ended at `deadline`, for which nobody waits.
    pub fn join(self, deadline: Instant) -> bool {
        drop(self.running);
        while self.ended.recv_deadline(deadline).is_ok() {}
        if self.ended.try_recv() != Err(TryRecvError::Disconnected) {
            return false;
        }
        for handle in self.handles {
            // A panic has been told already, when the thread ended.
            let _ = handle.join();
        }
        true
    }
}
