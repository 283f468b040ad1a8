//! Misbehaving clients and an exhausted machine. Each bad client gets a clear response or none, normal clients
//! are served, open streams miss nothing, and no thread or descriptor leaks.

use std::ffi::OsStr;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::redis::Redis;
use crate::common::{
    Answer, Connection, Event, PATIENCE, Say, Server, Source, Stream, eventually,
    eventually_within, narrow, own_address, quiet, skipped,
};
use nix::sys::signal::Signal;

const STREAM: &str = "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n";
const WHOLE_STREAM: &str = "GET /stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n";
const PRICE: &str = "GET /price HTTP/1.1\r\nHost: x\r\n\r\n";

/// A server under attack. A thread reads one stream of it continuously, which therefore never falls behind.
struct Target {
    server: Server,
    seen: Arc<Mutex<Vec<Event>>>,
    /// The threads, descriptors and resident KB before the attack.
    threads: usize,
    descriptors: usize,
    resident: u64,
}

impl Target {
    fn start(arguments: &[&str]) -> Target {
        Target::of(Server::start(&Source::start(), arguments))
    }

    fn of(server: Server) -> Target {
        let mut stream = server.stream("/stream?since=0");
        let seen = Arc::new(Mutex::new(vec![stream.update()]));
        let kept = seen.clone();
        thread::spawn(move || {
            while let Some(event) = stream.next() {
                if event.id.is_some() {
                    kept.lock().unwrap().push(event);
                }
            }
        });
        let (threads, descriptors) = (server.threads(), server.descriptors());
        let resident = server.resident();
        Target { server, seen, threads, descriptors, resident }
    }

    fn assert_little_growth(&self) {
        let growth = self.server.resident().saturating_sub(self.resident);
        assert!(growth < 4 * 1024, "{growth} KB");
    }

    /// Asserts that no thread or descriptor leaked and that the stream has missed nothing, and stops the server.
    fn withstood(self) {
        let server = &self.server;
        eventually("no thread leaks", || server.threads() <= self.threads);
        eventually("no descriptor leaks", || server.descriptors() <= self.descriptors);
        let latest = server.get("/price").json()["timestamp"].as_u64();
        let seen = || self.seen.lock().unwrap().clone();
        eventually("updates still arrive", || seen().last().unwrap().id > latest);
        server.assert_complete(&seen());
        self.server.stop_cleanly(Signal::SIGTERM);
    }
}

/// Opens connections, sends this request on each, and keeps them open.
fn crowd(server: &Server, size: usize, request: &str) -> Vec<TcpStream> {
    let open = |_| {
        let mut connection = server.connect();
        connection.write_all(request.as_bytes()).unwrap();
        connection
    };
    (0..size).map(open).collect()
}

/// Reads a response, which must be the last on its connection.
fn last_answer(connection: TcpStream) -> Answer {
    let mut reader = BufReader::new(connection);
    let answer = Answer::read(&mut reader, true).expect("a response");
    assert_eq!(answer.header("Connection"), Some("close"), "{answer:?}");
    assert_eq!(reader.read(&mut [0]).expect("FIN, not a reset"), 0, "data after {answer:?}");
    answer
}

/// Opens a connection that serves while the server can accept no other.
fn monitor(server: &Server) -> Connection {
    let mut connection = Connection::to(server.address);
    connection.get("/price");
    connection
}

/// Sets a limit of a running server: `--nofile=20`, `--as=unlimited`.
fn limit(server: &Server, limit: &str) {
    let mut prlimit = Command::new("prlimit");
    let output = prlimit.args(["--pid", &server.pid().to_string(), limit]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

// ------------------------------------------------------------------------- exhausted resources

#[test]
fn without_descriptors_connections_wait_and_are_served_later() {
    // A long interval, because a fetch that times out closes a descriptor.
    let target = Target::start(&["--interval", "1s"]);
    let server = &target.server;
    let mut monitor = monitor(server);
    let descriptors = target.descriptors + 1;
    let mut failures = || monitor.get("/metrics").metric("btc_ticker_accept_errors_total");
    let began = Instant::now();
    for _ in 0..50 {
        eventually("earlier connections are closed", || server.descriptors() <= descriptors);
        // All allowed descriptors are in use.
        limit(server, &format!("--nofile={descriptors}:20000"));
        let before = failures();
        // Linux allocates the descriptor before it waits for a connection, so one more is accepted. Another
        // may be accepted if a fetch has just timed out.
        let closing = "GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let waiting = crowd(server, 5, closing);
        eventually("accept fails", || failures() > before);
        limit(server, "--nofile=20000:20000");
        waiting.into_iter().for_each(|one| assert_eq!(last_answer(one).status, 200));
    }
    let lines = server.log().matches("cannot accept connections").count();
    let most = 1 + began.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&(lines as u64)), "{lines} log lines, expected 1 to {most}");
    drop(monitor);
    target.withstood();
}

