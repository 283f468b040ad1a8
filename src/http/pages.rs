//! The web page and its assets: files from `static/`, compiled in. Built once at the start; each request
//! gets a copy.

use std::time::Duration;

use super::response::Response;

/// A short cache lifetime: a new version shows within a minute.
const CACHE: &str = "public, max-age=60";
/// Nothing from another host, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Returns all files by path. The page itself is told its source and how often to expect an update.
pub fn load(source: &str, is_simulated: bool, interval: Duration) -> Vec<(&'static str, Response)> {
    let index = include_str!("../../static/index.html")
        .replace("{{source}}", source)
        .replace("{{simulated}}", &is_simulated.to_string())
        .replace("{{interval-ms}}", &interval.as_millis().to_string());
    vec![
        ("/", page("text/html; charset=utf-8", index.as_bytes())),
        ("/app.js", page("text/javascript; charset=utf-8", include_bytes!("../../static/app.js"))),
        ("/style.css", page("text/css; charset=utf-8", include_bytes!("../../static/style.css"))),
        ("/favicon.svg", page("image/svg+xml", include_bytes!("../../static/favicon.svg"))),
        ("/touch-icon.png", page("image/png", include_bytes!("../../static/touch-icon.png"))),
    ]
}

fn page(content_type: &str, content: &[u8]) -> Response {
    Response::ok()
        .content(content_type, content)
        .header("Cache-Control", CACHE)
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer")
}
