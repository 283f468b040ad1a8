//! Why a fetch failed. Whatever a source does wrong becomes one of these reasons, never a price.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind};
use std::time::Duration;

use ureq::{Error, Timeout};

use super::SIMULATED;

/// The reason in a few words: for clients, metrics and the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The name is not found, as without internet.
    LookupFailed,
    LookupTimedOut,
    TimedOut,
    /// Refused, reset or closed.
    ConnectionFailed,
    CertificateRefused,
    /// Any other failure of a request: TLS, redirects, a key that cannot be sent.
    RequestFailed,
    Status(u16),
    TooLarge,
    NotJson,
    NoPrice,
    NotAPrice,
    Simulated,
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::LookupFailed => f.write_str("name look-up failed"),
            Reason::LookupTimedOut => f.write_str("name look-up timed out"),
            Reason::TimedOut => f.write_str("timed out"),
            Reason::ConnectionFailed => f.write_str("connection failed"),
            Reason::CertificateRefused => f.write_str("certificate refused"),
            Reason::RequestFailed => f.write_str("request failed"),
            Reason::Status(status) => write!(f, "HTTP {status}"),
            Reason::TooLarge => f.write_str("too large"),
            Reason::NotJson => f.write_str("not JSON"),
            Reason::NoPrice => f.write_str("no price"),
            Reason::NotAPrice => f.write_str("not a price"),
            Reason::Simulated => f.write_str(SIMULATED),
        }
    }
}

#[derive(Debug)]
pub struct FetchError {
    pub reason: Reason,
    /// Logged, never sent to clients.
    pub detail: String,
    /// `Retry-After`, if present.
    pub retry_after: Option<Duration>,
}

impl FetchError {
    pub fn new(reason: Reason, detail: impl Into<String>) -> FetchError {
        FetchError { reason, detail: detail.into(), retry_after: None }
    }
}

impl From<Error> for FetchError {
    fn from(error: Error) -> FetchError {
        let reason = match &error {
            Error::Timeout(Timeout::Resolve) => Reason::LookupTimedOut,
            Error::Timeout(_) => Reason::TimedOut,
            Error::Io(io) => match io.kind() {
                ErrorKind::TimedOut => Reason::TimedOut,
                // rustls reports a failed handshake like this.
                ErrorKind::InvalidData => tls_reason(&error),
                _ if is_lookup(io) => Reason::LookupFailed,
                _ => Reason::ConnectionFailed,
            },
            Error::Rustls(_) => tls_reason(&error),
            Error::HostNotFound => Reason::LookupFailed,
            Error::ConnectionFailed => Reason::ConnectionFailed,
            Error::BodyExceedsLimit(_) => Reason::TooLarge,
            _ => Reason::RequestFailed,
        };
        FetchError::new(reason, error.to_string())
    }
}

/// Whether std could not look a name up. There is no kind for that error.
fn is_lookup(error: &io::Error) -> bool {
    error.to_string().starts_with("failed to lookup address information")
}

fn tls_reason(error: &Error) -> Reason {
    // rustls is not a direct dependency, so the text has to do.
    if error.to_string().contains("certificate") {
        Reason::CertificateRefused
    } else {
        Reason::RequestFailed
    }
}
