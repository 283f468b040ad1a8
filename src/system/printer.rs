//! Standard output and standard error. A stream that is not read (a full pipe, a paused terminal) never
//! blocks the thread that prints: each stream has a bounded channel, and a thread that writes to it.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::METRICS;

/// The capacity of a channel, in lines. When it is full, further lines are dropped and counted.
const BACKLOG: usize = 1_024;
/// How long the owner of a printer waits, at the end, for its lines to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Prints lines to a standard stream. Dropping it flushes: it stops the thread and waits until the
/// backlog is written, for at most `FLUSH`. A thread that is still blocked then ends with the process.
pub struct Printer {
    lines: Lines,
    /// Dropped to stop the thread, which writes the backlog first.
    open: Option<Sender<Infallible>>,
    /// Closes when the thread has ended.
    ended: Receiver<Infallible>,
}

/// Takes lines without blocking.
#[derive(Clone)]
struct Lines {
    /// Ends with the thread; later lines are discarded.
    channel: Sender<Vec<u8>>,
    /// Lines that were dropped since the last report.
    dropped: Arc<AtomicU64>,
}

impl Printer {
    /// Starts the thread. Fails only if the system has no thread left.
    pub fn start(name: &str, stream: impl Write + Send + 'static) -> io::Result<Printer> {
        let (channel, backlog) = bounded(BACKLOG);
        let (open, closed) = bounded(0);
        let (running, ended) = bounded(0);
        let lines = Lines { channel, dropped: Arc::default() };
        let dropped = lines.dropped.clone();
        let run = move || {
            write_lines(stream, &backlog, &dropped, &closed);
            drop(running);
        };
        thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Printer { lines, open: Some(open), ended })
    }

    /// Never blocks.
    pub fn print(&self, line: impl Display) {
        self.lines.send(format!("{line}\n").into_bytes());
    }

    /// Prints what is written to it, which must be a whole line each time. Never blocks or fails.
    pub fn writer(&self) -> impl Write + Send + use<> {
        self.lines.clone()
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.open = None;
        let _ = self.ended.recv_timeout(FLUSH);
    }
}

impl Lines {
    fn send(&self, line: Vec<u8>) {
        if self.channel.try_send(line).is_err() {
            self.dropped.fetch_add(1, Relaxed);
            METRICS.log_lines_dropped.inc();
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread of a printer. Returns when `closed` is closed and the backlog is written.
fn write_lines(
    mut stream: impl Write,
    backlog: &Receiver<Vec<u8>>,
    dropped: &AtomicU64,
    closed: &Receiver<Infallible>,
) {
    loop {
        let line = select! {
            recv(backlog) -> line => line.ok(),
            recv(closed) -> _ => backlog.try_recv().ok(),
        };
        let Some(line) = line else { return };
        // A reader that has closed the stream is no reason to stop.
        if stream.write_all(&line).is_err() {
            METRICS.log_lines_dropped.inc();
        }
        // One report, after the lines that were logged before the first drop.
        if backlog.is_empty() {
            match dropped.swap(0, Relaxed) {
                0 => {}
                n => log::error!("dropped {n} log lines because nothing read them"),
            }
        }
    }
}
