//! Test fixtures: the real binary, a scripted price source, and a client that parses a stream.

// Each test file is a separate crate and uses a different part of this module.
#![allow(dead_code)]

pub mod browser;
pub mod redis;

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// The timeout of every wait. Generous, because it expires only in a test that fails: on a crowded machine a browser
/// can take a minute to answer.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Blocks until `condition` holds. Panics with `what` after `PATIENCE`.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

pub fn eventually_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Prints which test was skipped and what to install, once for each distinct line. Panics if `CI` is set.
pub fn skipped(line: &str) {
    static PRINTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    assert!(std::env::var_os("CI").is_none(), "{line}");
    let mut printed = PRINTED.lock().unwrap();
    if printed.iter().any(|before| before == line) {
        return;
    }
    printed.push(line.to_owned());
    // Bypasses the test harness, which captures `eprintln!`.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {line}\n").as_bytes());
}

/// Creates an empty directory for a test.
pub fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns an address on which nothing listens, until another program takes it.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Returns a loopback address that only this process uses, so no other program can take its ports. On systems
/// other than Linux it is 127.0.0.1, which is shared. `second` is the second of its four bytes.
pub fn own_address(second: u8) -> Ipv4Addr {
    let [.., third, fourth] = std::process::id().to_be_bytes();
    if cfg!(target_os = "linux") {
        Ipv4Addr::new(127, second, third, fourth)
    } else {
        Ipv4Addr::LOCALHOST
    }
}

/// Listens on a free address, and serves each connection on a thread of its own.
pub fn listen<R>(serve: impl Fn(TcpStream) -> R + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || drop(serve(connection)));
        }
    });
    address
}