#[test]
fn without_address_space_for_a_thread_a_new_connection_gets_503() {
    let target = Target::start(&[]);
    let server = &target.server;
    let mut monitor = monitor(server);
    // Leaves less address space than a thread's stack. Stacks of ended threads are reused.
    let size = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let pages: u64 = size.split(' ').next().unwrap().parse().unwrap();
    limit(server, &format!("--as={}:unlimited", pages * 4096 + 64 * 1024));
    let mut accepted = Vec::new();
    let refused = loop {
        let mut connection = Connection::to(server.address);
        let answer = connection.ask(STREAM);
        if answer.status != 200 {
            break answer;
        }
        accepted.push(connection);
        assert!(accepted.len() < 1_000, "no connection is refused");
    };
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
    assert!(refused.error().contains("retry later"));
    assert!(monitor.get("/metrics").metric("btc_ticker_threads_refused_total") >= 1.0);
    limit(server, "--as=unlimited:unlimited");
    assert_eq!(server.get("/price").status, 200);
    eventually("the log reports it", || server.log().contains("no thread for a connection"));
    drop((accepted, monitor));
    target.withstood();
}

#[test]
fn a_fetch_that_fails_for_lack_of_a_thread_is_retried() {
    // The kernel does not enforce limits of threads for root, so the server runs as another user.
    let as_user = |program: &OsStr| {
        let mut setpriv = quiet("setpriv");
        setpriv.args(["--reuid", "54321", "--clear-groups"]).arg(program);
        setpriv
    };
    if !as_user("true".as_ref()).status().is_ok_and(|status| status.success()) {
        return skipped("a fetch without a thread was not tested: needs setpriv, as root");
    }
    // That user must be able to read the program.
    let program = std::env::temp_dir().join(format!("btc-ticker-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_btc-ticker"), &program).unwrap();
    let server = Server::poll(as_user(program.as_ref()), &Source::start(), &[]);
    let pid = server.pid().to_string();
    let limit = |soft: &str| {
        let mut prlimit = as_user("prlimit".as_ref());
        assert!(prlimit.args(["--pid", &pid, soft]).status().unwrap().success());
    };
    let target = Target::of(server);
    let mut monitor = monitor(&target.server);
    // The user has more threads than that. A fetch looks the source's name up on a thread of its own.
    limit("--nproc=1:");
    let failed = "btc_ticker_fetches_total{outcome=\"connection failed\"}";
    eventually("fetches fail", || monitor.get("/metrics").metric(failed) >= 2.0);
    assert_eq!(monitor.get("/price").status, 200);
    limit("--nproc=1000:");
    drop(monitor);
    target.withstood();
    let _ = std::fs::remove_file(program);
}

#[test]
fn a_demo_source_that_cannot_accept_does_not_stop_the_service() {
    let mut command = Server::command();
    command.env("RUST_LOG", "info,tiny_http=debug").args(["--source", "demo"]);
    let server = Server::run(command.args(["--listen", "127.0.0.1:0", "--interval", "100ms"]));
    server.stream("/stream").update();
    let demo = server.logged_address("Server listening on ");
    let mut monitor = monitor(&server);
    // Accepting a connection fails for lack of a descriptor.
    limit(&server, &format!("--nofile={}:20000", server.descriptors()));
    let mut waiting = Vec::new();
    eventually("the demo refuses connections", || {
        let connection = TcpStream::connect(demo);
        let is_refused = connection.is_err();
        waiting.push(connection);
        is_refused
    });
    drop(waiting);
    limit(&server, "--nofile=20000:20000");
    // The poller's own connection to the demo may live on.
    monitor.get("/price");
    server.stream("/stream").event();
    let log = server.stop_cleanly(Signal::SIGTERM);
    assert!(log.contains("received a signal"), "{log}");
}

