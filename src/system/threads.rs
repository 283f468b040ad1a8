//! Threads: how long-running threads are started, stopped and joined. Shutdown is a channel that closes. A
//! second channel reports threads that have ended; it closes with the last of them. Owned by `main`.

use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{
    Receiver, RecvTimeoutError, Select, Sender, TryRecvError, bounded, select,
};

/// The shutdown as every thread sees it: a channel on which nothing is ever sent, and which `main` closes.
#[derive(Clone)]
pub struct Shutdown {
    pub closed: Receiver<Infallible>,
}

impl Shutdown {
    /// Blocks until `deadline` or the shutdown; returns whether it is the shutdown.
    pub fn wait_deadline(&self, deadline: Instant) -> bool {
        self.closed.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }

    /// Whether the service is shutting down.
    pub fn is_set(&self) -> bool {
        self.closed.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// The threads that run as long as the service does.
pub struct Threads {
    /// Receives a message at SIGTERM, SIGINT or SIGHUP, unless the signal is blocked.
    signals: Receiver<()>,
    /// `None` once the shutdown has begun.
    open: Option<Sender<Infallible>>,
    shutdown: Shutdown,
    handles: Vec<JoinHandle<()>>,
    /// Wake the threads that wait for a socket rather than for a channel.
    wakers: Vec<Box<dyn FnOnce()>>,
    /// Each thread holds a clone while it runs.
    running: Sender<&'static str>,
    /// Receives the name of a thread that has ended; closes when all have.
    ended: Receiver<&'static str>,
}

/// Reports that a thread has ended, even by a panic.
struct ExitGuard {
    name: &'static str,
    running: Sender<&'static str>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        // One name is enough: if there is another already, the service is shutting down.
        let _ = self.running.try_send(self.name);
    }
}

impl Threads {
    /// From now on a signal ends `wait` instead of the process.
    pub fn new() -> Result<Threads, ctrlc::Error> {
        let (signal, signals) = bounded(1);
        ctrlc::set_handler(move || {
            // One pending message is enough.
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

    /// Starts a thread, which must end when the shutdown channel closes, and not before.
    pub fn spawn<W>(&mut self, name: &'static str, work: W) -> io::Result<()>
    where
        W: FnOnce(&Shutdown) + Send + 'static,
    {
        let guard = ExitGuard { name, running: self.running.clone() };
        let shutdown = self.shutdown.clone();
        let run = move || {
            work(&shutdown);
            // Dropped by a panic, too, because the closure owns it.
            drop(guard);
        };
        self.handles.push(Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Blocks until the service is to shut down: at a signal, or when a thread has ended unexpectedly, whose
    /// name is the error.
    pub fn wait(&self) -> Result<(), &'static str> {
        select! {
            recv(self.signals) -> _ => Ok(()),
            recv(self.ended) -> name => match name {
                Ok(name) => Err(name),
                Err(_) => Ok(()), // Unreachable: `self.running` keeps the channel open.
            },
        }
    }

    /// Blocks until `closed` closes or the service is to shut down. In that case `wait` returns at once.
    pub fn wait_for(&self, closed: &Receiver<Infallible>) {
        let mut select = Select::new();
        select.recv(closed);
        select.recv(&self.signals);
        select.recv(&self.ended);
        let is_closed = || closed.try_recv() == Err(TryRecvError::Disconnected);
        while !is_closed() && self.signals.is_empty() && self.ended.is_empty() {
            // Leaves a message for `wait`. May wake up spuriously.
            select.ready();
        }
    }

    /// Registers what wakes a thread that may wait for a socket when the shutdown begins.
    pub fn on_shutdown(&mut self, wake: impl FnOnce() + 'static) {
        self.wakers.push(Box::new(wake));
    }

    /// Tells all threads to end: closes their channel, and wakes those that wait for a socket.
    pub fn shut_down(&mut self) {
        self.open = None;
        for wake in self.wakers.drain(..) {
            wake();
        }
    }

    /// Joins all threads. Returns false, without joining, if some have not ended at `deadline`.
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
            // A panic was reported when the thread ended.
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
    fn a_thread_that_ends_unexpectedly_is_named_and_all_others_are_told_to_end() {
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
