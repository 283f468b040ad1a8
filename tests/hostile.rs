//! Misbehaving clients and an exhausted machine. Each bad client gets a clear response or none, normal clients
//! are served, open streams miss nothing, and no thread or descriptor leaks.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::redis::Redis;
use crate::common::{Answer, Event, Say, Server, Source, Stream, eventually, eventually_within};
use nix::sys::signal::Signal;

const STREAM: &[u8] = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n";
const PRICE: &[u8] = b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n";

/// The most that the resident memory may grow by under an attack, in KB.
const MAX_GROWTH: u64 = 4 * 1024;

/// A stream that a thread reads continuously, so that it never falls behind.
struct Witness(Arc<Mutex<Vec<Event>>>);

impl Witness {
    fn of(server: &Server) -> Witness {
        let mut stream = server.stream("/stream?since=0");
        let seen = Arc::new(Mutex::new(vec![stream.update()]));
        let witness = Witness(seen.clone());
        thread::spawn(move || {
            while let Some(event) = stream.next() {
                if event.id.is_some() {
                    seen.lock().unwrap().push(event);
                }
            }
        });
        witness
    }

    /// Asserts that the stream has received every update, and stops the server.
    fn missed_nothing(self, server: Server) {
        let published = || server.metric("btc_ticker_updates_published_total");
        eventually("ten updates are published", || published() >= 10.0);
        let latest = server.get("/price").json()["timestamp"].as_u64();
        let seen = || self.0.lock().unwrap().clone();
        eventually("the stream is up to date", || seen().last().unwrap().id >= latest);
        server.assert_complete(&seen());
        let (status, log) = server.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

/// Opens connections, sends this request on each, and keeps them open.
fn crowd(server: &Server, size: usize, request: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut connection = server.connect();
        connection.write_all(request).unwrap();
        connection
    };
    (0..size).map(open).collect()
}

/// Reads a response, which must be the last on its connection.
fn last_answer(connection: TcpStream) -> Answer {
    let mut reader = BufReader::new(connection);
    let answer = Answer::read(&mut reader, true).expect("a response");
    assert_eq!(answer.header("Connection"), Some("close"));
    assert_eq!(reader.read(&mut [0]).expect("FIN, not a reset"), 0, "data after {answer:?}");
    answer
}

fn is_served(server: &Server) -> bool {
    server.get("/price").status == 200
}

/// The threads and descriptors of a server without clients.
struct Baseline {
    threads: usize,
    descriptors: usize,
}

impl Baseline {
    /// Measures after a first stream, which may initialise something permanently.
    fn of(server: &Server) -> Baseline {
        server.stream("/stream").update();
        let mut baseline = Baseline { threads: 0, descriptors: 0 };
        eventually("the server is idle", || {
            let before = (baseline.threads, baseline.descriptors);
            thread::sleep(Duration::from_millis(300));
            (baseline.threads, baseline.descriptors) = (server.threads(), server.descriptors());
            before == (baseline.threads, baseline.descriptors)
        });
        baseline
    }

    fn is_restored(&self, server: &Server) {
        eventually("no thread leaks", || server.threads() <= self.threads);
        eventually("no descriptor leaks", || server.descriptors() <= self.descriptors);
    }
}

/// A keep-alive connection, for requests while the server has no further descriptor.
struct KeepAlive(BufReader<TcpStream>);

impl KeepAlive {
    fn to(server: &Server) -> KeepAlive {
        let mut connection = KeepAlive(BufReader::new(server.connect()));
        connection.get("/price");
        connection
    }

    fn get(&mut self, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        Answer::read(&mut self.0, true).expect("a response")
    }

