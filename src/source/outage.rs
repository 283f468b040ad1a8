//! Outages of the source: from the first failed fetch to the next success. Backs off, and logs one failure
//! and the recovery. Owned by the poller's thread.

use std::time::{Duration, Instant};

use super::Source;
use super::error::{FetchError, Reason};
use crate::system::{EpisodeLog, METRICS, random};

/// The longest pause that back-off chooses, unless the interval is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is honoured: a longer one may be a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

pub struct Outage {
    name: &'static str,
    is_simulated: bool,
    interval: Duration,
    failures: u32,
    last_reason: Option<Reason>,
    log: EpisodeLog,
    /// No fetch before this instant.
    pub retry_at: Instant,
}

impl Outage {
    /// `interval` is the polling interval.
    pub fn new(source: &Source, interval: Duration) -> Outage {
        Outage {
            name: source.name(),
            is_simulated: source.is_simulated(),
            interval,
            failures: 0,
            last_reason: None,
            log: EpisodeLog::default(),
            retry_at: Instant::now(),
        }
    }

    /// Ends an outage: a fetch succeeded.
    pub fn end(&mut self) {
        METRICS.fetches.inc(&[&"ok"]);
        if let Some(reason) = self.last_reason.take()
            && self.log.end()
        {
            let Outage { name, failures, .. } = self;
            log::info!(
                "prices from {name} again after {failures} failed fetches; the last: {reason}"
            );
        }
        self.failures = 0;
    }

    /// Begins or continues an outage: a fetch failed.
    pub fn fail(&mut self, error: &FetchError) {
        let FetchError { reason, detail, retry_after } = error;
        METRICS.fetches.inc(&[reason]);
        if self.log.begin() {
            let hint = match reason {
                _ if self.is_simulated => "",
                Reason::LookupFailed | Reason::LookupTimedOut | Reason::ConnectionFailed => {
                    "; --source demo works without internet"
                }
                Reason::CertificateRefused => {
                    "; only the system's certificates are trusted, or those in SSL_CERT_FILE if it is set"
                }
                _ => "",
            };
            log::warn!("no price from {}: {reason} ({detail}){hint}", self.name);
        }
        self.failures = self.failures.saturating_add(1);
        self.last_reason = Some(*reason);
        let requested = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        self.retry_at = Instant::now() + backoff(self.failures, self.interval).max(requested);
    }
}

/// Returns the pause after this many failures: zero after the first, because the next tick retries; then it
/// doubles from the interval to a minute, with jitter, so that many processes do not retry together.
fn backoff(failures: u32, interval: Duration) -> Duration {
    if failures == 1 {
        return Duration::ZERO;
    }
    let doubled = interval.saturating_mul(1 << (failures - 1).min(16));
    let pause = doubled.min(LONGEST_PAUSE.max(interval));
    pause.mul_f64(0.75 + random() / 4.0).max(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let second = Duration::from_secs(1);
        for (failures, longest) in [(2, 2), (3, 4), (6, 32), (7, 60), (30, 60), (u32::MAX, 60)] {
            let pause = backoff(failures, second);
            let longest = Duration::from_secs(longest);
            assert!(pause <= longest && pause >= longest.mul_f64(0.75), "{pause:?}");
        }
        assert_eq!(backoff(1, second), Duration::ZERO);
        assert_eq!(backoff(9, Duration::from_secs(90)), Duration::from_secs(90));
    }
}
