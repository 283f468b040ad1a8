//! The journal: a thread that writes every update to a file, so that a restart loses nothing.
//! It subscribes to the feed as clients do, from the last update that the file holds, and when the
//! disk is slow it falls behind and subscribes again as they do. Only, it is the first to be served.
//! Owns the file; shares the feed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cursor, Feed, History, LATEST, Subscription, Update};
use crate::system::{Failure, METRICS, Seldom, Shutdown, Threads};

/// After an error, until the disk is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How every line begins.
const BEGIN: &[u8] = b"{\"timestamp\":";

pub struct Journal {
    path: PathBuf,
    /// Open for appending, and locked against other processes as long as it is.
    file: File,
    /// What the file has in bytes and lines; anything beyond is what an error left of a line.
    length: u64,
    lines: usize,
    /// The timestamp of the last line.
    newest: u64,
    faults: Seldom,
}

impl Journal {
    /// Opens the file, which may be new, and gives the history what is in it. A file that may be
    /// somebody else's is not touched. Called by `main`, before anything is served.
    pub fn open(path: &Path, history: &mut History) -> Result<Journal, Failure> {
        let advice = "name another file, in a folder that exists and that this user may write";
        let wrong = |error| format!("--journal {}: {error}; {advice}", path.display());
        Ok(Journal::read(path, history).map_err(wrong)?)
    }

    fn read(path: &Path, history: &mut History) -> io::Result<Journal> {
        let mut file = open_locked(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (text, torn) = bytes.split_at(whole);
        let updates = parse(text, torn)
            .map_err(|line| io::Error::other(format!("line {line} is no update that follows")))?;
        if !torn.is_empty() {
            log::warn!("journal {}: the last line is torn, and cut off", path.display());
            file.set_len(whole as u64)?;
        }
        history.restore(&updates);
        let newest = updates.last().map_or(0, |update| update.timestamp);
        let (path, length, lines) = (path.to_owned(), whole as u64, updates.len());
        log::info!("journal: {lines} updates, {} of them retained", history.updates.len());
        Ok(Journal { path, file, length, lines, newest, faults: Seldom::default() })
    }

    /// Starts its thread, which is served first from now on.
    pub fn start(mut self, threads: &Threads, feed: &Arc<Feed>) -> io::Result<()> {
        let (first, feed) = (feed.subscribe_first(Cursor::After(self.newest)), feed.clone());
        threads.spawn("journal", move |shutdown| self.run(first, &feed, shutdown))
    }

    /// Runs until the feed closes.
    fn run(&mut self, mut first: Option<Subscription>, feed: &Arc<Feed>, shutdown: &Shutdown) {
        while let Some(subscription) = first {
            let result = self.follow(&subscription, feed);
            // So that nobody waits for a disk that fails.
            drop(subscription);
            if let Err(error) = result {
                METRICS.journal_errors.inc();
                self.faults.warn(format_args!("journal {}: {error}", self.path.display()));
                shutdown.wait_until(Instant::now() + PAUSE);
            }
            first = feed.subscribe_first(Cursor::After(self.newest));
        }
    }

    /// Writes what is missing, and then what comes, until its channel ends.
    fn follow(&mut self, subscription: &Subscription, feed: &Feed) -> io::Result<()> {
        self.file.set_len(self.length)?;
        let backlog = &subscription.backlog;
        if backlog.gap.is_some() {
            // Something was lost while the disk failed: the file has to begin after that.
            self.rewrite(0)?;
        }
        self.append(&String::from_utf8_lossy(backlog.wire()))?;
        if let Cursor::After(newest) = backlog.position {
            self.newest = newest;
        }
        for event in &subscription.live {
            if let Some(update) = event.update {
                self.append(&event.wire)?;
                self.newest = update.timestamp;
            } else {
                // The others are being served: there is time until the next update is due.
                self.file.sync_data()?;
                self.forget_expired(feed)?;
            }
        }
        self.file.sync_data()
    }

    /// Appends the data of events, a line for each, in one piece.
    fn append(&mut self, wire: &str) -> io::Result<()> {
        let lines: Vec<_> = wire.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let text = joined(&lines);
        self.file.write_all(text.as_bytes())?;
        self.length += text.len() as u64;
        self.lines += lines.len();
        METRICS.journal_updates.add(lines.len() as u64);
        Ok(())
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
        let text = fs::read_to_string(&self.path)?;
        let all: Vec<&str> = text.lines().collect();
        let text = joined(&all[all.len().saturating_sub(lines)..]);
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let _ = fs::remove_file(&beside);
        let mut file = open_locked(Path::new(&beside))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        (self.file, self.length, self.lines) = (file, text.len() as u64, all.len().min(lines));
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
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

/// The updates in whole lines; the error is the number of one that is no update after the one before. The rest
/// must be the beginning of a line.
fn parse(text: &[u8], torn: &[u8]) -> Result<Vec<Update>, usize> {
    let mut updates: Vec<Update> = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let update: Option<Update> = serde_json::from_slice(line).ok();
        let newest = updates.last().map_or(0, |update| update.timestamp);
        let in_time = newest + 1..=LATEST;
        let update = update.filter(|it| in_time.contains(&it.timestamp) && it.price > 0.0);
        updates.push(update.ok_or(updates.len() + 1)?);
    }
    let torn = torn.trim_ascii_end();
    let is_ours = torn.starts_with(BEGIN) || BEGIN.starts_with(torn);
    if is_ours { Ok(updates) } else { Err(updates.len() + 1) }
}

fn joined(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}
