//! Fetching: requests one JSON document and takes the price from it. Runs on the poller's thread; shares
//! only the HTTP client, with `main`, which shuts it down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};

use super::error::{FetchError, Reason};
use super::{Endpoint, PRICE_SOURCE, Source};

/// A price document is a few KiB.
const MAX_ANSWER: u64 = 64 * 1024;
/// How many characters of an unusable answer the log shows.
const SHOWN: usize = 200;

/// A fetch may take two intervals, at most 30 s. Two intervals leave room for a name server that does not
/// answer: resolvers ask the next one after 5 seconds.
const TIMEOUT_INTERVALS: u32 = 2;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns how long a fetch may take, from the name look-up to the last byte.
pub fn timeout(interval: Duration) -> Duration {
    (interval * TIMEOUT_INTERVALS).min(LONGEST_TIMEOUT)
}

/// A source and the HTTP client for it.
pub struct Fetcher {
    source: Source,
    endpoint: Endpoint,
    /// `main` shuts a clone of it down, which ends a fetch at once.
    pub agent: Agent,
}

impl Fetcher {
    /// A fetch fails after `timeout`.
    pub fn new(source: Source, endpoint: Endpoint, timeout: Duration) -> Fetcher {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(3)
            .user_agent(concat!("btc-ticker/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .timeout_global(Some(timeout))
            // A little shorter, so that the error names the look-up.
            .timeout_resolve(Some(timeout.mul_f64(0.95)))
            // The server may close an idle connection just as a fetch starts.
            .max_idle_connections(0);
        if source.is_simulated() {
            // This process serves the demo itself: no proxy is needed, whatever the environment says.
            config = config.proxy(None);
        }
        Fetcher { source, endpoint, agent: config.build().into() }
    }

    /// Fetches the price once. Blocks until the source has answered or the timeout has passed.
    pub fn fetch(&self) -> Result<f64, FetchError> {
        let mut request = self.agent.get(&self.endpoint.url).header("Connection", "close");
        if let Source::CoinDesk { key: Some(key) } = &self.source {
            request = request.header("Authorization", format!("Apikey {key}"));
        }
        // ureq looks a name up on a thread of its own and panics if the system has no thread for it. That is
        // a failed fetch like any other; the panic leaves nothing half done.
        let mut response = match catch_unwind(AssertUnwindSafe(|| request.call())) {
            Ok(result) => result?,
            Err(_) => {
                let detail = "the HTTP client failed; is the system out of threads?";
                return Err(FetchError::new(Reason::ConnectionFailed, detail));
            }
        };
        let status = response.status().as_u16();
        let answer = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        if status != 200 {
            let advice = match status {
                401 | 403 => self.source.advice(),
                _ => "no usable answer",
            };
            let detail = format!("{advice}; {}", self.start_of(&answer.unwrap_or_default()));
            let error = FetchError::new(Reason::Status(status), detail);
            return Err(FetchError { retry_after: retry_after(response.headers()), ..error });
        }
        let answer = answer?;
        if response.headers().contains_key(PRICE_SOURCE) && !self.source.is_simulated() {
            let detail = "simulated prices are not passed on as real ones";
            return Err(FetchError::new(Reason::Simulated, detail));
        }
        self.price_in(&answer)
    }

    fn price_in(&self, answer: &[u8]) -> Result<f64, FetchError> {
        let unusable = |reason, what: &str| {
            FetchError::new(reason, format!("{what}; {}", self.start_of(answer)))
        };
        let json: Value = match serde_json::from_slice(answer) {
            Ok(json) => json,
            Err(error) => return Err(unusable(Reason::NotJson, &error.to_string())),
        };
        let pointer = &self.endpoint.pointer;
        let price = match json.pointer(pointer) {
            None => return Err(unusable(Reason::NoPrice, &format!("nothing at {pointer}"))),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(other) => other.as_f64(),
        };
        match price {
            Some(price) if price > 0.0 && price.is_finite() => Ok(price),
            _ => {
                let what = format!("the value at {pointer} is not a number above zero");
                Err(unusable(Reason::NotAPrice, &what))
            }
        }
    }

    /// Returns the start of an answer, safe to log: quoted, and without the key or what the URL may contain of
    /// secrets, which some servers echo.
    fn start_of(&self, answer: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(answer).into_owned();
        if let Source::CoinDesk { key: Some(key) } = &self.source {
            text = text.replace(key, "<key>");
        }
        for secret in self.endpoint.secrets() {
            text = text.replace(&secret, "<secret>");
        }
        format!("the answer starts {:?}", text.chars().take(SHOWN).collect::<String>())
    }
}

/// Parses `Retry-After` in seconds. A date, which the standard allows too, is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("Retry-After")?.to_str().ok()?;
    let seconds = text.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