#[test]
fn the_limits_of_the_machine_bound_clients_and_are_logged() {
    let source = Source::start();
    // The kernel does not enforce it for root, but the service reads it.
    let server = Server::start_with_limit("-u 300", &source, &[]);
    server.stream("/stream").update();
    eventually("the log reports it", || server.log().contains("(ulimit -u 300)"));
    assert_eq!(server.metric("btc_ticker_connections_max"), 236.0);

    let server = Server::start_with_limit("-n 200", &source, &["--max-clients", "100000"]);
    eventually("the log reports it", || server.log().contains("ulimit -Hn to 103258"));
    assert_eq!(server.metric("btc_ticker_clients_max"), 163.0);
    let _streams: Vec<Stream> = (0..163).map(|_| server.stream("/stream")).collect();
}

// ------------------------------------------------------------------------------ many connections

#[test]
fn while_streams_take_every_place_other_requests_are_served() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 160", &source, &[]);
    eventually("a first update", || server.get("/price").status == 200);
    let most = server.metric("btc_ticker_clients_max") as usize;
    let mut streams: Vec<Stream> = (0..most).map(|_| server.stream("/stream?since=0")).collect();
    for _ in 0..20 {
        let refused = server.get("/stream");
        assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
        assert_eq!(refused.header("Connection"), Some("close"), "others need the connection");
        assert!(refused.error().contains("full"));
    }
    for path in ["/price", "/healthz", "/metrics", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let history = "GET /history HTTP/1.1\r\nHost: x\r\n\r\n";
    for start in ["", "GET /price HT", "nonsense\r\n\r\n", history] {
        let idle = crowd(&server, 200, start);
        for _ in 0..150 {
            let health = server.get("/healthz");
            assert_eq!(health.status, 200, "{health:?}");
        }
        drop(idle);
    }
    assert!(server.metric("btc_ticker_connections_displaced_total") > 0.0);
    let seen: Vec<Vec<Event>> = streams.iter_mut().map(|stream| stream.updates(10)).collect();
    assert!(seen.iter().all(|updates| *updates == seen[0]), "no stream is displaced");
    drop(streams);
    eventually("every place is free", || server.metric("btc_ticker_clients") == 0.0);
    server.assert_complete(&seen[0]);
}

/// A server whose history is longer than all buffers on the way to a client. `None` without Redis.
fn with_long_history(name: &str) -> Option<(Redis, Server)> {
    const UPDATES: u64 = 20_000;
    let redis = Redis::start(name, &[])?;
    redis.fill(UPDATES);
    let server = Server::start(&Source::start(), &["--store", &redis.url()]);
    let updates = || server.metric("btc_ticker_history_updates");
    eventually("a long history", || updates() >= UPDATES as f64);
    Some((redis, server))
}

#[test]
fn slow_readers_hold_a_page_each() {
    const READERS: u64 = 50;
    let Some((_redis, server)) = with_long_history("slow-readers") else { return };
    let before = server.resident();
    let mut readers: Vec<TcpStream> = (0..READERS).map(|_| narrow(&server)).collect();
    for reader in &mut readers {
        reader.write_all(WHOLE_STREAM.as_bytes()).unwrap();
    }
    let published = || server.metric("btc_ticker_updates_published_total");
    let before_stall = published();
    eventually("readers stall while updates arrive", || published() >= before_stall + 20.0);
    let each = (server.resident() - before) / READERS;
    assert!(each < 150, "{each} KB for each reader");
}

#[test]
fn a_half_closed_client_is_still_served() {
    let server = Server::start(&Source::start(), &["--max-clients", "2", "--heartbeat", "50ms"]);
    let half_closed = |request: &str| {
        let mut connection = server.connect();
        connection.write_all(request.as_bytes()).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        connection
    };
    let mut stream = Stream::receive(half_closed(STREAM));
    let _other = server.stream("/stream");
    for _ in 0..5 {
        assert_eq!(server.get("/stream").status, 503, "both places are taken");
    }
    stream.updates(30);
    let mut reader = BufReader::new(half_closed(PRICE));
    assert_eq!(Answer::read(&mut reader, true).unwrap().status, 200);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "no further request can come");
}

