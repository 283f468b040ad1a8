//! Replies: a status, headers and usually a body, written by the thread of the conversation.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde::Serialize;
use tiny_http::StatusCode;

use crate::event::to_json;

/// The response to one request.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    /// Lines of the head, each with its end.
    headers: String,
    body: Option<Vec<u8>>,
}

impl Reply {
    /// A reply with a body of known length.
    pub fn new(content_type: &str, body: Vec<u8>) -> Reply {
        let length = body.len().to_string();
        let reply = Reply::bare(200).header("Content-Type", content_type);
        Reply { body: Some(body), ..reply.header("Content-Length", &length) }
    }

    /// A reply without a body, or with one that ends when the connection does.
    pub fn bare(status: u16) -> Reply {
        let reply = Reply { status, headers: String::new(), body: None };
        reply.header("X-Content-Type-Options", "nosniff")
    }

    /// JSON that any page may read and that nobody may keep: it is about this moment.
    pub fn json(value: &impl Serialize) -> Reply {
        Reply::new("application/json", to_json(value).into_bytes())
            .header("Cache-Control", "no-store")
            .header("Access-Control-Allow-Origin", "*")
    }

    /// The form of every error: a status and a sentence that says what was wrong and what is right.
    pub fn error(status: u16, message: &str) -> Reply {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
        }
        Reply::json(&Body { error: message }).status(status)
    }

    pub fn status(mut self, status: u16) -> Reply {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.extend([name, ": ", value, "\r\n"]);
        self
    }

    /// Writes everything before the body.
    pub fn write_head(&self, out: &mut dyn Write) -> io::Result<()> {
        let phrase = StatusCode(self.status).default_reason_phrase();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        let (status, date, headers) = (self.status, date.unwrap_or_default(), &self.headers);
        write!(out, "HTTP/1.1 {status} {phrase}\r\nDate: {date}\r\n{headers}\r\n")
    }

    /// Writes it in one piece. `HEAD` wants everything but the body.
    pub fn write(&self, out: &mut dyn Write, head_only: bool) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.write_head(&mut bytes)?;
        if !head_only {
            bytes.extend(self.body.iter().flatten());
        }
        out.write_all(&bytes)?;
        out.flush()
    }
}
