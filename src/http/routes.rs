//! What each path answers. Runs on the threads of the connections, which share all of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use ureq::http::{Method, StatusCode};

use super::pages;
use super::request::Request;
use super::response::Response;
use super::stream::{self, Stream};
use crate::feed::{Cursor, Feed, Gap, Summary, to_json};
use crate::source::{PRICE_SOURCE, SIMULATED, Source, Standing};
use crate::system::{METRICS, Semaphore, unix_millis};

const NOT_FOUND: &str = "unknown path; there is /, /stream, /price, /history, /healthz, /metrics";
const NOT_FOUND_PUBLIC: &str = "unknown path; there is /, /stream, /price, /history";
const NOT_HERE: &str =
    "not served at this address; health and metrics are at --admin, all else at --listen";
const METHODS: &str = "GET, HEAD, OPTIONS";
/// Groups unknown paths, to bound the metric's cardinality.
pub const UNKNOWN_PATH: &str = "other";
/// The most updates in one answer of `/history`.
const HISTORY_LIMIT: usize = 1_000;
/// How long, in intervals, a client may be ahead of a process that shares a store.
const LEAD: u32 = 2;

/// What an address serves.
#[derive(Clone, Copy, PartialEq)]
pub enum Scope {
    All,
    /// Everything but health and metrics.
    Public,
    /// Health and metrics.
    Admin,
}

