//! The crew: how threads are started, stopped and waited for.
//! Stopping is a channel that closes; having stopped is another, which closes when the last thread
//! has let go of it. Both are shared by every thread that this program starts.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use parking_lot::Mutex;

/// The stack of a thread that serves a client. The deepest it goes is formatting a log line.
const STACK: usize = 128 * 1024;

/// Where one fault follows another, the log has one line for all of them in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What ends the program with an error.
pub type Failure = Box<dyn std::error::Error>;

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
        self.wait_until(Instant::now())
    }
}

/// Starts threads. A clone of it is what a thread needs to start others.
#[derive(Clone)]
pub struct Crew {
    pub shutdown: Shutdown,
    /// Held by every thread as long as it runs; takes the names of those who must not end, but did.
    aboard: Sender<&'static str>,
    /// When the log was last told of a fault; held for a look at it.
    warned: Arc<Mutex<Option<Instant>>>,
}

/// The other end of a crew, with which `main` watches its threads.
pub struct Muster {
    shutdown: Shutdown,
    aboard: Receiver<&'static str>,
}

/// Tells that a vital thread has ended, be it by a panic.
struct Obituary(&'static str, Sender<&'static str>);

impl Drop for Obituary {
    fn drop(&mut self) {
        // Where nobody reads it any more, the service is ending anyway.
        let _ = self.1.try_send(self.0);
    }
}

impl Crew {
    /// A crew that works until `shutdown` closes.
    pub fn new(shutdown: Shutdown) -> (Crew, Muster) {
        let (aboard, watch) = bounded(1);
        let muster = Muster { shutdown: shutdown.clone(), aboard: watch };
        (Crew { shutdown, aboard, warned: Arc::default() }, muster)
    }

    /// Logs a fault that may come by the thousand, unless it has just logged another.
    pub fn warn(&self, message: &str) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            *warned = Some(Instant::now());
            drop(warned);
            log::warn!("{message}");
        }
    }

    /// Starts a thread. Fails where the system has no more of them.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let aboard = self.aboard.clone();
        let thread = Builder::new().name(name.to_owned()).stack_size(STACK);
        thread.spawn(move || {
            work();
            drop(aboard);
        })?;
        Ok(())
    }

    /// Starts a thread without which the service would stand still and nobody might notice.
    pub fn spawn_vital(
        &self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let obituary = Obituary(name, self.aboard.clone());
        self.spawn(name, move || {
            let _obituary = obituary;
            work();
        })
    }
}

impl Muster {
    /// Sleeps until the service is to end: by a signal, or because the vital thread named in the
    /// error has ended.
    pub fn wait(&self) -> Result<(), &'static str> {
        select! {
            recv(self.shutdown.0) -> _ => Ok(()),
            recv(self.aboard) -> name => match name {
                Ok(name) if !self.shutdown.has_come() => Err(name),
                _ => Ok(()),
            },
        }
    }

    /// Waits until every thread has ended; false if some have not after `patience`. The threads must
    /// have the crew and all its clones by then.
    pub fn all_gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            match self.aboard.recv_deadline(deadline) {
                Ok(_) => {}
                Err(error) => return error == RecvTimeoutError::Disconnected,
            }
        }
    }
}
