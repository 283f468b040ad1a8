//! The world that a test needs: the real binary, a price source that does as it is told, and a
//! client that reads a stream as a user's would.

// Each test file is a program of its own and uses another part of this.
#![allow(dead_code)]

pub mod redis;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// How long a test waits for what must come: long, because it only passes when something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, and fails the test with `what` if it never does.
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

/// Says aloud what was not tested for want of a program, and how to get it. Where tests are what the
/// machine is for (`CI`), it is a failure. What several tests of a program lack is said once.
pub fn skipped(line: &str) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    assert!(std::env::var_os("CI").is_none(), "{line}");
    let mut said = SAID.lock().unwrap();
    if said.iter().any(|before| before == line) {
        return;
    }
    said.push(line.to_owned());
    // Past the test harness, which would keep it to itself.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {line}\n").as_bytes());
}

/// A folder of its own for a test, empty.
pub fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

// ---------------------------------------------------------------------------------- the source

/// What the source says to the next requests.
#[derive(Clone, Debug)]
pub enum Say {
    /// A new price each time: 1, 2, 3, …
    Prices,
    /// This body, with status 200.
    Body(String),
    /// This status, these header lines and this body.
    Status(u16, String, String),
    /// Nothing at all, until told otherwise.
    Nothing,
}

/// A price source on loopback. `{"price":1}`, `{"price":2}` and so on, unless told otherwise.
pub struct Source {
    pub address: SocketAddr,
    state: Arc<(Mutex<Script>, Condvar)>,
}

struct Script {
    say: Say,
    next_price: u64,
    /// When each request came.
    requests: Vec<Instant>,
    /// The heads of the requests, as they came.
    heads: Vec<String>,
    /// A whole answer is given only while there is a ticket; `None` is as many as are asked for.
    tickets: Option<u64>,
}

