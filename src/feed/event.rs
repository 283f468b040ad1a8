//! What travels from the source to the clients: an update, and the events of the stream. An event is
//! encoded for the wire once, by the thread that makes it, and then shared by all.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A price of one bitcoin in USD and when it was retrieved, in Unix milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    pub timestamp: u64,
    pub price: f64,
}

impl Update {
    pub fn to_json(self) -> String {
        serde_json::to_string(&self).expect("two numbers always have a JSON form")
    }
}

/// One Server-Sent Event, or a gap and the update after it, ready to be written.
#[derive(Debug)]
pub struct Event {
    /// The update, if it is one. Only an update has an id on the wire: with any other id a browser
    /// would later ask for the wrong updates.
    pub update: Option<Update>,
    pub wire: Box<str>,
}

/// What stands before the data of an event.
const DATA: &str = "data: ";

impl Event {
    /// The unnamed event of an update; its id is the timestamp, so a client's cursor is a time.
    pub fn update(update: Update) -> Event {
        let wire = format!("id: {}\n{DATA}{}\n\n", update.timestamp, update.to_json());
        Event { update: Some(update), wire: wire.into() }
    }

    /// Its data; empty for a comment.
    pub fn data(&self) -> &str {
        data_lines(&self.wire).next().unwrap_or_default()
    }

    /// Tells that prices have stopped coming; `since` is the timestamp of the last one.
    pub fn stale(made_up: bool, since: Option<u64>, reason: &str) -> Event {
        let data = json!({"made_up": made_up, "stale": true, "since": since, "reason": reason});
        Event::named("status", &data)
    }

    /// Tells that prices are coming.
    pub fn fresh(made_up: bool) -> Event {
        Event::named("status", &json!({"made_up": made_up, "stale": false}))
    }

    /// Tells that something after `since` is gone; `oldest` is the first update that is not.
    pub fn gap(since: u64, oldest: Option<u64>) -> Event {
        Event::named("gap", &json!({"since": since, "oldest": oldest}))
    }

    /// The same update with a gap event before it: something between `since` and this update is gone.
    pub fn after_gap(&self, since: u64) -> Event {
        let gap = Event::gap(since, self.update.map(|update| update.timestamp));
        Event { update: self.update, wire: format!("{}{}", gap.wire, self.wire).into() }
    }

    /// A comment that keeps the stream open. There is no empty line after it: some clients would take
    /// that for the end of an event without data.
    pub fn heartbeat() -> Event {
        Event { update: None, wire: ":\n".into() }
    }

    fn named(name: &str, data: &Value) -> Event {
        Event { update: None, wire: format!("event: {name}\n{DATA}{data}\n\n").into() }
    }
}

/// The data of each event in a text of events: for updates, their JSON.
pub fn data_lines(wire: &str) -> impl Iterator<Item = &str> {
    wire.lines().filter_map(|line| line.strip_prefix(DATA))
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
            "event: gap\ndata: {\"oldest\":null,\"since\":5}\n\n"
        );
        assert_eq!(
            &*Event::stale(false, Some(7), "timed out").wire,
            "event: status\n\
             data: {\"made_up\":false,\"reason\":\"timed out\",\"since\":7,\"stale\":true}\n\n"
        );
        assert_eq!(
            &*Event::fresh(true).wire,
            "event: status\ndata: {\"made_up\":true,\"stale\":false}\n\n"
        );
    }
}
