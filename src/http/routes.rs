//! What each path answers. Runs on the threads of the connections, which share all of it.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde_json::json;
use tiny_http::Method;

use super::pages;
use super::request::Request;
use super::response::Response;
use super::stream::{self, Stream};
use crate::feed::{Cursor, Feed};
use crate::source::{MADE_UP, Source};
use crate::system::{Limits, METRICS, Taken};

/// What is there besides the pages.
const ROUTES: [&str; 4] = ["/stream", "/price", "/healthz", "/metrics"];

const METHODS: &str = "GET, HEAD, OPTIONS";

/// What the answers are made of. Made once, by `main`.
pub struct Routes {
    feed: Arc<Feed>,
    pages: Vec<(&'static str, Response)>,
    /// The name of the source.
    source: &'static str,
    /// Whether prices are made up.
    made_up: bool,
    /// How every stream begins.
    beginning: Response,
    limits: Limits,
    /// Tells the heartbeat that somebody took the last place, or found none.
    full: Sender<()>,
}

/// What becomes of a request.
pub enum Answer {
    Response(Response),
    /// A stream from there on, for a client that has a place.
    Stream(Cursor, Taken),
}

impl Routes {
    /// `pace` is how often updates can be expected.
    pub fn new(
        feed: Arc<Feed>,
        source: &Source,
        pace: Duration,
        limits: Limits,
        full: Sender<()>,
    ) -> Routes {
        let (source, made_up) = (source.name, source.made_up);
        let (pages, beginning) = (pages::load(source, made_up, pace), stream::beginning(made_up));
        Routes { feed, pages, source, made_up, beginning, limits, full }
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request) -> Answer {
        let page = self.pages.iter().find(|(path, _)| *path == request.path);
        let route = ROUTES.into_iter().find(|route| *route == request.path);
        let route = route.or(page.map(|(path, _)| *path));
        let answer = match route {
            None => Err(Response::error(404, "there is /, /stream, /price, /healthz, /metrics")),
            // A page of another origin asks first, where it streams by `fetch`.
            Some(_) if request.method == Method::Options => Err(Response::bare(204)
                .header("Access-Control-Allow-Origin", "*")
                .header("Access-Control-Allow-Methods", METHODS)
                .header("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control")
                .header("Access-Control-Max-Age", "86400")),
            Some(_) if !matches!(request.method, Method::Get | Method::Head) => {
                Err(Response::error(405, "there is only GET and HEAD").header("Allow", METHODS))
            }
            Some("/stream") => self.admit(request),
            Some("/price") => Err(self.price()),
            Some("/healthz") => Err(self.health()),
            Some(_) => Err(page.map_or_else(|| self.metrics(), |(_, page)| page.clone())),
        };
        let status = answer.as_ref().map_or_else(|response| response.status, |_| 200);
        METRICS.requests.inc(&[&route.unwrap_or("other"), &status]);
        answer.map_or_else(Answer::Response, |(from, place)| Answer::Stream(from, place))
    }

    /// Streams to a client until one side ends it.
    pub fn stream(&self, socket: &TcpStream, from: Cursor, place: Taken) {
        let reason = Stream { socket, position: from }.run(&self.feed, &self.beginning);
        METRICS.clients_let_go.inc(&[&reason]);
        drop(place);
    }

    /// A place for a stream, or the response that says why there is none.
    fn admit(&self, request: &Request) -> Result<(Cursor, Taken), Response> {
        let from = cursor_of(request).map_err(|message| Response::error(400, message))?;
        if request.method == Method::Head {
            return Err(self.beginning.clone());
        }
        let place = METRICS.clients.take(self.limits.streams);
        if METRICS.clients.get() >= self.limits.streams {
            // One word is enough until the heartbeat has heard it.
            let _ = self.full.try_send(());
        }
        let Some(place) = place else {
            METRICS.clients_refused.inc();
            return Err(Response::unavailable("the service is full; come back later"));
        };
        METRICS.clients_accepted.inc();
        Ok((from, place))
    }

    fn price(&self) -> Response {
        let response = match self.feed.condition().latest {
            Some(update) => Response::json(200, update.to_json()),
            None => Response::unavailable("there is no price yet"),
        };
        if self.made_up { response.header(MADE_UP.0, MADE_UP.1) } else { response }
    }

    fn health(&self) -> Response {
        let condition = self.feed.condition();
        let (code, status) = match (condition.age, condition.stale) {
            (None, _) => (503, "starting"),
            (_, true) => (503, "stale"),
            (_, false) => (200, "ok"),
        };
        let health = json!({
            "status": status,
            "source": self.source,
            "made_up": self.made_up,
            "last_update_age_seconds": condition.age.map(|age| age.as_secs_f64()),
            "updates_retained": condition.updates,
            "clients": METRICS.clients.get(),
        });
        Response::json(code, health.to_string())
    }

    fn metrics(&self) -> Response {
        let condition = self.feed.condition();
        let age = condition.age.map(|age| age.as_secs_f64());
        let price = condition.latest.map(|update| update.price);
        let source = format!("source=\"{}\"", if self.made_up { MADE_UP.1 } else { self.source });
        let (streams, connections) = (self.limits.streams, self.limits.connections);
        let mut text = METRICS.render();
        text.gauge("clients_max", "Streams that may be open at once.", "", Some(streams));
        text.gauge("connections_max", "The same of connections.", "", Some(connections));
        text.gauge("history_updates", "Updates retained.", "", Some(condition.updates));
        text.gauge("last_update_age_seconds", "Time since the last update.", "", age);
        text.gauge("price_usd", "The latest price of a bitcoin.", &source, price);
        Response::new("text/plain; version=0.0.4; charset=utf-8", text.0)
    }
}

/// Where a stream is to begin. A browser that reconnects sends both forms, and the header is newer.
fn cursor_of(request: &Request) -> Result<Cursor, &'static str> {
    // A client may have escaped the `:` and `+` of a time.
    let query = request.query.replace("%3A", ":").replace("%3a", ":");
    let query = query.replace("%2B", "+").replace("%2b", "+");
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since="));
    request.last_event_id.as_deref().or(since).map_or(Ok(Cursor::Latest), Cursor::parse)
}
