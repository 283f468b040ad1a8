//! A response: a status, headers and usually a body. Made and written by the connection's thread, or,
//! where a connection is refused, by the thread `accept`. The pages and the head of a stream are made
//! once.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::json;
use tiny_http::StatusCode;

use crate::feed::Backlog;

/// For what is true only now: nobody may keep it, nor compress it. (To compress a stream, a proxy would hold
/// it back.)
pub const CACHE_CONTROL: &str = "no-store, no-transform";

/// The answer to one request.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    /// Lines of the head, each with its end.
    headers: String,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Bytes(Vec<u8>),
    /// To be written as a JSON array, from what all share: it may be long.
    Updates(Backlog),
}

impl Response {
    /// A 200 with this body.
    pub fn new(content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        let body = body.into();
        let length = body.len();
        Response::bare(200).content(content_type, length).body(body)
    }

    /// A response that has no body yet, nor headers about one.
    pub fn bare(status: u16) -> Response {
        let headers = String::with_capacity(256);
        let response = Response { status, headers, body: Body::Bytes(Vec::new()) };
        response.header("X-Content-Type-Options", "nosniff")
    }

    /// JSON that any page may read and that nobody may keep.
    pub fn json(status: u16, text: String) -> Response {
        Response { status, ..Response::new("application/json", text) }.of_this_moment()
    }

    /// A JSON array of updates.
    pub fn updates(updates: Backlog) -> Response {
        let json: usize = updates.json().map(str::len).sum();
        let commas = updates.updates.saturating_sub(1);
        let length = "[]".len() + json + commas;
        let response = Response::bare(200).content("application/json", length).of_this_moment();
        Response { body: Body::Updates(updates), ..response }
    }

    /// The form of every error: a status and a sentence that says what was wrong and what is right.
    pub fn error(status: u16, message: &str) -> Response {
        Response::json(status, json!({"error": message}).to_string())
    }

    /// An error that will pass, and in how many seconds to ask again.
    pub fn unavailable(message: &str) -> Response {
        Response::error(503, message).header("Retry-After", "5")
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Response {
        Response { body: Body::Bytes(body.into()), ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Response {
        self.headers.extend([name, ": ", value, "\r\n"]);
        self
    }

    fn content(self, content_type: &str, length: usize) -> Response {
        self.header("Content-Type", content_type).header("Content-Length", &length.to_string())
    }

    fn of_this_moment(self) -> Response {
        self.header("Cache-Control", CACHE_CONTROL).header("Access-Control-Allow-Origin", "*")
    }

    /// Writes it in many small pieces: the writer has to gather them.
    pub fn write_to(&self, writer: &mut impl Write, keep_alive: bool) -> io::Result<()> {
        let phrase = StatusCode(self.status).default_reason_phrase();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        let date = date.unwrap_or_default();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        write!(writer, "HTTP/1.1 {} {phrase}\r\nDate: {date}\r\n", self.status)?;
        write!(writer, "{}Connection: {connection}\r\n\r\n", self.headers)?;
        match &self.body {
            Body::Bytes(bytes) => writer.write_all(bytes),
            Body::Updates(updates) => {
                writer.write_all(b"[")?;
                for (index, json) in updates.json().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(writer, "{comma}{json}")?;
                }
                writer.write_all(b"]")
            }
        }
    }
}
