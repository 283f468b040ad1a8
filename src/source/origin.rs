//! The stream of an origin as a client reads it: the request, the head, then one event after the other.
//! Runs on the follower's thread; shares nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Uri;

use super::PRICE_SOURCE;
use super::error::{FetchError, NO_CONNECTION, NOT_A_PRICE, NOT_A_STREAM, TOO_LARGE};
use crate::feed::Update;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A line of a stream has some hundred bytes; what is longer is something else.
const MAX_LINE: u64 = 64 * 1024;
const MAX_HEADERS: usize = 64;

pub struct OriginStream {
    reader: BufReader<TcpStream>,
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

/// Connects to an origin, which may be quiet for `patience`.
pub fn connect(url: &Uri, patience: Duration) -> Result<TcpStream, FetchError> {
    // An IPv6 address has brackets in a URL.
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let addresses = (host, url.port_u16().unwrap_or(80)).to_socket_addrs()?;
    let mut last_error = FetchError::new(NO_CONNECTION, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => {
                socket.set_read_timeout(Some(patience))?;
                return Ok(socket);
            }
            Err(error) => last_error = error.into(),
        }
    }
    Err(last_error)
}

impl OriginStream {
    /// Asks for all updates after the one at `last`.
    pub fn open(mut socket: TcpStream, url: &Uri, last: u64) -> Result<OriginStream, FetchError> {
        let host = url.authority().map_or("", |authority| authority.as_str());
        let path = url.path().trim_end_matches('/');
        // In HTTP/1.0, in which nobody answers in chunks.
        let request =
            format!("GET {path}/stream HTTP/1.0\r\nHost: {host}\r\nLast-Event-ID: {last}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let mut stream = OriginStream { reader: BufReader::new(socket) };
        stream.read_head()?;
        Ok(stream)
    }

    /// The head must be that of a stream of real prices.
    fn read_head(&mut self) -> Result<(), FetchError> {
        let status = self.read_line()?;
        let mut content_type = String::new();
        let mut headers = 0;
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                break;
            }
            headers += 1;
            if headers > MAX_HEADERS {
                return Err(FetchError::new(TOO_LARGE, "the head of the stream has no end"));
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case(PRICE_SOURCE) {
                return Err(FetchError::made_up());
            }
            if name.eq_ignore_ascii_case("Content-Type") {
                value.trim().clone_into(&mut content_type);
            }
        }
        let code = status.split(' ').nth(1).unwrap_or_default();
        match code {
            "200" if content_type.starts_with("text/event-stream") => Ok(()),
            // It is full, or has no price yet; or a proxy finds no origin that has a stream for us.
            "502" | "503" | "504" => {
                Err(FetchError::new(&format!("HTTP {code}"), "the origin has no stream for us now"))
            }
            _ => {
                let advice = "--follow is for the address of a btc-ticker";
                Err(FetchError::new(NOT_A_STREAM, format!("it answers {status:?}; {advice}")))
            }
        }
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
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
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

fn read_message(name: &str, data: &str) -> Result<Message, FetchError> {
    match name {
        "" => match serde_json::from_str(data) {
            Ok(update) => Ok(Message::Update(update)),
            Err(_) => Err(FetchError::new(NOT_A_PRICE, format!("{data:?} is no update"))),
        },
        "status" => match serde_json::from_str(data) {
            Ok(status) => Ok(Message::Status(status)),
            Err(_) => Err(FetchError::new(NOT_A_STREAM, format!("{data:?} is no status"))),
        },
        "gap" => Ok(Message::Gap),
        // What a later version may say.
        _ => Ok(Message::Comment),
    }
}