/// Makes a key and a certificate in this folder. `more` are further options of `openssl req`.
pub fn make_certificate(folder: &Path, key: &str, certificate: &str, more: &str) {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder).args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", key, "-out", certificate]);
    let made = openssl.args(more.split_whitespace()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

// ---------------------------------------------------------------------------------- the source

/// The source's response to the next requests.
#[derive(Clone, Debug, Default)]
pub enum Say {
    /// A new price in each response: 1, 2, 3, …
    #[default]
    Prices,
    /// This body, with status 200.
    Body(String),
    /// This status, these header lines and this body.
    Status(u16, String, String),
    /// No response until the script changes.
    Nothing,
}

impl Say {
    /// This status, without a body.
    pub fn status(code: u16) -> Say {
        Say::Status(code, String::new(), String::new())
    }
}

/// A price source on loopback. By default it responds with `{"price":1}`, `{"price":2}` and so on.
pub struct Source {
    pub address: SocketAddr,
    state: Arc<(Mutex<Script>, Condvar)>,
}

#[derive(Default)]
struct Script {
    say: Say,
    last_price: u64,
    /// The arrival time of each request.
    requests: Vec<Instant>,
    /// The head of each request.
    heads: Vec<String>,
    /// The number of responses that may still be sent; `None` is unlimited.
    tickets: Option<u64>,
}

impl Source {
    pub fn start() -> Source {
        let state = Arc::new((Mutex::<Script>::default(), Condvar::new()));
        let shared = state.clone();
        let address = listen(move |connection| converse(connection, &shared));
        Source { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/ticker", self.address)
    }

    pub fn say(&self, say: Say) {
        self.lock().say = say;
        self.state.1.notify_all();
    }

    /// Suspends responses; each further one needs a ticket from `allow`.
    pub fn ration(&self) {
        self.lock().tickets = Some(0);
    }

    pub fn allow(&self, answers: u64) {
        *self.lock().tickets.get_or_insert(0) += answers;
        self.state.1.notify_all();
    }

    pub fn requests(&self) -> Vec<Instant> {
        self.lock().requests.clone()
    }

    pub fn heads(&self) -> Vec<String> {
        self.lock().heads.clone()
    }

    /// Returns the last price sent.
    pub fn last_price(&self) -> u64 {
        self.lock().last_price
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.state.0.lock().unwrap()
    }
}

fn converse(mut connection: TcpStream, (script, changed): &(Mutex<Script>, Condvar)) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    while let Some(head) = read_head(&mut reader) {
        let mut script = script.lock().unwrap();
        script.requests.push(Instant::now());
        script.heads.push(head);
        let (status, headers, body) = loop {
            let has_ticket = script.tickets != Some(0);
            match script.say.clone() {
                Say::Prices if has_ticket => {
                    script.last_price += 1;
                    break (200, String::new(), format!("{{\"price\":{}}}", script.last_price));
                }
                Say::Body(body) if has_ticket => break (200, String::new(), body),
                Say::Status(status, headers, body) if has_ticket => break (status, headers, body),
                _ => script = changed.wait(script).unwrap(),
            }
        };
        if let Some(tickets) = &mut script.tickets {
            *tickets -= 1;
        }
        drop(script);
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Reason\r\n{headers}Content-Length: {length}\r\n\r\n");
        if connection.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads up to and including the empty line. Returns `None` if the connection ends first.
pub fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if head[before..].trim().is_empty() {
            return Some(head);
        }
    }
}

// ---------------------------------------------------------------------------------- the server

/// A running process of the real binary. Killed on drop.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    log_reader: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts a server that polls `source` every 100 ms, unless `arguments` set another interval.
    pub fn start(source: &Source, arguments: &[&str]) -> Server {
        Server::poll(Server::command(), source, arguments)
    }

    pub fn start_at(address: &str, source: &Source, arguments: &[&str]) -> Server {
        Server::start(source, &[&["--listen", address], arguments].concat())
    }

    /// Starts a server with simulated prices.
    pub fn demo(arguments: &[&str]) -> Server {
        let demo = ["--source", "demo", "--listen", "127.0.0.1:0", "--interval", "100ms"];
        Server::run(Server::command().args(demo).args(arguments))
    }

    /// Returns a command that runs the binary, without variables that would configure it.
    pub fn command() -> Command {
        quiet(env!("CARGO_BIN_EXE_btc-ticker"))
    }

    /// Starts a server under a limit of `ulimit`: `-n 128` is 128 open files, `-u 300` is 300 threads.
    pub fn start_with_limit(limit: &str, source: &Source, arguments: &[&str]) -> Server {
        let line = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        Server::start_by_shell(&line, source, arguments)
    }

    /// Starts a server from a line of bash, in which `$0` is the binary and `$@` its arguments.
    pub fn start_by_shell(line: &str, source: &Source, arguments: &[&str]) -> Server {
        let mut command = quiet("bash");
        command.args(["-c", line, env!("CARGO_BIN_EXE_btc-ticker")]);
        Server::poll(command, source, arguments)
    }

    /// Starts a server whose clock is wrong, by `+3d` or `-1h`. Returns `None` if libfaketime is not installed.
    pub fn start_with_clock(
        clock: &str,
        listen: &str,
        source: &Source,
        more: &[&str],
    ) -> Option<Server> {
        let line = format!("{} FAKETIME={clock} exec \"$0\" \"$@\"", faketime()?);
        Some(Server::start_by_shell(&line, source, &[&["--listen", listen], more].concat()))
    }

    /// Starts a server from a command that takes the binary's options, with the options of `start`.
    pub fn poll(mut command: Command, source: &Source, more: &[&str]) -> Server {
        command.args(["--listen", "127.0.0.1:0", "--interval", "100ms"]);
        command.args(["--source-url", &source.url(), "--price-at", "/price"]);
        Server::run(command.args(more))
    }

    /// Runs a command that becomes the server, and blocks until the server prints its address.
    pub fn run(command: &mut Command) -> Server {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = log.clone();
        let log_reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let Some(address) = address.and_then(|address| address.parse().ok()) else {
            let _ = child.wait();
            panic!("the server printed {line:?} and logged:\n{}", log.lock().unwrap());
        };
        Server { child, address, log, log_reader: Some(log_reader) }
    }

    /// Runs a command that must exit with this status, and prints nothing but errors. Returns them.
    pub fn fails(command: &mut Command, status: i32) -> String {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("it exits", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{command:?}: {error}");
        assert!(output.stdout.is_empty(), "{command:?}");
        error
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has this text and an address after it. Returns the address.
    pub fn logged_address(&self, text: &str) -> SocketAddr {
        let mut address = None;
        eventually(text, || {
            let log = self.log();
            let found = log.split_once(text).and_then(|(_, rest)| rest.lines().next());
            address = found.and_then(|rest| rest.parse().ok());
            address.is_some()
        });
        address.unwrap()
    }

    /// Sends a GET request on a new connection and reads the response.
    pub fn get(&self, path: &str) -> Answer {
        Connection::to(self.address).get(path)
    }

    /// Sends these bytes on a new connection and reads one response.
    pub fn ask(&self, request: &str) -> Answer {
        Connection::to(self.address).ask(request)
    }

    pub fn connect(&self) -> TcpStream {
        Connection::to(self.address).0.into_inner()
    }

    /// Opens a stream: `/stream`, perhaps with `?since=…`.
    pub fn stream(&self, path: &str) -> Stream {
        self.stream_with(path, "")
    }

    pub fn stream_with(&self, path: &str, headers: &str) -> Stream {
        Stream::open(self.connect(), path, headers)
    }

    /// Opens a stream as a client that reconnects and sends this id.
    pub fn resume(&self, id: impl Display) -> Stream {
        self.stream_with("/stream", &format!("Last-Event-ID: {id}\r\n"))
    }

    /// Fetches the value of a metric, given its name and labels as `/metrics` prints them.
    pub fn metric(&self, name: &str) -> f64 {
        self.get("/metrics").metric(name)
    }

    /// Returns the number of fetches with this outcome.
    pub fn fetches(&self, outcome: &str) -> f64 {
        self.metric(&format!("btc_ticker_fetches_total{{outcome=\"{outcome}\"}}"))
    }

    /// Asserts that the server's history has no other updates between the first of these and the last.
    pub fn assert_complete(&self, updates: &[Event]) {
        assert_in_order(updates);
        let before = updates[0].id.unwrap() - 1;
        let mut replay = self.stream(&format!("/stream?since={before}"));
        for update in updates {
            assert_eq!(*update, replay.update());
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Sends the signal and waits. Returns the exit status and the whole log.
    pub fn stop(mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        self.log_reader.take().map(thread::JoinHandle::join);
        (status, self.log())
    }

    /// Sends the signal. Asserts that the process exits with status 0, and returns the whole log.
    pub fn stop_cleanly(self, signal: Signal) -> String {
        let (status, log) = self.stop(signal);
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }

    /// Returns the number of threads of the process.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// Returns the resident memory of the process, in KB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Returns the number of open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            eprintln!("the last lines of the server's log:\n{last}");
        }
    }
}

/// Returns variables that let libfaketime set the clock of a process, but not its monotonic clock. `None` if
/// libfaketime is not installed.
pub fn faketime() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    let Some(library) = libraries.find(|path| path.exists()) else {
        skipped("a wrong clock was not tested: libfaketime is missing (on Debian: libfaketime)");
        return None;
    };
    Some(format!("LD_PRELOAD={} FAKETIME_DONT_FAKE_MONOTONIC=1", library.display()))
}

/// Returns a command without the environment variables that configure a server or its HTTP client.
pub fn quiet(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let others = ["COINDESK_API_KEY", "RUST_LOG", "SSL_CERT_FILE", "SSL_CERT_DIR"];
    for (name, _) in std::env::vars() {
        let configures_proxy = name.to_ascii_lowercase().ends_with("_proxy");
        if configures_proxy || name.starts_with("BTC_TICKER_") || others.contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
}

// ---------------------------------------------------------------------------------- the client

/// A connection for requests and their responses, in turn.
pub struct Connection(pub BufReader<TcpStream>);

impl Connection {
    pub fn to(address: SocketAddr) -> Connection {
        let connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection(BufReader::new(connection))
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    pub fn ask(&mut self, request: &str) -> Answer {
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let answer = Answer::read(&mut self.0, !request.starts_with("HEAD"));
        answer.unwrap_or_else(|| panic!("no response to {request:?}"))
    }
}

/// A response with a `Content-Length`.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads a response, skipping informational ones. Returns `None` if the connection ends first.
    pub fn read(reader: &mut impl BufRead, has_body: bool) -> Option<Answer> {
        let head = read_head(reader)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        if (100..200).contains(&status) {
            return Answer::read(reader, has_body);
        }
        let mut answer = Answer { status, head, body: String::new() };
        if let Some(length) = answer.header("Content-Length").filter(|_| has_body) {
            let mut body = vec![0; length.parse().ok()?];
            reader.read_exact(&mut body).ok()?;
            answer.body = String::from_utf8(body).ok()?;
        }
        Some(answer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Returns the value of a metric in this response of `/metrics`; 0 if it is absent.
    pub fn metric(&self, name: &str) -> f64 {
        let mut lines = self.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Returns the message of an error response.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error has a message").to_owned()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// A block of lines of a stream: an event, `retry`, or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub id: Option<u64>,
    pub name: Option<String>,
    pub data: Option<String>,
    pub retry: Option<u64>,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(self.data.as_deref().expect("data")).unwrap()
    }

    pub fn price(&self) -> f64 {
        self.json()["price"].as_f64().expect("a price")
    }
}

/// The client's end of an open stream.
pub struct Stream {
    pub head: String,
    reader: BufReader<TcpStream>,
}

impl Stream {
    pub fn open(mut connection: TcpStream, path: &str, headers: &str) -> Stream {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        Stream::receive(connection)
    }

    /// Reads the response head of a stream that was requested on this connection.
    pub fn receive(connection: TcpStream) -> Stream {
        let mut reader = BufReader::new(connection);
        let head = read_head(&mut reader).expect("a response head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Stream { head, reader }
    }

    /// Opens a stream with these headers. Returns `None` if the server is down, stopped or full.
    /// `patience` is also the read timeout of `try_next`.
    pub fn try_open(server: SocketAddr, headers: &str, patience: Duration) -> Option<Stream> {
        let mut connection = TcpStream::connect_timeout(&server, patience).ok()?;
        connection.set_read_timeout(Some(patience)).ok()?;
        write!(connection, "GET /stream HTTP/1.1\r\nHost: x\r\n{headers}\r\n").ok()?;
        let mut reader = BufReader::new(connection);
        let head = read_head(&mut reader)?;
        head.starts_with("HTTP/1.1 200").then_some(Stream { head, reader })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Reads the next block of lines. Returns `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Event> {
        self.read().expect("a block before the read timeout")
    }

    /// Like `next`, but also returns `None` on a reset or a timeout.
    pub fn try_next(&mut self) -> Option<Event> {
        self.read().ok().flatten()
    }

    fn read(&mut self) -> std::io::Result<Option<Event>> {
        let mut event = Event::default();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let Some(line) = line.strip_suffix('\n') else {
                return Ok(None);
            };
            if line.is_empty() {
                return Ok(Some(event));
            }
            let (field, value) = line.split_once(':').expect("a field");
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => {} // A comment.
                "id" => event.id = Some(value.parse().expect("an id in milliseconds")),
                "event" => event.name = Some(value),
                "data" => event.data = Some(value),
                "retry" => event.retry = Some(value.parse().expect("milliseconds")),
                other => panic!("unknown field {other:?}"),
            }
        }
    }

    /// Reads the next line.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line before the read timeout");
        line.trim_end().to_owned()
    }

    /// Reads the next event with data, skipping comments and `retry`.
    pub fn event(&mut self) -> Event {
        loop {
            let event = self.next().expect("the stream is open");
            if event.data.is_some() {
                return Event { retry: None, ..event };
            }
        }
    }

    /// Reads the next event that is not a `status`: on a loaded machine, prices may briefly be stale.
    pub fn beyond_status(&mut self) -> Event {
        let mut event = self.event();
        while event.name.as_deref() == Some("status") {
            event = self.event();
        }
        event
    }

    /// Reads the next update, skipping any `status`. Panics on another event.
    pub fn update(&mut self) -> Event {
        let event = self.beyond_status();
        assert_eq!(event.name, None, "not an update: {event:?}");
        let json = event.json();
        let fields: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["price", "timestamp"]);
        assert_eq!(json["timestamp"].as_u64(), event.id);
        event
    }

    /// Reads the next `n` updates.
    pub fn updates(&mut self, n: usize) -> Vec<Event> {
        (0..n).map(|_| self.update()).collect()
    }

    /// Reads the next event, skipping any `status` unless that is the name. Panics on another event.
    pub fn named(&mut self, name: &str) -> Value {
        let event = if name == "status" { self.event() } else { self.beyond_status() };
        assert_eq!(event.name.as_deref(), Some(name), "{event:?}");
        assert_eq!(event.id, None, "only updates have an id");
        event.json()
    }

    /// Reads until the server ends the stream. Panics if it does not.
    pub fn ends(mut self) {
        while self.next().is_some() {}
    }
}

/// Connects with a small receive buffer, so that the server soon blocks unless the client reads.
pub fn narrow(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// Asserts that no update is repeated or out of order: the source's prices count up, and ids increase.
pub fn assert_in_order(updates: &[Event]) {
    for pair in updates.windows(2) {
        assert!(pair[0].price() < pair[1].price(), "repeated or out of order: {pair:?}");
        assert!(pair[0].id < pair[1].id, "ids increase");
    }
}
