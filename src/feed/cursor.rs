//! Where a client wants to go on: the three forms that `since` and `Last-Event-ID` may have.

/// The point in the history from which a client wants updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cursor {
    /// The latest update, then what comes.
    Latest,
    /// Everything with a timestamp above this one (Unix milliseconds); 0 is all there is.
    After(u64),
}

/// Below this a number is in seconds: as milliseconds it would be a day in early 1973.
const SECONDS_BELOW: u64 = 100_000_000_000;

const FORMS: &str = "since is not a time: write Unix milliseconds (1795426752977), \
    Unix seconds (1795426752) or RFC 3339 (2026-11-23T09:30:00Z)";

impl Cursor {
    /// Reads Unix milliseconds, Unix seconds or an RFC 3339 time; the error is a sentence for the client.
    pub fn parse(text: &str) -> Result<Cursor, &'static str> {
        // Before 1970 there is nothing, and 0 would mean "no complaint about what is gone".
        let millis_of = |time: jiff::Timestamp| time.as_millisecond().max(1).unsigned_abs();
        let millis = match text.parse::<u64>() {
            Ok(number) if number < SECONDS_BELOW => Some(number * 1000),
            Ok(number) => Some(number),
            Err(_) => text.parse().ok().map(millis_of),
        };
        millis.map(Cursor::After).ok_or(FORMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Cursor, &'static str> {
        Cursor::parse(text)
    }

    #[test]
    fn the_three_forms_mean_the_same_instant() {
        let expected = Ok(Cursor::After(1_795_426_752_000));
        assert_eq!(read("1795426752000"), expected);
        assert_eq!(read("1795426752"), expected);
        assert_eq!(read("2026-11-23T09:39:12Z"), expected);
        assert_eq!(read("2026-11-23T10:39:12+01:00"), expected);
        assert_eq!(read("2026-11-23T09:39:12.977Z"), Ok(Cursor::After(1_795_426_752_977)));
    }

    #[test]
    fn seconds_end_at_ten_to_the_eleventh() {
        assert_eq!(read("0"), Ok(Cursor::After(0)));
        assert_eq!(read("99999999999"), Ok(Cursor::After(99_999_999_999_000)));
        assert_eq!(read("100000000000"), Ok(Cursor::After(100_000_000_000)));
    }

    #[test]
    fn anything_else_is_refused_and_the_forms_are_shown() {
        let huge = "9".repeat(100_000);
        for bad in ["", " ", "-1", "1.5", "yesterday", "2026-11-23", "0x10", "NaN", &huge] {
            let error = read(bad).expect_err(bad);
            for form in ["1795426752977", "1795426752", "2026-11-23T09:30:00Z"] {
                assert!(error.contains(form), "{error}");
            }
        }
        assert_eq!(read("1900-01-01T00:00:00Z"), Ok(Cursor::After(1)));
    }
}
