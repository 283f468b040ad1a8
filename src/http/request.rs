//! A request: its head, read within bounds of size and time, and parsed. Runs on the connection's
//! thread; shares nothing.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use httparse::{Error, Header, Status};
use ureq::http::uri::{Authority, Uri};
use ureq::http::{Method, StatusCode};

/// The largest head, in bytes and in header lines.
pub const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a head may take from its first byte, however it is sent, and how long a connection may be
/// idle before that.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read at once. More than 1 KiB, so that the allocator takes it back (see `connection`).
const CHUNK: usize = 1280;

/// What a client asks for.
pub struct Request {
    pub method: Method,
    /// Has a path, which is `*` only with OPTIONS.
    pub target: Uri,
    pub last_event_id: Option<String>,
    /// Whether the connection may carry another request after the answer.
    pub keep_alive: bool,
}

/// Why a request is refused. The connection is closed after the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    /// What was wrong and what to send instead.
    pub message: &'static str,
}

const MALFORMED: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    message: "not an HTTP/1.1 request; send GET, a path and HTTP/1.1 on the first line, then headers of \
        the form Name: value, then an empty line",
};
const NO_HOST: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    message: "an HTTP/1.1 request has exactly one Host header with a name or an address; send, for \
        example, Host: localhost:8080",
};
const TARGET: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    message: "the request target must be a path that begins with /, such as GET /price HTTP/1.1",
};
const FRAMING: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    message: "the length of the body is ambiguous; send GET without a body",
};
const TOO_SLOW: Refusal = Refusal {
    status: StatusCode::REQUEST_TIMEOUT,
    message: "the request took too long; send its head within 5 s of the first byte",
};
const BODY: Refusal = Refusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    message: "a request here must not have a body; send only a head",
};
const TOO_LONG: Refusal = Refusal {
    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    message: "a request head is limited to 8 KiB and 64 header lines",
};
const VERSION: Refusal = Refusal {
    status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    message: "unsupported version; send HTTP/1.1 or HTTP/1.0",
};

/// Blocks until the next request has arrived, on a socket whose read timeout is `HEAD_TIMEOUT`. `bytes` is
/// what was read and not yet parsed, bounded by `MAX_HEAD`. Returns `None` when the client has closed the
/// connection or has been idle for too long.
pub fn next(socket: &TcpStream, bytes: &mut Vec<u8>) -> Result<Option<Request>, Refusal> {
    if bytes.is_empty() {
        // Until the first byte of a request the connection is idle.
        match read(socket, bytes, HEAD_TIMEOUT) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ok(None),
        }
    }
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let mut searched = 0;
    loop {
        // Parsed again only after a further line end: a head that arrives byte by byte would otherwise take
        // quadratic time.
        if (searched == 0 || bytes[searched..].contains(&b'\n'))
            && let Some(request) = parse(bytes)?
        {
            return Ok(Some(request));
        }
        searched = bytes.len();
        if searched == MAX_HEAD {
            return Err(TOO_LONG);
        }
        // A read timeout is no deadline, so each further read gets a shorter one.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TOO_SLOW);
        }
        match read(socket, bytes, left) {
            Ok(0) => return Err(MALFORMED),
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(TOO_SLOW),
                _ => return Ok(None),
            },
        }
    }
}

