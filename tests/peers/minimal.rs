//! The service, in about 200 lines: `tests/idea.rs` behind HTTP. `tiny_http` parses requests, and each
//! request gets a thread. Implements `/stream` and `/price`, with `since` in milliseconds only (tested by
//! `tests/minimal.rs`), and has no defence against hostile clients or a full machine; the README lists what
//! happens then. It is also the peer `naive` of the benchmark. Options: `--listen`, `--source`,
//! `--source-url`, `--price-at` and `--interval`.
//!
//! ```console
//! $ cargo run --example minimal                          # Coinbase's price, every 5 seconds
//! $ cargo run --example minimal -- --source demo         # without internet: simulated prices
//! $ curl -N 'localhost:8080/stream?since=0'
//! ```

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::num::ParseIntError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{env, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tiny_http::{Header, Method, Request, Response, Server};

const RETENTION: Duration = Duration::from_secs(3600);
const JANITOR_PAUSE: Duration = Duration::from_secs(1);
/// How many updates a client may be behind before it loses its channel.
const CHANNEL_CAPACITY: usize = 8;
const COINBASE: &str = "https://api.coinbase.com/v2/prices/BTC-USD/spot";
/// Marks simulated prices in the head of a response.
const SIMULATED: &str = "X-Price-Source: demo (simulated)";
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Cache-Control: no-store\r\nConnection: close\r\n";
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);

// ---- An update. Production form: src/feed/event.rs, which encodes it once for all clients.

#[derive(Clone, Copy, Serialize)]
struct Update {
    /// When the price was retrieved, in Unix milliseconds.
    timestamp: u64,
    price: f64,
}

impl Update {
    fn json(&self) -> String {
        serde_json::to_string(self).expect("two numbers")
    }

    fn wire(&self) -> String {
        format!("id: {}\ndata: {}\n\n", self.timestamp, self.json())
    }
}

// ---- Publish and subscribe. Production form: src/feed/mod.rs, src/feed/history.rs.

struct Feed {
    state: Mutex<State>,
    /// Whether prices are simulated, which every response with a price says.
    simulated: bool,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    history: VecDeque<Update>,
    /// The sending end of each client's channel.
    subscribers: Vec<Sender<Update>>,
    is_closed: bool,
}

impl Feed {
    /// Appends an update and fans it out. Never waits for a client: a channel that is full is dropped.
    fn publish(&self, price: f64) {
        let mut state = self.state.lock();
        let after_last = state.history.back().map_or(0, |last| last.timestamp + 1);
        let update = Update { timestamp: unix_millis().max(after_last), price };
        state.history.push_back(update);
        state.subscribers.retain(|channel| channel.try_send(update).is_ok());
    }

    /// Returns the updates after `since`, or only the latest one without it, and a channel for all that
    /// follow. Both are taken in one critical section. `None` after the shutdown.
    fn subscribe(&self, since: Option<u64>) -> Option<(Vec<Update>, Receiver<Update>)> {
        let (sender, live) = bounded(CHANNEL_CAPACITY);
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        state.subscribers.push(sender);
        let first = match since {
            Some(since) => state.history.partition_point(|update| update.timestamp <= since),
            None => state.history.len().saturating_sub(1),
        };
        let backlog = state.history.range(first..).copied().collect();
        Some((backlog, live))
    }

    /// Drops every channel, which ends every stream, and admits no other.
    fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.subscribers.clear();
    }
}

// ---- The janitor's thread. Production form: src/feed/janitor.rs.

fn janitor(feed: &Feed, shutdown: &Receiver<Infallible>) {
    while shutdown.recv_timeout(JANITOR_PAUSE) == Err(RecvTimeoutError::Timeout) {
        let oldest = unix_millis() - RETENTION.as_millis() as u64;
        let history = &mut feed.state.lock().history;
        let expired = history.partition_point(|update| update.timestamp < oldest);
        history.drain(..expired);
    }
}

// ---- The source. Production form: src/source/fetch.rs, src/source/demo.rs.

/// Requests a JSON document; `price_at` is a JSON pointer into it.
fn fetch(agent: &ureq::Agent, url: &str, price_at: &str) -> Result<f64, Box<dyn Error>> {
    let body = agent.get(url).call()?.body_mut().read_to_string()?;
    let answer: Value = serde_json::from_str(&body)?;
    let price = match answer.pointer(price_at) {
        Some(Value::String(text)) => text.parse().ok(),
        Some(number) => number.as_f64(),
        None => None,
    };
    let price = price.filter(|price: &f64| price.is_finite() && *price > 0.0);
    Ok(price.ok_or("no price in the answer")?)
}

fn simulated_price() -> f64 {
    let wave = (unix_millis() as f64 / 60_000.0).sin();
    (97_000.0 + 500.0 * wave).round()
}

