//! Why there is no price: everything that a source can get wrong.

use std::io::ErrorKind;
use std::time::Duration;

use super::MADE_UP;

// The reasons in a word or two, fit for everybody's eyes: clients, metrics and the log. (`HTTP 500` and
// `MADE_UP` are reasons, too.)

pub const TIMED_OUT: &str = "timed out";
/// Any other failure of the connection: refused, broken, ended, or the name not found, as without
/// internet.
pub const NO_CONNECTION: &str = "connection failed";
/// Any other failure of a request: TLS, redirects, a key that cannot be sent.
pub const REQUEST_FAILED: &str = "request failed";
pub const TOO_LARGE: &str = "too large";
pub const NOT_JSON: &str = "not JSON";
pub const NO_PRICE: &str = "no price";
pub const NOT_A_PRICE: &str = "not a price";
/// Much older than the last update.
pub const NOT_NEW: &str = "not new";
/// What should be the stream of an origin is none.
pub const NOT_A_STREAM: &str = "not a stream";

#[derive(Debug)]
pub struct FetchError {
    pub reason: String,
    /// For the log alone.
    pub detail: String,
    /// How long the source asks to be left alone, if it does.
    pub retry_after: Duration,
}

impl FetchError {
    pub fn new(reason: &str, detail: impl Into<String>) -> FetchError {
        FetchError { reason: reason.to_owned(), detail: detail.into(), retry_after: Duration::ZERO }
    }

    /// Made-up prices where real ones are expected.
    pub fn made_up() -> FetchError {
        let detail = "the prices of a demo are not passed on as real ones";
        FetchError::new(MADE_UP, detail)
    }
}

impl From<ureq::Error> for FetchError {
    fn from(error: ureq::Error) -> FetchError {
        let reason = match &error {
            ureq::Error::Io(io) if io.kind() == ErrorKind::TimedOut => TIMED_OUT,
            ureq::Error::Timeout(_) => TIMED_OUT,
            ureq::Error::BodyExceedsLimit(_) => TOO_LARGE,
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                NO_CONNECTION
            }
            _ => REQUEST_FAILED,
        };
        FetchError::new(reason, error.to_string())
    }
}
