//! A response: a status, headers and usually a body. Made and written by the connection's thread;
//! shares nothing.

use std::io::Write;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::json;
use tiny_http::StatusCode;

/// The answer to one request.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    /// Lines of the head, each with its end.
    headers: String,
    body: String,
}

impl Response {
    /// A response with a body of known length.
    pub fn new(content_type: &str, body: String) -> Response {
        let response = Response::bare(200).header("Content-Type", content_type);
        response.header("Content-Length", &body.len().to_string()).body(body)
    }

    /// A response without a body.
    pub fn bare(status: u16) -> Response {
        let headers = String::with_capacity(256);
        let response = Response { status, headers, body: String::new() };
        response.header("X-Content-Type-Options", "nosniff")
    }

    /// JSON that any page may read and that nobody may keep: it is about this moment.
    pub fn json(status: u16, text: String) -> Response {
        Response { status, ..Response::new("application/json", text) }
            .header("Cache-Control", "no-store")
            .header("Access-Control-Allow-Origin", "*")
    }

    /// The form of every error: a status and a sentence that says what was wrong and what is right.
    pub fn error(status: u16, message: &str) -> Response {
        Response::json(status, json!({"error": message}).to_string())
    }

    /// An error that will pass, and in how many seconds to ask again.
    pub fn unavailable(message: &str) -> Response {
        Response::error(503, message).header("Retry-After", "5")
    }

    pub fn body(self, body: String) -> Response {
        Response { body, ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Response {
        self.headers.extend([name, ": ", value, "\r\n"]);
        self
    }

    /// Appends it as it is to be written, in one piece; to `HEAD`, without the body.
    pub fn append_to(&self, bytes: &mut Vec<u8>, with_body: bool, keep_alive: bool) {
        let phrase = StatusCode(self.status).default_reason_phrase();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        let (status, date, headers) = (self.status, date.unwrap_or_default(), &self.headers);
        let connection = if keep_alive { "keep-alive" } else { "close" };
        // Writing to memory cannot fail.
        let _ = write!(
            bytes,
            "HTTP/1.1 {status} {phrase}\r\nDate: {date}\r\n{headers}Connection: {connection}\r\n\r\n"
        );
        if with_body {
            bytes.extend_from_slice(self.body.as_bytes());
        }
    }
}
