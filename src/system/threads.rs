//! Threads: how the lasting ones are started, stopped and waited for. Stopping is a channel that
//! closes. A second channel tells when all have ended: it closes when the last thread has let go of its
//! end.

use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};

/// The end of the service as every thread sees it: a channel on which nothing is ever sent, and which
/// `main` closes.
#[derive(Clone)]
pub struct Shutdown {
    pub closed: Receiver<Infallible>,
}

impl Shutdown {
    /// Sleeps until `deadline`, or until the service ends: then the answer is true.
    pub fn wait_deadline(&self, deadline: Instant) -> bool {
        self.closed.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }

    /// Whether the service is ending.
    pub fn is_set(&self) -> bool {
        self.closed.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// The threads that run as long as the service does. Owned by `main`, which joins them.
pub struct Threads {
    /// Brings a word at SIGINT, SIGTERM or SIGHUP.
    signals: Receiver<()>,
    /// `None` when the shutdown has begun.
    open: Option<Sender<Infallible>>,
    shutdown: Shutdown,
    handles: Vec<JoinHandle<()>>,
    /// Wake the threads that wait for a socket rather than for a channel.
    wakers: Vec<Box<dyn FnOnce()>>,
    /// Each thread holds a clone of it as long as it runs.
    running: Sender<&'static str>,
    /// Brings the name of a thread that has ended; closes when all have.
    ended: Receiver<&'static str>,
}

/// Tells that a thread has ended, even by a panic.
struct ExitGuard {
    name: &'static str,
    running: Sender<&'static str>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // One name is enough: where there is another already, the service is ending.
        let _ = self.running.try_send(self.name);
    }
}

impl Threads {
    /// From now on a signal ends `wait`, and not the process.
    pub fn new() -> Result<Threads, ctrlc::Error> {
        let (signal, signals) = bounded(1);
        ctrlc::set_handler(move || {
            // Where one word is waiting already, it is enough.
            let _ = signal.try_send(());
        })?;
        let (open, closed) = bounded(0);
        let (running, ended) = bounded(1);
        Ok(Threads {
            signals,
            open: Some(open),
            shutdown: Shutdown { closed },
            handles: Vec::new(),
            wakers: Vec::new(),
            running,
            ended,
        })
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
            // Named here, so that the closure owns it. A panic drops it, too.
            drop(guard);
        };
        self.handles.push(Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Sleeps until the service is to end: by a signal, or because the thread named in the error has
    /// ended, without which the service would stand still and nobody might notice.
    pub fn wait(&self) -> Result<(), &'static str> {
        select! {
            recv(self.signals) -> _ => Ok(()),
            recv(self.ended) -> name => match name {
                Ok(name) => Err(name),
                Err(_) => Ok(()), // Never: an end of it is held here.
            },
        }
    }

    /// For a thread that may be waiting for a socket when the shutdown begins: what ends that wait.
    pub fn on_shutdown(&mut self, wake: impl FnOnce() + 'static) {
        self.wakers.push(Box::new(wake));
    }

    /// Tells all threads to end: closes their channel, and wakes those that do not wait for it.
    pub fn shut_down(&mut self) {
        self.open = None;
        for wake in self.wakers.drain(..) {
            wake();
        }
    }

    /// Joins all threads; false where some have not ended at `deadline`, for which nobody waits.
    pub fn join(self, deadline: Instant) -> bool {
        drop(self.running);
        loop {
            match self.ended.recv_deadline(deadline) {
                Ok(_) => {} // One more has ended.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
        for handle in self.handles {
            // A panic has been told already, when the thread ended.
            let _ = handle.join();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_ends_by_itself_is_named_and_all_others_are_told_to_end() {
        let hour = Instant::now() + Duration::from_secs(3600);
        let mut threads = Threads::new().unwrap();
        threads
            .spawn("lasting", move |shutdown| {
                shutdown.wait_deadline(hour);
            })
            .unwrap();
        threads.spawn("brief", |_| panic!("this panic is part of a test")).unwrap();
        assert_eq!(threads.wait(), Err("brief"));
        threads.shut_down();
        assert!(threads.join(hour), "all have ended");
    }
}
