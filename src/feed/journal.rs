//! The journal: the file that keeps updates across restarts. The first line says whose it is, then
//! there is a line of JSON for each update. Owned by the publisher, on whose thread all of it runs;
//! only `open` is called by `main`, before anything is served.
//!
//! A file with a hole would be believed. So after an error it is emptied, and written anew from the
//! history, which has everything. That is tried at each update, but at most once a second.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Cursor, Event, Feed, History, Page, Update};
use crate::system::{METRICS, RateLimitedLog, latest_plausible, unix_millis};

/// Longer than any line that we write.
const MAX_LINE: u64 = 256;
/// After an error, until the disk is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const NAME: &str = "btc-ticker";
const ADVICE: &str = "name another file, in a folder that exists and in which this user may create files \
    (a volume has to be the folder, not the file)";

pub struct Journal {
    path: PathBuf,
    made_up: bool,
    /// Open for appending. `None` where the disk has not let us write a first one.
    file: Option<File>,
    /// Held for its lock, as long as the process lives. Without it nothing is written.
    lock: Option<File>,
    /// How long the file is, and how many updates it has.
    length: u64,
    updates: usize,
    /// Whether the file has all that was published, so that a line can be appended.
    is_complete: bool,
    /// After an error the disk is not tried again before.
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
    /// operator has to change: a file of somebody else is not touched, made-up prices and real ones
    /// refuse each other. A disk that fails is no error: the service starts with what it can read.
    pub fn open(path: &Path, made_up: bool, history: &mut History) -> Result<Journal, String> {
        if fs::metadata(path).is_ok_and(|it| !it.is_file()) {
            return Err(format!("--journal {}: this is no file; {ADVICE}", path.display()));
        }
        // There from the beginning, so that a link leads somewhere. Errors show below.
        let _ = OpenOptions::new().append(true).create(true).open(path);
        let mut journal = Journal {
            // A link stays a link: what it points to is replaced.
            path: fs::canonicalize(path).unwrap_or(path.to_owned()),
            made_up,
            file: None,
            lock: None,
            length: 0,
            updates: 0,
            is_complete: false,
            next_try: Instant::now(),
            errors: RateLimitedLog::default(),
        };
        match journal.start(history) {
            Ok(()) => {}
            Err(error) if is_mistake(&error) => {
                return Err(format!("--journal {}: {error}; {ADVICE}", path.display()));
            }
            Err(error) => {
                journal.log_error(&error);
                // Nobody knows what such a disk has not taken before.
                history.mark_lost_end();
            }
        }
        log::info!("journal: {} updates", history.count());
        Ok(journal)
    }

    fn start(&mut self, history: &mut History) -> io::Result<()> {
        if let Err(error) = self.lock() {
            // Where it cannot be written, it may still be read.
            if !is_mistake(&error) {
                self.read(history)?;
            }
            return Err(error);
        }
        let is_sound = self.read(history)?;
        history.expire();
        let error = match self.rewrite(&history.page(Cursor::Latest, usize::MAX)) {
            Ok(()) => return Ok(()),
            Err(error) if is_mistake(&error) || !is_sound => return Err(error),
            Err(error) => error,
        };
        // There is no room for another file, but the old one will do.
        self.log_error(&error);
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.length = file.metadata()?.len();
        self.file = Some(file);
        self.is_complete = self.length > 0;
        Ok(())
    }

    /// Makes sure that no other process has this journal. The lock is on a file beside it, which stays
    /// where it is while the journal is replaced.
    fn lock(&mut self) -> io::Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = beside(&self.path, ".btc-ticker-lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match lock.try_lock() {
            Ok(()) => {
                self.lock = Some(lock);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(mistake("another process has it")),
            Err(TryLockError::Error(error)) => Err(mistake(&format!("it has no locks: {error}"))),
        }
    }

