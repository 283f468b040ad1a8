//! Fetching: one JSON document behind a URL, asked for by the poller's thread. Shares nothing.
//! Everything that such a document can get wrong becomes a `Failure`, never a price.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use ureq::{Agent, Error};

use super::{MADE_UP, Source};
use crate::feed::Update;
use crate::system::unix_millis;

/// A price document has a few KiB; what is longer is something else.
const MAX_ANSWER: u64 = 64 * 1024;
/// An origin's clock may be ahead by so many milliseconds, a day. More is a mistake: after such an update
/// no other would be newer.
const MAX_AHEAD: u64 = 24 * 3600 * 1000;
/// How much of an answer the log shows.
const SHOWN: usize = 200;

/// Why there is no price.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    /// For the log alone.
    pub detail: String,
    /// How long the source asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// The same in a word or two, fit for everybody's eyes: `Display` says it to clients, in metrics and
/// in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    TimedOut,
    /// As it is on a machine without internet.
    Unreachable,
    Broken,
    TooLarge,
    Status(u16),
    NotJson,
    NoPrice,
    NotAPrice,
    MadeUp,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Reason::TimedOut => "timed out",
            Reason::Unreachable => "unreachable",
            Reason::Broken => "connection failed",
            Reason::TooLarge => "too large",
            Reason::Status(status) => return write!(f, "HTTP {status}"),
            Reason::NotJson => "not JSON",
            Reason::NoPrice => "no price",
            Reason::NotAPrice => "not a price",
            Reason::MadeUp => MADE_UP.1,
        })
    }
}

/// A source with its connection, which is kept between fetches.
pub struct Fetcher {
    pub source: Source,
    agent: Agent,
}

impl Fetcher {
    /// `timeout` is for a whole fetch, from the look-up of the name to the last byte.
    pub fn new(source: Source, timeout: Duration) -> Fetcher {
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(3)
            .user_agent(concat!("btc-ticker/", env!("CARGO_PKG_VERSION")));
        // What this process serves itself is behind no proxy, whatever the environment says.
        let config = if source.made_up { config.proxy(None) } else { config };
        Fetcher { source, agent: config.build().into() }
    }

    /// Asks for the price once. Waits for the source as long as the timeout allows.
    pub fn fetch(&self) -> Result<Update, Failure> {
        let mut request = self.agent.get(&self.source.url);
        if let Some(key) = &self.source.key {
            request = request.header("Authorization", format!("Apikey {key}"));
        }
        let mut response = request.call()?;
        let status = response.status().as_u16();
        let made_up = response.headers().contains_key(MADE_UP.0);
        let retry_after = response.headers().get("Retry-After");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let answer = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let answer = if status == 200 { answer? } else { answer.unwrap_or_default() };
        let (reason, detail) = match status {
            200 if made_up && !self.source.made_up => {
                (Reason::MadeUp, "to show the prices of a demo, run this one as a demo too".into())
            }
            200 => match self.read(&answer) {
                Ok(update) => return Ok(update),
                Err(wrong) => wrong,
            },
            401 | 403 => (Reason::Status(status), self.source.advice.to_owned()),
            _ => (Reason::Status(status), "no answer to use".to_owned()),
        };
        let detail = format!("{detail}; {}", self.start_of(&answer));
        let retry_after = retry_after.filter(|_| matches!(status, 429 | 503));
        Err(Failure { reason, detail, retry_after: retry_after.map(Duration::from_secs) })
    }

    /// Reads an answer. What is wrong with it is a reason for all and more for the log.
    fn read(&self, answer: &[u8]) -> Result<Update, (Reason, String)> {
        let json: Value =
            serde_json::from_slice(answer).map_err(|error| (Reason::NotJson, error.to_string()))?;
        let find = |pointer: &str| {
            let nothing = || (Reason::NoPrice, format!("there is nothing at {pointer}"));
            json.pointer(pointer).ok_or_else(nothing)
        };
        let price_at = &self.source.price_at;
        let price: Option<f64> = match find(price_at)? {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let price = price.filter(|price| price.is_finite() && *price > 0.0).ok_or_else(|| {
            (Reason::NotAPrice, format!("what is at {price_at} is not a number above zero"))
        })?;
        let now = unix_millis();
        let Some(pointer) = &self.source.timestamp_at else {
            return Ok(Update { timestamp: now, price });
        };
        let timestamp = find(pointer)?.as_u64().filter(|time| (1..now + MAX_AHEAD).contains(time));
        let wrong = || {
            format!("what is at {pointer} is no time in Unix milliseconds, up to a day from now")
        };
        let timestamp = timestamp.ok_or_else(|| (Reason::NoPrice, wrong()))?;
        Ok(Update { timestamp, price })
    }

    /// The beginning of an answer, fit for a log: quoted, and without our key should it be there.
    fn start_of(&self, answer: &[u8]) -> String {
        let text = String::from_utf8_lossy(answer).into_owned();
        let text = self.source.key.iter().fold(text, |text, key| text.replace(key, "<key>"));
        format!("the answer starts {:?}", text.chars().take(SHOWN).collect::<String>())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let reason = match &error {
            Error::Timeout(_) => Reason::TimedOut,
            Error::Io(io) if io.kind() == ErrorKind::TimedOut => Reason::TimedOut,
            Error::BodyExceedsLimit(_) => Reason::TooLarge,
            // A name that is not found has no kind of its own in std.
            Error::Io(io) if io.to_string().contains("lookup address") => Reason::Unreachable,
            Error::Io(io) if io.kind() == ErrorKind::NetworkUnreachable => Reason::Unreachable,
            _ => Reason::Broken,
        };
        Failure { reason, detail: error.to_string(), retry_after: None }
    }
}
