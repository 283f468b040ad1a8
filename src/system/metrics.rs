//! Counters for whoever operates the service, and their Prometheus text (`GET /metrics`).
//! Shared by all threads. What the delivery of an update counts is an atomic, never a lock.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// The table of metrics: each with its type here, its name, and what it counts.
macro_rules! metrics {
    ($($field:ident: $type:ident($($label:literal),*) $name:literal $kind:literal $help:literal;)*) => {
        pub struct Metrics { $(#[doc = $help] pub $field: $type,)* }

        /// The counters of this process.
        pub static METRICS: Metrics = Metrics { $($field: $type::new(&[$($label),*]),)* };

        impl Metrics {
            /// All of them as Prometheus wants them.
            pub fn render(&self) -> Text {
                let mut text = Text(String::new());
                $(text.family($name, $kind, $help); self.$field.render($name, &mut text);)*
                text
            }
        }
    };
}

metrics! {
    updates_published: Number() "updates_published_total" "counter" "Updates published.";
    updates_delivered: Number() "updates_delivered_total" "counter" "Updates written to clients as they came.";
    updates_replayed: Number() "updates_replayed_total" "counter" "Updates written to clients from the history.";
    clients: Number() "clients" "gauge" "Streams that are open.";
    clients_accepted: Number() "clients_accepted_total" "counter" "Streams opened.";
    clients_refused: Number() "clients_refused_total" "counter" "Streams refused because the service was full.";
    clients_let_go: Labelled("reason") "clients_let_go_total" "counter" "Streams ended, by reason.";
    clients_fell_behind: Number() "clients_fell_behind_total" "counter" "Times that a client was too slow and lost its channel.";
    connections: Number() "connections" "gauge" "Connections that are open, streams among them.";
    connections_refused: Number() "connections_refused_total" "counter" "Connections refused because there were too many.";
    threads_refused: Number() "threads_refused_total" "counter" "Connections refused because the system had no thread for them.";
    accept_errors: Number() "accept_errors_total" "counter" "Times that a connection could not be accepted.";
    journal_updates: Number() "journal_updates_total" "counter" "Updates written to the journal.";
    journal_errors: Number() "journal_errors_total" "counter" "Times that writing the journal, syncing it or rewriting it failed.";
    journal_late: Number() "journal_late_total" "counter" "Times that the journal took too long, so that clients did not wait for it.";
    requests: Labelled("path", "status") "http_requests_total" "counter" "Requests answered, by path and status.";
    heads_refused: Labelled("reason") "heads_refused_total" "counter" "Requests that were not understood, by reason.";
    fetches: Labelled("outcome") "fetches_total" "counter" "Fetches from the source, by outcome.";
}

/// A number that threads change without waiting for each other.
pub struct Number(AtomicU64);

impl Number {
    const fn new(_: &[&str]) -> Number {
        Number(AtomicU64::new(0))
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes one of `limit`; `None` where all are taken.
    pub fn take(&'static self, limit: u64) -> Option<Taken> {
        let more = |n| (n < limit).then_some(n + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Taken(self))
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn render(&self, name: &str, text: &mut Text) {
        text.sample(name, "", self.get());
    }
}

/// One of a limited number, such as a place; given back when it is dropped.
pub struct Taken(&'static Number);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Numbers by labels, for what happens at most once a request.
pub struct Labelled {
    names: &'static [&'static str],
    /// By labels as Prometheus wants them, such as `reason="gone"`. Held for one look or change.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Labelled {
    const fn new(names: &'static [&'static str]) -> Labelled {
        Labelled { names, counts: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one for these values, in the order of the labels in the table.
    pub fn inc(&self, values: &[&dyn Display]) {
        let mut labels = String::with_capacity(64);
        for (name, value) in self.names.iter().zip(values) {
            let comma = if labels.is_empty() { "" } else { "," };
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

/// Prometheus text as it grows. Writing to a String cannot fail.
pub struct Text(pub String);

impl Text {
    /// A number that only the moment of asking knows; left out where it is not known either.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &str, value: Option<impl Display>) {
        self.family(name, "gauge", help);
        value.into_iter().for_each(|value| self.sample(name, labels, value));
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP btc_ticker_{name} {help}\n# TYPE btc_ticker_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "btc_ticker_{name}{labels} {value}");
    }
}
