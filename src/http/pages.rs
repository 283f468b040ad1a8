//! The web page and what belongs to it: files from `static/`, compiled in. Made once at the start. Each
//! request gets a copy.

use std::time::Duration;

use super::response::Response;

/// A short cache: a new version shows within a minute.
const CACHE: &str = "public, max-age=60";
/// Nothing from another host, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// All pages by their paths. The one that people see is told where its prices come from, and how
/// often.
pub fn load(source: &str, made_up: bool, interval: Duration) -> Vec<(&'static str, Response)> {
    let index = include_str!("../../static/index.html")
        .replace("{{source}}", source)
        .replace("{{made-up}}", &made_up.to_string())
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
    Response::new(content_type, content)
        .header("Cache-Control", CACHE)
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer")
}
