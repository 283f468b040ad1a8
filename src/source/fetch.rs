//! Fetching: one JSON document behind a URL, asked for by the poller's thread. Shares only the HTTP client,
//! with `main`, which shuts it down.
//! Everything that such a document can get wrong becomes a `FetchError`, never a price.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderMap;

use super::client::{call, client_config};
use super::error::{FetchError, NO_PRICE, NOT_A_PRICE, NOT_JSON};
use super::{PRICE_SOURCE, Source};

/// A price document has a few KiB; what is longer is something else.
const MAX_ANSWER: u64 = 64 * 1024;
/// How much of an answer the log shows.
const SHOWN: usize = 200;

/// A source with its connection, which is kept between fetches.
pub struct Fetcher {
    source: Source,
    /// `main` shuts a clone of it down, which ends a fetch at once.
    pub agent: Agent,
}

impl Fetcher {
    /// A whole fetch may take as long as `timeout`, from the look-up of the name to the last byte.
    pub fn new(source: Source, timeout: Duration) -> Fetcher {
        let mut config = client_config().timeout_global(Some(timeout));
        if source.made_up {
            // What this process serves itself is behind no proxy, whatever the environment says.
            config = config.proxy(None);
        }
        Fetcher { source, agent: config.build().into() }
    }

    /// Asks for the price once. Waits for the source as long as the timeout allows.
    pub fn fetch(&self) -> Result<f64, FetchError> {
        let mut request = self.agent.get(&self.source.url);
        if let Some(key) = &self.source.key {
            request = request.header("Authorization", format!("Apikey {key}"));
        }
        let mut response = call(request)?;
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        if status != 200 {
            let advice = match status {
                401 | 403 => self.source.advice,
                _ => "no answer to use",
            };
            let detail = format!("{advice}; {}", self.start_of(&answer.unwrap_or_default()));
            let mut error = FetchError::new(&format!("HTTP {status}"), detail);
            error.retry_after = retry_after(response.headers()).unwrap_or_default();
            return Err(error);
        }
        let answer = answer?;
        if response.headers().contains_key(PRICE_SOURCE) && !self.source.made_up {
            return Err(FetchError::made_up());
        }
        self.price_in(&answer)
    }

    fn price_in(&self, answer: &[u8]) -> Result<f64, FetchError> {
        let wrong = |reason, what: &str| {
            FetchError::new(reason, format!("{what}; {}", self.start_of(answer)))
        };
        let json: Value = match serde_json::from_slice(answer) {
            Ok(json) => json,
            Err(error) => return Err(wrong(NOT_JSON, &error.to_string())),
        };
        let pointer = &self.source.price_at;
        let price = match json.pointer(pointer) {
            None => return Err(wrong(NO_PRICE, &format!("there is nothing at {pointer}"))),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(other) => other.as_f64(),
        };
        match price {
            Some(price) if price > 0.0 && price.is_finite() => Ok(price),
            _ => {
                let what = format!("what is at {pointer} is not a number above zero");
                Err(wrong(NOT_A_PRICE, &what))
            }
        }
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

/// How long the source asks to be left alone. (A date, which the standard allows too, is passed over.)
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("Retry-After")?.to_str().ok()?;
    let seconds = text.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
