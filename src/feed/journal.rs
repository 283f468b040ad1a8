//! The journal: a thread that writes every update to a file, so that a restart loses nothing.
//! It subscribes to the feed as clients do, from the last update that the file holds, and when the
//! disk is slow it falls behind and subscribes again as they do. Only, it is the first to be served.
//! Owns the file; shares the feed.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cursor, Feed, History, LATEST, Subscription, Update};
use crate::system::{Failure, METRICS, Seldom, Shutdown, Threads};

/// After an error, until the disk is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How every line begins.
const BEGIN: &str = "{\"timestamp\":";
/// The line that says that updates are missing there.
const GAP: &str = "{\"gap\":true}\n";

pub struct Journal {
    path: PathBuf,
    /// Open for appending, and locked against other processes as long as it is.
    file: File,
    lines: usize,
    /// What the last line lacks, if anything.
    end: &'static str,
    /// The timestamp of the last line.
    newest: u64,
    faults: Seldom,
}

impl Journal {
    /// Opens the file, which may be new, and gives the history what is in it. A file that may be
    /// somebody else's is not touched. Called by `main`, before anything is served.
    pub fn open(path: &Path, history: &mut History) -> Result<Journal, Failure> {
        let advice = "name another file, in a folder that exists and in which this user may create \
            files (a volume has to be the folder, not the file)";
        let wrong = |error| format!("--journal {}: {error}; {advice}", path.display());
        Ok(Journal::read(path, history).map_err(wrong)?)
    }

    fn read(path: &Path, history: &mut History) -> io::Result<Journal> {
        let file = open_locked(path)?;
        // Where it is a link, what that points to will be written anew.
        let (path, faults) = (path.canonicalize()?, Seldom::default());
        let mut journal = Journal { path, file, lines: 0, end: "", newest: 0, faults };
        let (updates, complete_from) = journal.check()?;
        history.restore(&updates, complete_from);
        log::info!("journal: {} updates, {} retained", updates.len(), history.updates.len());
        // Now, so that a folder in which it cannot be done is found out.
        let full = [StorageFull, QuotaExceeded, FileTooLarge];
        let tried = journal.rewrite(usize::MAX);
        tried.or_else(|error| if full.contains(&error.kind()) { Ok(()) } else { Err(error) })?;
        Ok(journal)
    }

    /// Starts its thread, which is served first from now on.
    pub fn start(mut self, threads: &Threads, feed: &Arc<Feed>) -> io::Result<()> {
        let (first, feed) = (feed.subscribe_first(Cursor::After(self.newest)), feed.clone());
        threads.spawn("journal", move |shutdown| self.run(first, &feed, shutdown))
    }

    /// Runs until the feed has closed, and the file has all that it had.
    fn run(&mut self, mut subscription: Subscription, feed: &Arc<Feed>, shutdown: &Shutdown) {
        loop {
            let (result, is_last) = (self.follow(&subscription, feed), subscription.open.is_none());
            // So that nobody waits for a disk that fails.
            drop(subscription);
            if let Err(error) = result {
                self.complain(&error);
                shutdown.wait_until(Instant::now() + PAUSE);
            }
            if is_last {
                return;
            }
            subscription = feed.subscribe_first(Cursor::After(self.newest));
        }
    }

    /// Writes what is missing, and then what comes, until its channel ends.
    fn follow(&mut self, subscription: &Subscription, feed: &Feed) -> io::Result<()> {
        self.check()?;
        let backlog = &subscription.backlog;
        self.append(backlog.gap.is_some(), backlog.wire())?;
        for event in &subscription.live {
            if event.update.is_some() {
                let is_gap = self.newest < feed.condition().complete_after;
                self.append(is_gap, &event.wire)?;
                continue;
            }
            // The others are being served: there is time until the next update is due.
            let tidied = self.file.sync_data().and_then(|()| self.forget_expired(feed));
            tidied.unwrap_or_else(|error| self.complain(&error));
        }
        self.file.sync_data()
    }

