//! A peer for comparison: axum's SSE on tokio, with a `broadcast` channel for live updates and a `VecDeque` for
//! the history, as their documentation suggests. Implements only what the load benchmark requests.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::MissedTickBehavior;

const RETENTION: Duration = Duration::from_secs(3600);

/// The number of updates that a client may fall behind before it reads from the history again.
const CHANNEL: usize = 64;

/// The kernel's maximum (`somaxconn`).
const LISTEN_BACKLOG: u32 = 4096;

#[derive(Clone, Copy, Serialize)]
struct Tick {
    timestamp: u64,
    price: f64,
}

/// Encoded once, when it is published; each client only copies the bytes.
struct Update {
    tick: Tick,
    event: Event,
}

struct Ticker {
    history: Mutex<VecDeque<Arc<Update>>>,
    live: broadcast::Sender<Arc<Update>>,
}

impl Ticker {
    fn publish(&self, price: f64) {
        let mut history = self.history.lock().unwrap();
        let last = history.back().map_or(0, |update| update.tick.timestamp);
        let timestamp = now().max(last + 1);
        let tick = Tick { timestamp, price };
        let event = Event::default().id(timestamp.to_string());
        let update = Arc::new(Update { tick, event: event.json_data(tick).expect("numbers") });

        let oldest = timestamp.saturating_sub(RETENTION.as_millis() as u64);
        let expired = history.partition_point(|update| update.tick.timestamp < oldest);
        history.drain(..expired);
        history.push_back(Arc::clone(&update));
        // Sent under the lock, so that a new subscriber receives it exactly once, live or from the history.
        // Fails if there are no subscribers.
        let _ = self.live.send(update);
    }

    fn latest(&self) -> Option<Arc<Update>> {
        self.history.lock().unwrap().back().cloned()
    }

    fn after(history: &VecDeque<Arc<Update>>, since: u64) -> VecDeque<Arc<Update>> {
        let first = history.partition_point(|update| update.tick.timestamp <= since);
        history.range(first..).cloned().collect()
    }

    fn subscribe(self: Arc<Self>, since: Option<u64>) -> Subscription {
        let history = self.history.lock().unwrap();
        let live = self.live.subscribe();
        let pending = match since {
            Some(since) => Self::after(&history, since),
            None => history.back().cloned().into_iter().collect(),
        };
        drop(history);
        Subscription { ticker: self, live, pending, last: since.unwrap_or(0) }
    }
}

struct Subscription {
    ticker: Arc<Ticker>,
    live: broadcast::Receiver<Arc<Update>>,
    pending: VecDeque<Arc<Update>>,
    last: u64,
}

impl Subscription {
    async fn next(&mut self) -> Option<Arc<Update>> {
        loop {
            if let Some(update) = self.pending.pop_front() {
                self.last = update.tick.timestamp;
                return Some(update);
            }
            match self.live.recv().await {
                Ok(update) if update.tick.timestamp > self.last => self.pending.push_back(update),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    let history = self.ticker.history.lock().unwrap();
                    self.pending = Ticker::after(&history, self.last);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[derive(Deserialize)]
struct StreamQuery {
    since: Option<u64>,
}

async fn stream(
    State(ticker): State<Arc<Ticker>>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let last_event_id = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let subscription = ticker.subscribe(last_event_id.or(query.since));
    let updates = stream::unfold(subscription, |mut subscription| async {
        let update = subscription.next().await?;
        Some((Ok(update.event.clone()), subscription))
    });
    Sse::new(updates).keep_alive(KeepAlive::default())
}

async fn price(State(ticker): State<Arc<Ticker>>) -> Response {
    match ticker.latest() {
        Some(update) => Json(update.tick).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn poll(ticker: Arc<Ticker>, url: String, pointer: String, interval: Duration) {
    let client = reqwest::Client::new();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match fetch(&client, &url, &pointer).await {
            Ok(price) => ticker.publish(price),
            Err(error) => eprintln!("{error}"),
        }
    }
}

async fn fetch(
    client: &reqwest::Client,
    url: &str,
    pointer: &str,
) -> Result<f64, Box<dyn std::error::Error>> {
    let body = client.get(url).send().await?.bytes().await?;
    let answer: Value = serde_json::from_slice(&body)?;
    let price = answer.pointer(pointer).and_then(Value::as_f64);
    Ok(price.ok_or("no price in the response")?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flags: HashMap<_, _> =
        arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let flag = |name| *flags.get(name).unwrap_or_else(|| panic!("{name} is required"));

    let ticker =
        Arc::new(Ticker { history: Mutex::default(), live: broadcast::Sender::new(CHANNEL) });
    tokio::spawn(poll(
        Arc::clone(&ticker),
        flag("--source-url").to_owned(),
        flag("--price-at").to_owned(),
        duration(flag("--interval")),
    ));

    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(flag("--listen").parse()?)?;
    let listener = socket.listen(LISTEN_BACKLOG)?;
    println!("listening on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let app =
        Router::new().route("/stream", get(stream)).route("/price", get(price)).with_state(ticker);
    Ok(axum::serve(listener, app).await?)
}

/// Parses `10ms` or `5s`.
fn duration(text: &str) -> Duration {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis(1)),
        None => (text.trim_end_matches('s'), Duration::from_secs(1)),
    };
    unit * number.parse().expect("a whole number of s or ms")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock after 1970").as_millis() as u64
}
