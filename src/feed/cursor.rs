//! Where a client wants to go on: the forms that `since` and `Last-Event-ID` may have.

use crate::system::{latest_plausible, parse_duration, unix_millis};

/// The point in the history from which a client wants updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cursor {
    /// The latest update, then what comes.
    Latest,
    /// Everything with a timestamp above this one (Unix milliseconds); 0 is all there is.
    After(u64),
}

/// Numbers below this are seconds: as milliseconds they would be before 3 March 1973.
const SECONDS_BELOW: u64 = 100_000_000_000;

const FORMS: &str = "write Unix milliseconds (1795426752977), Unix seconds (1795426752), RFC 3339 \
    (2026-11-23T09:30:00Z) or how long ago (5m)";

impl Cursor {
    /// Reads what a client has sent as `name`. `newest` is the timestamp of the newest update. The
    /// error is a sentence for the client. Called by the client's thread.
    pub fn parse(name: &str, text: &str, newest: u64) -> Result<Cursor, String> {
        let now = unix_millis();
        let Some(millis) = read(text, now) else {
            return Err(format!("{name} is not a time: {FORMS}"));
        };
        // The newest update may be of the future, too, if the clock was wrong then.
        if millis > latest_plausible().max(newest) {
            return Err(format!("{name} is more than a day in the future: {FORMS}"));
        }
        Ok(Cursor::After(millis))
    }
}

/// Reads a time as Unix milliseconds. 0 asks for all there is, and only the number 0 means that: a date or
/// a "how long ago" that is so early becomes 1.
fn read(text: &str, now: u64) -> Option<u64> {
    if let Ok(number) = text.parse::<u64>() {
        return Some(if number < SECONDS_BELOW { number * 1000 } else { number });
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        // Before 1970 there is nothing.
        return Some(time.as_millisecond().max(1) as u64);
    }
    // "5m" and "-5m" are both five minutes ago.
    let ago = parse_duration(text)?.unsigned_abs();
    Some(now.saturating_sub(ago.as_millis() as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Cursor, String> {
        Cursor::parse("since", text, 0)
    }

    #[test]
    fn all_forms_of_an_instant_mean_the_same() {
        let now = 1_795_426_752_000;
        for text in
            ["1795426752000", "1795426752", "2026-11-23T09:39:12Z", "2026-11-23T10:39:12+01:00"]
        {
            assert_eq!(read(text, now), Some(now), "{text}");
        }
        assert_eq!(read("2026-11-23T09:39:12.977Z", now), Some(now + 977));
        for text in ["5m", "-5m", "300s", "PT5M", "0h 5m", "5 minutes ago"] {
            assert_eq!(read(text, now), Some(now - 300_000), "{text}");
        }
        assert_eq!(read("2d", now), Some(now - 2 * 86_400_000));
        assert_eq!(read("9999y", now), None);
        assert_eq!(read("1000w", 5), Some(1));
    }

    #[test]
    fn seconds_end_at_ten_to_the_eleventh() {
        assert_eq!(read("0", 1), Some(0));
        assert_eq!(read("99999999999", 1), Some(99_999_999_999_000));
        assert_eq!(read("100000000000", 1), Some(100_000_000_000));
    }

    #[test]
    fn anything_else_is_refused_and_the_forms_are_shown() {
        let huge = "9".repeat(100_000);
        let year = "9".repeat(18);
        for bad in ["", " ", "-1", "1.5", "yesterday", "2026-11-23", "0x10", "NaN", &huge, &year] {
            let error = parse(bad).expect_err(bad);
            for form in ["since", "1795426752977", "1795426752", "2026-11-23T09:30:00Z", "5m"] {
                assert!(error.contains(form), "{error}");
            }
        }
        assert_eq!(parse("1900-01-01T00:00:00Z"), Ok(Cursor::After(1)));
    }

    #[test]
    fn a_cursor_may_be_a_day_ahead_of_the_clock_or_as_far_as_the_newest_update() {
        let now = unix_millis();
        let (hour, day) = (3_600_000, 86_400_000);
        for (cursor, newest, is_read) in [
            (now + hour, 0, true),
            (now + 2 * day, 0, false),
            (now + 2 * day, now + 2 * day, true),
            (now + 2 * day + 1, now + 2 * day, false),
            (now * 1_000, now, false),
            (now * 1_000_000, now, false),
        ] {
            let parsed = Cursor::parse("Last-Event-ID", &cursor.to_string(), newest);
            assert_eq!(parsed.is_ok(), is_read, "{parsed:?}");
            if let Err(error) = parsed {
                assert!(error.contains("Last-Event-ID") && error.contains("milliseconds"));
            }
        }
    }
}
