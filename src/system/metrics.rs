//! Counters and their Prometheus text (`GET /metrics`). Shared by all threads. The counters on the path of
//! an update are atomics, never locks.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Defines the counters from the table below: name, labels and help text.
macro_rules! counters {
    ($($name:ident: $type:ident($($label:literal),*) $help:literal;)*) => {
        pub struct Metrics { $(#[doc = $help] pub $name: $type,)* }

        /// The counters of this process.
        pub static METRICS: Metrics = Metrics { $($name: $type::new(&[$($label),*]),)* };

        impl Metrics {
            /// Renders all counters in Prometheus's text format.
            pub fn render(&self) -> Text {
                let mut text = Text(String::new());
                $(
                    let name = concat!(stringify!($name), "_total");
                    text.family(name, "counter", $help);
                    self.$name.render(name, &mut text);
                )*
                text
            }
        }
    };
}

counters! {
    updates_published: Counter() "Updates published.";
    updates_delivered: Counter() "Updates written to clients live.";
    updates_replayed: Counter() "Updates written to clients from the history.";
    clients_accepted: Counter() "Streams opened.";
    clients_refused: Counter() "Streams refused because the service was full.";
    clients_fell_behind: Counter() "Channels dropped because their client was too slow.";
    streams_ended: LabelledCounter("reason") "Streams ended, by reason.";
    connections_refused: Counter() "Connections refused because all places were taken.";
    connections_displaced: Counter() "Idle connections closed to admit new ones.";
    threads_refused: Counter() "Connections refused because the system had no thread for them.";
    accept_errors: Counter() "Failed attempts to accept a connection.";
    http_requests: LabelledCounter("path", "status") "Requests answered, by path and status.";
    fetches: LabelledCounter("outcome") "Fetches from the source, by outcome.";
    log_lines_dropped: Counter() "Log lines dropped because nothing read them.";
    store_errors: LabelledCounter("operation") "Failed operations on the store: read, claim, append, release.";
}

/// A counter that threads increment without blocking each other.
pub struct Counter(AtomicU64);

impl Counter {
    // The macro calls `new` of both types alike; this one has no labels.
    const fn new(_: &[&str]) -> Counter {
        Counter(AtomicU64::new(0))
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn render(&self, name: &str, text: &mut Text) {
        text.sample(name, "", self.get());
    }
}

/// Counters by label values, for what happens at most once per request or per update.
pub struct LabelledCounter {
    names: &'static [&'static str],
    /// By labels in Prometheus's form, such as `reason="stuck"`. Held to change one count or to render all.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl LabelledCounter {
    const fn new(names: &'static [&'static str]) -> LabelledCounter {
        LabelledCounter { names, counts: Mutex::new(BTreeMap::new()) }
    }

    /// Increments the counter of these label values, in the order of the table.
    pub fn inc(&self, values: &[&dyn Display]) {
        let mut labels = String::with_capacity(64);
        for (name, value) in self.names.iter().zip(values) {
            let comma = if labels.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(labels, "{comma}{name}=\"{value}\"");
        }
        *self.counts.lock().entry(labels).or_default() += 1;
    }

    fn render(&self, name: &str, text: &mut Text) {
        for (labels, value) in &*self.counts.lock() {
            text.sample(name, labels, value);
        }
    }
}

/// Prometheus text under construction.
pub struct Text(pub String);

impl Text {
    /// Adds a gauge. If its value is unknown, only its description is written.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &str, value: Option<impl Display>) {
        self.family(name, "gauge", help);
        if let Some(value) = value {
            self.sample(name, labels, value);
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP btc_ticker_{name} {help}\n# TYPE btc_ticker_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "btc_ticker_{name}{labels} {value}");
    }
}
