//! The stream of an origin as a client reads it: one event after the other. Runs on the follower's
//! thread; shares nothing.

use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body, BodyReader};

use super::PRICE_SOURCE;
use super::client::call;
use super::error::{FetchError, NO_CONNECTION, NOT_A_PRICE, NOT_A_STREAM, TOO_LARGE};
use crate::feed::Update;

/// A line of a stream has some hundred bytes; what is longer is something else.
const MAX_LINE: u64 = 64 * 1024;
/// As large as the HTTP client's own buffer, so one read takes all that is in it: when ours is empty, so is
/// the client's (see `is_drained`).
const BUFFER: usize = 128 * 1024;

pub struct OriginStream {
    reader: BufReader<BodyReader<'static>>,
}

/// What an origin says.
pub enum Message {
    Update(Update),
    /// Updates before the next one are gone.
    Gap,
    Status(Status),
    /// Nothing new, only that it is there.
    Comment,
}

/// How the origin's own source fares.
#[derive(Deserialize)]
pub struct Status {
    pub stale: bool,
    #[serde(default)]
    pub reason: String,
}

impl OriginStream {
    /// Connects to the origin at `url`, and asks for all updates after the one at `last`.
    pub fn open(agent: &Agent, url: &str, last: u64) -> Result<OriginStream, FetchError> {
        let url = format!("{}/stream", url.trim_end_matches('/'));
        let response = call(agent.get(url).header("Last-Event-ID", last))?;
        check(&response)?;
        let body = response.into_body().into_reader();
        Ok(OriginStream { reader: BufReader::with_capacity(BUFFER, body) })
    }

    /// Waits for what the origin says next.
    pub fn next(&mut self) -> Result<Message, FetchError> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let line = self.read_line()?;
            if line.starts_with(':') {
                return Ok(Message::Comment);
            }
            let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
            match field {
                "event" => value.clone_into(&mut name),
                "data" => value.clone_into(&mut data),
                // An empty line is the end of an event.
                "" if !data.is_empty() => return read_message(&name, &data),
                // An event without data is none, and its name is not that of the next.
                "" => name.clear(),
                // The id is in the data, too.
                _ => {}
            }
        }
    }

    /// Whether all that has come was read.
    pub fn is_drained(&self) -> bool {
        self.reader.buffer().is_empty()
    }

    /// Reads a line within bounds, without its end.
    fn read_line(&mut self) -> Result<String, FetchError> {
        let mut line = Vec::new();
        let mut reader = (&mut self.reader).take(MAX_LINE);
        let read = reader.read_until(b'\n', &mut line).map_err(ureq::Error::from)?;
        if line.last() == Some(&b'\n') {
            let line = String::from_utf8_lossy(&line);
            return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
        }
        if read as u64 == MAX_LINE {
            return Err(FetchError::new(TOO_LARGE, "a line of the stream has no end"));
        }
        Err(FetchError::new(NO_CONNECTION, "the origin has ended the stream"))
    }
}

/// The answer must be a stream of real prices.
fn check(response: &Response<Body>) -> Result<(), FetchError> {
    let advice = "--follow is for the address of a btc-ticker";
    let status = response.status().as_u16();
    if status != 200 {
        let detail = format!("no stream for us now; {advice}");
        return Err(FetchError::new(&format!("HTTP {status}"), detail));
    }
    if response.headers().contains_key(PRICE_SOURCE) {
        return Err(FetchError::made_up());
    }
    if response.body().mime_type() != Some("text/event-stream") {
        return Err(FetchError::new(NOT_A_STREAM, advice));
    }
    Ok(())
}

fn read_message(name: &str, data: &str) -> Result<Message, FetchError> {
    match name {
        "" => Ok(Message::Update(read_json(data, NOT_A_PRICE)?)),
        "status" => Ok(Message::Status(read_json(data, NOT_A_STREAM)?)),
        "gap" => Ok(Message::Gap),
        // What a later version may say.
        _ => Ok(Message::Comment),
    }
}

fn read_json<T: DeserializeOwned>(data: &str, reason: &str) -> Result<T, FetchError> {
    match serde_json::from_str(data) {
        Ok(value) => Ok(value),
        Err(error) => Err(FetchError::new(reason, format!("{data:?}: {error}"))),
    }
}