impl Source {
    pub fn start() -> Source {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Script {
            say: Say::Prices,
            next_price: 1,
            requests: Vec::new(),
            heads: Vec::new(),
            tickets: None,
        };
        let state = Arc::new((Mutex::new(script), Condvar::new()));
        let shared = state.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || converse(connection, &shared));
            }
        });
        Source { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/ticker", self.address)
    }

    pub fn say(&self, say: Say) {
        self.lock().say = say;
        self.state.1.notify_all();
    }

    /// From now on answers only as often as `allow` says; requests beyond wait for the next ticket.
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

    /// The last price that was given out.
    pub fn last_price(&self) -> u64 {
        self.lock().next_price - 1
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
                    let price = script.next_price;
                    script.next_price += 1;
                    break (200, String::new(), format!("{{\"price\":{price}}}"));
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
        let answer = format!(
            "HTTP/1.1 {status} Something\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if connection.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Everything up to the empty line; `None` at the end of the connection.
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

/// The real binary, running. Killed when it is dropped.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    log_reader: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Polls `source` ten times a second, unless `arguments` say otherwise.
    pub fn start(source: &Source, arguments: &[&str]) -> Server {
        Server::start_at("127.0.0.1:0", source, arguments)
    }

    pub fn start_at(address: &str, source: &Source, arguments: &[&str]) -> Server {
        Server::poll(Server::command(), address, source, arguments)
    }

    /// The binary, in an environment that has nothing to say to it.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_btc-ticker"));
        quiet(&mut command);
        command
    }

    /// The binary under another limit: `-n 128` is 128 open files, `-u 300` is 300 processes.
    pub fn start_with_limit(limit: &str, source: &Source, arguments: &[&str]) -> Server {
        let line = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        Server::start_by_shell(&line, source, arguments)
    }

    /// The binary as a line of bash runs it: `$0`, with the arguments `$@`.
    pub fn start_by_shell(line: &str, source: &Source, arguments: &[&str]) -> Server {
        let mut command = Command::new("bash");
        quiet(&mut command);
        command.args(["-c", line, env!("CARGO_BIN_EXE_btc-ticker")]);
        Server::poll(command, "127.0.0.1:0", source, arguments)
    }

    /// The binary on a machine whose clock is wrong, by `+3d` or `-1h`. `None` if libfaketime is not
    /// installed.
    pub fn start_with_clock(
        clock: &str,
        address: &str,
        source: &Source,
        arguments: &[&str],
    ) -> Option<Server> {
        let line = format!("{} FAKETIME={clock} exec \"$0\" \"$@\"", faketime()?);
        let arguments = [&["--listen", address], arguments].concat();
        Some(Server::start_by_shell(&line, source, &arguments))
    }

    /// A command that takes the options of the binary, polling as `start` says.
    pub fn poll(
        mut command: Command,
        address: &str,
        source: &Source,
        arguments: &[&str],
    ) -> Server {
        command.args(["--listen", address, "--interval", "100ms"]);
        command.args(["--source-url", &source.url(), "--price-at", "/price"]);
        Server::run(command.args(arguments))
    }

    /// Starts a command that ends up as the server, and waits for its line.
    pub fn run(command: &mut Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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
            panic!("it said {line:?} and logged:\n{}", log.lock().unwrap());
        };
        Server { child, address, log, log_reader: Some(log_reader) }
    }

    /// What a command says that is to end by itself and with an error.
    pub fn refused(command: &mut Command) -> String {
        let output = Server::exits(command);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        error
    }

    /// Runs a command that should exit on its own; if it does not, it is killed.
    pub fn exits(command: &mut Command) -> Output {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        child.wait_with_output().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// One request on a connection of its own, and the answer up to its length.
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    /// The same where the server may be gone at any moment.
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        let mut connection = TcpStream::connect(self.address).ok()?;
        write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        Answer::read(&mut BufReader::new(connection), true)
    }

    /// Sends these bytes and reads one answer.
    pub fn ask(&self, request: &str) -> Answer {
        let mut connection = self.connect();
        connection.write_all(request.as_bytes()).unwrap();
        Answer::read(&mut BufReader::new(connection), !request.starts_with("HEAD"))
            .unwrap_or_else(|| panic!("no answer to {request:?}"))
    }

    pub fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// Opens a stream: `/stream`, or with `?since=…`.
    pub fn stream(&self, path: &str) -> Stream {
        self.stream_with(path, "")
    }

    pub fn stream_with(&self, path: &str, headers: &str) -> Stream {
        Stream::open(self.connect(), path, headers)
    }

    /// A number from `/metrics`, by name and labels as they stand there.
    pub fn metric(&self, name: &str) -> f64 {
        self.get("/metrics").metric(name)
    }

    /// Checks that these are all the updates that the server has had from the first to the last.
    pub fn assert_complete(&self, updates: &[Event]) {
        assert_in_order(updates);
        let before = updates[0].id.unwrap() - 1;
        let mut replay = self.stream(&format!("/stream?since={before}"));
        for update in updates {
            let mut expected = replay.event();
            if expected.name.is_some() {
                // The gap, where these begin with the first update of all.
                expected = replay.update();
            }
            assert_eq!(*update, expected);
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Ends it as a user would, and returns how that went.
    pub fn stop(mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        self.log_reader.take().map(thread::JoinHandle::join);
        (status, self.log())
    }

    /// Threads and descriptors of the process.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// Its resident memory, in KB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

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
            eprintln!(
                "the server logged, at last:\n{}",
                lines[lines.len().saturating_sub(12)..].join("\n")
            );
        }
    }
}

/// The environment in which libfaketime sets the clock of a process, and not its monotonic clock. `None` if
/// it is not installed.
pub fn faketime() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    let Some(library) = libraries.find(|path| path.exists()) else {
        skipped(
            "a wrong clock was not tested: libfaketime is not installed (on Debian: libfaketime)",
        );
        return None;
    };
    Some(format!("LD_PRELOAD={} FAKETIME_DONT_FAKE_MONOTONIC=1", library.display()))
}

