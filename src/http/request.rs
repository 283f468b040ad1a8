//! A request: its head, read within bounds of size and time, and parsed.
//! Runs on the connection's thread; shares nothing.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use httparse::{Error, Header, Status};
use tiny_http::Method;

/// Bytes that a head may have, and header lines.
pub const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a head may take, from its first byte, however it is sent; and how long a connection may
/// be idle before that.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// What is read at once. More than 1 KiB, or the allocator would keep it for this thread.
const CHUNK: usize = 1280;

/// What a client asks for.
pub struct Request {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub last_event_id: Option<String>,
    /// Whether the client wants the connection to go on after the answer.
    pub keep_alive: bool,
}

/// Why a request is not understood: what the metrics call it, and the answer, a status and the
/// sentence that says what is right. After it the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal(pub &'static str, pub u16, pub &'static str);

const FORM: &str = "this is no HTTP/1.1 request: send GET, a path and HTTP/1.1 on the first line, \
    then headers of the form Name: value, then an empty line";
const MALFORMED: Refusal = Refusal("malformed", 400, FORM);
const TOO_SLOW: Refusal =
    Refusal("too slow", 408, "a request must be here within 5 s of its first byte");
const BODY: Refusal = Refusal("body", 413, "no request here has a body: send GET, and only a head");
const TOO_LONG: Refusal = Refusal("too long", 431, "a head may have 8 KiB and 64 header lines");
const VERSION: Refusal = Refusal("version", 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");

/// Waits for the next request, on a socket whose read timeout is `PATIENCE`. `bytes` are what was read
/// and not yet parsed, bounded by `MAX_HEAD`. `None` where the client has ended the connection, or has
/// been idle for too long.
pub fn next(socket: &TcpStream, bytes: &mut Vec<u8>) -> Result<Option<Request>, Refusal> {
    let mut deadline = (!bytes.is_empty()).then(|| Instant::now() + PATIENCE);
    let mut searched = 0;
    loop {
        // Not at every byte, or a trickle would cost the square of its length.
        let is_worth_it = searched == 0 || bytes[searched..].contains(&b'\n');
        if is_worth_it && let Some((request, end)) = parse(bytes)? {
            bytes.drain(..end);
            return Ok(Some(request));
        }
        searched = bytes.len();
        if searched == MAX_HEAD {
            return Err(TOO_LONG);
        }
        // A read timeout is no deadline, so it is shortened before each further read.
        let left = deadline.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(TOO_SLOW);
        }
        match read(socket, bytes, left).map_err(|error| error.kind()) {
            Ok(1..) => deadline = deadline.or_else(|| Some(Instant::now() + PATIENCE)),
            Ok(0) if deadline.is_some() => return Err(MALFORMED),
            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) if deadline.is_some() => {
                return Err(TOO_SLOW);
            }
            Err(ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => return Ok(None),
        }
    }
}

/// Sets the timeout only where it is another: most requests come in one piece.
fn read(mut socket: &TcpStream, bytes: &mut Vec<u8>, timeout: Duration) -> io::Result<usize> {
    if timeout < PATIENCE {
        socket.set_read_timeout(Some(timeout))?;
    }
    let start = bytes.len();
    bytes.resize(MAX_HEAD.min(start + CHUNK), 0);
    let read = socket.read(&mut bytes[start..]);
    bytes.truncate(start + read.as_ref().unwrap_or(&0));
    if timeout < PATIENCE {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    read
}

/// The request, and where its head ends; `None` where that is still to come.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    // On the heap, because on the stack they would be a page of every client's memory.
    let mut headers = Vec::with_capacity(MAX_HEADERS);
    let mut parsed = httparse::Request::new(&mut []);
    let parsing = parsed.parse_with_uninit_headers(bytes, headers.spare_capacity_mut());
    let end = match parsing {
        Ok(Status::Complete(end)) => end,
        Ok(Status::Partial) => return Ok(None),
        Err(Error::TooManyHeaders) => return Err(TOO_LONG),
        Err(Error::Version) => return Err(VERSION),
        Err(_) => return Err(MALFORMED),
    };
    let method = parsed.method.and_then(|method| method.parse().ok()).ok_or(MALFORMED)?;
    refuse_body(parsed.headers)?;
    let (path, query) = split(parsed.path.unwrap_or_default());
    let connection = values(parsed.headers, "Connection").collect::<String>().to_ascii_lowercase();
    // In HTTP/1.0 a connection that goes on is the exception.
    let is_old = parsed.version == Some(0);
    let request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        last_event_id: values(parsed.headers, "Last-Event-ID").find(|id| !id.is_empty()),
        keep_alive: connection.contains(if is_old { "keep-alive" } else { "close" }) == is_old,
    };
    Ok(Some((request, end)))
}

