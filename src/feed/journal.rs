//! The journal: the file that keeps updates across restarts. The first line says whose it is, then
//! there is a line of JSON for each update. Owned by the publisher, on whose thread all of it runs;
//! only `open` is called by `main`, before anything is served.
//!
//! After a restart a file that lacks an update would be believed, and nobody would be told of a gap. So
//! after an error the file is emptied, and written anew from the history, which has everything. That is
//! tried at each update, and when none is waiting, but not for a second after an error.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Backlog, Cursor, Event, Feed, History, Update};
use crate::system::{METRICS, RateLimitedLog, latest_plausible, unix_millis};

/// Errors that an operator has to mend; any other is that of a disk, and may pass.
const MISTAKES: [ErrorKind; 5] = [
    ErrorKind::AlreadyExists,
    ErrorKind::InvalidInput,
    ErrorKind::NotFound,
    ErrorKind::PermissionDenied,
    ErrorKind::ResourceBusy,
];
/// Longer than any line that we write.
const MAX_LINE: u64 = 256;
/// After an error, until the disk is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const NAME: &str = "btc-ticker";
const RISK: &str = "it cannot be emptied, so a restart may miss updates without a word";
const ADVICE: &str = "name another file, in a folder that exists and in which this user may create files \
    (a volume has to be the folder, not the file)";

pub struct Journal {
    path: PathBuf,
    made_up: bool,
    /// Held as long as the process lives, for its lock.
    _lock: File,
    /// Open for appending, while it has all that was published. `None` when it has to be written anew.
    file: Option<File>,
    /// How long that file is, and how many updates it has.
    length: u64,
    updates: usize,
    /// When to try next to write the file anew; each error moves it. (After a gap the file is written anew
    /// at once, whatever this says.)
    next_try: Instant,
    errors: RateLimitedLog,
}

/// The first line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    journal: String,
    made_up: bool,
    complete_since: Option<u64>,
}