/// Reads once, within `timeout`. Returns the number of bytes; 0 at the end of the connection.
fn read(mut socket: &TcpStream, bytes: &mut Vec<u8>, timeout: Duration) -> io::Result<usize> {
    // Most requests arrive in one piece, for which the socket's own timeout is right: this spares them two
    // system calls.
    let is_shorter = timeout < HEAD_TIMEOUT;
    if is_shorter {
        socket.set_read_timeout(Some(timeout))?;
    }
    let start = bytes.len();
    bytes.resize(MAX_HEAD.min(start + CHUNK), 0);
    let result = loop {
        match socket.read(&mut bytes[start..]) {
            // The process was stopped and continued.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    match &result {
        Ok(count) => bytes.truncate(start + count),
        Err(_) => bytes.truncate(start),
    }
    if is_shorter {
        socket.set_read_timeout(Some(HEAD_TIMEOUT))?;
    }
    result
}

/// Takes a request off the start of what was read. Returns `None` while it is incomplete.
fn parse(bytes: &mut Vec<u8>) -> Result<Option<Request>, Refusal> {
    // On the heap: on the stack they would add a page to every client's memory. The parser uses the spare
    // capacity of the Vec, whose length stays 0.
    let mut headers = Vec::with_capacity(MAX_HEADERS);
    let mut head = httparse::Request::new(&mut []);
    let end = match head.parse_with_uninit_headers(bytes, headers.spare_capacity_mut()) {
        Ok(Status::Complete(end)) => end,
        Ok(Status::Partial) => return Ok(None),
        Err(Error::TooManyHeaders) => return Err(TOO_LONG),
        Err(Error::Version) if ends_in_version(bytes) => return Err(VERSION),
        Err(_) => return Err(MALFORMED),
    };
    let request = read_head(&head)?;
    bytes.drain(..end);
    Ok(Some(request))
}

/// Whether the first line ends in a well-formed version, such as HTTP/2.0.
fn ends_in_version(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.trim_ascii_end().split(|byte| *byte == b' ').collect();
    match words[..] {
        [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]] => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

fn read_head(head: &httparse::Request) -> Result<Request, Refusal> {
    // HTTP/1.0 closes the connection by default.
    let is_http_1_0 = head.version == Some(0);
    check_host(head.headers, is_http_1_0)?;
    let method: Method = head.method.unwrap_or_default().parse().map_err(|_| MALFORMED)?;
    let is_supported = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&method);
    let has_body = match check_framing(head.headers, is_http_1_0) {
        Ok(()) => false,
        // A POST is refused for its method (405), not for its body (413).
        Err(BODY) if !is_supported => true,
        Err(refusal) => return Err(refusal),
    };
    let target: Uri = head.path.unwrap_or_default().parse().map_err(|_| TARGET)?;
    check_target(&target, &method)?;
    let connection = tokens(head.headers, "Connection");
    let has = |token: &str| connection.iter().any(|found| found == token);
    let wants_more = !has("close") && (!is_http_1_0 || has("keep-alive"));
    Ok(Request {
        method,
        target,
        last_event_id: values(head.headers, "Last-Event-ID").find(|id| !id.is_empty()),
        keep_alive: wants_more && !has_body,
    })
}

/// HTTP/1.1 requires one Host; HTTP/1.0 may have none.
fn check_host(headers: &[Header], is_http_1_0: bool) -> Result<(), Refusal> {
    let hosts: Vec<String> = values(headers, "Host").collect();
    match hosts.as_slice() {
        [] if is_http_1_0 => Ok(()),
        [host] if is_host(host) => Ok(()),
        _ => Err(NO_HOST),
    }
}

/// Whether this is a name or an address, perhaps with a port.
fn is_host(text: &str) -> bool {
    if text.contains(['@', ',']) {
        return false;
    }
    let Ok(authority) = text.parse::<Authority>() else { return false };
    if authority.host().is_empty() {
        return false;
    }
    let rest = &text[authority.host().len()..];
    match rest.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()),
        None => rest.is_empty(),
    }
}

/// Refuses a body. If the end of the body is ambiguous, a proxy in front may see another end than we do and
/// pass on a hidden request (request smuggling).
fn check_framing(headers: &[Header], is_http_1_0: bool) -> Result<(), Refusal> {
    let lengths: Vec<String> = values(headers, "Content-Length").collect();
    for length in &lengths {
        let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || length != &lengths[0] {
            return Err(FRAMING);
        }
    }
    let codings = tokens(headers, "Transfer-Encoding");
    if let Some((last, others)) = codings.split_last() {
        let is_chunked = last == "chunked" && !others.contains(last);
        let is_clear = is_chunked && lengths.is_empty() && !is_http_1_0;
        return Err(if is_clear { BODY } else { FRAMING });
    }
    match lengths.first() {
        Some(length) if length.bytes().any(|digit| digit != b'0') => Err(BODY),
        _ => Ok(()),
    }
}

/// Returns the values of a header, which may occur several times.
fn values<'a>(headers: &'a [Header], name: &'static str) -> impl Iterator<Item = String> + 'a {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| String::from_utf8_lossy(header.value).trim_matches([' ', '\t']).to_owned())
}

/// Returns the tokens of a header that is a list, in lower case.
fn tokens(headers: &[Header], name: &'static str) -> Vec<String> {
    let mut tokens = Vec::new();
    for value in values(headers, name) {
        tokens.extend(value.split(',').map(|token| token.trim().to_ascii_lowercase()));
    }
    tokens
}

