//! The journal: a thread that writes every update to a file, so that a restart loses nothing.
//! It subscribes to the feed as clients do, from the last update that the file holds, and when the
//! disk is slow it falls behind and subscribes again as they do. Only, it is the first to be served.
//! Owns the file; shares the feed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cursor, Feed, History, Subscription, Update};
use crate::system::{Failure, METRICS, Seldom, Shutdown, Threads};

/// The end of the year 9999: a later time is a mistake.
const LATEST: u64 = 253_402_300_799_999;
/// After an error, until the disk is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How a line ends after which clients have seen updates that could not be written yet. As the end of
/// the file it says that some may be missing there.
const OPEN_END: &str = " \n";
/// The lines of updates and of gaps, without their numbers.
const UPDATE: &[u8] = b"{\"timestamp\":,\"price\":}";
const GAPS: [&[u8]; 2] = [b"{\"oldest\":,\"since\":}", b"{\"oldest\":null,\"since\":}"];

pub struct Journal {
    path: PathBuf,
    /// Open for appending, and locked against other processes as long as it is.
    file: File,
    /// How many updates it has.
    updates: usize,
    /// What is to be written before the next line: the end that the last one has lost, if it has.
    end: &'static str,
    /// The timestamp of the last line.
    newest: u64,
    faults: Seldom,
}

impl Journal {
    /// Opens the file, which may be new, and gives the history what is in it. A file that may be
    /// somebody else's is not touched, and made-up prices never pass for real ones. Called by `main`,
    /// before anything is served.
    pub fn open(path: &Path, made_up: bool, history: &mut History) -> Result<Journal, Failure> {
        let advice = "name another file, in a folder that exists and in which this user may create \
            files (a volume has to be the folder, not the file)";
        let wrong = |error| format!("--journal {}: {error}; {advice}", path.display());
        Ok(Journal::read(path, made_up, history).map_err(wrong)?)
    }

    fn read(path: &Path, made_up: bool, history: &mut History) -> io::Result<Journal> {
        let file = open_locked(path)?;
        // A link stays one: what it points to is replaced.
        let (path, faults) = (path.canonicalize()?, Seldom::default());
        let mark = beside(&path, ".made-up");
        if !made_up && mark.exists() && file.metadata()?.len() > 0 {
            return Err(io::Error::other(format!("it has made-up prices, says {mark:?}")));
        }
        let mut journal = Journal { path, file, updates: 0, end: "", newest: 0, faults };
        let (updates, complete_from, text) = journal.check()?;
        // There before any made-up price is, and gone before any real one.
        let _ = made_up || fs::remove_file(&mark).is_ok();
        made_up.then(|| OpenOptions::new().append(true).create(true).open(mark)).transpose()?;
        if history.restore(&updates, complete_from) {
            log::warn!("journal: updates may be missing after its last line");
        }
        log::info!("journal: {} updates, {} retained", updates.len(), history.updates.len());
        // Tried now, so that a folder in which it cannot be done is found out. A disk that is full may
        // have room later.
        let full = [StorageFull, QuotaExceeded, FileTooLarge];
        let tried = journal.rewrite(&text);
        tried.or_else(|error| if full.contains(&error.kind()) { Ok(()) } else { Err(error) })?;
        Ok(journal)
    }

    /// Starts its thread, which is served first from now on.
    pub fn start(mut self, threads: &Threads, feed: &Arc<Feed>) -> io::Result<()> {
        let (first, feed) = (feed.subscribe_first(Cursor::After(self.newest)), feed.clone());
        threads.spawn("journal", move |shutdown| self.run(first, &feed, shutdown))
    }