// ---- The poller's thread. Production form: src/source/poller.rs.

fn poller(
    feed: &Feed,
    price: impl Fn() -> Result<f64, Box<dyn Error>>,
    interval: Duration,
    shutdown: &Receiver<Infallible>,
) {
    loop {
        match price() {
            Ok(price) => feed.publish(price),
            Err(error) => eprintln!("no price: {error}"),
        }
        if shutdown.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

// ---- One request. Production form: src/http/request.rs, src/http/routes.rs, src/http/response.rs.

fn handle(request: Request, feed: &Feed) -> io::Result<()> {
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    match (request.method(), path) {
        (Method::Get, "/stream") => match since(&request, query) {
            Ok(since) => stream(request, feed, since),
            Err(_) => request.respond(Response::empty(400)),
        },
        (Method::Get, "/price") => price(request, feed),
        (Method::Get, _) => request.respond(Response::empty(404)),
        _ => request.respond(Response::empty(405)),
    }
}

/// Where the client left off, if it says so. `Last-Event-ID` takes precedence over `?since=`.
fn since(request: &Request, query: &str) -> Result<Option<u64>, ParseIntError> {
    let header = request.headers().iter().find(|header| header.field.equiv("Last-Event-ID"));
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("since="));
    header.map(|header| header.value.as_str()).or(parameter).map(str::parse).transpose()
}

fn price(request: Request, feed: &Feed) -> io::Result<()> {
    let Some(latest) = feed.state.lock().history.back().copied() else {
        return request.respond(Response::empty(503));
    };
    let header = |line: &str| line.parse::<Header>().expect("a name and a value");
    let mut response = Response::from_string(latest.json());
    response.add_header(header("Content-Type: application/json"));
    if feed.simulated {
        response.add_header(header(SIMULATED));
    }
    request.respond(response)
}

// ---- One client's stream. Production form: src/http/stream.rs.

/// Writes the backlog, then live updates. When the channel ends, either the client fell behind, and
/// subscribes again from its last update, or the service shuts down.
fn stream(request: Request, feed: &Feed, mut since: Option<u64>) -> io::Result<()> {
    let mut client = request.into_writer();
    client.write_all(STREAM_HEAD.as_bytes())?;
    if feed.simulated {
        write!(client, "{SIMULATED}\r\n\r\n: prices are simulated\n")?;
    } else {
        write!(client, "\r\n")?;
    }
    while let Some((backlog, live)) = feed.subscribe(since) {
        for update in backlog {
            client.write_all(update.wire().as_bytes())?;
            since = Some(update.timestamp);
        }
        client.flush()?;
        for update in live {
            client.write_all(update.wire().as_bytes())?;
            client.flush()?;
            since = Some(update.timestamp);
        }
    }
    Ok(())
}

// ---- From start to shutdown. Production form: src/main.rs, src/config.rs, src/system/threads.rs.

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let pairs = arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str()));
    let options: HashMap<&str, &str> = pairs.collect();
    let option = |name, default| options.get(name).copied().unwrap_or(default);
    let interval = duration(option("--interval", "5s"))?;
    let simulated = option("--source", "coinbase") == "demo";
    let (url, price_at) = (option("--source-url", COINBASE), option("--price-at", "/data/amount"));
    let config = ureq::Agent::config_builder().timeout_global(Some(FETCH_TIMEOUT));
    let agent: ureq::Agent = config.build().into();
    let price = || if simulated { Ok(simulated_price()) } else { fetch(&agent, url, price_at) };

    let feed = Feed { state: Mutex::default(), simulated };
    let server = Arc::new(Server::http(option("--listen", "127.0.0.1:8080"))?);
    let unblocked = server.clone();
    ctrlc::set_handler(move || unblocked.unblock())?;
    println!("listening on http://{}", server.server_addr());

    // The shutdown is a channel on which nothing is ever sent, and which closes.
    let (open, shutdown) = bounded(0);
    // The scope waits for all its threads, even for one whose client has stopped reading.
    thread::scope(|threads| {
        threads.spawn(|| poller(&feed, price, interval, &shutdown));
        threads.spawn(|| janitor(&feed, &shutdown));
        let end = loop {
            match server.recv() {
                Ok(request) => threads.spawn(|| handle(request, &feed)),
                Err(end) => break end,
            };
        };
        // Ctrl-C has unblocked the server, or it cannot accept connections any more.
        eprintln!("stopping: {end}");
        drop(open);
        feed.close();
    });
    Ok(())
}

/// Reads `10ms` or `5s`.
fn duration(text: &str) -> Result<Duration, ParseIntError> {
    match text.strip_suffix("ms") {
        Some(number) => Ok(Duration::from_millis(number.parse()?)),
        None => Ok(Duration::from_secs(text.trim_end_matches('s').parse()?)),
    }
}

fn unix_millis() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_millis() as u64
}