    /// Gives the history what is in the file. Returns whether all of it was good.
    fn read(&mut self, history: &mut History) -> io::Result<bool> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        if !read_line(&mut reader, &mut line)? {
            return Ok(true); // It is empty: new, or emptied after an error.
        }
        history.reset(self.check_header(&line)?);
        let mut number = 1;
        let mut is_sound = true;
        let mut is_damaged = false;
        while read_line(&mut reader, &mut line)? {
            number += 1;
            match parse(&line, history.newest()) {
                Some(update) => {
                    if is_damaged {
                        history.mark_gap(update.timestamp);
                    }
                    is_damaged = false;
                    history.push(update, Arc::new(Event::update(update)));
                    self.updates += 1;
                }
                None => {
                    if !is_damaged {
                        log::warn!("journal: line {number} is damaged: clients are told a gap");
                    }
                    is_sound = false;
                    is_damaged = true;
                }
            }
        }
        if is_damaged {
            history.mark_lost_end();
        }
        Ok(is_sound)
    }

    /// Returns from when on the file has everything. An error where it is not ours to write.
    fn check_header(&self, line: &[u8]) -> io::Result<Option<u64>> {
        let header: Header = match serde_json::from_slice(line) {
            Ok(header) => header,
            Err(_) => return Err(mistake("its first line is not that of a btc-ticker journal")),
        };
        if header.journal != NAME {
            return Err(mistake("its first line is not that of a btc-ticker journal"));
        }
        match (header.made_up, self.made_up) {
            (true, false) => Err(mistake("it has made-up prices, and these are real")),
            (false, true) => Err(mistake("it has real prices, and these are made up")),
            _ => match header.complete_since {
                // It is of a clock that was far ahead.
                Some(time) if time > latest_plausible() => Ok(Some(unix_millis())),
                other => Ok(other),
            },
        }
    }

    /// Writes an update, before anybody has seen it: a line, or the whole file anew where that does not
    /// have all that was before.
    pub fn append(&mut self, update: Update, feed: &Feed) {
        if self.is_complete && self.has_changed_outside() {
            log::warn!("journal: somebody else has changed the file; it is written anew");
            self.is_complete = false;
            // Until it is, nobody may believe what stands there.
            let _ = File::create(&self.path);
        }
        if !self.is_complete {
            let mut all = feed.page(Cursor::Latest, usize::MAX);
            all.updates.push(Arc::new(Event::update(update)));
            self.try_rewrite(&all);
            return;
        }
        let Some(file) = &mut self.file else { return };
        let line = update.to_json() + "\n";
        match file.write_all(line.as_bytes()) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.updates += 1;
                METRICS.journal_updates.inc();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// After an update: makes sure that a power cut loses nothing. Where more than half of the file has
    /// expired it is written anew.
    pub fn settle(&mut self, feed: &Feed) {
        if !self.is_complete {
            self.try_rewrite(&feed.page(Cursor::Latest, usize::MAX));
            return;
        }
        if self.updates > 2 * feed.snapshot().updates {
            self.try_rewrite(&feed.page(Cursor::Latest, usize::MAX));
        }
        let Some(file) = &self.file else { return };
        if let Err(error) = file.sync_data() {
            self.fail(&error);
        }
    }

    /// What comes next does not follow what is in the file.
    pub fn mark_gap(&mut self) {
        self.is_complete = false;
    }

    fn try_rewrite(&mut self, all: &Page) {
        if Instant::now() < self.next_try {
            return;
        }
        if let Err(error) = self.rewrite(all) {
            self.log_error(&error);
        }
    }

    /// Writes a new file beside the old one, and puts it in its place: a crash leaves one of the two.
    fn rewrite(&mut self, all: &Page) -> io::Result<()> {
        self.lock()?;
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
        self.updates = all.updates.len();
        self.file = Some(file);
        self.is_complete = true;
        Ok(())
    }

    fn put_in_place(&self, new: &Path, all: &Page) -> io::Result<File> {
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
        for update in &all.updates {
            writeln!(writer, "{}", update.data())?;
        }
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        fs::rename(new, &self.path)?;
        Ok(file)
    }

    /// Whether the file at our path is still the one that we write, and as long as we left it.
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

    /// After an error the file may lack what others have seen, and is emptied: a restart that finds it so
    /// begins without a past, and tells it. Even a full disk has room for that.
    fn fail(&mut self, error: &io::Error) {
        self.is_complete = false;
        let Some(file) = &self.file else { return };
        match file.set_len(0).and_then(|()| file.sync_data()) {
            Ok(()) => self.log_error(error),
            Err(_) => self.log_error(&io::Error::other(format!(
                "{error}; it cannot be emptied, so that a restart may miss updates without a word"
            ))),
        }
    }

    fn log_error(&mut self, error: &io::Error) {
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

/// Whether an operator has to change something, rather than wait for a disk.
fn is_mistake(error: &io::Error) -> bool {
    use ErrorKind::*;
    matches!(
        error.kind(),
        AlreadyExists | InvalidFilename | InvalidInput | IsADirectory | NotADirectory | NotFound
    ) || matches!(error.kind(), PermissionDenied | ResourceBusy)
}

/// Reads a line, or as much of it as a line of ours may have. False at the end of the file.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.take(MAX_LINE).read_until(b'\n', line)?;
    Ok(!line.is_empty())
}

/// The update of a whole line, if it is one that follows `newest`.
fn parse(line: &[u8], newest: u64) -> Option<Update> {
    let line = line.strip_suffix(b"\n")?;
    let update: Update = serde_json::from_slice(line).ok()?;
    let is_next = (newest + 1..=latest_plausible()).contains(&update.timestamp);
    (is_next && update.price > 0.0).then_some(update)
}
