//! The wall clock, durations as people write them, and random numbers.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Span, SpanRelativeTo, SpanRound, Unit};

/// Returns this machine's clock in Unix milliseconds.
pub fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// Returns the latest plausible timestamp, in Unix milliseconds: clocks differ, but not by more than a day.
pub fn latest_plausible() -> u64 {
    unix_millis() + 24 * 3600 * 1000
}

/// Parses a duration such as `5s`, `1h 30m`, `-5m`, `1d` (24 hours) or `2w`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

/// Formats a duration as people write it, such as `5s` or `5d 18h`.
pub fn format_duration(duration: Duration) -> String {
    let Ok(span) = Span::try_from(duration) else { return format!("{duration:?}") };
    let days = SpanRound::new().largest(Unit::Day).days_are_24_hours();
    format!("{:#}", span.round(days).unwrap_or(span))
}

/// Returns a random number from 0 to 1, from std's only source of randomness.
pub fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
