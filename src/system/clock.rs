//! The clock and random numbers: what is different at every call.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// This machine's clock in Unix milliseconds.
pub fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// A random number from 0 up to 1, by the only source of them in std.
pub fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
