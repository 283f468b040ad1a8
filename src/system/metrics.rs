//! Counters for whoever operates the service, and their Prometheus text (`GET /metrics`).
//! Shared by all threads. What the delivery of an update counts is an atomic, never a lock.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Makes the counters from the table below: each with its name, its labels and what it counts.
macro_rules! counters {
    ($($name:ident: $type:ident($($label:literal),*) $help:literal;)*) => {
        pub struct Metrics { $(#[doc = $help] pub $name: $type,)* }

        /// The counters of this process.
        pub static METRICS: Metrics = Metrics { $($name: $type::new(&[$($label),*]),)* };

        impl Metrics {
            /// All of them as Prometheus wants them.
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
    updates_delivered: Counter() "Updates written to clients as they came.";
    updates_replayed: Counter() "Updates written to clients from the history.";
    clients_accepted: Counter() "Streams opened.";
    clients_refused: Counter() "Streams refused because the service was full.";
    clients_fell_behind: Counter() "Times that a client was too slow and lost its channel.";
    streams_ended: LabelledCounter("reason") "Streams ended, by reason.";
    connections_refused: Counter() "Connections refused because there were too many.";
    threads_refused: Counter() "Connections refused because the system had no thread for them.";
    accept_errors: Counter() "Times that a connection could not be accepted.";
    journal_updates: Counter() "Updates appended to the journal.";
    journal_errors: Counter() "Times that the journal could not be read or written.";
    http_requests: LabelledCounter("path", "status") "Requests answered, by path and status.";
    fetches: LabelledCounter("outcome") "Answers and failures of the source, by outcome.";
}

/// A number that threads raise without waiting for each other.
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

/// Numbers by labels, for what happens at most once a request, or once an update.
pub struct LabelledCounter {
    names: &'static [&'static str],
    /// By labels as Prometheus wants them, such as `reason="gone"`. Held for one look or change.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl LabelledCounter {
    const fn new(names: &'static [&'static str]) -> LabelledCounter {
        LabelledCounter { names, counts: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one for these values, in the order of the labels in the table.
    pub fn inc(&self, values: &[&dyn Display]) {
        let mut labels = String::with_capacity(64);
        for (name, value) in self.names.iter().zip(values) {
            let comma = if labels.is_empty() { "" } else { "," };
            // Writing to a String cannot fail, here and below.
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

/// Prometheus text as it grows.
pub struct Text(pub String);

impl Text {
    /// A number that is looked up when somebody asks. Where it is not known only its description is written.
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