    fn metric(&mut self, name: &str) -> f64 {
        self.get("/metrics").metric(name)
    }
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
    const TIMES: usize = 200;
    let source = Source::start();
    // A long interval, because a fetch that times out closes a descriptor.
    let server = Server::start(&source, &["--interval", "1s"]);
    let witness = Witness::of(&server);
    let mut monitor = KeepAlive::to(&server);
    let (threads, descriptors) = (server.threads(), server.descriptors());
    let began = Instant::now();
    for _ in 0..TIMES {
        eventually("earlier connections are closed", || server.descriptors() == descriptors);
        // All allowed descriptors are in use.
        limit(&server, &format!("--nofile={descriptors}:20000"));
        let before = monitor.metric("btc_ticker_accept_errors_total");
        // Linux allocates the descriptor before it waits for a connection, so one more is accepted. Another
        // may be accepted if a fetch has just timed out.
        let waiting =
            crowd(&server, 3, b"GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        eventually("accept fails", || monitor.metric("btc_ticker_accept_errors_total") > before);
        limit(&server, "--nofile=20000:20000");
        waiting.into_iter().for_each(|one| assert_eq!(last_answer(one).status, 200));
    }
    Baseline { threads, descriptors }.is_restored(&server);
    let lines = server.log().matches("cannot accept connections").count();
    let most = 1 + began.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&(lines as u64)), "{lines} log lines, expected 1 to {most}");
    witness.missed_nothing(server);
}

#[test]
fn without_threads_a_new_connection_gets_503() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut monitor = KeepAlive::to(&server);
    // Leaves less address space than a thread's stack. Stacks of ended threads are reused.
    let size = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let pages: u64 = size.split(' ').next().unwrap().parse().unwrap();
    limit(&server, &format!("--as={}:unlimited", pages * 4096 + 64 * 1024));
    let mut accepted = Vec::new();
    let refused = loop {
        let mut connection = server.connect();
        connection.write_all(STREAM).unwrap();
        let mut reader = BufReader::new(connection);
        let answer = Answer::read(&mut reader, true).expect("a response");
        if answer.status != 200 {
            break answer;
        }
        accepted.push(reader);
        assert!(accepted.len() < 1_000, "no connection is refused");
    };
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
    assert!(refused.error().contains("retry later"));
    assert!(monitor.metric("btc_ticker_threads_refused_total") >= 1.0);
    limit(&server, "--as=unlimited:unlimited");
    assert!(is_served(&server));
    eventually("the log reports it", || server.log().contains("no thread for a connection"));
    witness.missed_nothing(server);
}

/// A user id that has no other processes on this machine.
const USER: &str = "54321";

#[test]
fn a_fetch_that_fails_for_lack_of_a_thread_is_retried() {
    // The kernel does not enforce thread limits for root, so the server runs as another user, which must be
    // able to read the program.
    let program = std::env::temp_dir().join(format!("btc-ticker-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_btc-ticker"), &program).unwrap();
    let become_user = ["--reuid", USER, "--clear-groups"];
    let mut setpriv = Command::new("setpriv");
    if !setpriv.args(become_user).arg("true").status().is_ok_and(|status| status.success()) {
        return crate::common::skipped(
            "a fetch without a thread was not tested: needs setpriv, as root",
        );
    }
    let source = Source::start();
    // Each fetch opens a new connection, and looks up the name on a new thread.
    let price = |price: u64| {
        Say::Status(200, "Connection: close\r\n".into(), format!("{{\"price\":{price}}}"))
    };
    source.say(price(1));
    let line = format!(
        "ulimit -u 100 && exec setpriv --reuid {USER} --clear-groups {} \"$@\"",
        program.display()
    );
    let server = Server::start_by_shell(&line, &source, &["--interval", "50ms"]);
    let mut stream = server.stream("/stream");
    stream.update();
    let mut monitor = KeepAlive::to(&server);
    // Other processes take all threads that this user may have.
    let mut others = Command::new("setpriv");
    others.args(become_user).args([
        "bash",
        "-c",
        "for i in $(seq 200); do sleep 1000 & done; wait",
    ]);
    let mut others = others.stderr(Stdio::null()).spawn().unwrap();
    let failed = "btc_ticker_fetches_total{outcome=\"connection failed\"}";
    eventually("fetches fail", || monitor.metric(failed) >= 2.0);
    assert_eq!(monitor.get("/price").json()["price"], 1.0);
    let _ = Command::new("pkill").args(["-KILL", "-U", USER, "sleep|bash"]).status();
    let _ = others.wait();
    source.say(price(2));
    eventually("fetching resumes", || stream.update().price() == 2.0);
    let _ = std::fs::remove_file(program);
}

