//! A response: a status, headers and usually a body. Built and written by the connection's thread, or by the
//! thread `accept` if it refuses the connection. Pages and the head of a stream are built once.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::json;
use ureq::http::StatusCode;

/// For live data. `no-transform`, because a proxy that compresses a stream holds it back.
pub const CACHE_CONTROL: &str = "no-store, no-transform";

/// The answer to one request.
#[derive(Clone)]
pub struct Response {
    pub status: StatusCode,
    /// Header lines, each with its line end.
    headers: String,
    body: Vec<u8>,
}

impl Response {
    /// A response that has no body yet, and no headers about one.
    pub fn new(status: StatusCode) -> Response {
        let response = Response { status, headers: String::with_capacity(256), body: Vec::new() };
        response.header("X-Content-Type-Options", "nosniff")
    }

    /// The same with status 200.
    pub fn ok() -> Response {
        Response::new(StatusCode::OK)
    }

    /// JSON with CORS allowed and caching forbidden.
    pub fn json(status: StatusCode, text: String) -> Response {
        Response::new(status)
            .header("Cache-Control", CACHE_CONTROL)
            .header("Access-Control-Allow-Origin", "*")
            .content("application/json", text)
    }

    /// The form of every error: a sentence that says what was wrong and what to send instead.
    pub fn error(status: StatusCode, message: &str) -> Response {
        Response::json(status, json!({"error": message}).to_string())
    }

    /// A temporary error, and after how many seconds to retry.
    pub fn unavailable(message: &str) -> Response {
        Response::error(StatusCode::SERVICE_UNAVAILABLE, message).header("Retry-After", "5")
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Response {
        self.headers.extend([name, ": ", value, "\r\n"]);
        self
    }

    /// Sets the body and the headers that describe it.
    pub fn content(self, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        let body = body.into();
        self.header("Content-Type", content_type)
            .header("Content-Length", &body.len().to_string())
            .body(body)
    }

    /// Sets the body alone.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Response {
        Response { body: body.into(), ..self }
    }

    /// Writes it in many small pieces, for a buffered writer.
    pub fn write_to(&self, writer: &mut impl Write, keep_alive: bool) -> io::Result<()> {
        let phrase = self.status.canonical_reason().unwrap_or_default();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        let date = date.unwrap_or_default();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        write!(writer, "HTTP/1.1 {} {phrase}\r\nDate: {date}\r\n", self.status.as_u16())?;
        write!(writer, "{}Connection: {connection}\r\n\r\n", self.headers)?;
        writer.write_all(&self.body)
    }
}