impl Journal {
    /// Opens the file, which may be new, and gives the history what is in it. The error is what the
    /// operator has to change: a file whose first line is not ours is not touched, made-up prices and real
    /// ones refuse each other. A disk that fails is no error once there is a lock. Where the file can be
    /// read but not be written anew (a full disk), the history keeps what was in it, and the file is
    /// emptied. Where it cannot be read, or not even be emptied, a poller has no history; a replica keeps
    /// what was read, and asks its origin for the rest.
    pub fn open(path: &Path, made_up: bool, history: &mut History) -> Result<Journal, String> {
        let refusal = |error| format!("--journal {}: {error}; {ADVICE}", path.display());
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(refusal(mistake("this is no file")));
        }
        // Made where it is missing, so that a link has something to lead to. Errors show below.
        let _ = OpenOptions::new().append(true).create(true).open(path);
        // A link stays a link: what it points to is replaced.
        let path = fs::canonicalize(path).unwrap_or(path.to_owned());
        let mut journal = Journal {
            _lock: lock(&path).map_err(refusal)?,
            path,
            made_up,
            file: None,
            length: 0,
            updates: 0,
            next_try: Instant::now(),
            errors: RateLimitedLog::default(),
        };
        match journal.recover(history) {
            Ok(()) => {}
            Err(error) if MISTAKES.contains(&error.kind()) => return Err(refusal(error)),
            Err(error) => {
                journal.retry_later(error);
                if journal.empty().is_err() {
                    // Perhaps the process before us could not empty it, either. Then the file lacks what that
                    // one published afterwards.
                    history.end_of_journal(true);
                }
            }
        }
        log::info!("journal: {} updates", history.count());
        Ok(journal)
    }

    /// Gives the history what is in the file, and writes that anew.
    fn recover(&mut self, history: &mut History) -> io::Result<()> {
        if let Err(error) = self.read(history) {
            // Nobody knows what the disk has not given back.
            history.end_of_journal(true);
            return Err(error);
        }
        history.expire();
        self.rewrite(&history.backlog(Cursor::After(0), usize::MAX))
    }

    /// Gives the history what is in the file.
    fn read(&mut self, history: &mut History) -> io::Result<()> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        read_line(&mut reader, &mut line)?;
        if line.is_empty() {
            return Ok(()); // The file is new, or was emptied after an error.
        }
        history.start_anew(self.check_header(&line)?);
        let mut number = 1;
        let mut is_damaged = false;
        while read_line(&mut reader, &mut line)? {
            number += 1;
            let Some(update) = parse(&line, history.newest()) else {
                if !is_damaged {
                    log::warn!("journal: line {number} is damaged, and given up");
                }
                is_damaged = true;
                continue;
            };
            if is_damaged {
                // What stands before the damage is given up: the history never has a hole.
                history.start_anew(Some(update.timestamp));
                is_damaged = false;
            }
            history.push(update, Arc::new(Event::update(update)));
        }
        history.end_of_journal(is_damaged);
        Ok(())
    }

    /// Checks the first line, and returns since when the file has everything. An error where the file is not
    /// ours to write.
    fn check_header(&self, line: &[u8]) -> io::Result<Option<u64>> {
        let foreign = mistake("its first line is not that of a btc-ticker journal");
        let Ok(header) = serde_json::from_slice::<Header>(line) else { return Err(foreign) };
        if header.journal != NAME {
            return Err(foreign);
        }
        match (header.made_up, self.made_up) {
            (true, false) => return Err(mistake("it has made-up prices, and these are real")),
            (false, true) => return Err(mistake("it has real prices, and these are made up")),
            _ => {}
        }
        match header.complete_since {
            // It is of a clock that was far ahead.
            Some(time) if time > latest_plausible() => Ok(Some(unix_millis())),
            time => Ok(time),
        }
    }

    /// Writes an update, before anybody has seen it.
    pub fn append(&mut self, update: Update, feed: &Feed) {
        if self.has_changed_outside() {
            log::warn!("journal: somebody else has changed the file; it is written anew");
            if let Err(error) = self.empty() {
                self.retry_later(format_args!("{RISK}: {error}"));
            }
        }
        if self.file.is_none() {
            self.try_rewrite(feed);
        }
        self.write(update);
    }

    /// The same for an update before which others are missing: what is in the file is given up.
    pub fn start_anew(&mut self, first: Update) {
        if let Err(error) = self.rewrite(&Backlog::empty(first.timestamp)) {
            self.fail(error);
        }
        self.write(first);
    }

    /// Writes a line, where there is a file that has all before it.
    fn write(&mut self, update: Update) {
        let Some(file) = &mut self.file else { return };
        let line = update.to_json() + "\n";
        match file.write_all(line.as_bytes()) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.updates += 1;
                METRICS.journal_updates.inc();
            }
            Err(error) => self.fail(error),
        }
    }

    /// When no other update is waiting: makes sure that a power cut loses nothing. Where the file was
    /// given up, or more than half of it has expired, it is written anew.
    pub fn settle(&mut self, feed: &Feed) {
        if self.file.is_none() || self.updates > 2 * feed.snapshot().updates {
            self.try_rewrite(feed);
        }
        let Some(file) = &self.file else { return };
        if let Err(error) = file.sync_data() {
            self.fail(error);
        }
    }

    fn try_rewrite(&mut self, feed: &Feed) {
        if Instant::now() < self.next_try {
            return;
        }
        match self.rewrite(&feed.backlog(Cursor::After(0), usize::MAX)) {
            Ok(()) => {}
            // An old file that has everything goes on.
            Err(error) if self.file.is_some() => self.retry_later(error),
            // What is at the path is out of date, and emptying it may have failed before.
            Err(error) => self.fail(error),
        }
    }

    /// Writes a new file beside the old one, and puts it in its place: a crash leaves one of the two.
    fn rewrite(&mut self, all: &Backlog) -> io::Result<()> {
        let new = beside(&self.path, ".btc-ticker-new");
        let file = match self.put_in_place(&new, all) {
            Ok(file) => file,
            Err(error) => {
                // It would only take room on a disk that has none.
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        };
        if let Some(folder) = self.path.parent() {
            // Not every file system can sync a folder.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        self.length = file.metadata()?.len();
        self.updates = all.updates;
        self.file = Some(file);
        Ok(())
    }

    fn put_in_place(&self, new: &Path, all: &Backlog) -> io::Result<File> {
        // A crash may have left one.
        let _ = fs::remove_file(new);
        let file = OpenOptions::new().append(true).create_new(true).open(new)?;
        let mut writer = BufWriter::new(&file);
        let header = Header {
            journal: NAME.to_owned(),
            made_up: self.made_up,
            complete_since: all.complete_since,
        };
        writeln!(writer, "{}", serde_json::to_string(&header)?)?;
        for update in all.json() {
            writeln!(writer, "{update}")?;
        }
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        fs::rename(new, &self.path)?;
        Ok(file)
    }

    /// Whether the file at our path is no longer the one that we write, or not as long as we left it.
    fn has_changed_outside(&self) -> bool {
        let Some(file) = &self.file else { return false };
        match (fs::metadata(&self.path), file.metadata()) {
            (Ok(there), Ok(ours)) => {
                let is_same = there.ino() == ours.ino() && there.dev() == ours.dev();
                !is_same || ours.len() != self.length
            }
            _ => true,
        }
    }

    /// Empties the file: a restart then begins without a past, and its clients are told of a gap. Even a full
    /// disk has room for an empty file.
    fn empty(&mut self) -> io::Result<()> {
        let ours = self.file.take();
        match (File::create(&self.path), ours) {
            (Ok(new), _) => new.sync_data(),
            // Nothing can be put at the path now: its folder was moved away, for example. When that is back
            // our file is there again, and would be believed.
            (Err(_), Some(ours)) => {
                ours.set_len(0)?;
                ours.sync_data()
            }
            (Err(error), None) => Err(error),
        }
    }

    /// What is published now may not be in the file. So that is given up.
    fn fail(&mut self, error: io::Error) {
        match self.empty() {
            Ok(()) => self.retry_later(error),
            Err(worse) => self.retry_later(format_args!("{error}; {RISK}: {worse}")),
        }
    }

    fn retry_later(&mut self, error: impl Display) {
        METRICS.journal_errors.inc();
        self.next_try = Instant::now() + RETRY_AFTER;
        self.errors.warn(format_args!("journal {}: {error}", self.path.display()));
    }
}

/// The same path with something behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn mistake(message: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, message)
}