#[test]
fn a_demo_source_that_cannot_accept_does_not_stop_the_service() {
    let mut command = Server::command();
    let demo = ["--source", "demo", "--listen", "127.0.0.1:0", "--interval", "100ms"];
    let server = Server::run(command.args(demo));
    server.stream("/stream").update();
    let mut monitor = KeepAlive::to(&server);
    let port = demo_port(&server);
    // Accepting a connection fails for lack of a descriptor.
    limit(&server, &format!("--nofile={}:20000", server.descriptors()));
    let mut waiting = Vec::new();
    eventually("the demo refuses connections", || match TcpStream::connect(("127.0.0.1", port)) {
        Ok(connection) => {
            waiting.push(connection);
            false
        }
        Err(_) => true,
    });
    drop(waiting);
    limit(&server, "--nofile=20000:20000");
    // The poller's own connection to the demo may live on.
    monitor.get("/price");
    server.stream("/stream").event();
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("received a signal"), "{log}");
}

/// Returns the port of the other listening socket of this process.
fn demo_port(server: &Server) -> u16 {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", server.pid())).unwrap();
    let folder = format!("/proc/{}/fd", server.pid());
    let descriptors = std::fs::read_dir(folder).unwrap().flatten();
    let own: Vec<_> = descriptors.filter_map(|it| std::fs::read_link(it.path()).ok()).collect();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(words[1].split_once(':').unwrap().1, 16).unwrap();
        let socket = format!("socket:[{}]", words[9]);
        let is_own = own.iter().any(|link| link.as_os_str() == socket.as_str());
        let is_listening = words[3] == "0A";
        if is_own && is_listening && port != server.address.port() {
            return port;
        }
    }
    panic!("the demo does not listen:\n{table}");
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
    eventually("a first update", || is_served(&server));
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
    for start in [
        &b""[..],
        b"GET /price HT",
        b"nonsense\r\n\r\n",
        b"GET /history HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
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
    let ask = b"GET /stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut readers: Vec<TcpStream> =
        (0..READERS).map(|_| crate::common::narrow(&server)).collect();
    readers.iter_mut().for_each(|reader| reader.write_all(ask).unwrap());
    let published = || server.metric("btc_ticker_updates_published_total");
    let before_stall = published();
    eventually("readers stall while updates arrive", || published() >= before_stall + 20.0);
    let each = (server.resident() - before) / READERS;
    assert!(each < 150, "{each} KB for each reader");
}

#[test]
fn a_half_closed_client_is_still_served() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "2", "--heartbeat", "50ms"]);
    let half_closed = |request: &[u8]| {
        let mut connection = server.connect();
        connection.write_all(request).unwrap();
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
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let baseline = Baseline::of(&server);
    let one_each = |when: &str| {
        eventually(when, || server.threads() == baseline.threads + SIZE);
        eventually(when, || server.descriptors() == baseline.descriptors + SIZE);
    };
    let mut connections = crowd(&server, SIZE, b"");
    one_each("one each before the first byte");
    let head = b"GET /stream HTTP/1.1\r\nHost: x\r\n";
    connections.iter_mut().for_each(|c| c.write_all(head).unwrap());
    one_each("one each during the request");
    connections.iter_mut().for_each(|c| c.write_all(b"\r\n").unwrap());
    let streams: Vec<Stream> = connections.into_iter().map(Stream::receive).collect();
    one_each("one each during the response");
    drop(streams);
    baseline.is_restored(&server);
}