/// A target is a path or, from a proxy, a whole URL.
fn check_target(target: &Uri, method: &Method) -> Result<(), Refusal> {
    let is_right = match (target.scheme_str(), target.authority()) {
        (None, None) => target.path() != "*" || *method == Method::OPTIONS,
        (Some("http" | "https"), Some(authority)) => is_host(authority.as_str()),
        _ => false,
    };
    if is_right { Ok(()) } else { Err(TARGET) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Request {
        let mut bytes = head.as_bytes().to_vec();
        let request = parse(&mut bytes).expect(head).expect(head);
        assert!(bytes.is_empty(), "all of {head:?} was read");
        request
    }

    fn refused(head: &str) -> Option<Refusal> {
        parse(&mut head.as_bytes().to_vec()).err()
    }

    #[test]
    fn a_head_becomes_a_request() {
        let found =
            request("GET /stream?since=5 HTTP/1.1\r\nHost: a\r\nlast-event-id:  7 \r\n\r\n");
        assert_eq!((found.target.path(), found.target.query()), ("/stream", Some("since=5")));
        assert_eq!(found.last_event_id.as_deref(), Some("7"));
        for target in ["http://x:1/price?a", "HTTPS://[::1]:80/price?a", "/price?a"] {
            let found = request(&format!("GET {target} HTTP/1.1\nHost: a\n\n"));
            let target = found.target;
            assert_eq!((target.path(), target.query()), ("/price", Some("a")), "{target}");
        }
        assert_eq!(request("GET http://x HTTP/1.1\nHost: x\n\n").target.path(), "/");
        assert_eq!(request("OPTIONS * HTTP/1.1\nHost: x\n\n").target.path(), "*");
    }

    #[test]
    fn a_target_is_a_path_or_a_whole_url() {
        for target in
            ["*", "price", "x:80", "ftp://x/price", "http:///price", "http://u@x/", "://x/"]
        {
            assert_eq!(refused(&format!("GET {target} HTTP/1.1\nHost: x\n\n")), Some(TARGET));
        }
    }

    #[test]
    fn a_host_is_one_name_or_address_with_a_port() {
        for host in ["a", "a:80", "a.b-c:", "[::1]:80", "[::1]", "127.0.0.1:8080", "_x~1"] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "", ":80", ":", "u@a", "a/b", "a, b", "a,b", "a b", "a:x", "a:80:80", "[::1", "::1",
            "[::1]x", "a?b",
        ] {
            assert!(!is_host(host), "{host}");
        }
        let hosts = |lines: &str| refused(&format!("GET / HTTP/1.1\r\n{lines}\r\n"));
        assert_eq!(hosts("Host: a\r\n"), None);
        assert_eq!(hosts(""), Some(NO_HOST));
        assert_eq!(hosts("Host: a\r\nhost: a\r\n"), Some(NO_HOST));
        assert_eq!(refused("GET / HTTP/1.0\r\n\r\n"), None);
        assert_eq!(refused("GET / HTTP/1.0\r\nHost: a/b\r\n\r\n"), Some(NO_HOST));
    }

    #[test]
    fn a_connection_is_kept_as_its_version_specifies() {
        for (version, header, expected) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
            ("1.1", "Connection: Keep-Alive\r\nConnection: close\r\n", false),
            ("1.1", "Connection: x-closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: Keep-Alive, close\r\n", false),
            ("1.0", "Connection: not-keep-alive\r\n", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{header}\r\n");
            assert_eq!(request(&head).keep_alive, expected, "{head}");
        }
    }

    #[test]
    fn an_unsupported_version_is_told_from_a_malformed_one() {
        for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/9.9"] {
            assert_eq!(refused(&format!("GET / {version}\r\n\r\n")), Some(VERSION), "{version}");
        }
        for version in ["http/1.1", "foo HTTP/1.1", "HTTP/1", "HTTP/1.1x", "HTTP/11", "HTTP/2", ""]
        {
            assert_eq!(refused(&format!("GET / {version}\r\n\r\n")), Some(MALFORMED), "{version}");
        }
        assert_eq!(refused("\r\nPRI * HTTP/2.0\r\n\r\n"), Some(VERSION));
        assert_eq!(refused("GET /\r\n\r\n"), Some(MALFORMED));
        assert_eq!(refused("\x16\x03\x01\x02"), Some(MALFORMED), "a TLS handshake");
    }

    #[test]
    fn a_body_is_refused_and_an_ambiguous_one_as_malformed() {
        let with = |version: &str, header: &str| {
            refused(&format!("GET / HTTP/{version}\r\nHost: a\r\n{header}\r\n\r\n"))
        };
        let chunked = "Transfer-Encoding: chunked";
        for (header, expected) in [
            ("Content-Length: 0", None),
            ("Content-Length: 00", None),
            ("Content-Length: 99999999999999999999999", Some(BODY)),
            ("Content-Length: 5\r\nContent-Length: 5", Some(BODY)),
            ("Content-Length: 0\r\nContent-Length: 5", Some(FRAMING)),
            ("Content-Length: -5", Some(FRAMING)),
            ("Content-Length: 5, 5", Some(FRAMING)),
            ("Content-Length:", Some(FRAMING)),
            ("Content-Length: \u{3000}0", Some(FRAMING)),
            (chunked, Some(BODY)),
            ("Transfer-Encoding: gzip, Chunked", Some(BODY)),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", Some(BODY)),
            ("Transfer-Encoding: identity", Some(FRAMING)),
            ("Transfer-Encoding: xchunked", Some(FRAMING)),
            ("Transfer-Encoding: chunked, gzip", Some(FRAMING)),
            ("Transfer-Encoding: chunked, chunked", Some(FRAMING)),
            ("Transfer-Encoding:", Some(FRAMING)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0", Some(FRAMING)),
            ("X", Some(MALFORMED)),
            (": y", Some(MALFORMED)),
        ] {
            assert_eq!(with("1.1", header), expected, "{header}");
        }
        assert_eq!(with("1.0", chunked), Some(FRAMING));
        // Of a POST the method is refused, and the connection ends with it.
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
        assert!(!request(post).keep_alive);
        assert_eq!(with("1.1", "X: y\r\n".repeat(63).trim_end()), None);
        assert_eq!(with("1.1", "X: y\r\n".repeat(64).trim_end()), Some(TOO_LONG));
    }
}
