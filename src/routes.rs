//! What each path answers. Runs on the threads of the conversations, which share all of it.

use std::sync::Arc;

use crossbeam_channel::Receiver;
use serde::Serialize;
use tiny_http::Method;

use crate::config::Config;
use crate::conversation::{After, Incoming};
use crate::cursor::{self, Cursor};
use crate::feed::Feed;
use crate::limits::Limits;
use crate::metrics::METRICS;
use crate::pages::{self, Page};
use crate::poller;
use crate::reply::Reply;
use crate::source::Source;
use crate::stream::{self, Admission, End, Stream};

/// What is there besides the pages.
const ROUTES: [&str; 4] = ["/stream", "/price", "/healthz", "/metrics"];

/// What the answers are made of.
pub struct Service {
    feed: Arc<Feed>,
    pages: Vec<Page>,
    /// The name of the source.
    source: &'static str,
    /// Whether its prices are.
    made_up: bool,
    /// The response head of every stream.
    stream_head: Reply,
    max_clients: usize,
}

/// What becomes of a request.
enum Verdict {
    Reply(Reply),
    /// A stream from there on, for one who has been admitted.
    Stream(Cursor, Admission),
}

impl Service {
    pub fn new(config: &Config, source: &Source, feed: Arc<Feed>, limits: Limits) -> Service {
        let made_up = config.is_demo();
        Service {
            feed,
            pages: pages::load(source.name, made_up, poller::pace(source, config.interval)),
            source: source.name,
            made_up,
            stream_head: stream::head(made_up),
            max_clients: limits.clients,
        }
    }

    /// Answers one request; a stream, until it ends. `further` has the requests behind it.
    pub fn answer(&self, incoming: Incoming, further: &Receiver<Incoming>) -> After {
        match self.judge(&incoming) {
            Verdict::Reply(reply) => send(incoming, reply),
            Verdict::Stream(from, admission) => self.stream(incoming, from, further, admission),
        }
    }

    /// Not inlined, so that its frame is not a part of every client's stack.
    #[inline(never)]
    fn judge(&self, incoming: &Incoming) -> Verdict {
        let (path, query) = split(incoming.url());
        let page = self.pages.iter().find(|page| page.path == path);
        let route = ROUTES.into_iter().find(|route| *route == path);
        let route = route.or(page.map(|page| page.path)).unwrap_or("other");
        let is_read = matches!(incoming.method(), Method::Get | Method::Head);
        let reply = match (route, page) {
            _ if incoming.has_absurd_body() => Reply::error(413, "no request here has a body"),
            ("other", _) => Reply::error(404, "there is /, /stream, /price, /healthz, /metrics"),
            _ if !is_read => {
                Reply::error(405, "there is only GET and HEAD").header("Allow", "GET, HEAD")
            }
            (_, Some(page)) => page.reply(header(incoming, "If-None-Match")),
            ("/price", _) => self.price(),
            ("/healthz", _) => self.health(),
            ("/metrics", _) => self.metrics(),
            _ => match cursor_of(incoming, query) {
                Err(message) => Reply::error(400, &message),
                Ok(_) if *incoming.method() == Method::Head => self.stream_head.clone(),
                Ok(from) => match Admission::ask(self.max_clients) {
                    Some(admission) => {
                        count(route, 200);
                        return Verdict::Stream(from, admission);
                    }
                    None => unavailable("the service is full; come back later"),
                },
            },
        };
        count(route, reply.status);
        Verdict::Reply(reply)
    }

    fn stream(
        &self,
        incoming: Incoming,
        from: Cursor,
        further: &Receiver<Incoming>,
        admission: Admission,
    ) -> After {
        let mut stream = Stream::new(incoming.into_writer(), from, further);
        let end = stream.run(&self.feed, &self.stream_head, self.made_up);
        METRICS.clients_let_go.inc(format!("reason=\"{}\"", format!("{end:?}").to_lowercase()));
        // Its place is free now; what is left of the stream may wait once more for a stuck client.
        drop(admission);
        match (end, stream.successor.take()) {
            (_, Some(successor)) => After::Reopen(successor),
            (End::Interrupted, None) => After::Close,
            // Nobody is there any more who could be answered.
            (End::Gone | End::Stuck | End::Shutdown, None) => After::KeepOpen,
        }
    }