#[test]
fn a_connection_is_one_thread_and_one_descriptor_from_its_first_byte() {
    const SIZE: usize = 200;
    let target = Target::start(&[]);
    let server = &target.server;
    let one_each = |when: &str| {
        eventually(when, || server.threads() == target.threads + SIZE);
        eventually(when, || server.descriptors() == target.descriptors + SIZE);
    };
    let mut connections = crowd(server, SIZE, "");
    one_each("one each before the first byte");
    let head = b"GET /stream HTTP/1.1\r\nHost: x\r\n";
    connections.iter_mut().for_each(|c| c.write_all(head).unwrap());
    one_each("one each during the request");
    connections.iter_mut().for_each(|c| c.write_all(b"\r\n").unwrap());
    let streams: Vec<Stream> = connections.into_iter().map(Stream::receive).collect();
    one_each("one each during the response");
    drop(streams);
    target.withstood();
}

#[test]
fn a_burst_of_connections_fits_into_the_listen_queue() {
    let server = Server::start(&Source::start(), &[]);
    server.stream("/stream").update();
    // The stopped server accepts none of them: each that connects has a place in the queue.
    server.signal(Signal::SIGSTOP);
    let crowd = crowd(&server, 1_000, STREAM);
    server.signal(Signal::SIGCONT);
    for connection in crowd {
        Stream::receive(connection).updates(2);
    }
}

#[test]
fn the_shutdown_waits_neither_for_the_source_nor_for_clients() {
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--interval", "20s"]);
    let streams: Vec<Stream> = (0..1_000).map(|_| server.stream("/stream")).collect();
    let _idle = ["", PRICE, "GET /pri"].map(|start| crowd(&server, 100, start));
    eventually("all are accepted", || server.metric("btc_ticker_connections") >= 1_300.0);
    assert_eq!(server.metric("btc_ticker_clients"), 1_000.0);
    eventually("a fetch is pending", || !source.requests().is_empty());
    let log = server.stop_cleanly(Signal::SIGTERM);
    assert!(!log.contains("before all threads have ended"), "every thread ends on its own: {log}");
    assert!(!log.contains("no price"), "a cancelled fetch is not a failure of the source: {log}");
    streams.into_iter().for_each(Stream::ends);
}

// ------------------------------------------------------------------- requests and connections

