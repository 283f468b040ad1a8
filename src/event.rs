//! What travels from the poller to the clients: an update, and the events of the stream.
//! An event is encoded for the wire once, by the thread that makes it, and then shared by all.

use serde::Serialize;

/// A price of one bitcoin in USD and when it was retrieved, in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Update {
    pub timestamp: u64,
    pub price: f64,
}

/// One Server-Sent Event, ready to be written.
#[derive(Debug)]
pub struct Event {
    pub kind: Kind,
    pub wire: Box<str>,
}

/// What an event tells. Only an update has an id on the wire: any other would move the point from
/// which a browser recovers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Update(Update),
    /// Prices have stopped coming.
    Stale,
    /// Prices are coming again.
    Fresh,
    /// Something that the client asked for is gone.
    Gap,
    /// Nothing: a comment, which clients pass over.
    Heartbeat,
}

impl Event {
    /// The unnamed event of an update; its id is the timestamp, so a client's cursor is a time.
    pub fn update(update: Update) -> Event {
        let wire = format!("id: {}\ndata: {}\n\n", update.timestamp, to_json(&update));
        Event { kind: Kind::Update(update), wire: wire.into() }
    }

    /// Tells that prices have stopped coming; `since` is the timestamp of the last one.
    pub fn stale(since: Option<u64>, reason: &str) -> Event {
        #[derive(Serialize)]
        struct Status<'a> {
            stale: bool,
            since: Option<u64>,
            reason: &'a str,
        }
        Event::named(Kind::Stale, "status", &Status { stale: true, since, reason })
    }

    /// Tells that prices are coming again.
    pub fn fresh() -> Event {
        #[derive(Serialize)]
        struct Status {
            stale: bool,
        }
        Event::named(Kind::Fresh, "status", &Status { stale: false })
    }

    /// Tells that something after `since` is gone; `oldest` is the first update that is not.
    pub fn gap(since: u64, oldest: Option<u64>) -> Event {
        #[derive(Serialize)]
        struct Gap {
            since: u64,
            oldest: Option<u64>,
        }
        Event::named(Kind::Gap, "gap", &Gap { since, oldest })
    }

    /// Tells nothing, but keeps the stream open.
    pub fn heartbeat() -> Event {
        Event { kind: Kind::Heartbeat, wire: ":\n\n".into() }
    }

    fn named(kind: Kind, name: &str, data: &impl Serialize) -> Event {
        let wire = format!("event: {name}\ndata: {}\n\n", to_json(data));
        Event { kind, wire: wire.into() }
    }
}

/// JSON of one of this program's own structs, with its fields in the order of the struct.
pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("structs of numbers and strings always have a JSON form")
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
        assert_eq!(
            &*Event::gap(5, None).wire,
            "event: gap\ndata: {\"since\":5,\"oldest\":null}\n\n"
        );
        assert_eq!(
            &*Event::stale(Some(7), "timed out").wire,
            "event: status\ndata: {\"stale\":true,\"since\":7,\"reason\":\"timed out\"}\n\n"
        );
    }
}
