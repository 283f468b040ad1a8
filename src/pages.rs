//! The web page and what belongs to it: files from `static/`, compiled in.
//! Made once at the start and shared, unchanged, by all conversations.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::reply::Reply;

/// A short cache: a new version shows within a minute, and is asked for by its ETag until then.
const CACHE: &str = "public, max-age=60";
/// Nothing from another host, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

pub struct Page {
    pub path: &'static str,
    content_type: &'static str,
    body: String,
    etag: String,
}

/// All pages. The one that people see is told where its prices come from, and how often.
pub fn load(source: &str, made_up: bool, interval: Duration) -> Vec<Page> {
    let index = include_str!("../static/index.html")
        .replace("{{source}}", source)
        .replace("{{made-up}}", &made_up.to_string())
        .replace("{{interval-ms}}", &interval.as_millis().to_string());
    let script = include_str!("../static/app.js").to_owned();
    let style = include_str!("../static/style.css").to_owned();
    let icon = include_str!("../static/favicon.svg").to_owned();
    vec![
        Page::new("/", "text/html; charset=utf-8", index),
        Page::new("/app.js", "text/javascript; charset=utf-8", script),
        Page::new("/style.css", "text/css; charset=utf-8", style),
        Page::new("/favicon.svg", "image/svg+xml", icon),
    ]
}

impl Page {
    fn new(path: &'static str, content_type: &'static str, body: String) -> Page {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let etag = format!("\"{:016x}\"", hasher.finish());
        Page { path, content_type, body, etag }
    }

    /// The page, or the word that the client has it already (`If-None-Match`).
    pub fn reply(&self, known: Option<&str>) -> Reply {
        let is_known = |known: &str| known == "*" || known.contains(&self.etag);
        let reply = match known.is_some_and(is_known) {
            true => Reply::bare(304),
            false => Reply::new(self.content_type, self.body.clone().into_bytes()),
        };
        reply
            .header("ETag", &self.etag)
            .header("Cache-Control", CACHE)
            .header("Content-Security-Policy", POLICY)
            .header("Referrer-Policy", "no-referrer")
    }
}
