//! What travels from the source to the clients: an update, and the events of the stream. An event is
//! encoded once, by the thread that creates it, and then shared by all clients.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// The price of one bitcoin in USD and when it was retrieved, in Unix milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Update {
    pub timestamp: u64,
    pub price: f64,
}

/// Whether prices are current. Every stream begins with it, and it is sent again when it changes.
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

/// One Server-Sent Event or comment, ready to be written.
#[derive(Debug)]
pub struct Event {
    /// The timestamp of the update, if it is one.
    pub timestamp: Option<u64>,
    pub wire: Box<str>,
}

impl Status {
    /// Appends the event of this status. Like all events but updates it has no id: a browser would later resume
    /// from that id and miss updates.
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
        Event { timestamp: Some(update.timestamp), wire: wire.into() }
    }

    /// The event of a status.
    pub fn status(status: &Status) -> Event {
        let mut wire = Vec::new();
        status.encode(&mut wire);
        let wire = String::from_utf8(wire).expect("JSON is UTF-8");
        Event { timestamp: None, wire: wire.into() }
    }

    /// Something after `since` is missing; `oldest` is the first update after the gap. `since` is `None` if
    /// the client's id is none of ours.
    pub fn gap(since: Option<u64>, oldest: Option<u64>) -> Event {
        let data = json!({"since": since, "oldest": oldest});
        Event { timestamp: None, wire: format!("event: gap\ndata: {data}\n\n").into() }
    }

    /// A comment. No empty line follows: some clients would take that for the end of an event without data.
    pub fn keep_alive() -> Event {
        Event { timestamp: None, wire: ":\n".into() }
    }

    /// Returns the data of a named event or an update; empty for a comment.
    pub fn data(&self) -> &str {
        let data = self.wire.lines().find_map(|line| line.strip_prefix("data: "));
        data.unwrap_or_default()
    }
}

/// Encodes one of the types above. Cannot fail: they have no map and no fallible serializer.
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
            &*Event::status(&status).wire,
            "event: status\ndata: {\"simulated\":false,\"stale\":true,\"reason\":\"timed out\",\
             \"latest\":7,\"now\":9}\n\n"
        );
        assert_eq!(
            &*Event::gap(Some(5), None).wire,
            "event: gap\ndata: {\"oldest\":null,\"since\":5}\n\n"
        );
    }
}
