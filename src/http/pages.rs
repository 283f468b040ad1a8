//! The web page: the files of `static/`, compiled in. Built once at start-up; each request receives a copy.

use std::time::Duration;

use super::response::Response;

/// Browsers pick up a new version within a minute.
const CACHE: &str = "public, max-age=60";
/// Nothing from another host, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Returns each file with its path. The source, whether its prices are simulated, and the interval are
/// written into `index.html`.
pub fn load(source: &str, simulated: bool, interval: Duration) -> Vec<(&'static str, Response)> {
    let index = include_str!("../../static/index.html")
        .replace("{{source}}", source)
        .replace("{{simulated}}", &simulated.to_string())
        .replace("{{interval-ms}}", &interval.as_millis().to_string());
    vec![
        ("/", page("text/html; charset=utf-8", index.as_bytes())),
        ("/app.js", page(SCRIPT, include_bytes!("../../static/app.js"))),
        ("/stream.js", page(SCRIPT, include_bytes!("../../static/stream.js"))),
        ("/state.js", page(SCRIPT, include_bytes!("../../static/state.js"))),
        ("/words.js", page(SCRIPT, include_bytes!("../../static/words.js"))),
        ("/drawing.js", page(SCRIPT, include_bytes!("../../static/drawing.js"))),
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
