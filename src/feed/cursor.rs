//! A client's position in the history: the forms that `since` and `Last-Event-ID` may have.

use crate::system::{parse_duration, unix_millis};

/// The point in the history from which a client wants updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cursor {
    /// The latest update, then live updates.
    Latest,
    /// All retained updates.
    Beginning,
    /// All updates with a timestamp above this one (Unix milliseconds).
    After(u64),
    /// An id that this feed never issued: a `gap`, then the same as `Latest`. The id, if it is a number.
    Foreign(Option<u64>),
}

/// Unix time in seconds, milliseconds, microseconds or nanoseconds, told apart by its size: each boundary is
/// 3 March 1973 in the finer unit and the year 5138 in the coarser one.
const MILLIS_FROM: u64 = 100_000_000_000;
const MICROS_FROM: u64 = MILLIS_FROM * 1_000;
const NANOS_FROM: u64 = MICROS_FROM * 1_000;

const FORMS: &str = "send Unix time (1795426752977 or 1795426752), RFC 3339 (2026-11-23T09:30:00Z) or how \
    long ago (5m)";

impl Cursor {
    /// Parses the parameter `since`. The error is a sentence for the client.
    pub fn parse(text: &str) -> Result<Cursor, String> {
        match read(text, unix_millis()) {
            Some(0) => Ok(Cursor::Beginning),
            Some(millis) => Ok(Cursor::After(millis)),
            None => Err(format!("since is not a time: {FORMS}")),
        }
    }

    /// Parses the header `Last-Event-ID`. An id that is no time comes from another server that had
    /// this address before.
    pub fn from_id(text: &str) -> Cursor {
        Cursor::parse(text).unwrap_or(Cursor::Foreign(None))
    }
}

/// Reads a time as Unix milliseconds. Only the number 0 is 0; any other early time becomes 1.
fn read(text: &str, now: u64) -> Option<u64> {
    if let Ok(number) = text.parse::<u64>() {
        return Some(match number {
            0..MILLIS_FROM => number * 1_000,
            MILLIS_FROM..MICROS_FROM => number,
            MICROS_FROM..NANOS_FROM => number / 1_000,
            NANOS_FROM.. => number / 1_000_000,
        });
    }
    if let Some(time) = read_date(text) {
        return Some(time.as_millisecond().max(1) as u64);
    }
    // "5m" and "-5m" are both five minutes ago.
    let ago = parse_duration(text)?.unsigned_abs();
    Some(now.saturating_sub(ago.as_millis() as u64).max(1))
}

fn read_date(text: &str) -> Option<jiff::Timestamp> {
    // In a query an unescaped `+`, as in +01:00, means a space.
    let escaped = text.replace(' ', "+");
    text.parse().or_else(|_| escaped.parse()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_an_instant_mean_the_same() {
        let now = 1_795_426_752_000;
        for text in [
            "1795426752",
            "1795426752000",
            "1795426752000000",
            "1795426752000000000",
            "2026-11-23T09:39:12Z",
            "2026-11-23T10:39:12+01:00",
            "2026-11-23T10:39:12 01:00",
            "2026-11-23 09:39:12Z",
        ] {
            assert_eq!(read(text, now), Some(now), "{text}");
        }
        assert_eq!(read("2026-11-23T09:39:12.977Z", now), Some(now + 977));
        for text in ["5m", "-5m", "300s", "PT5M", "0h 5m", "5 minutes ago"] {
            assert_eq!(read(text, now), Some(now - 300_000), "{text}");
        }
        assert_eq!(read("2d", now), Some(now - 2 * 86_400_000));
        assert_eq!(read("9999y", now), None);
        assert_eq!(read("1000w", 5), Some(1));
        assert_eq!(Cursor::parse("1900-01-01T00:00:00Z"), Ok(Cursor::After(1)));
        assert_eq!(Cursor::parse("0"), Ok(Cursor::Beginning));
    }

    #[test]
    fn the_unit_of_a_number_is_told_by_its_size() {
        for (text, millis) in [
            ("99999999999", 99_999_999_999_000),
            ("100000000000", 100_000_000_000),
            ("99999999999999", 99_999_999_999_999),
            ("100000000000000", 100_000_000_000),
            ("99999999999999999", 99_999_999_999_999),
            ("100000000000000000", 100_000_000_000),
            ("18446744073709551615", 18_446_744_073_709),
        ] {
            assert_eq!(read(text, 1), Some(millis), "{text}");
        }
    }

    #[test]
    fn any_other_text_is_refused_as_since_and_foreign_as_an_id() {
        let huge = "9".repeat(100_000);
        let year = "9".repeat(18) + "y";
        for bad in ["", " ", "-1", "1.5", "yesterday", "2026-11-23", "0x10", "NaN", &huge, &year] {
            let error = Cursor::parse(bad).expect_err(bad);
            for form in ["since", "1795426752977", "1795426752", "2026-11-23T09:30:00Z", "5m"] {
                assert!(error.contains(form), "{error}");
            }
            assert_eq!(Cursor::from_id(bad), Cursor::Foreign(None));
        }
    }
}