/// Makes sure that no other process has this journal. The lock is on a file beside it, which stays where
/// it is while the journal is replaced.
fn lock(journal: &Path) -> io::Result<File> {
    let path = beside(journal, ".btc-ticker-lock");
    let lock = match OpenOptions::new().append(true).create(true).open(&path) {
        Ok(lock) => lock,
        // On a disk that has become read-only it is still there.
        Err(error) => File::open(&path).map_err(|_| error)?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(mistake("another process has it")),
        Err(TryLockError::Error(error)) => Err(mistake(&format!("it has no locks: {error}"))),
    }
}

/// Reads a line, or as much of it as a line of ours may have. False at the end of the file: there may be a
/// line without its end, from a process that was killed while it wrote. Nobody has seen that update.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let count = reader.take(MAX_LINE).read_until(b'\n', line)?;
    Ok(line.ends_with(b"\n") || count as u64 == MAX_LINE)
}

/// The update of a whole line, if it is one that follows `newest`.
fn parse(line: &[u8], newest: u64) -> Option<Update> {
    let line = line.strip_suffix(b"\n")?;
    let update: Update = serde_json::from_slice(line).ok()?;
    let is_next = update.timestamp > newest && update.timestamp <= latest_plausible();
    if is_next && update.price > 0.0 { Some(update) } else { None }
}