#[test]
fn requests_on_one_connection_are_answered_in_order_until_it_closes() {
    let server = Server::start(&Source::start(), &[]);
    server.stream("/stream").update();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mixed = [PRICE, &get("/nowhere"), &get("/healthz"), PRICE].concat();
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    let lenient = format!("{PRICE}{head}\r\nGET /x HTTP/1.1\nHost: x\n\n");
    let closing = format!("GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n{PRICE}");
    let invalid = format!("{PRICE}GET / HTTP/3.0\r\n\r\n{PRICE}");
    // The requests, sent at once, the statuses of the responses, and whether the connection is kept.
    let table: &[(&str, &[u16], bool)] = &[
        (PRICE, &[200], true),
        (&mixed, &[200, 404, 200, 200], true),
        (&lenient, &[200, 200, 404], true),
        ("GET /price HTTP/1.0\r\n\r\n", &[200], false),
        ("GET /price HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200], true),
        (&closing, &[200], false),
        (&invalid, &[200, 505], false),
        (&PRICE.repeat(10_000), &[200; 10_000], true),
    ];
    for (requests, statuses, is_kept) in table {
        println!("{:?}", &requests[..requests.len().min(200)]);
        let mut connection = Connection::to(server.address);
        // The server may stop reading while its responses are not read.
        let mut writer = connection.0.get_ref().try_clone().unwrap();
        let all = requests.to_string();
        let writer = thread::spawn(move || writer.write_all(all.as_bytes()).unwrap());
        let mut last = None;
        let lines = requests.split('\n').filter(|line| line.contains("HTTP/"));
        for (line, status) in lines.zip(*statuses) {
            let answer = Answer::read(&mut connection.0, !line.starts_with("HEAD"));
            let answer = answer.expect("a response to each request");
            assert_eq!(answer.status, *status, "{line}");
            last = Some(answer);
        }
        writer.join().unwrap();
        let word = if *is_kept { "keep-alive" } else { "close" };
        assert_eq!(last.unwrap().header("Connection"), Some(word));
        if *is_kept {
            assert_eq!(connection.get("/healthz").status, 200);
        } else {
            assert_eq!(connection.0.read(&mut [0]).expect("FIN"), 0);
        }
    }
}

const MEGABYTE: usize = 1024 * 1024;
/// The start of the only unusual request that is well-formed and answered 400.
const INVALID_SINCE: &str = "GET /stream?since=-";

/// Malformed and unusual requests, each with the status of its response.
fn unusual_requests() -> Vec<(u16, Vec<u8>)> {
    const RAW: &str = "{}";
    const LINE: &str = "{}\r\nHost: x\r\n\r\n";
    const HEADERS: &str = "GET /price HTTP/1.1\r\n{}\r\n\r\n";
    const HEADER: &str = "GET /price HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n";
    const LENGTH: &str = "GET /price HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n";
    const ENCODING: &str = "GET /price HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {}\r\n\r\n";
    const CHUNKS: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}";
    const BODY: &str = "POST /price HTTP/1.1\r\nHost: x\r\nContent-Length: {}";
    let x_lines = |count: usize| ["X: y"].repeat(count).join("\r\n");
    let megabyte = format!("{MEGABYTE}\r\n\r\n{}", "x".repeat(MEGABYTE));
    // Statuses, and forms with what takes the place of the braces.
    let table: &[(u16, &str, &[&str])] = &[
        (200, LENGTH, &["0"]),
        (400, LENGTH, &["-5", "+5", "0x5", "x", "5, 5"]),
        (400, LENGTH, &["5\r\nContent-Length: 9000000000000000000"]),
        (413, LENGTH, &["2000", "1073741824", "9000000000000000000", "18446744073709551615"]),
        (413, LENGTH, &["99999999999999999999999999", "5\r\nContent-Length: 5"]),
        (413, LENGTH, &["9000000000000000000\r\nExpect: 100-continue"]),
        (400, ENCODING, &["gzip\r\nContent-Length: 12", "chunked\r\nContent-Length: 12"]),
        (400, ENCODING, &["chunked, identity", "xchunked"]),
        (413, ENCODING, &["gzip, chunked"]),
        (405, CHUNKS, &["5\r\nhello\r\n0\r\n\r\n", "FFFFFFFFFFFFFFFF\r\nx", "-1\r\nzz\r\n"]),
        (405, CHUNKS, &[&"1\r\nx\r\n".repeat(50_000)]),
        (405, BODY, &["3\r\n\r\nx=1", "9000000000000000000\r\n\r\nx", &megabyte]),
        (405, BODY, &["1500000\r\nExpect: 100-continue\r\n\r\n"]),
        (200, HEADER, &["Expect: 100-continue", "Expect: a miracle", "X:", &x_lines(63)]),
        (200, HEADER, &["Connection: x-closed", "Connection: keep-alive", "Connection: close"]),
        (200, HEADER, &["Connection: upgrade\r\nUpgrade: websocket"]),
        (400, HEADER, &["Content-Length : 5", "Transfer-Encoding : chunked"]),
        (400, HEADER, &["X", "X Y: a", "X[: a", ": a", "X: a\r\n folded", "X: a\rb", "X: a\0b"]),
        (400, HEADER, &["Host: \u{202e}\r\nno colon here"]),
        (413, HEADER, &["Expect: 100-continue\r\nContent-Length: 500000"]),
        (431, HEADER, &[&x_lines(64), &x_lines(20_000)]),
        (431, HEADER, &[&format!("Last-Event-ID: {}", "9".repeat(9_000))]),
        (200, HEADERS, &["Host: a:80", "Host: [::1]:80"]),
        (400, HEADERS, &["Host: a\r\nHost: a", "Host: a\r\nHost: b", "Host: x\r\n folded"]),
        (400, HEADERS, &[" Host: x", "Host:", "Host: u@a", "Host: a/b", "Host: a, b"]),
        (200, LINE, &["GET HTTPS://x/price HTTP/1.1", "GET http://x/price HTTP/1.1"]),
        (200, LINE, &["\r\n\r\n\r\nGET /price HTTP/1.1"]),
        (200, LINE, &["GET /stream HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c"]),
        (200, LINE, &["GET /stream HTTP/1.1\r\nLast-Event-ID: 1795426752977"]),
        (200, LINE, &["GET /stream?since=0 HTTP/1.1\r\nLast-Event-ID: no"]),
        (204, LINE, &["OPTIONS * HTTP/1.1"]),
        (400, LINE, &[" GET /price HTTP/1.1", "GET  /price HTTP/1.1", "GET\t/price HTTP/1.1"]),
        (400, LINE, &["GET /price  HTTP/1.1", "GET /price HTTP/1.1 ", "GET /price foo HTTP/1.1"]),
        (400, LINE, &["GET /price HTTP/1", "GET /price http/1.1", "GET price HTTP/1.1"]),
        (400, LINE, &["GET * HTTP/1.1", "GET ftp://x/price HTTP/1.1", "CONNECT x:80 HTTP/1.1"]),
        (400, LINE, &["\x00\x01\x02\x1b[31m / HTTP/1.1", "GET /€?since=€ HTTP/1.1\r\nHöst: ü"]),
        (400, LINE, &["GET /\x07\x08?since=\x0b HTTP/1.1\r\nX: \x01\x02"]),
        (400, LINE, &[&format!("{INVALID_SINCE}{} HTTP/1.1", "0".repeat(1_000))]),
        (404, LINE, &["GET /../x HTTP/1.1"]),
        (405, LINE, &["get /price HTTP/1.1", "TRACE /price HTTP/1.1", "BREW /price HTTP/1.1"]),
        (431, LINE, &[&format!("GET /stream?{} HTTP/1.1", "a=b&".repeat(250_000))]),
        (431, LINE, &[&format!("GET /?since={} HTTP/1.1", "9".repeat(1_000_000))]),
        (505, LINE, &["GET /price HTTP/1.2"]),
        (200, RAW, &["GET /price HTTP/1.0\r\n\r\n"]),
        (200, RAW, &[&[STREAM, PRICE].concat(), &STREAM.repeat(100)]),
        (400, RAW, &["GET\r\n\r\n", "GET /stream\r\n\r\n", "GET /price HTTP/1.1\r\n\r\n"]),
        (400, RAW, &["POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]),
        (405, RAW, &["POST /nowhere HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"]),
        (431, RAW, &[&"\n".repeat(100_000)]),
        (505, RAW, &["GET / HTTP/0.9\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"]),
        (505, RAW, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]),
        (505, RAW, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"]),
    ];
    let tls_handshake = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let not_utf8 = b"GET /stream?since=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let mut requests = vec![(400, tls_handshake), (400, not_utf8)];
    for (status, form, inputs) in table {
        for input in *inputs {
            requests.push((*status, form.replace("{}", input).into_bytes()));
        }
    }
    requests
}

#[test]
fn every_unusual_request_gets_its_response_and_leaks_nothing() {
    const ROUNDS: usize = 8;
    let target = Target::start(&[]);
    let requests = unusual_requests();
    let mut malformed = Vec::new();
    for &(status, ref request) in (0..ROUNDS).flat_map(|_| &requests) {
        println!("{:?}", String::from_utf8_lossy(&request[..request.len().min(60)]));
        let mut connection = target.server.connect();
        // The client sends the whole request before it reads, and still receives the response.
        connection.write_all(request).unwrap();
        let is_malformed = [400, 413, 431, 505].contains(&status)
            && !request.starts_with(INVALID_SINCE.as_bytes());
        let answer = if is_malformed || request.starts_with(b"POST") {
            last_answer(connection)
        } else {
            Answer::read(&mut BufReader::new(connection), true).expect("a response")
        };
        assert_eq!(answer.status, status);
        if status >= 400 {
            assert!(answer.error().len() > 20, "not a sentence: {answer:?}");
        }
        if status == 431 {
            assert!(answer.error().contains("8 KiB"), "{answer:?}");
        }
        if is_malformed {
            malformed.push(status);
        }
    }
    for status in [400, 413, 431, 505] {
        let labels = format!("{{path=\"other\",status=\"{status}\"}}");
        let counted = target.server.metric(&format!("btc_ticker_http_requests_total{labels}"));
        let sent = malformed.iter().filter(|other| **other == status).count();
        assert_eq!(counted, sent as f64, "{status}");
    }
    target.assert_little_growth();
    target.withstood();
}

#[test]
fn data_without_an_end_is_neither_answered_nor_buffered() {
    let target = Target::start(&[]);
    // The server reads a head of limited size, and nothing after the request of a stream.
    for request in ["GET / HTTP/1.1\r\nHost: x\r\nX: ", &[STREAM, PRICE].concat()] {
        let mut connections = crowd(&target.server, 20, request);
        let mut sent = 0;
        for connection in &mut connections {
            connection.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            while let Ok(length) = connection.write(&[b'x'; 64 * 1024])
                && sent < 200 * MEGABYTE
            {
                sent += length;
            }
        }
        assert!(sent < 160 * MEGABYTE, "20 clients sent {sent} bytes");
        target.assert_little_growth();
        if request.starts_with(STREAM) {
            for connection in connections {
                Stream::receive(connection).updates(3);
            }
        }
    }
    target.withstood();
}

#[test]
fn idle_and_slow_requests_time_out_and_do_not_block_others() {
    let target = Target::start(&[]);
    let server = &target.server;
    let silent = crowd(server, 100, "");
    let begun = crowd(server, 100, "GET /price HTTP/1.1\r\nHost: x\r\n");
    let answered = crowd(server, 100, PRICE);
    let trickles = crowd(server, 100, "GET /price HTTP/1.1\r\nHost: x\r\nX: ");
    assert_eq!(server.get("/price").status, 200, "400 slow connections block a new one");
    // Further bytes do not extend the timeout.
    let mut trickling: Vec<TcpStream> = trickles.iter().map(|c| c.try_clone().unwrap()).collect();
    let trickle = thread::spawn(move || {
        while !trickling.is_empty() {
            thread::sleep(Duration::from_millis(100));
            trickling.retain_mut(|connection| connection.write_all(b"x").is_ok());
        }
    });
    let rest_of = |mut connection: TcpStream| {
        let mut rest = String::new();
        connection.read_to_string(&mut rest).expect("FIN");
        rest
    };
    for connection in silent {
        assert_eq!(rest_of(connection), "");
    }
    for connection in answered {
        assert_eq!(rest_of(connection).matches("HTTP/1.1 200").count(), 1);
    }
    for connection in begun {
        let answer = last_answer(connection);
        assert_eq!(answer.status, 408);
        assert!(answer.error().contains("5 s"));
    }
    for connection in trickles {
        let answer = Answer::read(&mut BufReader::new(connection), true).expect("a response");
        assert_eq!(answer.status, 408);
    }
    trickle.join().unwrap();
    target.withstood();
}

#[test]
fn a_client_may_reuse_the_port_of_a_client_that_was_reset() {
    // No update arrives whose write would reveal to the server that the first client was reset.
    let server = Server::start(&Source::start(), &["--interval", "60s"]);
    server.stream("/stream").update();
    let mut port = 0;
    for _ in 0..3 {
        let connection = connect_from(&server, own_address(55), port);
        port = connection.local_addr().unwrap().port();
        Stream::open(connection, "/stream", "").update();
    }
}

/// Connects from this port, or from any (0). Dropping the connection resets it, which frees the port at once.
fn connect_from(server: &Server, ip: Ipv4Addr, port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&std::net::SocketAddr::from((ip, port)).into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

#[test]
fn thousands_of_mutated_requests_do_not_stop_the_service() {
    let target = Target::start(&[]);
    let server = &target.server;
    let mut seeds: Vec<Vec<u8>> = unusual_requests().into_iter().map(|(_, seed)| seed).collect();
    seeds.retain(|seed| seed.len() < 1_000);
    let mut random = Random(0x5eed);
    for round in 0..6_000 {
        let request = random.request(&seeds);
        // Thousands of connections reuse ports, and must not take those of other tests.
        let mut connection = connect_from(server, own_address(56), 0);
        let _ = connection.write_all(&request);
        if round % 500 == 0 {
            let shown = String::from_utf8_lossy(&request);
            assert_eq!(server.get("/price").status, 200, "after {shown:?}");
        }
    }
    target.withstood();
}

/// A fixed sequence (xorshift), so that a failure is reproducible.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Joins the first lines of one seed to the last lines of another, then changes up to three bytes.
    fn request(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let is_end = |byte: &u8| *byte == b'\n';
        let (first, second) = (self.below(seeds.len()), self.below(seeds.len()));
        let start = seeds[first].split_inclusive(is_end).take(1 + self.below(4));
        let end = seeds[second].split_inclusive(is_end).skip(self.below(3));
        let mut bytes: Vec<u8> = start.chain(end).flatten().copied().collect();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.below(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, self.below(256) as u8),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }
}

// ------------------------------------------------------------------------ slow and unreachable clients

const DISCONNECTED: &str = "btc_ticker_streams_ended_total{reason=\"stalled\"}";
/// Longer than the minute that the service waits.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_slow_reader_that_keeps_reading_is_not_disconnected() {
    let Some((_redis, server)) = with_long_history("slow-reader") else { return };
    let mut slow = server.connect();
    slow.write_all(WHOLE_STREAM.as_bytes()).unwrap();
    let begun = Instant::now();
    // 6 KB/s.
    while begun.elapsed() < Duration::from_secs(40) {
        slow.read_exact(&mut [0; 600]).expect("the stream is open");
        thread::sleep(Duration::from_millis(100));
    }
    // Buffered data is readable even after a reset, so the metrics decide.
    assert_eq!(server.metric(DISCONNECTED), 0.0);
    assert_eq!(server.metric("btc_ticker_clients"), 1.0);
}

#[test]
fn a_client_that_stops_reading_is_disconnected() {
    let target = Target::start(&[]);
    let server = &target.server;
    let mut stream = narrow(server);
    stream.write_all(STREAM.as_bytes()).unwrap();
    let mut requests = narrow(server);
    requests.write_all(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200)).unwrap();
    let connections = || server.metric("btc_ticker_connections");
    eventually("all are accepted", || connections() >= 4.0);
    let begun = Instant::now();
    eventually_within(LONG, "both are disconnected", || {
        server.metric(DISCONNECTED) == 1.0 && connections() == 2.0
    });
    assert!(begun.elapsed() > Duration::from_secs(45), "after {:?}", begun.elapsed());
    target.withstood();
}