/// Where a body begins or ends is a matter of opinion that two programs may not share, so no request
/// with one is answered, nor any behind it.
fn refuse_body(headers: &[Header]) -> Result<(), Refusal> {
    let lengths: Vec<String> = values(headers, "Content-Length").collect();
    let is_number = |text: &String| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !lengths.iter().all(is_number) {
        return Err(MALFORMED);
    }
    let is_chunked = values(headers, "Transfer-Encoding").next().is_some();
    let has_body = is_chunked || lengths.concat().bytes().any(|digit| digit != b'0');
    if has_body { Err(BODY) } else { Ok(()) }
}

fn values<'a>(headers: &'a [Header], name: &'static str) -> impl Iterator<Item = String> + 'a {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
}

/// The path and the query of a request's target, which a proxy may write as a whole URL.
fn split(target: &str) -> (&str, &str) {
    let rest = target.strip_prefix("http://");
    let target = rest.map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    target.split_once('?').unwrap_or((target, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Request {
        let (request, end) = parse(head.as_bytes()).ok().flatten().expect("a request");
        assert_eq!(end, head.len());
        request
    }

    fn refused(head: &str) -> Option<Refusal> {
        parse(head.as_bytes()).err()
    }

    #[test]
    fn a_head_becomes_a_request() {
        let found = request("GET /stream?since=5 HTTP/1.1\r\nlast-event-id:  7 \r\n\r\n");
        assert_eq!((found.path.as_str(), found.query.as_str()), ("/stream", "since=5"));
        assert_eq!(found.last_event_id.as_deref(), Some("7"));
        let whole = request("GET http://x:1/price?a HTTP/1.1\n\n");
        assert_eq!((whole.path.as_str(), whole.query.as_str()), ("/price", "a"));
    }

    #[test]
    fn a_connection_goes_on_as_its_version_has_it() {
        for (version, header, expected) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let head = format!("GET / HTTP/{version}\r\n{header}\r\n");
            assert_eq!(request(&head).keep_alive, expected, "{head}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told_apart() {
        let with = |header: &str| refused(&format!("POST / HTTP/1.1\r\n{header}\r\n\r\n"));
        assert_eq!(with("Content-Length: 0"), None);
        assert_eq!(with("Content-Length: 00"), None);
        assert_eq!(with("Content-Length: 99999999999999999999999"), Some(BODY));
        assert_eq!(with("Content-Length: 0\r\nContent-Length: 5"), Some(BODY));
        assert_eq!(with("Transfer-Encoding: identity"), Some(BODY));
        for wrong in ["Content-Length: -5", "Content-Length:", "Content-Length: 5, 5", "X", ": y"] {
            assert_eq!(with(wrong), Some(MALFORMED), "{wrong}");
        }
        assert_eq!(with("X: y\r\n".repeat(64).trim_end()), None);
        assert_eq!(with("X: y\r\n".repeat(65).trim_end()), Some(TOO_LONG));
        assert_eq!(refused("PRI * HTTP/2.0\r\n\r\n"), Some(VERSION));
        assert_eq!(refused("GET / HTTP/1.2\r\n\r\n"), Some(VERSION));
        assert_eq!(refused("GET /\r\n\r\n"), Some(MALFORMED));
        assert_eq!(refused("\x16\x03\x01\x02"), Some(MALFORMED), "a TLS handshake");
    }
}
