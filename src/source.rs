//! Where prices come from: one JSON document behind a URL, fetched by the poller's thread.
//! Everything that such a document can get wrong becomes a `Failure`, never a price.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde_json::Value;
use ureq::{Agent, Error};

use crate::stream::MADE_UP;

/// A price document has a few KiB; what is longer is something else.
const MAX_ANSWER: u64 = 64 * 1024;
/// How much of an answer the log shows.
const SHOWN: usize = 200;

/// What makes up a source.
#[derive(Clone)]
pub struct Source {
    /// What people are told; never the URL, which may have secrets.
    pub name: &'static str,
    pub url: String,
    /// JSON pointers into the answer.
    pub price_at: String,
    pub timestamp_at: Option<String>,
    /// Sent as `Authorization: Apikey …` and shown nowhere.
    pub key: Option<String>,
    /// What to do where the source refuses us.
    pub advice: &'static str,
}

const DEMO: &str = "demo";
const COINDESK_ADVICE: &str = "CoinDesk's Data API needs the key of a paid plan: get one at \
    https://developers.coindesk.com and set COINDESK_API_KEY, or use --source coinbase";

impl Source {
    pub fn coindesk(key: Option<String>) -> Source {
        let url = "https://data-api.coindesk.com/index/cc/v1/latest/tick\
            ?market=cadli&instruments=BTC-USD&apply_mapping=true";
        Source {
            key,
            advice: COINDESK_ADVICE,
            ..Source::open("CoinDesk", url, "/Data/BTC-USD/VALUE")
        }
    }

    pub fn coinbase() -> Source {
        let url = "https://api.coinbase.com/v2/prices/BTC-USD/spot";
        Source::open("Coinbase", url, "/data/amount")
    }

    /// Made-up prices, from `url` in CoinDesk's shape.
    pub fn demo(url: String) -> Source {
        Source::open(DEMO, &url, "/Data/BTC-USD/VALUE")
    }

    fn open(name: &'static str, url: &str, price_at: &str) -> Source {
        Source {
            name,
            url: url.to_owned(),
            price_at: price_at.to_owned(),
            timestamp_at: None,
            key: None,
            advice: "the source wants credentials",
        }
    }
}

/// What a source said.
#[derive(Debug, PartialEq)]
pub struct Quote {
    pub price: f64,
    /// Unix milliseconds; only where the source is asked for its own time.
    pub timestamp: Option<u64>,
}

/// Why there is no price.
#[derive(Debug)]
pub struct Failure {
    /// A word or two from a fixed set, fit for everybody's eyes.
    pub reason: String,
    /// For the log alone.
    pub detail: String,
    /// How long the source asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// A source with its connection, which is kept between fetches.
pub struct Fetcher {
    source: Source,
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
        let config = if source.name == DEMO { config.proxy(None) } else { config };
        Fetcher { source, agent: config.build().into() }
    }

    /// Asks for the price once. Waits for the source as long as the timeout allows.
    pub fn fetch(&self) -> Result<Quote, Failure> {
        let mut request = self.agent.get(&self.source.url);
        if let Some(key) = &self.source.key {
            request = request.header("Authorization", format!("Apikey {key}"));
        }
        let mut response = request.call()?;
        let status = response.status().as_u16();
        let made_up = response.headers().contains_key(MADE_UP.0);
        let retry_after =
            response.headers().get("Retry-After").and_then(|v| wait_of(v.to_str().ok()?));
        let answer = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let answer = if status == 200 { answer? } else { answer.unwrap_or_default() };
        let shown = || self.start_of(&answer);
        match status {
            200 if made_up && self.source.name != DEMO => Err(Failure::new(
                MADE_UP.1,
                "to show the prices of a demo, run this one as a demo too".into(),
            )),
            200 => self
                .quote(&answer)
                .map_err(|(reason, what)| Failure::new(reason, format!("{what}; {}", shown()))),
            401 | 403 => Err(Failure::new(
                &format!("HTTP {status}"),
                format!("{}; {}", self.source.advice, shown()),
            )),
            429 | 503 => {
                Err(Failure { retry_after, ..Failure::new(&format!("HTTP {status}"), shown()) })
            }
            _ => Err(Failure::new(&format!("HTTP {status}"), shown())),
        }
    }

    /// Reads an answer. What is wrong with it is a reason for all and more for the log.
    fn quote(&self, answer: &[u8]) -> Result<Quote, (&'static str, String)> {
        let json: Value =
            serde_json::from_slice(answer).map_err(|error| ("not JSON", error.to_string()))?;
        let find = |pointer: &str| {
            json.pointer(pointer)
                .ok_or_else(|| ("no price", format!("there is nothing at {pointer}")))
        };
        let price = match find(&self.source.price_at)? {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let price =
            price.filter(|price: &f64| price.is_finite() && *price > 0.0).ok_or_else(|| {
                (
                    "not a price",
                    format!("what is at {} is not a number above zero", self.source.price_at),
                )
            })?;
        let Some(pointer) = &self.source.timestamp_at else {
            return Ok(Quote { price, timestamp: None });
        };
        let timestamp = find(pointer)?.as_u64().filter(|millis| *millis > 0);
        let odd = || ("not a time", format!("what is at {pointer} is not in Unix milliseconds"));
        Ok(Quote { price, timestamp: Some(timestamp.ok_or_else(odd)?) })
    }

    /// The beginning of an answer, fit for a log: quoted, and without our key should it be there.
    fn start_of(&self, answer: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(answer).into_owned();
        if let Some(key) = &self.source.key {
            text = text.replace(key, "<key>");
        }
        format!("the answer starts {:?}", text.chars().take(SHOWN).collect::<String>())
    }
}

/// `Retry-After` is in seconds, or a date.
fn wait_of(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Duration::try_from(date.duration_since(Timestamp::now())).ok()
}

impl Failure {
    fn new(reason: &str, detail: String) -> Failure {
        Failure { reason: reason.to_owned(), detail, retry_after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let reason = match &error {
            Error::Timeout(_) => "timed out",
            Error::HostNotFound => "host not found",
            Error::BodyExceedsLimit(_) => "too large",
            Error::Tls(_) | Error::Rustls(_) | Error::Pem(_) => "TLS failed",
            Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => "refused",
            Error::Io(io) if io.kind() == ErrorKind::TimedOut => "timed out",
            Error::Protocol(_) | Error::Http(_) => "not HTTP",
            Error::TooManyRedirects | Error::RedirectFailed => "redirected",
            _ => "unreachable",
        };
        Failure::new(reason, error.to_string())
    }
}

/// Name and host: the rest of a URL may have secrets.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let uri: Option<ureq::http::Uri> = self.url.parse().ok();
        let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or("?");
        write!(f, "{} ({host})", self.name)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.detail)
    }
}
