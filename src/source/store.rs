//! The shared store: a Redis stream, one entry for each update, whose id is `<timestamp>-0`. This file
//! knows the commands and the errors; `reader` and `turns` decide what to do. Each connection is owned by
//! the thread that opened it.

use std::fmt::{self, Display};
use std::time::Duration;

use redis::{Client, ErrorKind, RedisError, RedisResult, ServerErrorKind};

use crate::feed::Update;

/// Redis trims the stream to about this many entries, so it stays bounded whatever the processes retain.
const STREAM_LENGTH: usize = 100_000;
/// How long to wait for a connection or an answer. A hung Redis blocks the caller for this long.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a reader blocks for news before it checks for shutdown.
const BLOCK: Duration = Duration::from_millis(250);

/// The answer of PTTL if there is no such key.
const NO_KEY: i64 = -2;
/// The lease that probes the permissions.
const PROBE: Duration = Duration::from_millis(1);

/// The client of the store.
#[derive(Clone)]
pub struct Store {
    client: Client,
    key: String,
}

/// An open connection to the store.
pub struct Connection {
    connection: redis::Connection,
    key: String,
}

/// The id of an entry: its time in Unix milliseconds, and a sequence number, which is 0 in every entry that
/// btc-ticker writes.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct EntryId {
    pub millis: u64,
    sequence: u64,
}

#[derive(Debug)]
pub struct Entry {
    pub id: EntryId,
    /// `None` if the entry was not written by btc-ticker.
    pub price: Option<f64>,
}

/// The answer to a claim of the turn to poll.
pub enum Claim {
    /// The turn is ours; `newest` is the newest entry.
    Granted { newest: Option<EntryId> },
    /// Another process has it, for at most this long.
    Held(Duration),
}

/// An entry as Redis sends it: its id, then alternating field names and values.
type RawEntry = (String, Vec<Vec<u8>>);

impl Store {
    /// Parses the URL. The error says what to write instead; it never contains the URL, which may contain a
    /// password.
    pub fn new(url: &str, is_simulated: bool) -> Result<Store, &'static str> {
        const FORM: &str =
            "write the store as redis://[user:password@]host[:port][/db], or rediss:// for TLS";
        if !url.starts_with("redis://") && !url.starts_with("rediss://") {
            return Err(FORM);
        }
        let client = Client::open(url).map_err(|_| FORM)?;
        // Two keys, so that simulated and real prices never mix.
        let name = if is_simulated { "demo" } else { "BTC-USD" };
        Ok(Store { client, key: format!("btc-ticker:{name}") })
    }

    /// Probes the store, without a trace. Returns an error only for a misconfiguration, with what to change;
    /// a store that is merely unreachable is logged. Called by `main`.
    pub fn check(&self) -> Result<(), String> {
        let Err(error) = self.probe() else { return Ok(()) };
        match self.mistake(&error) {
            Some(mistake) => Err(mistake),
            None => {
                log::warn!("store: {}; retrying", describe(&error));
                Ok(())
            }
        }
    }

    fn probe(&self) -> RedisResult<()> {
        let mut connection = self.connect()?;
        let newest = connection.newest(None)?;
        connection.entries_from(newest)?;
        // No stream takes the id 0-0, so this shows whether we may write.
        let written = redis::cmd("XADD")
            .arg(&[self.key.as_str(), "0-0", "price", "1"])
            .query::<()>(&mut connection.connection);
        match written {
            Err(error) if !is_refused_id(&error) => return Err(error),
            _ => {}
        }
        // The permissions of a turn, on a key of its own that expires at once.
        connection.key += ":probe";
        connection.claim(PROBE)?;
        connection.release()
    }

    /// Says what to change, if the error does not pass by itself.
    fn mistake(&self, error: &RedisError) -> Option<String> {
        let key = &self.key;
        // A pipeline hides the kind and the code of its errors; the description begins with the code.
        let text = describe(error);
        let is_denied = text.starts_with("NOPERM");
        let advice = match (error.kind(), error.code()) {
            _ if is_denied => format!(
                "its user lacks a permission; grant it with: \
                 ACL SETUSER <user> ~{key}* +xadd +xread +xrevrange +set +pttl +del"
            ),
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                "authentication failed; check user and password in BTC_TICKER_STORE".to_owned()
            }
            (_, Some("WRONGTYPE")) => {
                format!(
                    "its key {key} is not a stream; rename that key, or choose another database"
                )
            }
            (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => {
                "the server is not Redis; check host and port".to_owned()
            }
            (ErrorKind::Server(ServerErrorKind::ResponseError), _) => {
                "it must be Redis 6.2 or later, or Valkey, and have the database in the URL"
                    .to_owned()
            }
            (ErrorKind::InvalidClientConfig, _) => "check the URL".to_owned(),
            _ => return None,
        };
        Some(format!("cannot use the store: {advice} ({text})"))
    }

    /// Connects, within the timeout.
    pub fn connect(&self) -> RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(TIMEOUT)?;
        // Connecting has cleared the timeouts.
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        Ok(Connection { connection, key: self.key.clone() })
    }
}

impl Connection {
    /// Returns the id of the newest entry, or of the newest one up to a time in Unix milliseconds.
    pub fn newest(&mut self, until: Option<u64>) -> RedisResult<Option<EntryId>> {
        let end = until.map_or("+".to_owned(), |millis| millis.to_string());
        let newest: Vec<RawEntry> = redis::cmd("XREVRANGE")
            .arg(&[self.key.as_str(), &end, "-", "COUNT", "1"])
            .query(&mut self.connection)?;
        first_id(&newest)
    }

