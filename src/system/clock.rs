//! The clock, durations as people write them, and random numbers.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// This machine's clock in Unix milliseconds.
pub fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// Clocks of several machines differ, but not by more than a day: a later time than this (Unix
/// milliseconds) is a mistake.
pub fn latest_plausible() -> u64 {
    unix_millis() + 24 * 3600 * 1000
}

/// Reads a duration such as `5s`, `1h 30m`, `-5m`, `1d` (24 hours) or `2w`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

/// A random number from 0 up to 1, by the only source of them in std.
pub fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