/// Removes from a command's environment what would configure a server or its HTTP client.
pub fn quiet(command: &mut Command) {
    let ours = |name: &str| name.starts_with("BTC_TICKER_") || name == "COINDESK_API_KEY";
    let proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
    for (name, _) in std::env::vars() {
        if ours(&name) || proxy(&name) || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
}

// ---------------------------------------------------------------------------------- the client

/// A response with a length.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// `None` where the connection ends before the answer does.
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

    /// A number from `/metrics`, by name and labels as they stand there.
    pub fn metric(&self, name: &str) -> f64 {
        let mut lines = self.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The sentence of an error answer.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("errors have a sentence").to_owned()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// One event, or a comment, as it came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub id: Option<u64>,
    pub name: Option<String>,
    pub data: Option<String>,
    pub comment: Option<String>,
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

/// An open stream, read line by line.
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

    /// The stream that a connection has asked for.
    pub fn receive(connection: TcpStream) -> Stream {
        let mut reader = BufReader::new(connection);
        let head = read_head(&mut reader).expect("a response head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Stream { head, reader }
    }

    /// Continues after a `Last-Event-ID`; `None` if the server is gone, frozen or full. Afterwards
    /// `try_next` returns `None` when nothing comes within `patience`.
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

    /// The next block of lines, whatever it is; `None` when the stream has ended.
    pub fn next(&mut self) -> Option<Event> {
        self.read().expect("something within the patience")
    }

    /// The same where the server was killed: then it may end in the middle of a line, or be reset.
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
                "" => event.comment = Some(value),
                "id" => event.id = Some(value.parse().expect("an id in milliseconds")),
                "event" => event.name = Some(value),
                "data" => event.data = Some(value),
                "retry" => event.retry = Some(value.parse().expect("milliseconds")),
                other => panic!("unknown field {other:?}"),
            }
        }
    }

    /// The next line, whatever it is.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line within the patience");
        line.trim_end().to_owned()
    }

    /// The next event with data: comments and `retry` are passed over.
    pub fn event(&mut self) -> Event {
        loop {
            let event = self.next().expect("the stream goes on");
            if event.data.is_some() {
                return Event { retry: None, comment: None, ..event };
            }
        }
    }

    /// The next event that is no `status`: on a loaded machine a fast source may seem stale for a
    /// moment.
    pub fn beyond_status(&mut self) -> Event {
        let mut event = self.event();
        while event.name.as_deref() == Some("status") {
            event = self.event();
        }
        event
    }

    /// The next update. A `status` is passed over; nothing else is.
    pub fn update(&mut self) -> Event {
        let event = self.beyond_status();
        assert_eq!(event.name, None, "an update was due: {event:?}");
        let json = event.json();
        let fields: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["price", "timestamp"]);
        assert_eq!(json["timestamp"].as_u64(), event.id);
        event
    }

    /// The next `n` updates.
    pub fn updates(&mut self, n: usize) -> Vec<Event> {
        (0..n).map(|_| self.update()).collect()
    }

    /// The next event, which must have this name. A `status` is passed over, unless it is wanted.
    pub fn named(&mut self, name: &str) -> Value {
        let event = if name == "status" { self.event() } else { self.beyond_status() };
        assert_eq!(event.name.as_deref(), Some(name), "{event:?}");
        assert_eq!(event.id, None, "only updates have an id");
        event.json()
    }

    /// Whether the server ends the stream, after whatever it still sends.
    pub fn ends(mut self) -> bool {
        while self.next().is_some() {}
        true
    }
}

/// A connection whose peer can send only very little before it must wait for us to read.
pub fn narrow(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// Checks that no update came twice or out of order: prices of the source count up, ids rise.
pub fn assert_in_order(updates: &[Event]) {
    for pair in updates.windows(2) {
        assert!(pair[0].price() < pair[1].price(), "doubled or out of order: {pair:?}");
        assert!(pair[0].id < pair[1].id, "ids must rise");
    }
}