/// A network namespace, joined to this one by a virtual cable.
struct FarHost;

impl FarHost {
    /// Returns `None` if the test may not create namespaces.
    fn build() -> Option<FarHost> {
        let host = FarHost;
        let script = "ip netns add btc-ticker-far &&
            ip link add far0 type veth peer name far1 netns btc-ticker-far &&
            ip addr add 10.213.7.1/24 dev far0 &&
            ip link set far0 up &&
            ip -n btc-ticker-far addr add 10.213.7.2/24 dev far1 &&
            ip -n btc-ticker-far link set far1 up";
        shell(script).then_some(host)
    }
}

impl Drop for FarHost {
    fn drop(&mut self) {
        shell("ip link del far0; ip netns del btc-ticker-far");
    }
}

fn shell(script: &str) -> bool {
    Command::new("sh").args(["-c", script]).output().unwrap().status.success()
}

#[test]
fn a_client_that_loses_its_network_is_disconnected() {
    let Some(_host) = FarHost::build() else {
        return skipped("a lost network was not tested: needs ip (iproute2), as root");
    };
    let server = Server::start_at("10.213.7.1:0", &Source::start(), &[]);
    let mut curl = Command::new("ip");
    curl.args(["netns", "exec", "btc-ticker-far", "curl", "-sN", &server.url("/stream")]);
    let mut curl = curl.stdout(Stdio::piped()).spawn().unwrap();
    curl.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    // No FIN and no reset can reach the server.
    assert!(shell("ip link set far0 down"));
    eventually_within(LONG, "it is disconnected", || server.metric(DISCONNECTED) == 1.0);
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
    curl.kill().unwrap();
    curl.wait().unwrap();
}