    fn price(&self) -> Reply {
        let reply = match self.feed.latest() {
            Some(update) => Reply::json(&update),
            None => unavailable("there is no price yet"),
        };
        match self.made_up {
            true => reply.header(stream::MADE_UP.0, stream::MADE_UP.1),
            false => reply,
        }
    }

    fn health(&self) -> Reply {
        #[derive(Serialize)]
        struct Health {
            status: &'static str,
            source: &'static str,
            made_up: bool,
            last_update_age_seconds: Option<f64>,
            updates_retained: usize,
            clients: u64,
        }
        let condition = self.feed.condition();
        let status = match (condition.age, condition.stale) {
            (None, _) => "starting",
            (_, true) => "stale",
            (_, false) => "ok",
        };
        Reply::json(&Health {
            status,
            source: self.source,
            made_up: self.made_up,
            last_update_age_seconds: condition.age.map(|age| age.as_secs_f64()),
            updates_retained: condition.updates,
            clients: METRICS.clients.get(),
        })
        .status(if status == "ok" { 200 } else { 503 })
    }

    fn metrics(&self) -> Reply {
        let condition = self.feed.condition();
        let age = condition.age.map(|age| age.as_secs_f64());
        let price = self.feed.latest().map(|update| update.price);
        let source = if self.made_up { stream::MADE_UP.1 } else { self.source };
        let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
        let mut text = METRICS.render();
        text.gauge("build_info", "The version that is running.", version, Some(1));
        text.gauge("clients_max", "Streams that may be open at once.", "", Some(self.max_clients));
        text.gauge("history_updates", "Updates retained.", "", Some(condition.updates));
        text.gauge("last_update_age_seconds", "Time since the last update.", "", age);
        text.gauge(
            "price_usd",
            "The latest price of a bitcoin.",
            &format!("source=\"{source}\""),
            price,
        );
        Reply::new("text/plain; version=0.0.4; charset=utf-8", text.0.into_bytes())
    }
}

/// Writes a reply, and tells whether the connection may go on.
fn send(incoming: Incoming, reply: Reply) -> After {
    // Where a body begins or ends is a matter of opinion that two programs may not share, so no
    // request behind one is answered.
    let bodies = ["Transfer-Encoding", "Expect"];
    let last = incoming.has_body() || bodies.iter().any(|name| header(&incoming, name).is_some());
    let asked = header(&incoming, "Connection").map(str::to_ascii_lowercase);
    let reply = match asked {
        _ if last => reply.header("Connection", "close"),
        Some(asked) if asked.contains("keep-alive") => reply.header("Connection", "keep-alive"),
        _ => reply,
    };
    let head_only = *incoming.method() == Method::Head;
    // A failure means that nobody is there; the requests behind this one will find out as well.
    let _ = reply.write(&mut incoming.into_writer(), head_only);
    if last { After::Close } else { After::KeepOpen }
}

/// An error that will pass, and in how many seconds to ask again.
fn unavailable(message: &str) -> Reply {
    Reply::error(503, message).header("Retry-After", "5")
}

/// The path and the query of a request's target, which a proxy may write as a whole URL.
fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://");
    let target = rest.map_or(url, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    target.split_once('?').unwrap_or((target, ""))
}

fn header<'a>(incoming: &'a Incoming, name: &'static str) -> Option<&'a str> {
    let mut headers = incoming.headers().iter();
    headers.find(|h| h.field.equiv(name)).map(|h| h.value.as_str())
}

/// Where a stream is to begin. A browser that reconnects sends both forms, and the header is newer.
fn cursor_of(incoming: &Incoming, query: &str) -> Result<Cursor, String> {
    if let Some(id) = header(incoming, "Last-Event-ID").filter(|id| !id.is_empty()) {
        return cursor::parse(id);
    }
    match query.split('&').find_map(|pair| pair.strip_prefix("since=")) {
        // The characters of a time that a client may have escaped.
        Some(since) => cursor::parse(
            &since.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+").replace("%2b", "+"),
        ),
        None => Ok(Cursor::Latest),
    }
}

fn count(path: &str, status: u16) {
    METRICS.requests.inc(format!("path=\"{path}\",status=\"{status}\""));
}