    /// Blocks until there is an entry after `last`, or for `BLOCK`.
    pub fn wait_for_news(&mut self, last: Option<EntryId>) -> RedisResult<()> {
        redis::cmd("XREAD")
            .arg("BLOCK")
            .arg(BLOCK.as_millis() as u64)
            .arg(&["COUNT", "1", "STREAMS", self.key.as_str()])
            .arg(last.map_or("0".to_owned(), |id| id.to_string()))
            .query(&mut self.connection)
    }

    /// Returns all entries from `first` on, oldest first. `first` itself is among them if it exists.
    pub fn entries_from(&mut self, first: Option<EntryId>) -> RedisResult<Vec<Entry>> {
        let reply: Option<Vec<(String, Vec<RawEntry>)>> = redis::cmd("XREAD")
            .arg(&["STREAMS", self.key.as_str()])
            .arg(first.map_or("0".to_owned(), |id| id.before().to_string()))
            .query(&mut self.connection)?;
        let Some((_, entries)) = reply.unwrap_or_default().pop() else { return Ok(Vec::new()) };
        entries.iter().map(parse_entry).collect()
    }

    /// Claims the turn to poll for `lease`.
    pub fn claim(&mut self, lease: Duration) -> RedisResult<Claim> {
        let turn = self.turn();
        type Reply = (Option<String>, i64, Vec<RawEntry>);
        let (granted, held_for, newest): Reply = redis::pipe()
            .cmd("SET")
            .arg(&[turn.as_str(), "claimed", "NX", "PX"])
            .arg(lease.as_millis() as u64)
            .cmd("PTTL")
            .arg(&turn)
            .cmd("XREVRANGE")
            .arg(&[self.key.as_str(), "+", "-", "COUNT", "1"])
            .query(&mut self.connection)?;
        if granted.is_none() {
            let held_for = match u64::try_from(held_for) {
                Ok(millis) => Duration::from_millis(millis),
                // It has just expired.
                Err(_) if held_for == NO_KEY => Duration::ZERO,
                // No expiry: another client has set the key, possibly as another type.
                Err(_) => Duration::MAX,
            };
            return Ok(Claim::Held(held_for));
        }
        Ok(Claim::Granted { newest: first_id(&newest)? })
    }

    /// Gives the turn back.
    pub fn release(&mut self) -> RedisResult<()> {
        redis::cmd("DEL").arg(self.turn()).query(&mut self.connection)
    }

    /// Appends an update. Returns false if Redis refuses it because there is a newer one.
    pub fn append(&mut self, update: Update) -> RedisResult<bool> {
        let id = EntryId { millis: update.timestamp, sequence: 0 };
        let appended = redis::cmd("XADD")
            .arg(&[self.key.as_str(), "MAXLEN", "~"])
            .arg(STREAM_LENGTH)
            .arg(id.to_string())
            .arg("price")
            .arg(update.price.to_string())
            .query::<()>(&mut self.connection);
        match appended {
            Ok(()) => Ok(true),
            Err(error) if is_refused_id(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The key of the lease.
    pub fn turn(&self) -> String {
        format!("{}:turn", self.key)
    }
}

impl EntryId {
    /// The largest id below this one.
    fn before(self) -> EntryId {
        match self.sequence.checked_sub(1) {
            Some(sequence) => EntryId { millis: self.millis, sequence },
            None => EntryId { millis: self.millis.saturating_sub(1), sequence: u64::MAX },
        }
    }
}

impl Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

fn first_id(entries: &[RawEntry]) -> RedisResult<Option<EntryId>> {
    entries.first().map(|(id, _)| parse_id(id)).transpose()
}

fn parse_id(text: &str) -> RedisResult<EntryId> {
    if let Some((millis, sequence)) = text.split_once('-')
        && let (Ok(millis), Ok(sequence)) = (millis.parse(), sequence.parse())
    {
        return Ok(EntryId { millis, sequence });
    }
    Err(RedisError::from((ErrorKind::Parse, "an id is not two numbers")))
}

/// Reads an entry. Other clients may write to the stream, so anything may be in it.
fn parse_entry((id, fields): &RawEntry) -> RedisResult<Entry> {
    let id = parse_id(id)?;
    let price = match fields.as_slice() {
        [name, value] if id.sequence == 0 && name == b"price" => parse_price(value),
        _ => None,
    };
    Ok(Entry { id, price })
}

fn parse_price(value: &[u8]) -> Option<f64> {
    let price: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    if price > 0.0 && price.is_finite() { Some(price) } else { None }
}

/// Whether Redis refused an id because it is not above the last one. Redis has no error code for that.
fn is_refused_id(error: &RedisError) -> bool {
    let text = error.to_string();
    text.contains("equal or smaller") || text.contains("must be greater than 0-0")
}

/// Describes an error for the log, on one line. A timeout would read "Resource temporarily unavailable".
pub fn describe(error: &RedisError) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    // Of a pipeline that failed, the first error.
    let text = match error.clone().into_server_errors().as_deref() {
        Some([(_, first), ..]) => {
            format!("{} {}", first.code(), first.details().unwrap_or_default())
        }
        _ => error.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}
