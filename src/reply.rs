//! Replies: a status, headers and usually a body, written by the thread of the conversation.

use std::borrow::Cow;
use std::io::{self, Write};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde::Serialize;
use tiny_http::StatusCode;

use crate::event::to_json;

/// The response to one request.
pub struct Reply {
    pub status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: Option<Vec<u8>>,
}

impl Reply {
    /// A reply with a body of known length.
    pub fn new(content_type: &'static str, body: Vec<u8>) -> Reply {
        Reply { body: Some(body), ..Reply::bare(200).header("Content-Type", content_type) }
    }

    /// A reply without a body, or with one that ends when the connection does.
    pub fn bare(status: u16) -> Reply {
        Reply { status, headers: vec![("X-Content-Type-Options", "nosniff".into())], body: None }
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

    pub fn header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// Everything before the body.
    pub fn head(&self) -> String {
        let phrase = StatusCode(self.status).default_reason_phrase();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        let mut head = format!("HTTP/1.1 {} {phrase}\r\n", self.status);
        let mut line = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
        line("Date", &date.unwrap_or_default());
        for (name, value) in &self.headers {
            line(name, value);
        }
        if let Some(body) = &self.body {
            line("Content-Length", &body.len().to_string());
        }
        head + "\r\n"
    }

    /// Writes it in one piece. `HEAD` wants everything but the body.
    pub fn write(self, out: &mut dyn Write, head_only: bool) -> io::Result<()> {
        let mut bytes = self.head().into_bytes();
        if !head_only {
            bytes.extend(self.body.unwrap_or_default());
        }
        out.write_all(&bytes)?;
        out.flush()
    }
}
