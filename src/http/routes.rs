//! What each path answers. Runs on the threads of the connections, which share all of it.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tiny_http::Method;

use super::pages;
use super::request::Request;
use super::response::Response;
use super::stream::{self, Stream};
use crate::feed::{Cursor, Feed};
use crate::source::{MADE_UP, PRICE_SOURCE, Source};
use crate::system::{Limits, METRICS, Permit, Semaphore, unix_millis};

const NOT_FOUND: &str = "there is /, /stream, /price, /history, /healthz, /metrics";
const METHODS: &str = "GET, HEAD, OPTIONS";
/// What the metrics call a path that is not there, or was not looked at. By its name it is not counted:
/// anybody could add names without end.
pub const UNKNOWN_PATH: &str = "other";
/// How far (in ms) an id may be ahead of our clock: the clocks of an origin and its replicas differ by some
/// seconds.
const MOST_AHEAD: u64 = 60_000;
/// How many updates `/history` answers at most.
const MOST_ANSWERED: usize = 100_000;

/// What the answers are made of. Made once, by `main`.
pub struct Routes {
    feed: Arc<Feed>,
    pages: Vec<(&'static str, Response)>,
    /// The name of the source.
    source: &'static str,
    /// Whether that is another btc-ticker.
    is_replica: bool,
    /// Whether prices are made up.
    made_up: bool,
    /// How every stream begins.
    stream_head: Response,
    pub connections: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// What becomes of a request.
pub enum Answer {
    Response(Response),
    Stream(StreamStart),
}

/// What a stream begins with.
pub struct StreamStart {
    from: Cursor,
    /// See `Stream`.
    skip_until: u64,
    permit: Permit,
}

impl Routes {
    /// `interval` is how often updates can be expected.
    pub fn new(feed: Arc<Feed>, source: &Source, interval: Duration, limits: Limits) -> Routes {
        Routes {
            feed,
            pages: pages::load(source.name, source.made_up, interval),
            source: source.name,
            is_replica: source.is_followed,
            made_up: source.made_up,
            stream_head: stream::head(source.made_up),
            connections: Semaphore::new(limits.connections),
            streams: Semaphore::new(limits.streams),
        }
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request) -> Answer {
        let answer = self.route(request);
        let status = match &answer {
            Answer::Response(response) => response.status,
            Answer::Stream(_) => 200,
        };
        let path = match status {
            // The path was not looked at, or is not there.
            204 | 404 | 405 => UNKNOWN_PATH,
            _ => request.target.path(),
        };
        METRICS.http_requests.inc(&[&path, &status]);
        answer
    }

    fn route(&self, request: &Request) -> Answer {
        match request.method {
            Method::Get | Method::Head => {}
            // Either `OPTIONS *`, or a browser asks first whether the page of another site may stream by
            // `fetch` (CORS).
            Method::Options => return options().into(),
            _ => {
                let error = Response::error(405, "there is only GET, HEAD and OPTIONS");
                return error.header("Allow", METHODS).into();
            }
        }
        match request.target.path() {
            "/stream" => self.admit(request),
            "/price" => self.price().into(),
            "/history" => self.history(request).into(),
            "/healthz" => self.health().into(),
            "/metrics" => self.metrics().into(),
            path => self.page(path).into(),
        }
    }

    fn page(&self, path: &str) -> Response {
        for (name, page) in &self.pages {
            if *name == path {
                return page.clone();
            }
        }
        Response::error(404, NOT_FOUND)
    }

    /// Streams to a client until one side ends it.
    pub fn stream(&self, socket: &TcpStream, start: StreamStart) {
        let stream = Stream { socket, position: start.from, skip_until: start.skip_until };
        let reason = stream.run(&self.feed, &self.stream_head);
        METRICS.streams_ended.inc(&[&reason]);
        drop(start.permit);
    }

    /// The start of a stream, with its permit; or a response: to HEAD, or where there can be no stream.
    fn admit(&self, request: &Request) -> Answer {
        let from = match self.cursor_of(request) {
            Ok(from) => from,
            Err(message) => return Response::error(400, &message).into(),
        };
        if self.has_no_past_yet() {
            // A replica begins with the oldest update of its origin. A client that is here before that
            // would be sent the whole past as if it were new. (One that comes a moment later may see the
            // rest of it.)
            return no_price_yet().into();
        }
        if request.method == Method::Head {
            return self.stream_head.clone().into();
        }
        let Some(permit) = self.streams.try_acquire() else {
            METRICS.clients_refused.inc();
            self.feed.find_gone();
            return Response::unavailable("the service is full; come back later").into();
        };
        METRICS.clients_accepted.inc();
        let skip_until = self.skip_until(request, from);
        Answer::Stream(StreamStart { from, skip_until, permit })
    }

    /// In a replica the `Last-Event-ID` of the client: it has had the updates up to there. Else 0.
    fn skip_until(&self, request: &Request, from: Cursor) -> u64 {
        // Only a replica may be behind another one. And only a `Last-Event-ID` is the timestamp of an update
        // that the client has had: `since` may be any time.
        let may_be_ahead = self.is_replica && request.last_event_id.is_some();
        match from {
            // One that is further ahead was made by a clock that was wrong. If all up to it were skipped, the
            // client would get no price until that time has come.
            Cursor::After(id) if may_be_ahead && id <= unix_millis() + MOST_AHEAD => id,
            _ => 0,
        }
    }

    fn price(&self) -> Response {
        match self.feed.snapshot().latest {
            Some(update) => self.marked(Response::json(200, update.to_json())),
            None => no_price_yet(),
        }
    }

    fn history(&self, request: &Request) -> Response {
        let limit = match parameter(request, "limit") {
            None => MOST_ANSWERED,
            Some(text) => match text.parse() {
                Ok(limit @ 1..=MOST_ANSWERED) => limit,
                _ => {
                    let form = format!("limit is a number from 1 to {MOST_ANSWERED}");
                    return Response::error(400, &form);
                }
            },
        };
        let from = match self.since(request) {
            Ok(from) => from,
            Err(message) => return Response::error(400, &message),
        };
        if self.has_no_past_yet() {
            return no_price_yet();
        }
        let backlog = self.feed.backlog(from, limit);
        let gap = backlog.gap.clone();
        let mut response = self.marked(Response::updates(backlog));
        if let Some(gap) = gap {
            response = response.header("X-Gap", gap.data());
        }
        response.header("Access-Control-Expose-Headers", "X-Gap")
    }

    /// Whether this is a replica without any update.
    fn has_no_past_yet(&self) -> bool {
        self.is_replica && self.feed.snapshot().latest.is_none()
    }

    fn health(&self) -> Response {
        let snapshot = self.feed.snapshot();
        let (code, status) = match (snapshot.is_stale, snapshot.latest) {
            (true, _) => (503, "stale"),
            (false, None) => (503, "starting"),
            (false, Some(_)) => (200, "ok"),
        };
        let health = json!({
            "status": status,
            "source": self.source,
            "made_up": self.made_up,
            "last_update_age_seconds": snapshot.age.map(|age| age.as_secs_f64()),
            "updates_retained": snapshot.updates,
            "clients": self.streams.taken(),
        });
        Response::json(code, health.to_string())
    }

    fn metrics(&self) -> Response {
        let snapshot = self.feed.snapshot();
        let age = snapshot.age.map(|age| age.as_secs_f64());
        let price = snapshot.latest.map(|update| update.price);
        let source = if self.made_up { MADE_UP } else { self.source };
        let source = format!("source=\"{source}\"");
        let (streams, connections) = (&self.streams, &self.connections);
        let mut text = METRICS.render();
        for (name, help, value) in [
            ("clients", "Streams that are open.", streams.taken()),
            ("clients_max", "Streams that may be open at once.", streams.limit()),
            ("connections", "Connections that are open, streams among them.", connections.taken()),
            ("connections_max", "Connections that may be open at once.", connections.limit()),
            ("history_updates", "Updates retained.", snapshot.updates as u64),
        ] {
            text.gauge(name, help, "", Some(value));
        }
        text.gauge("last_update_age_seconds", "Age of the last update.", "", age);
        text.gauge("price_usd", "The latest price of a bitcoin.", &source, price);
        Response::new("text/plain; version=0.0.4; charset=utf-8", text.0)
    }

    /// Says of made-up prices that they are.
    fn marked(&self, response: Response) -> Response {
        if self.made_up { response.header(PRICE_SOURCE, MADE_UP) } else { response }
    }

    /// Where a stream is to begin. A browser that reconnects sends both forms, and the header is newer.
    fn cursor_of(&self, request: &Request) -> Result<Cursor, String> {
        match &request.last_event_id {
            Some(id) => self.cursor("Last-Event-ID", id),
            None => self.since(request),
        }
    }

    fn since(&self, request: &Request) -> Result<Cursor, String> {
        match parameter(request, "since") {
            Some(since) => self.cursor("since", &since),
            None => Ok(Cursor::Latest),
        }
    }

    fn cursor(&self, name: &str, text: &str) -> Result<Cursor, String> {
        let latest = self.feed.snapshot().latest;
        Cursor::parse(name, text, latest.map_or(0, |update| update.timestamp))
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Response(response)
    }
}

fn no_price_yet() -> Response {
    Response::unavailable("there is no price yet")
}

fn options() -> Response {
    Response::bare(204)
        .header("Allow", METHODS)
        .header("Access-Control-Allow-Origin", "*")
        .header("Access-Control-Allow-Methods", METHODS)
        .header("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control")
        .header("Access-Control-Max-Age", "86400")
}

/// A parameter of the query.
fn parameter(request: &Request, name: &str) -> Option<String> {
    for pair in request.target.query().unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key == name {
            return Some(unescape(value));
        }
    }
    None
}

/// A client may have escaped the `:`, the `+` and the spaces of a time.
fn unescape(value: &str) -> String {
    let mut value = value.to_owned();
    for (escaped, plain) in [("%3A", ":"), ("%3a", ":"), ("%2B", "+"), ("%2b", "+"), ("%20", " ")] {
        value = value.replace(escaped, plain);
    }
    value
}