#[test]
fn a_burst_of_connections_fits_into_the_listen_queue() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    // The stopped server accepts none of them.
    server.signal(Signal::SIGSTOP);
    let less_than_a_retransmission = Duration::from_millis(900);
    let connect = || {
        let connection = TcpStream::connect_timeout(&server.address, less_than_a_retransmission);
        let mut connection = connection.expect("a place in the listen queue");
        connection.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
        connection.write_all(STREAM).unwrap();
        connection
    };
    let crowd: Vec<TcpStream> = (0..1_000).map(|_| connect()).collect();
    server.signal(Signal::SIGCONT);
    for mut stream in crowd.into_iter().map(Stream::receive).collect::<Vec<_>>() {
        stream.updates(2);
    }
}

#[test]
fn the_shutdown_waits_neither_for_the_source_nor_for_clients() {
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--interval", "20s"]);
    let streams: Vec<Stream> = (0..1_000).map(|_| server.stream("/stream")).collect();
    let mut idle = crowd(&server, 100, b"");
    idle.extend(crowd(&server, 100, PRICE));
    idle.extend(crowd(&server, 100, b"GET /pri"));
    eventually("all are accepted", || server.metric("btc_ticker_connections") >= 1_300.0);
    assert_eq!(server.metric("btc_ticker_clients"), 1_000.0);
    eventually("a fetch is pending", || !source.requests().is_empty());
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("before all threads have ended"), "every thread ends on its own: {log}");
    assert!(!log.contains("no price"), "a cancelled fetch is not a failure of the source: {log}");
    streams.into_iter().for_each(Stream::ends);
}

// ------------------------------------------------------------------- requests and connections

#[test]
fn requests_on_one_connection_are_answered_in_order_until_it_closes() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let price = get("/price");
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    let closing = "GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // The requests, sent at once, the statuses of the responses, and whether the connection is kept.
    for (requests, statuses, is_kept) in [
        (price.clone(), &[200][..], true),
        (
            [&price, &get("/nowhere"), &get("/healthz"), &price].map(String::as_str).concat(),
            &[200, 404, 200, 200],
            true,
        ),
        (format!("{price}{head}\r\nGET /x HTTP/1.1\nHost: x\n\n"), &[200, 200, 404], true),
        ("GET /price HTTP/1.0\r\n\r\n".into(), &[200], false),
        ("GET /price HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), &[200], true),
        (format!("{closing}{price}"), &[200], false),
        (format!("{price}GET / HTTP/3.0\r\n\r\n{price}"), &[200, 505], false),
    ] {
        let mut connection = server.connect();
        connection.write_all(requests.as_bytes()).unwrap();
        let mut reader = BufReader::new(connection);
        let mut last = None;
        let lines = requests.split('\n').filter(|line| line.contains("HTTP/"));
        for (line, status) in lines.zip(statuses) {
            let answer = Answer::read(&mut reader, !line.starts_with("HEAD"));
            let answer = answer.unwrap_or_else(|| panic!("too few responses to {requests:?}"));
            assert_eq!(answer.status, *status, "{line} of {requests:?}");
            last = Some(answer);
        }
        let word = if is_kept { "keep-alive" } else { "close" };
        assert_eq!(last.unwrap().header("Connection"), Some(word), "{requests:?}");
        if is_kept {
            reader.get_mut().write_all(get("/healthz").as_bytes()).unwrap();
            assert_eq!(Answer::read(&mut reader, true).unwrap().status, 200, "{requests:?}");
        } else {
            assert_eq!(reader.read(&mut [0]).expect("FIN"), 0, "{requests:?}");
        }
    }
    let many = price.repeat(10_000);
    let connection = server.connect();
    let mut writer = connection.try_clone().unwrap();
    let sent = thread::spawn(move || writer.write_all(many.as_bytes()));
    let mut reader = BufReader::new(connection);
    for _ in 0..10_000 {
        assert_eq!(Answer::read(&mut reader, true).expect("a response").status, 200);
    }
    sent.join().unwrap().unwrap();
}

