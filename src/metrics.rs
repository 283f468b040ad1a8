//! Counters for whoever operates the service, and their Prometheus text (`GET /metrics`).
//! Shared by all threads. What the delivery of an update counts is an atomic, never a lock.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// The table of metrics: each with its type here, its name, and what it counts.
macro_rules! metrics {
    ($($field:ident: $type:ident $name:literal $kind:literal $help:literal;)*) => {
        pub struct Metrics { $(#[doc = $help] pub $field: $type,)* }

        /// The counters of this process.
        pub static METRICS: Metrics = Metrics { $($field: $type::new(),)* };

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
    updates_published: Number "updates_published_total" "counter" "Updates published.";
    updates_delivered: Number "updates_delivered_total" "counter" "Updates written to clients as they came.";
    updates_replayed: Number "updates_replayed_total" "counter" "Updates written to clients from the history.";
    clients: Number "clients" "gauge" "Streams that are open.";
    clients_accepted: Number "clients_accepted_total" "counter" "Streams opened.";
    clients_refused: Number "clients_refused_total" "counter" "Streams refused because the service was full.";
    clients_let_go: Labelled "clients_let_go_total" "counter" "Streams ended, by reason.";
    clients_fell_behind: Number "clients_fell_behind_total" "counter" "Times that a client was too slow and lost its channel.";
    clients_recovered: Number "clients_recovered_total" "counter" "Times that such a client got what it had missed.";
    requests: Labelled "http_requests_total" "counter" "Requests answered, by path and status.";
    requests_abandoned: Number "requests_abandoned_total" "counter" "Requests whose body is never read, each of which keeps two descriptors and a thread.";
    threads_refused: Number "threads_refused_total" "counter" "Requests that the system had no thread for, and that got no answer.";
    accept_restarts: Labelled "accept_restarts_total" "counter" "Accept loops that were replaced, by reason.";
    fetches: Labelled "fetches_total" "counter" "Fetches from the source, by outcome.";
    fetch_duration: Histogram "fetch_duration_seconds" "histogram" "Time that fetches took.";
}

/// A number that threads change without waiting for each other.
pub struct Number(AtomicU64);

impl Number {
    const fn new() -> Number {
        Number(AtomicU64::new(0))
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Adds one where it is below `limit`, and tells whether it was.
    pub fn inc_below(&self, limit: u64) -> bool {
        let more = |n| (n < limit).then_some(n + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn render(&self, name: &str, text: &mut Text) {
        text.sample(name, "", self.get());
    }
}

/// Numbers by label, for what happens at most once a request.
pub struct Labelled(Mutex<BTreeMap<String, u64>>);

impl Labelled {
    const fn new() -> Labelled {
        Labelled(Mutex::new(BTreeMap::new()))
    }

    /// Counts one for `labels`, written as Prometheus wants them: `reason="gone"`.
    pub fn inc(&self, labels: String) {
        *self.0.lock().entry(labels).or_default() += 1;
    }

    fn render(&self, name: &str, text: &mut Text) {
        for (labels, value) in &*self.0.lock() {
            text.sample(name, labels, value);
        }
    }
}

/// Bounds in seconds: a source is near (tens of milliseconds), or in trouble.
const BOUNDS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// How many observations were at or below each bound, their sum, and how many there were.
pub struct Histogram(Mutex<([u64; BOUNDS.len()], f64, u64)>);

impl Histogram {
    const fn new() -> Histogram {
        Histogram(Mutex::new(([0; BOUNDS.len()], 0.0, 0)))
    }

    pub fn observe(&self, seconds: f64) {
        let (buckets, sum, count) = &mut *self.0.lock();
        for (bound, bucket) in BOUNDS.iter().zip(buckets) {
            *bucket += u64::from(seconds <= *bound);
        }
        *sum += seconds;
        *count += 1;
    }

    fn render(&self, name: &str, text: &mut Text) {
        let (buckets, sum, count) = &*self.0.lock();
        let bucket = format!("{name}_bucket");
        for (bound, n) in BOUNDS.iter().zip(buckets) {
            text.sample(&bucket, &format!("le=\"{bound}\""), n);
        }
        text.sample(&bucket, "le=\"+Inf\"", count);
        text.sample(&format!("{name}_sum"), "", sum);
        text.sample(&format!("{name}_count"), "", count);
    }
}

/// Prometheus text as it grows. Writing to a String cannot fail.
pub struct Text(pub String);

impl Text {
    /// A number that only the moment of asking knows; left out where it is not known either.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &str, value: Option<impl Display>) {
        self.family(name, "gauge", help);
        if let Some(value) = value {
            self.sample(name, labels, value);
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ =
            writeln!(self.0, "# HELP btc_ticker_{name} {help}\n# TYPE btc_ticker_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "btc_ticker_{name}{labels} {value}");
    }
}