    /// Runs until the feed has closed. Then it writes the rest, as far as it can.
    fn run(&mut self, mut subscription: Subscription, feed: &Arc<Feed>, shutdown: &Shutdown) {
        loop {
            let is_last = subscription.open.is_none();
            let mut result = self.follow(&subscription, feed);
            // So that nobody waits for a disk that fails.
            drop(subscription);
            while let Err(error) = result {
                self.complain(&error);
                let is_over = shutdown.wait_until(Instant::now() + PAUSE);
                result = self.check().map(drop);
                if is_over && result.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
            subscription = feed.subscribe_first(Cursor::After(self.newest));
        }
    }

    /// Writes what is missing, and then what comes, until its channel ends.
    fn follow(&mut self, subscription: &Subscription, feed: &Feed) -> io::Result<()> {
        let backlog = &subscription.backlog;
        let gap = backlog.gap.as_ref().map_or("", |gap| &gap.wire);
        self.append(&[gap, backlog.wire()].concat())?;
        self.tidy(feed);
        for event in &subscription.live {
            match event.update {
                Some(_) => self.append(&event.wire)?,
                // The others are being served: there is time until the next update is due.
                None => self.tidy(feed),
            }
        }
        Ok(())
    }

    /// Appends the data of events, if any, in one piece: a line for each update and each gap.
    fn append(&mut self, wire: &str) -> io::Result<()> {
        let data: Vec<_> = wire.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        if data.is_empty() {
            return Ok(());
        }
        let text = [self.end, &data.join(OPEN_END), "\n"].concat();
        let length = self.file.metadata()?.len();
        self.file.write_all(text.as_bytes()).inspect_err(|_| {
            // The last line loses its end, by which a later start knows that updates may be missing
            // there. It needs no room on a disk that is full.
            let end = if self.end.is_empty() { 1 } else { 0 };
            self.end = OPEN_END;
            let _ =
                self.file.set_len(length.saturating_sub(end)).and_then(|()| self.file.sync_data());
        })?;
        for id in wire.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()) {
            (self.newest, self.updates) = (id, self.updates + 1);
            METRICS.journal_updates.inc();
        }
        self.end = "";
        Ok(())
    }

    /// Reads the file, and cuts off a line that was never finished. Returns the updates, from which
    /// index on they are complete (see `History::restore`), and the text.
    fn check(&mut self) -> io::Result<(Vec<Update>, usize, Vec<u8>)> {
        let mut bytes = fs::read(&self.path)?;
        let (updates, complete_from, length) = parse(&bytes)
            .map_err(|line| io::Error::other(format!("line {line} is no update that follows")))?;
        if length < bytes.len() {
            bytes.truncate(length);
            self.file.set_len(length as u64)?;
            log::warn!("journal: the last line was torn, and is cut off");
        }
        let end = if bytes.last().is_none_or(|it| *it == b'\n') { "" } else { OPEN_END };
        (self.updates, self.end) = (updates.len(), end);
        self.newest = updates.last().map_or(0, |update| update.timestamp);
        Ok((updates, complete_from, bytes))
    }

    /// Syncs. Where more than half of the updates have expired, keeps the others, and the newest of
    /// those that have: from there on nothing is gone.
    fn tidy(&mut self, feed: &Feed) {
        // One more, because the latest may be written and not yet be in the history.
        let kept = feed.condition().updates + 2;
        let tidied = if self.updates > 2 * kept { self.keep(kept) } else { self.file.sync_data() };
        tidied.unwrap_or_else(|error| self.complain(&error));
    }

    /// Keeps the last updates, with the gaps among them.
    fn keep(&mut self, updates: usize) -> io::Result<()> {
        let bytes = fs::read(&self.path)?;
        let all: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let gaps = all.iter().filter(|line| GAPS.contains(&&*shape(line))).count();
        // Where it fails, it is tried again after as many more.
        self.updates = updates;
        self.rewrite(&all[all.len().saturating_sub(updates + gaps)..].concat())
    }

    /// Writes the text to a new file beside the old one, and puts it in its place. A crash leaves one of
    /// the two.
    fn rewrite(&mut self, text: &[u8]) -> io::Result<()> {
        // A name that no other program uses. A crash may have left such a file.
        let new = beside(&self.path, ".btc-ticker-new");
        let _ = fs::remove_file(&new);
        let put_in_place = || {
            let mut file = open_locked(&new)?;
            let old = self.file.metadata()?;
            file.set_permissions(old.permissions())?;
            // It fails for all but root, whose own the file would be otherwise.
            let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path).map(|()| file)
        };
        self.file = put_in_place().inspect_err(|_| drop(fs::remove_file(&new)))?;
        // Not every file system can sync a folder.
        let _ = self.path.parent().map(|folder| File::open(folder)?.sync_all());
        Ok(())
    }

    fn complain(&self, error: &io::Error) {
        METRICS.journal_errors.inc();
        self.faults.warn(format_args!("journal {}: {error}", self.path.display()));
    }
}