/// Malformed and unusual requests, each with the status of its response.
fn unusual_requests() -> Vec<(u16, Vec<u8>)> {
    let text = |request: &str| request.as_bytes().to_vec();
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n").into_bytes();
    let heads = |headers: &str| format!("GET /price HTTP/1.1\r\n{headers}\r\n\r\n").into_bytes();
    let get = |headers: &str| heads(&format!("Host: x\r\n{headers}"));
    let chunked = |body: &str| {
        text(&format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
    };
    let lines = |count: usize| get(&["X: y"].repeat(count).join("\r\n"));
    vec![
        (413, get("Content-Length: 9000000000000000000")),
        (413, get("Content-Length: 18446744073709551615")),
        (413, get("Content-Length: 99999999999999999999999999")),
        (413, get("Content-Length: 1073741824")),
        (413, get("Content-Length: 2000")),
        (200, get("Content-Length: 0")),
        (400, get("Content-Length: -5")),
        (400, get("Content-Length: x")),
        (413, get("Content-Length: 5\r\nContent-Length: 5")),
        (400, get("Content-Length: 5\r\nContent-Length: 9000000000000000000")),
        (400, get("Content-Length: 5, 5")),
        (400, get("Content-Length: +5")),
        (400, get("Content-Length: 0x5")),
        (400, get("Content-Length : 5")),
        (413, get("Content-Length: 9000000000000000000\r\nExpect: 100-continue")),
        (413, get("Expect: 100-continue\r\nContent-Length: 500000")),
        (200, get("Expect: 100-continue")),
        (200, get("Expect: a miracle")),
        (200, get("Connection: upgrade\r\nUpgrade: websocket")),
        (200, line("GET /stream HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c")),
        (405, chunked("5\r\nhello\r\n0\r\n\r\n")),
        (405, chunked("FFFFFFFFFFFFFFFF\r\nx")),
        (405, chunked("-1\r\nzz\r\n")),
        (405, chunked(&"1\r\nx\r\n".repeat(50_000))),
        (400, get("Transfer-Encoding: gzip\r\nContent-Length: 12")),
        (400, get("Transfer-Encoding: chunked\r\nContent-Length: 12")),
        (400, get("Transfer-Encoding: chunked, identity")),
        (400, get("Transfer-Encoding: xchunked")),
        (400, get("Transfer-Encoding : chunked")),
        (400, text("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        (413, get("Transfer-Encoding: gzip, chunked")),
        (200, get("Connection: x-closed")),
        (200, get("Connection: keep-alive")),
        (200, get("Connection: close")),
        (400, text("GET /price HTTP/1.1\r\n\r\n")),
        (400, heads("Host: a\r\nHost: a")),
        (400, heads("Host: a\r\nHost: b")),
        (400, heads("Host:")),
        (400, heads("Host: u@a")),
        (400, heads("Host: a/b")),
        (400, heads("Host: a, b")),
        (200, heads("Host: a:80")),
        (200, heads("Host: [::1]:80")),
        (200, text("GET /price HTTP/1.0\r\n\r\n")),
        (400, line(" GET /price HTTP/1.1")),
        (400, line("GET  /price HTTP/1.1")),
        (400, line("GET /price  HTTP/1.1")),
        (400, line("GET\t/price HTTP/1.1")),
        (400, heads(" Host: x")),
        (400, heads("Host: x\r\n folded")),
        (400, get("X: a\r\n folded")),
        (400, get("X: a\rb")),
        (400, get("X: a\0b")),
        (400, get("X Y: a")),
        (400, get("X")),
        (400, get(": a")),
        (400, get("X[: a")),
        (200, get("X:")),
        (400, line("GET /price http/1.1")),
        (400, line("GET /price foo HTTP/1.1")),
        (400, line("GET /price HTTP/1")),
        (400, line("GET /price HTTP/1.1 ")),
        (505, line("GET /price HTTP/1.2")),
        (400, line("GET price HTTP/1.1")),
        (400, line("GET ftp://x/price HTTP/1.1")),
        (200, line("GET HTTPS://x/price HTTP/1.1")),
        (404, line("GET /../x HTTP/1.1")),
        (204, line("OPTIONS * HTTP/1.1")),
        (405, line("get /price HTTP/1.1")),
        (405, line("TRACE /price HTTP/1.1")),
        (405, text("POST /nowhere HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")),
        (200, [line("GET /stream HTTP/1.1"), line("GET /price HTTP/1.1")].concat()),
        (200, line("GET /stream HTTP/1.1").repeat(100)),
        (200, line("GET /stream HTTP/1.1\r\nLast-Event-ID: 1795426752977")),
        (200, line("GET /stream?since=0 HTTP/1.1\r\nLast-Event-ID: no")),
        (400, line("\x00\x01\x02\x1b[31m / HTTP/1.1")),
        (400, line("GET /\x07\x08?since=\x0b HTTP/1.1\r\nX: \x01\x02")),
        (400, line("GET /€?since=€ HTTP/1.1\r\nHöst: ü")),
        (400, b"GET /stream?since=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, get("Host: \u{202e}\r\nno colon here")),
        (505, text("GET / HTTP/0.9\r\n\r\n")),
        (505, text("GET / HTTP/2.0\r\n\r\n")),
        (505, text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        (505, text("GET / HTTP/9.9\r\n\r\n")),
        (400, text("GET\r\n\r\n")),
        (400, text("GET /stream\r\n\r\n")),
        (200, line("\r\n\r\n\r\nGET /price HTTP/1.1")),
        (431, text(&"\n".repeat(100_000))),
        (200, line("GET http://x/price HTTP/1.1")),
        (400, line("CONNECT x:80 HTTP/1.1")),
        (400, line("GET * HTTP/1.1")),
        (405, line("BREW /price HTTP/1.1")),
        (405, line("POST /price HTTP/1.1\r\nContent-Length: 1500000\r\nExpect: 100-continue")),
        (405, [line("POST /price HTTP/1.1\r\nContent-Length: 3"), text("x=1")].concat()),
        (431, line(&format!("GET /stream?{} HTTP/1.1", "a=b&".repeat(250_000)))),
        (431, line(&format!("GET /?since={} HTTP/1.1", "9".repeat(1_000_000)))),
        (400, line(&format!("GET /stream?since=-{} HTTP/1.1", "0".repeat(1_000)))),
        (431, get(&format!("Last-Event-ID: {}", "9".repeat(9_000)))),
        (431, lines(64)),
        (200, lines(63)),
        (431, lines(20_000)),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()), // A TLS handshake.
    ]
}

#[test]
fn every_unusual_request_gets_its_response() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let baseline = Baseline::of(&server);
    let requests = unusual_requests();
    let mut open = Vec::new();
    for (status, request) in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let mut connection = server.connect();
        // The client sends the whole request before it reads, and still receives the response.
        connection.write_all(request).unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        let mut reader = BufReader::new(connection);
        let answer = Answer::read(&mut reader, true).unwrap_or_else(|| panic!("none to {shown:?}"));
        assert_eq!(answer.status, *status, "{shown:?}");
        if answer.status >= 400 {
            assert!(answer.error().len() > 20, "not a sentence: {answer:?}");
        }
        if answer.status == 431 {
            assert!(answer.error().contains("8 KiB"), "{answer:?}");
        }
        open.push(reader);
    }
    assert!(is_served(&server));
    // One of the 400s is well-formed: a stream since a time that is invalid.
    for (status, well_formed) in [(400, 1), (413, 0), (431, 0), (505, 0)] {
        let expected = requests.iter().filter(|(answer, _)| *answer == status).count();
        let refused = server.metric(&format!(
            "btc_ticker_http_requests_total{{path=\"other\",status=\"{status}\"}}"
        ));
        assert_eq!(refused, (expected - well_formed) as f64, "{status}");
    }
    drop(open);
    baseline.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn attacks_leak_no_memory_thread_or_descriptor() {
    const MEGABYTE: usize = 1024 * 1024;
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let baseline = Baseline::of(&server);
    let post = |length: u64| {
        format!("POST /price HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
    };
    let exabytes = post(9_000_000_000_000_000_000) + "x";
    let megabyte = post(MEGABYTE as u64) + &"x".repeat(MEGABYTE);
    let before = server.resident();
    for (request, status) in [
        (&b"GET / HTTP/2.0\r\n\r\n"[..], 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
        (exabytes.as_bytes(), 405),
        (megabyte.as_bytes(), 405),
    ] {
        for _ in 0..200 {
            let mut connection = server.connect();
            // The client sends the whole request before it reads, and still receives the response.
            connection.write_all(request).unwrap();
            assert_eq!(last_answer(connection).status, status);
        }
    }
    // Header lines without an end, until the server closes the connection.
    let mut connections = crowd(&server, 20, b"GET / HTTP/1.1\r\nHost: x\r\nX: ");
    let mut sent = 0;
    for connection in &mut connections {
        while sent < 200 * MEGABYTE && connection.write_all(&[b'x'; 64 * 1024]).is_ok() {
            sent += 64 * 1024;
        }
    }
    let growth = server.resident().saturating_sub(before);
    assert!(growth < MAX_GROWTH, "{growth} KB after {} MB of headers", sent / MEGABYTE);
    drop(connections);
    baseline.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn idle_and_slow_requests_time_out_and_do_not_block_others() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let baseline = Baseline::of(&server);
    let silent = crowd(&server, 100, b"");
    let begun = crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\n");
    let answered = crowd(&server, 100, PRICE);
    let trickles = crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\nX: ");
    assert!(is_served(&server), "400 slow connections block a new one");
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
    for connection in begun {
        let answer = last_answer(connection);
        assert_eq!(answer.status, 408);
        assert!(answer.error().contains("5 s"));
    }
    for connection in answered {
        assert_eq!(rest_of(connection).matches("HTTP/1.1 200").count(), 1);
    }
    for connection in trickles {
        let answer = Answer::read(&mut BufReader::new(connection), true).expect("a response");
        assert_eq!(answer.status, 408);
    }
    trickle.join().unwrap();
    baseline.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn data_after_a_stream_request_is_neither_answered_nor_buffered() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let before = server.resident();
    let mut connections = crowd(&server, 20, &[STREAM, PRICE].concat());
    let mut sent = 0;
    for connection in &mut connections {
        connection.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Ok(length) = connection.write(&[b'x'; 64 * 1024]) {
            sent += length;
        }
    }
    assert!(sent < 20 * 8 * 1024 * 1024, "20 clients sent {sent} bytes");
    let growth = server.resident().saturating_sub(before);
    assert!(growth < MAX_GROWTH, "{growth} KB");
    for connection in connections {
        Stream::receive(connection).updates(3);
    }
    witness.missed_nothing(server);
}

#[test]
fn a_client_may_reuse_the_port_of_a_client_that_was_reset() {
    let source = Source::start();
    // No update arrives whose write would reveal to the server that the first client was reset.
    let server = Server::start(&source, &["--interval", "60s"]);
    server.stream("/stream").update();
    // An address of this process: no other connection takes the port.
    let [.., third, fourth] = std::process::id().to_be_bytes();
    let own = if cfg!(target_os = "linux") { [127, 55, third, fourth] } else { [127, 0, 0, 1] };
    let mut port = 0;
    for _ in 0..3 {
        let connection = connect_from(&server, own, port);
        port = connection.local_addr().unwrap().port();
        Stream::open(connection, "/stream", "").update();
    }
}

/// Connects from this port, or from any (0). Dropping the connection resets it, which frees the port at once.
fn connect_from(server: &Server, ip: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&std::net::SocketAddr::from((ip, port)).into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    socket.into()
}

/// A second address, if there is one: thousands of connections in a second reuse ports, and must not take
/// those of other tests.
const OTHER_ADDRESS: [u8; 4] =
    if cfg!(target_os = "linux") { [127, 0, 0, 2] } else { [127, 0, 0, 1] };

#[test]
fn thousands_of_mutated_requests_do_not_stop_the_service() {
    const REQUESTS: usize = 6_000;
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut seeds: Vec<Vec<u8>> = unusual_requests().into_iter().map(|(_, seed)| seed).collect();
    seeds.retain(|seed| seed.len() < 1_000);
    let mut random = Random(0x5eed);
    for round in 0..REQUESTS {
        let request = random.request(&seeds);
        let mut connection = connect_from(&server, OTHER_ADDRESS, 0);
        let _ = connection.write_all(&request);
        if round % 500 == 0 {
            assert!(is_served(&server), "after {:?}", String::from_utf8_lossy(&request));
        }
    }
    eventually("served", || is_served(&server));
    witness.missed_nothing(server);
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
    slow.write_all(b"GET /stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
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
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "5ms"]);
    let mut others = server.stream("/stream?since=0");
    let mut seen = others.updates(3);
    let mut stream = crate::common::narrow(&server);
    stream.write_all(STREAM).unwrap();
    let mut requests = crate::common::narrow(&server);
    requests.write_all(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200)).unwrap();
    let connections = || server.metric("btc_ticker_connections");
    eventually("all are accepted", || connections() >= 4.0);
    let begun = Instant::now();
    eventually_within(LONG, "both are disconnected", || {
        seen.extend(others.updates(3));
        server.metric(DISCONNECTED) == 1.0 && connections() == 2.0
    });
    assert!(begun.elapsed() > Duration::from_secs(45), "after {:?}", begun.elapsed());
    server.assert_complete(&seen);
}

/// A network namespace, joined to this one by a virtual cable.
struct FarHost;

const FAR: &str = "btc-ticker-far";

impl FarHost {
    /// Returns `None` if the test may not create namespaces.
    fn build() -> Option<FarHost> {
        let host = FarHost;
        let steps = [
            &format!("netns add {FAR}"),
            &format!("link add far0 type veth peer name far1 netns {FAR}"),
            "addr add 10.213.7.1/24 dev far0",
            "link set far0 up",
            &format!("-n {FAR} addr add 10.213.7.2/24 dev far1"),
            &format!("-n {FAR} link set far1 up"),
        ];
        steps.into_iter().all(ip).then_some(host)
    }
}

impl Drop for FarHost {
    fn drop(&mut self) {
        ip("link del far0");
        ip(&format!("netns del {FAR}"));
    }
}

fn ip(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_client_that_loses_its_network_is_disconnected() {
    let Some(_host) = FarHost::build() else {
        return crate::common::skipped(
            "a lost network was not tested: needs ip (iproute2), as root",
        );
    };
    let source = Source::start();
    let server = Server::start_at("10.213.7.1:0", &source, &[]);
    let url = server.url("/stream");
    let mut curl = Command::new("ip");
    curl.args(["netns", "exec", FAR, "curl", "-sN", &url]).stdout(Stdio::piped());
    let mut curl = curl.spawn().unwrap();
    let mut first = [0; 16];
    curl.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    // No FIN and no reset can reach the server.
    assert!(ip("link set far0 down"));
    eventually_within(LONG, "it is disconnected", || server.metric(DISCONNECTED) == 1.0);
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
    curl.kill().unwrap();
    curl.wait().unwrap();
}
