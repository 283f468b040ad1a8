//! What travels from the source to the clients: an update, and the events of the stream. An event is
//! encoded once, by the thread that creates it, and then shared by all clients.

use serde::{Deserialize, Serialize};

/// The price of one bitcoin in USD and when it was retrieved, in Unix milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Update {
    pub timestamp: u64,
    pub price: f64,
}

/// Whether prices are current. Every stream begins with a status, and receives another when `stale` changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    pub simulated: bool,
    pub stale: bool,
    /// Why prices are stale.
    pub reason: Option<String>,
    /// The timestamp of the newest update.
    pub latest: Option<u64>,
    /// This machine's clock, in Unix milliseconds, so that a client can tell how old an update is.
    pub now: u64,
}

const ALWAYS_JSON: &str = "plain structs always have a JSON form";

/// Updates after `since` may be missing. `oldest` is the first update after the gap; `since` is `None` if the
/// client's id is no number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gap {
    pub oldest: Option<u64>,
    pub since: Option<u64>,
}

/// One Server-Sent Event or comment, ready to be written.
#[derive(Debug)]
pub struct Event {
    pub kind: Kind,
    pub wire: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Update {
        timestamp: u64,
    },
    /// The number of changes of the status so far.
    Status {
        version: u64,
    },
    Comment,
}

impl Gap {
    /// Encodes the gap as an event, which has no id.
    pub fn encode(&self) -> String {
        format!("event: gap\ndata: {}\n\n", to_json(self))
    }
}

impl Status {
    /// Encodes the status as an event and appends it to `wire`. Like all events but updates it has no id:
    /// a browser would later resume from that id and miss updates.
    pub fn encode(&self, wire: &mut Vec<u8>) {
        wire.extend_from_slice(b"event: status\ndata: ");
        serde_json::to_writer(&mut *wire, self).expect(ALWAYS_JSON);
        wire.extend_from_slice(b"\n\n");
    }
}

impl Event {
    /// The unnamed event of an update. Its id is the timestamp, so a client's cursor is a time.
    pub fn update(update: Update) -> Event {
        let data = to_json(&update);
        let wire = format!("id: {}\ndata: {data}\n\n", update.timestamp);
        Event { kind: Kind::Update { timestamp: update.timestamp }, wire: wire.into() }
    }

    /// The event of a status.
    pub fn status(status: &Status, version: u64) -> Event {
        let mut wire = Vec::new();
        status.encode(&mut wire);
        let wire = String::from_utf8(wire).expect("JSON is UTF-8");
        Event { kind: Kind::Status { version }, wire: wire.into() }
    }

    /// A comment. Not followed by an empty line: some clients would dispatch an empty event.
    pub fn keep_alive() -> Event {
        Event { kind: Kind::Comment, wire: ":\n".into() }
    }
}

/// Encodes updates and the types above as JSON. Cannot fail: they have no map and no fallible serializer.
pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect(ALWAYS_JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_has_exactly_two_fields_and_its_timestamp_as_id() {
        let event = Event::update(Update { timestamp: 1795426752977, price: 97123.45 });
        assert_eq!(
            &*event.wire,
            "id: 1795426752977\ndata: {\"timestamp\":1795426752977,\"price\":97123.45}\n\n"
        );
    }

    #[test]
    fn events_without_an_update_have_no_id() {
        let status = Status {
            simulated: false,
            stale: true,
            reason: Some("timed out".to_owned()),
            latest: Some(7),
            now: 9,
        };
        assert_eq!(
            &*Event::status(&status, 1).wire,
            "event: status\ndata: {\"simulated\":false,\"stale\":true,\"reason\":\"timed out\",\
             \"latest\":7,\"now\":9}\n\n"
        );
        assert_eq!(
            Gap { oldest: None, since: Some(5) }.encode(),
            "event: gap\ndata: {\"oldest\":null,\"since\":5}\n\n"
        );
    }
}