/// The same path with something behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    [path.as_os_str(), suffix.as_ref()].into_iter().collect::<OsString>().into()
}

/// Opens a file for appending that no other process has open so.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("this is no file"));
        }
        file.try_lock().map_err(|it| io::Error::other(format!("another process has it: {it}")))?;
        // That process may just have put another file in its place.
        if fs::metadata(path)?.ino() == file.metadata()?.ino() {
            return Ok(file);
        }
    }
}

/// Returns the updates, from which index on they are complete (see `History::restore`), and how many
/// bytes are good. The error is the number of the first line that is wrong.
fn parse(bytes: &[u8]) -> Result<(Vec<Update>, usize, usize), usize> {
    let (mut updates, mut complete_from, mut length) = (Vec::<Update>::new(), 0, 0);
    for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        let newest = updates.last().map_or(0, |update| update.timestamp);
        let is_next = |it: &Update| (newest + 1..=LATEST).contains(&it.timestamp) && it.price > 0.0;
        match serde_json::from_slice(line).ok().filter(is_next) {
            Some(update) => updates.push(update),
            None if GAPS.contains(&&*shape(line)) => complete_from = updates.len(),
            None if !line.ends_with(b"\n") && is_begun(line) => break,
            None => return Err(number),
        }
        length += line.len();
    }
    let is_complete = length == 0 || bytes[..length].ends_with(b"}\n");
    let complete_from = if is_complete { complete_from } else { updates.len() };
    Ok((updates, complete_from, length))
}

/// Whether it is the beginning of a line that we write, and not the whole.
fn is_begun(line: &[u8]) -> bool {
    let shape = shape(line);
    let is_begin = |form: &&[u8]| form.starts_with(&shape) && **form != shape;
    matches!(line[0], b'{' | 0) && GAPS.iter().chain([&UPDATE]).any(is_begin)
}

/// A line without its numbers, its end, and the zeros that a power cut may have left in it.
fn shape(line: &[u8]) -> Vec<u8> {
    line.iter().copied().filter(|byte| !b"0123456789. \n\0".contains(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Dating, Event};
    use super::*;

    fn update(timestamp: u64) -> Update {
        Update { timestamp, price: 97_123.45 }
    }

    #[test]
    fn what_was_seen_is_not_forgotten_silently_wherever_a_crash_cuts_the_file() {
        let path = std::env::temp_dir().join(format!("btc-ticker-{}", std::process::id()));
        // It ends as after a failed write: updates after it were seen.
        fs::write(&path, update(1_000).to_json()).unwrap();
        let mut history = History::new(Dating::Own, 1, Duration::from_secs(1), 10);
        let mut journal = Journal::open(&path, false, &mut history).unwrap();
        let wire: Box<str> = (1_001..1_004).map(|time| Event::update(update(time)).wire).collect();
        journal.append(&wire).unwrap();
        let bytes = fs::read(&path).unwrap();
        let first = update(1_000).to_json().len();
        for cut in first..bytes.len() {
            let (updates, complete_from, _) = parse(&bytes[..cut]).unwrap();
            assert_eq!(complete_from, updates.len(), "cut after {cut} bytes");
        }
        assert_eq!(parse(&bytes), Ok((Vec::from_iter((1_000..1_004).map(update)), 0, bytes.len())));
        // One that is new is seen by nobody before it is written (up to the end of its line).
        journal.append(&Event::update(update(1_004)).wire).unwrap();
        let all = fs::read(&path).unwrap();
        for cut in bytes.len()..all.len() - 2 {
            assert_eq!(parse(&all[..cut]).unwrap().1, 0, "cut after {cut} bytes");
        }
        fs::remove_file(&path).unwrap();
    }
}