/// The state from which responses are built. Created once, by `main`.
#[derive(Clone)]
pub struct Routes {
    scope: Scope,
    feed: Arc<Feed>,
    pages: Vec<(&'static str, Response)>,
    source: &'static str,
    is_simulated: bool,
    standing: Arc<Standing>,
    /// See `Stream`.
    max_lead: Duration,
    stream_head: Response,
    connections: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// The outcome of a request.
pub enum Answer {
    Response(Response),
    /// Boxed, so that it is no part of every stack frame on its way.
    Stream(Box<Stream>),
}

impl Routes {
    /// `interval` is how often updates can be expected.
    pub fn new(
        feed: Arc<Feed>,
        source: &Source,
        interval: Duration,
        standing: Arc<Standing>,
        connections: Arc<Semaphore>,
        streams: Arc<Semaphore>,
    ) -> Routes {
        let is_simulated = source.is_simulated();
        Routes {
            scope: Scope::All,
            feed,
            pages: pages::load(source.name(), is_simulated, interval),
            source: source.name(),
            is_simulated,
            max_lead: if standing.has_store { interval * LEAD } else { Duration::ZERO },
            standing,
            stream_head: stream::head(is_simulated),
            connections,
            streams,
        }
    }

    /// Returns routes for another address, which shares everything else.
    pub fn with_scope(&self, scope: Scope) -> Routes {
        Routes { scope, ..self.clone() }
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request) -> Answer {
        let answer = self.route(request);
        let status = match &answer {
            Answer::Response(response) => response.status,
            Answer::Stream(_) => StatusCode::OK,
        };
        // The path was not looked at, or does not exist.
        let is_grouped = matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
        );
        let path = if is_grouped { UNKNOWN_PATH } else { request.target.path() };
        METRICS.http_requests.inc(&[&path, &status.as_u16()]);
        answer
    }

    fn route(&self, request: &Request) -> Answer {
        match request.method {
            Method::GET | Method::HEAD => {}
            // `OPTIONS *`, or a browser that asks whether a page of another origin may use `fetch` (CORS).
            Method::OPTIONS => return options().into(),
            _ => {
                let error = Response::error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "unsupported method; send GET, HEAD or OPTIONS",
                );
                return error.header("Allow", METHODS).into();
            }
        }
        let path = request.target.path();
        let is_admin = matches!(path, "/healthz" | "/metrics");
        let is_served = match self.scope {
            Scope::All => true,
            Scope::Public => !is_admin,
            Scope::Admin => is_admin,
        };
        if !is_served {
            return Response::error(StatusCode::NOT_FOUND, NOT_HERE).into();
        }
        match path {
            "/stream" => self.stream(request),
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
        let message = if self.scope == Scope::All { NOT_FOUND } else { NOT_FOUND_PUBLIC };
        Response::error(StatusCode::NOT_FOUND, message)
    }

    fn stream(&self, request: &Request) -> Answer {
        // A browser that reconnects sends both; the header is newer.
        let position = match &request.last_event_id {
            Some(id) => Cursor::from_id(id),
            None => match since(request) {
                Ok(cursor) => cursor,
                Err(message) => return bad_request(&message).into(),
            },
        };
        if request.method == Method::HEAD {
            return self.stream_head.clone().into();
        }
        let Some(permit) = self.streams.try_acquire() else {
            METRICS.clients_refused.inc();
            return Response::unavailable("the service is full or stopping; retry later").into();
        };
        // An id is a timestamp exactly as this service prints it; any other form is a time.
        let is_id = match (&request.last_event_id, position) {
            (Some(id), Cursor::After(time)) => *id == time.to_string(),
            _ => false,
        };
        let (feed, opening) = (self.feed.clone(), stream::opening(&self.stream_head));
        let stream = Stream::new(feed, opening, position, is_id, self.max_lead, permit);
        Answer::Stream(Box::new(stream))
    }

    fn price(&self) -> Response {
        match self.feed.latest() {
            Some(update) => self.mark(Response::json(StatusCode::OK, to_json(&update))),
            None => no_price_yet(),
        }
    }

    fn history(&self, request: &Request) -> Response {
        let limit = match parameter(request, "limit") {
            None => HISTORY_LIMIT,
            Some(text) => match text.parse() {
                Ok(limit @ 1..=HISTORY_LIMIT) => limit,
                _ => return bad_request(&format!("limit must be between 1 and {HISTORY_LIMIT}")),
            },
        };
        let from = match since(request) {
            Ok(cursor) => cursor,
            Err(message) => return bad_request(&message),
        };
        let Some(newest) = self.feed.latest() else { return no_price_yet() };
        let mut found = self.feed.find(from, limit);
        if let Cursor::After(time) = from
            && time > newest.timestamp.max(unix_millis())
        {
            // The id of an update from a wrong clock.
            found.gap = Some(Gap { oldest: None, since: Some(time) });
        }
        let mut response = self.mark(Response::json(StatusCode::OK, to_json(&found.updates)));
        if let Some(gap) = found.gap {
            response = response.header("X-Gap", &to_json(&gap));
        }
        response.header("Access-Control-Expose-Headers", "X-Gap")
    }

    fn health(&self) -> Response {
        let summary = self.feed.summary();
        // Stale prices are no reason to restart this process or to route around it: clients stay.
        let (code, status) = match summary {
            Summary { is_closed: true, .. } => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Summary { latest: None, .. } => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Summary { stale: Some(_), .. } => (StatusCode::OK, "stale"),
            _ => (StatusCode::OK, "ok"),
        };
        let store = match (self.standing.has_store, self.standing.store_answers()) {
            (false, _) => None,
            (true, true) => Some("ok"),
            (true, false) => Some("failing"),
        };
        let health = json!({
            "status": status,
            "reason": summary.stale,
            "source": self.source,
            "simulated": self.is_simulated,
            "store": store,
            "polling": self.standing.polls(),
            "last_update_age_seconds": summary.age.map(|age| age.as_secs_f64()),
            "updates_retained": summary.updates,
            "clients": self.streams.taken(),
        });
        Response::json(code, health.to_string())
    }

    fn metrics(&self) -> Response {
        let summary = self.feed.summary();
        let age = summary.age.map(|age| age.as_secs_f64());
        let price = summary.latest.map(|update| update.price);
        let source = if self.is_simulated { SIMULATED } else { self.source };
        let source = format!("source=\"{source}\"");
        let (streams, connections) = (&self.streams, &self.connections);
        let mut text = METRICS.render();
        for (name, help, value) in [
            ("clients", "Open streams.", streams.taken()),
            ("clients_max", "The most streams that may be open.", streams.limit()),
            ("connections", "Open connections, streams included.", connections.taken()),
            ("connections_max", "The most connections that may be open.", connections.limit()),
            ("history_updates", "Updates retained.", summary.updates as u64),
            ("polling", "Whether this process polls.", u64::from(self.standing.polls())),
        ] {
            text.gauge(name, help, "", Some(value));
        }
        if self.standing.has_store {
            let answers = u64::from(self.standing.store_answers());
            text.gauge("store_up", "Whether the store answers.", "", Some(answers));
        }
        text.gauge("last_update_age_seconds", "The age of the last update.", "", age);
        text.gauge("price_usd", "The latest price of one bitcoin.", &source, price);
        Response::ok().content("text/plain; version=0.0.4; charset=utf-8", text.0)
    }

    /// Marks simulated prices.
    fn mark(&self, response: Response) -> Response {
        if self.is_simulated { response.header(PRICE_SOURCE, SIMULATED) } else { response }
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Response(response)
    }
}

fn no_price_yet() -> Response {
    Response::unavailable("there is no price yet; retry later")
}

fn bad_request(message: &str) -> Response {
    Response::error(StatusCode::BAD_REQUEST, message)
}

fn options() -> Response {
    Response::new(StatusCode::NO_CONTENT)
        .header("Allow", METHODS)
        .header("Access-Control-Allow-Origin", "*")
        .header("Access-Control-Allow-Methods", METHODS)
        .header("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control")
        .header("Access-Control-Max-Age", "86400")
}

/// Returns the cursor of the parameter `since`. The error is a sentence for the client.
fn since(request: &Request) -> Result<Cursor, String> {
    match parameter(request, "since") {
        Some(text) => Cursor::parse(&text),
        None => Ok(Cursor::Latest),
    }
}

/// Returns a parameter of the query.
fn parameter<'a>(request: &'a Request, name: &str) -> Option<Cow<'a, str>> {
    let query = request.target.query().unwrap_or_default();
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    let (_, value) = parameters.find(|(key, _)| key == name)?;
    Some(value)
}