    /// Appends the data of events, if any, in one piece: a line for each, and one before them where
    /// updates are missing.
    fn append(&mut self, is_gap: bool, wire: &str) -> io::Result<()> {
        let newest = wire.lines().rev().find_map(|line| line.strip_prefix("id: ")?.parse().ok());
        let Some(newest) = newest else { return Ok(()) };
        let data: Vec<_> = wire.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let gap = if is_gap && self.lines > 0 { GAP } else { "" };
        let text = [self.end, gap, &data.join("\n"), "\n"].concat();
        let length = self.file.metadata()?.len();
        self.file.write_all(text.as_bytes()).inspect_err(|_| {
            // The last line loses its end, which needs no room: so a later start knows that updates
            // after it may be missing.
            let end = 1 - mem::replace(&mut self.end, "\n").len() as u64;
            let _ = self.file.set_len(length.saturating_sub(end));
        })?;
        (self.lines, self.end, self.newest) = (self.lines + data.len(), "", newest);
        METRICS.journal_updates.add(data.len() as u64);
        Ok(())
    }

    /// Reads the file, and cuts off a line that was never finished. Returns the updates, and where they
    /// begin to be complete, as the history wants it.
    fn check(&mut self) -> io::Result<(Vec<Update>, usize)> {
        let bytes = fs::read(&self.path)?;
        let (updates, complete_from, length) = parse(&bytes)
            .map_err(|line| io::Error::other(format!("line {line} is no update that follows")))?;
        let end = if bytes[..length].last().is_none_or(|byte| *byte == b'\n') { "" } else { "\n" };
        if length < bytes.len() || end != self.end {
            self.file.set_len(length as u64)?;
            self.faults.warn("journal: the last line was torn, and is mended");
        }
        (self.lines, self.end) = (updates.len(), end);
        self.newest = updates.last().map_or(0, |update| update.timestamp);
        Ok((updates, complete_from))
    }

    /// Where more than half of the lines have expired, keeps the others, and the newest of those that
    /// have: from there on nothing is gone.
    fn forget_expired(&mut self, feed: &Feed) -> io::Result<()> {
        // One more, because the latest may be written and not yet be in the history.
        let kept = feed.condition().updates + 2;
        if self.lines > 2 * kept { self.rewrite(kept) } else { Ok(()) }
    }

    /// Writes the last lines to a new file beside the old one, and puts it in its place. A crash
    /// leaves one of the two.
    fn rewrite(&mut self, lines: usize) -> io::Result<()> {
        let bytes = fs::read(&self.path)?;
        let all: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let kept = &all[all.len().saturating_sub(lines)..];
        let mut beside = self.path.clone().into_os_string();
        // A name that is nobody else's: a crash may have left one.
        beside.push(".btc-ticker-new");
        let _ = fs::remove_file(&beside);
        let put_in_place = || {
            let mut file = open_locked(Path::new(&beside))?;
            file.write_all(&kept.concat())?;
            file.sync_all()?;
            fs::rename(&beside, &self.path).map(|()| file)
        };
        self.file = put_in_place().inspect_err(|_| drop(fs::remove_file(&beside)))?;
        self.lines = kept.len();
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    fn complain(&self, error: &io::Error) {
        METRICS.journal_errors.inc();
        self.faults.warn(format_args!("journal {}: {error}", self.path.display()));
    }
}

/// Opens a file for appending that no other process has open so.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("this is no file"));
        }
        file.try_lock().map_err(|_| io::Error::other("another process writes to it"))?;
        // That process may just have put another file in its place.
        if fs::metadata(path)?.ino() == file.metadata()?.ino() {
            return Ok(file);
        }
    }
}

/// The updates; the index of the first one after the last place where some may be missing, which is a
/// line that says so or a last line without its end; and how many bytes are good. The error is the number of
/// a line that is no update after the one before.
fn parse(bytes: &[u8]) -> Result<(Vec<Update>, usize, usize), usize> {
    let (mut updates, mut complete_from, mut length) = (Vec::<Update>::new(), 0, 0);
    for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        let (is_gap, is_whole) = (line == GAP.as_bytes(), line.ends_with(b"\n"));
        // Of a line that was being written when the process ended nobody has seen the update.
        let is_begun =
            |of: &str| of.as_bytes().starts_with(line) || line.starts_with(of.as_bytes());
        let newest = updates.last().map_or(0, |update| update.timestamp);
        let is_next = |it: &Update| (newest + 1..=LATEST).contains(&it.timestamp) && it.price > 0.0;
        match serde_json::from_slice(line).ok().filter(is_next) {
            Some(update) => updates.push(update),
            None if is_gap => {}
            None if !is_whole && (is_begun(BEGIN) || is_begun(GAP)) => break,
            None => return Err(number),
        }
        length += line.len();
        if is_gap || !is_whole {
            complete_from = updates.len();
        }
    }
    Ok((updates, complete_from, length))
}
