//! Clients that do what they should not, and a machine that has no more to give. Each of them gets a
//! clear answer or none, a normal client is served all the while, the streams that were open miss
//! nothing, and when the attack is over no thread and no descriptor is left of it.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Answer, Event, Say, Server, Source, Stream, eventually, eventually_within};
use nix::sys::signal::Signal;

/// A stream that is read all the time on a thread of its own, so that it never falls behind.
struct Witness(thread::JoinHandle<Vec<Event>>);

impl Witness {
    fn of(server: &Server) -> Witness {
        let mut stream = server.stream("/stream?since=0");
        stream.update();
        Witness(thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(event) = stream.next() {
                if event.id.is_some() {
                    seen.push(event);
                }
            }
            seen
        }))
    }

    /// Ends the server and checks that the stream had every update, by what it can replay.
    fn missed_nothing(self, server: Server) {
        let published = || server.metric("btc_ticker_updates_published_total");
        eventually("a few updates", || published() >= 10.0);
        let until = server.get("/price").json()["timestamp"].as_u64().unwrap();
        let mut replay = server.stream("/stream?since=0");
        let mut expected = Vec::new();
        while expected.last().is_none_or(|event: &Event| event.id < Some(until)) {
            expected.push(replay.update());
        }
        let (status, log) = server.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        let seen = self.0.join().unwrap();
        assert!(seen.len() > 3);
        let known: Vec<&Event> = expected.iter().filter(|event| event.id >= seen[0].id).collect();
        assert_eq!(seen.iter().take(known.len()).collect::<Vec<_>>(), known);
    }
}

/// Opens connections, each with this request, and keeps them.
fn crowd(server: &Server, size: usize, request: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut connection = server.connect();
        connection.write_all(request).unwrap();
        connection
    };
    (0..size).map(open).collect()
}

/// The answer on a connection, and then its end.
fn last_answer(connection: TcpStream) -> Answer {
    let mut reader = BufReader::new(connection);
    let answer = Answer::read(&mut reader, true).expect("an answer");
    assert_eq!(answer.header("Connection"), Some("close"));
    assert_eq!(reader.read(&mut [0]).expect("an end, not a reset"), 0, "more than {answer:?}");
    answer
}

fn is_served(server: &Server) -> bool {
    server.get("/price").status == 200
}

/// What a process has when nobody is connected.
struct Rest {
    threads: usize,
    descriptors: usize,
}

impl Rest {
    /// After the first of everything, which may leave something that is there for good.
    fn of(server: &Server) -> Rest {
        server.stream("/stream").update();
        let mut rest = Rest { threads: 0, descriptors: 0 };
        eventually("a server at rest", || {
            let before = (rest.threads, rest.descriptors);
            thread::sleep(Duration::from_millis(300));
            (rest.threads, rest.descriptors) = (server.threads(), server.descriptors());
            before == (rest.threads, rest.descriptors)
        });
        rest
    }

    fn is_restored(&self, server: &Server) {
        eventually("no thread is left", || server.threads() <= self.threads);
        eventually("no descriptor is left", || server.descriptors() <= self.descriptors);
    }
}

/// A connection on which one request follows the other, so that it needs no new descriptor.
struct Line(BufReader<TcpStream>);

impl Line {
    fn to(server: &Server) -> Line {
        Line(BufReader::new(server.connect()))
    }

    fn get(&mut self, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        Answer::read(&mut self.0, true).expect("an answer")
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

// ------------------------------------------------------------------------- what is used up

#[test]
fn without_descriptors_nobody_is_lost_and_accepting_goes_on() {
    const TIMES: usize = 200;
    let source = Source::start();
    // Patient, because a fetch that times out closes a descriptor.
    let server = Server::start(&source, &["--interval", "1s"]);
    let witness = Witness::of(&server);
    let mut line = Line::to(&server);
    line.metric("btc_ticker_accept_errors_total");
    let (threads, descriptors) = (server.threads(), server.descriptors());
    let began = Instant::now();
    for _ in 0..TIMES {
        eventually("the last one has gone", || server.descriptors() == descriptors);
        // All that it has are in use.
        limit(&server, &format!("--nofile={descriptors}:20000"));
        let before = line.metric("btc_ticker_accept_errors_total");
        // Linux takes the descriptor first and then waits for a connection: so there is one more.
        // A third one for a fetch that timed out just now.
        let waiting =
            crowd(&server, 3, b"GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        eventually("accept fails", || line.metric("btc_ticker_accept_errors_total") > before);
        limit(&server, "--nofile=20000:20000");
        waiting.into_iter().for_each(|one| assert_eq!(last_answer(one).status, 200));
    }
    eventually("no thread is left", || server.threads() <= threads);
    eventually("no descriptor is left", || server.descriptors() <= descriptors);
    let lines = server.log().matches("cannot accept connections").count();
    let most = 1 + began.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&(lines as u64)), "{lines} lines, at most {most} are of use");
    witness.missed_nothing(server);
}

#[test]
fn without_threads_a_newcomer_is_told() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut line = Line::to(&server);
    line.get("/price");
    // Less than the stack of a thread is free. Stacks of threads that have ended are used again.
    let size = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let pages: u64 = size.split(' ').next().unwrap().parse().unwrap();
    limit(&server, &format!("--as={}:unlimited", pages * 4096 + 64 * 1024));
    let mut inside = Vec::new();
    let refused = loop {
        let mut connection = server.connect();
        connection.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut reader = BufReader::new(connection);
        let answer = Answer::read(&mut reader, true).expect("an answer");
        if answer.status != 200 {
            break answer;
        }
        inside.push(reader);
        assert!(inside.len() < 1_000, "there is always another thread");
    };
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
    assert!(refused.error().contains("retry later"));
    assert!(line.metric("btc_ticker_threads_refused_total") >= 1.0);
    limit(&server, "--as=unlimited:unlimited");
    assert!(is_served(&server));
    eventually("it is in the log", || server.log().contains("no thread for a connection"));
    witness.missed_nothing(server);
}

/// A user of this machine who has nothing else here.
const NOBODY_ELSE: &str = "54321";

#[test]
fn a_source_that_cannot_be_asked_for_want_of_a_thread_is_a_source_that_fails() {
    // A limit of threads is none for root, so this takes another user. It needs to read the program.
    let program = std::env::temp_dir().join(format!("btc-ticker-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_btc-ticker"), &program).unwrap();
    let become_user = ["--reuid", NOBODY_ELSE, "--clear-groups"];
    let mut setpriv = Command::new("setpriv");
    if !setpriv.args(become_user).arg("true").status().is_ok_and(|status| status.success()) {
        return common::skipped(
            "a source without a thread was not tested: it takes setpriv, as root",
        );
    }
    let source = Source::start();
    // Each fetch is on a new connection, for which a name is looked up, by a thread.
    let price = |price: u64| {
        Say::Status(200, "Connection: close\r\n".into(), format!("{{\"price\":{price}}}"))
    };
    source.say(price(1));
    let line = format!(
        "ulimit -u 100 && exec setpriv --reuid {NOBODY_ELSE} --clear-groups {} \"$@\"",
        program.display()
    );
    let server = Server::start_by_shell(&line, &source, &["--interval", "50ms"]);
    let mut stream = server.stream("/stream");
    stream.update();
    let mut line = Line::to(&server);
    line.get("/price");
    // Somebody takes all the threads that this user may have.
    let mut others = Command::new("bash");
    let crowd = "for i in $(seq 200); do sleep 1000 & done; wait";
    let mut others = others
        .args([
            "-c",
            &format!("exec setpriv --reuid {NOBODY_ELSE} --clear-groups bash -c '{crowd}'"),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let failed = "btc_ticker_fetches_total{outcome=\"connection failed\"}";
    eventually("there is no thread", || line.metric(failed) >= 2.0);
    assert_eq!(line.get("/price").json()["price"], 1.0);
    let _ = Command::new("pkill").args(["-KILL", "-U", NOBODY_ELSE, "sleep|bash"]).status();
    let _ = others.wait();
    source.say(price(2));
    eventually("it is asked again", || stream.update().price() == 2.0);
    let _ = std::fs::remove_file(program);
}

#[test]
fn a_demo_that_accepts_no_more_is_a_source_that_fails() {
    let mut command = Server::command();
    let demo = ["--source", "demo", "--listen", "127.0.0.1:0", "--interval", "100ms"];
    let server = Server::run(command.args(demo));
    server.stream("/stream").update();
    let mut line = Line::to(&server);
    line.get("/price");
    let ports = listening_ports(&server);
    let port = ports.iter().find(|port| **port != server.address.port()).unwrap();
    // No descriptor is left for whoever connects to it.
    limit(&server, &format!("--nofile={}:20000", server.descriptors()));
    let mut waiting = Vec::new();
    eventually("it accepts no more", || match TcpStream::connect(("127.0.0.1", *port)) {
        Ok(connection) => {
            waiting.push(connection);
            false
        }
        Err(_) => true,
    });
    drop(waiting);
    limit(&server, "--nofile=20000:20000");
    // The connection that the poller has may go on; the service does, and ends as ever.
    line.get("/price");
    server.stream("/stream").event();
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("received a signal"), "{log}");
}

/// The ports on which a server listens, as Linux has it.
fn listening_ports(server: &Server) -> Vec<u16> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", server.pid())).unwrap();
    let folder = format!("/proc/{}/fd", server.pid());
    let descriptors = std::fs::read_dir(folder).unwrap().flatten();
    let own: Vec<_> = descriptors.filter_map(|it| std::fs::read_link(it.path()).ok()).collect();
    let mut ports = Vec::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let socket = format!("socket:[{}]", words[9]);
        if words[3] == "0A" && own.iter().any(|link| link.as_os_str() == socket.as_str()) {
            let (_, port) = words[1].split_once(':').unwrap();
            ports.push(u16::from_str_radix(port, 16).unwrap());
        }
    }
    ports
}

#[test]
fn a_small_limit_of_threads_is_lived_with() {
    let source = Source::start();
    // As root the limit is not in force, but it is what the service reads.
    let server = Server::start_with_limit("-u 300", &source, &[]);
    server.stream("/stream").update();
    eventually("it says so", || server.log().contains("(ulimit -u 300)"));
    assert_eq!(server.metric("btc_ticker_connections_max"), 236.0);
}

// ------------------------------------------------------------------------------ full houses

#[test]
fn full_of_streams_is_an_answer_and_a_price_is_too() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 128", &source, &[]);
    let most = server.metric("btc_ticker_clients_max") as usize;
    let mut inside: Vec<Stream> = (0..most).map(|_| server.stream("/stream?since=0")).collect();
    for _ in 0..20 {
        let refused = server.get("/stream");
        assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
        assert_eq!(refused.header("Connection"), Some("close"), "others need the connection");
        assert!(refused.error().contains("full"));
    }
    for path in ["/price", "/healthz", "/metrics", "/"] {
        assert_eq!(server.get(path).status, 200, "only streams are counted");
    }
    let seen: Vec<Vec<Event>> = inside.iter_mut().map(|stream| stream.updates(10)).collect();
    assert!(seen.iter().all(|updates| *updates == seen[0]));
    drop(inside);
    eventually("places are free again", || server.metric("btc_ticker_clients") == 0.0);
    server.assert_complete(&seen[0]);
}

#[test]
fn slow_readers_hold_a_page_each() {
    const READERS: u64 = 50;
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "1ms"]);
    let updates = || server.metric("btc_ticker_history_updates");
    // Five pages.
    common::eventually_within(3 * common::PATIENCE, "a long history", || updates() >= 5_000.0);
    let before = server.resident();
    let ask = b"GET /stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut readers: Vec<TcpStream> = (0..READERS).map(|_| common::narrow(&server)).collect();
    readers.iter_mut().for_each(|reader| reader.write_all(ask).unwrap());
    let published = updates();
    eventually("they stall while updates arrive", || updates() >= published + 1_000.0);
    let each = (server.resident() - before) / READERS;
    assert!(each < 150, "{each} KB for each");
}

#[test]
fn connections_that_ask_for_nothing_do_not_keep_others_out() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 160", &source, &[]);
    let most = server.metric("btc_ticker_clients_max") as usize;
    let mut inside: Vec<Stream> = (0..most).map(|_| server.stream("/stream?since=0")).collect();
    for start in [
        &b""[..],
        b"GET /price HT",
        b"nonsense\r\n\r\n",
        b"GET /history HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let crowd = crowd(&server, 200, start);
        for _ in 0..150 {
            assert_eq!(server.get("/healthz").status, 200);
        }
        drop(crowd);
    }
    assert!(server.metric("btc_ticker_connections_displaced_total") > 0.0);
    let seen: Vec<Vec<Event>> = inside.iter_mut().map(|stream| stream.updates(10)).collect();
    assert!(seen.iter().all(|updates| *updates == seen[0]), "streams keep their places");
}

#[test]
fn a_half_closed_client_is_not_gone() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "2", "--heartbeat", "50ms"]);
    let connection = server.connect();
    (&connection).write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut half = Stream::receive(connection);
    let _other = server.stream("/stream");
    for _ in 0..5 {
        assert_eq!(server.get("/stream").status, 503, "it keeps its place");
    }
    half.updates(30);
    let connection = server.connect();
    (&connection).write_all(b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut reader = BufReader::new(connection);
    assert_eq!(Answer::read(&mut reader, true).unwrap().status, 200);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nobody can ask any more");
}

#[test]
fn asking_for_more_than_the_machine_has_is_told_and_survived() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 200", &source, &["--max-clients", "100000"]);
    eventually("what to raise", || server.log().contains("ulimit -Hn to 103258"));
    let possible = server.metric("btc_ticker_clients_max");
    assert_eq!(possible, 163.0);
    let streams: Vec<Stream> = (0..163).map(|_| server.stream("/stream")).collect();
    drop(streams);
}

#[test]
fn a_connection_is_one_thread_and_one_descriptor_from_its_first_byte() {
    const SIZE: usize = 200;
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let rest = Rest::of(&server);
    let all = |of: &str| {
        eventually(of, || server.threads() == rest.threads + SIZE);
        eventually(of, || server.descriptors() == rest.descriptors + SIZE);
    };
    let mut connections = crowd(&server, SIZE, b"");
    all("they have said nothing");
    connections
        .iter_mut()
        .for_each(|c| c.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n").unwrap());
    all("they are about to ask");
    connections.iter_mut().for_each(|c| c.write_all(b"\r\n").unwrap());
    let streams: Vec<Stream> = connections.into_iter().map(Stream::receive).collect();
    all("they are served");
    drop(streams);
    rest.is_restored(&server);
}

#[test]
fn a_burst_is_answered() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    // Nobody accepts while all of them connect, so this is the listen backlog and nothing else.
    server.signal(Signal::SIGSTOP);
    let second = Duration::from_millis(900); // Less than a SYN takes to be repeated.
    let connect = || {
        let connection = TcpStream::connect_timeout(&server.address, second);
        let mut connection = connection.expect("a place in the listen backlog");
        connection.set_read_timeout(Some(common::PATIENCE)).unwrap();
        connection.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        connection
    };
    let crowd: Vec<TcpStream> = (0..1_000).map(|_| connect()).collect();
    server.signal(Signal::SIGCONT);
    let streams: Vec<Stream> = crowd.into_iter().map(Stream::receive).collect();
    for mut stream in streams {
        stream.updates(2);
    }
}

// ------------------------------------------------------------------- requests and connections

#[test]
fn requests_follow_each_other_as_their_version_has_it() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    // (what is sent at once, how many answers it gets, whether the connection then goes on)
    for (requests, answers, goes_on) in [
        ("GET /price HTTP/1.1\r\nHost: x\r\n\r\n", 1, true),
        (
            "GET /price HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\n\r\nGET /x HTTP/1.1\nHost: x\n\n",
            3,
            true,
        ),
        ("GET /price HTTP/1.0\r\n\r\n", 1, false),
        ("GET /price HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 1, true),
        (
            "GET /price HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /price HTTP/1.1\r\nHost: x\r\n\r\n",
            1,
            false,
        ),
        (
            "GET /price HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/3.0\r\n\r\nGET /price HTTP/1.1\r\nHost: x\r\n\r\n",
            2,
            false,
        ),
    ] {
        let mut connection = server.connect();
        connection.write_all(requests.as_bytes()).unwrap();
        let mut reader = BufReader::new(connection);
        let mut last = None;
        for method in requests.split('\n').filter(|line| line.contains("HTTP/")).take(answers) {
            let answer = Answer::read(&mut reader, !method.starts_with("HEAD"));
            last = Some(answer.unwrap_or_else(|| panic!("too few answers to {requests:?}")));
        }
        let word = if goes_on { "keep-alive" } else { "close" };
        assert_eq!(last.unwrap().header("Connection"), Some(word), "{requests:?}");
        if goes_on {
            reader.get_mut().write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_eq!(Answer::read(&mut reader, true).unwrap().status, 200, "{requests:?}");
        } else {
            assert_eq!(reader.read(&mut [0]).expect("an end"), 0, "{requests:?}");
        }
    }
    let many = "GET /price HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10_000);
    let connection = server.connect();
    let mut writer = connection.try_clone().unwrap();
    let sent = thread::spawn(move || writer.write_all(many.as_bytes()));
    let mut reader = BufReader::new(connection);
    for _ in 0..10_000 {
        assert_eq!(Answer::read(&mut reader, true).expect("an answer").status, 200);
    }
    sent.join().unwrap().unwrap();
}

#[test]
fn every_odd_request_has_its_answer() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let rest = Rest::of(&server);
    let get =
        |headers: &str| format!("GET /price HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
    let length = |value: &str| get(&format!("Content-Length: {value}\r\n"));
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let requests: Vec<(u16, Vec<u8>)> = vec![
        (413, length("9000000000000000000")),
        (413, length("18446744073709551615")),
        (413, length("99999999999999999999999999")),
        (413, length("1073741824")),
        (200, length("0")),
        (400, length("-5")),
        (400, length("x")),
        (413, get("Content-Length: 5\r\nContent-Length: 5\r\n")),
        (400, get("Content-Length: 5\r\nContent-Length: 9000000000000000000\r\n")),
        (400, get("Content-Length: 5, 5\r\n")),
        (400, get("Content-Length: +5\r\n")),
        (400, get("Content-Length: 0x5\r\n")),
        (400, get("Content-Length : 5\r\n")),
        (413, get("Content-Length: 9000000000000000000\r\nExpect: 100-continue\r\n")),
        (413, get("Expect: 100-continue\r\nContent-Length: 500000\r\n")),
        (200, get("Expect: a miracle\r\n")),
        (200, get("Connection: upgrade\r\nUpgrade: websocket\r\n")),
        (
            200,
            b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
                .to_vec(),
        ),
        (405, format!("{chunked}5\r\nhello\r\n0\r\n\r\n").into_bytes()),
        (405, format!("{chunked}FFFFFFFFFFFFFFFF\r\nx").into_bytes()),
        (405, format!("{chunked}-1\r\nzz\r\n").into_bytes()),
        (405, format!("{chunked}{}", "1\r\nx\r\n".repeat(50_000)).into_bytes()),
        (400, get("Transfer-Encoding: gzip\r\nContent-Length: 12\r\n")),
        (400, get("Transfer-Encoding: chunked\r\nContent-Length: 12\r\n")),
        (400, get("Transfer-Encoding: chunked, identity\r\n")),
        (400, get("Transfer-Encoding: xchunked\r\n")),
        (400, get("Transfer-Encoding : chunked\r\n")),
        (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        (413, get("Transfer-Encoding: gzip, chunked\r\n")),
        (200, get("Connection: x-closed\r\n")),
        (400, b"GET /price HTTP/1.1\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost:\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: u@a\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: a, b\r\n\r\n".to_vec()),
        (200, b"GET /price HTTP/1.1\r\nHost: a:80\r\n\r\n".to_vec()),
        (200, b"GET /price HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".to_vec()),
        (200, b"GET /price HTTP/1.0\r\n\r\n".to_vec()),
        (400, b" GET /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET  /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /price  HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET\t/price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\n Host: x\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n".to_vec()),
        (400, get("X: a\r\n folded\r\n")),
        (400, get("X: a\rb\r\n")),
        (400, get("X: a\0b\r\n")),
        (400, get("X Y: a\r\n")),
        (400, get("X\r\n")),
        (400, get(": a\r\n")),
        (400, get("X[: a\r\n")),
        (200, get("X:\r\n")),
        (400, b"GET /price http/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /price foo HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /price HTTP/1.1 \r\nHost: x\r\n\r\n".to_vec()),
        (505, b"GET /price HTTP/1.2\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET ftp://x/price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (200, b"GET HTTPS://x/price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (204, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (405, b"get /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (405, b"TRACE /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (405, b"POST /nowhere HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc".to_vec()),
        (
            200,
            b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\nGET /price HTTP/1.1\r\nHost: x\r\n\r\n"
                .to_vec(),
        ),
        (200, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)),
        (400, b"\x00\x01\x02\x1b[31m / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET /\x07\x08?since=\x0b HTTP/1.1\r\nHost: x\r\nX: \x01\x02\r\n\r\n".to_vec()),
        (400, "GET /€?since=€ HTTP/1.1\r\nHost: x\r\nHöst: ü\r\n\r\n".into()),
        (400, b"GET /stream?since=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, get("Host: \u{202e}\r\nno colon here\r\n")),
        (505, b"GET / HTTP/0.9\r\n\r\n".to_vec()),
        (505, b"GET / HTTP/2.0\r\n\r\n".to_vec()),
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        (505, b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        (400, b"GET\r\n\r\n".to_vec()),
        (400, b"GET /stream\r\n\r\n".to_vec()),
        (200, b"\r\n\r\n\r\nGET /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (431, b"\n".repeat(100_000)),
        (200, b"GET http://x/price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (405, b"BREW /price HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            431,
            format!("GET /stream?{} HTTP/1.1\r\nHost: x\r\n\r\n", "a=b&".repeat(250_000))
                .into_bytes(),
        ),
        (
            431,
            format!("GET /?since={} HTTP/1.1\r\nHost: x\r\n\r\n", "9".repeat(1_000_000))
                .into_bytes(),
        ),
        (
            400,
            format!("GET /stream?since=-{} HTTP/1.1\r\nHost: x\r\n\r\n", "0".repeat(1_000)).into(),
        ),
        (
            431,
            format!("GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {}\r\n\r\n", "9".repeat(9_000))
                .into(),
        ),
        (431, get(&"X: y\r\n".repeat(64))),
        (200, get(&"X: y\r\n".repeat(63))),
        (431, get(&"X: y\r\n".repeat(20_000))),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()), // A TLS handshake.
    ];
    let mut open = Vec::new();
    for (status, request) in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let mut connection = server.connect();
        // All of it is sent before anything is read, and still the answer is there.
        connection.write_all(request).unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        let mut reader = BufReader::new(connection);
        let answer = Answer::read(&mut reader, true).unwrap_or_else(|| panic!("none to {shown:?}"));
        assert_eq!(answer.status, *status, "{shown:?}");
        if answer.status >= 400 {
            assert!(answer.error().len() > 20, "a sentence: {answer:?}");
        }
        open.push(reader);
    }
    assert!(is_served(&server));
    // One that is 400 is understood: it asks for a stream since a time that is none.
    for (status, understood) in [(400, 1), (413, 0), (431, 0), (505, 0)] {
        let answered = requests.iter().filter(|(answer, _)| *answer == status).count();
        let refused = server.metric(&format!(
            "btc_ticker_http_requests_total{{path=\"other\",status=\"{status}\"}}"
        ));
        assert_eq!(refused, (answered - understood) as f64, "{status}");
    }
    drop(open);
    rest.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn an_endless_header_takes_no_memory() {
    const MEGABYTE: usize = 1024 * 1024;
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let rest = Rest::of(&server);
    let before = server.resident();
    let mut connections = crowd(&server, 20, b"GET / HTTP/1.1\r\nHost: x\r\nX: ");
    // They go on until they are told, and beyond.
    let mut sent = 0;
    for connection in &mut connections {
        while sent < 200 * MEGABYTE && connection.write_all(&[b'x'; 64 * 1024]).is_ok() {
            sent += 64 * 1024;
        }
    }
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KB for {} MB that were sent", sent / MEGABYTE);
    drop(connections);
    let answer =
        server.ask(&format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(9_000)));
    assert_eq!(answer.status, 431);
    assert!(answer.error().contains("8 KiB"));
    rest.is_restored(&server);
}

#[test]
fn silence_and_trickles_are_bounded_and_keep_nobody_out() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let rest = Rest::of(&server);
    let silent = crowd(&server, 100, b"");
    let begun = crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\n");
    let answered = crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n");
    let trickles = crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\nX: ");
    assert!(is_served(&server), "400 slow connections keep a newcomer out");
    // A byte now and then is no reason to wait for longer.
    let trickling: Vec<TcpStream> = trickles.iter().map(|c| c.try_clone().unwrap()).collect();
    let trickle = thread::spawn(move || {
        let mut open = trickling;
        while !open.is_empty() {
            thread::sleep(Duration::from_millis(100));
            open.retain_mut(|connection| connection.write_all(b"x").is_ok());
        }
    });
    for mut connection in silent {
        let mut rest = Vec::new();
        assert_eq!(connection.read_to_end(&mut rest).expect("an end"), 0);
    }
    for connection in begun {
        let answer = last_answer(connection);
        assert_eq!(answer.status, 408);
        assert!(answer.error().contains("5 s"));
    }
    for mut connection in answered {
        let mut rest = String::new();
        connection.read_to_string(&mut rest).expect("an end");
        assert_eq!(rest.matches("HTTP/1.1 200").count(), 1);
    }
    for connection in trickles {
        let answer = Answer::read(&mut BufReader::new(connection), true).expect("an answer");
        assert_eq!(answer.status, 408);
    }
    trickle.join().unwrap();
    rest.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn two_hundred_of_each_attack_leave_nothing_behind() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let rest = Rest::of(&server);
    let exabytes =
        b"POST /price HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000000\r\n\r\nx".to_vec();
    let megabyte = b"POST /price HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n".to_vec();
    let megabyte = [megabyte, vec![b'x'; 1024 * 1024]].concat();
    let before = server.resident();
    for (request, status) in [
        (&b"GET / HTTP/2.0\r\n\r\n"[..], 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
        (&exabytes, 405),
        (&megabyte, 405),
    ] {
        for _ in 0..200 {
            let mut connection = server.connect();
            // Sent to its end before anything is read: and then the answer is still there.
            connection.write_all(request).unwrap();
            assert_eq!(last_answer(connection).status, status);
        }
    }
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KB");
    rest.is_restored(&server);
    witness.missed_nothing(server);
}

#[test]
fn curl_is_told_what_it_does_wrong() {
    if Command::new("curl").arg("--version").output().is_err() {
        return common::skipped("bad requests of curl were not tested: curl is not installed");
    }
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let rest = Rest::of(&server);
    let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("upload");
    std::fs::write(&file, vec![b'x'; 1_500_000]).unwrap();
    let upload = format!("x=@{}", file.display());
    let url = server.url("/price");
    for _ in 0..20 {
        let curl = |arguments: &[&str]| {
            let output = Command::new("curl").arg("-s").args(arguments).arg(&url).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (success, said) = curl(&["-F", &upload]);
        assert!(success && said.contains("unsupported method"), "{said}");
        let (success, said) = curl(&["-d", "x=1"]);
        assert!(success && said.contains("unsupported method"), "{said}");
        assert!(!curl(&["--http2-prior-knowledge"]).0, "it speaks HTTP/1.1 only");
        assert!(curl(&["--http2"]).0, "which is an offer, and none that is taken");
        assert!(curl(&["--http1.0"]).0);
    }
    rest.is_restored(&server);
}

#[test]
fn what_is_sent_behind_a_stream_is_neither_answered_nor_kept() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let before = server.resident();
    let mut connections = crowd(
        &server,
        20,
        b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\nGET /price HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    let mut sent = 0;
    for connection in &mut connections {
        connection.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Ok(length) = connection.write(&[b'x'; 64 * 1024]) {
            sent += length;
        }
    }
    assert!(sent < 20 * 8 * 1024 * 1024, "the kernel holds {sent} bytes of 20 clients");
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KB");
    for connection in connections {
        let mut stream = Stream::receive(connection);
        stream.updates(3);
    }
    witness.missed_nothing(server);
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut idle = crowd(&server, 100, b"");
    idle.extend(crowd(&server, 100, b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n"));
    idle.extend(crowd(&server, 100, b"GET /pri"));
    eventually("all are in", || server.metric("btc_ticker_connections") >= 301.0);
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("not waiting"), "{log}");
    drop(witness);
}

#[test]
fn a_port_that_was_another_clients_is_no_obstacle() {
    let source = Source::start();
    // No update comes that would tell the server that the first client has gone.
    let server = Server::start(&source, &["--interval", "60s"]);
    server.stream("/stream").update();
    let mut port = 0;
    for _ in 0..3 {
        let connection = connect_from(&server, [127, 0, 0, 1], port);
        port = connection.local_addr().unwrap().port();
        Stream::open(connection, "/stream", "").update();
    }
}

/// A connection from a port of one's own choice, or from any (0), that is reset when it is dropped,
/// so that its port is free at once.
fn connect_from(server: &Server, ip: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&std::net::SocketAddr::from((ip, port)).into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    socket.into()
}

/// Thousands of connections in a second use a port again, which says nothing to others.
const STRANGER: [u8; 4] = if cfg!(target_os = "linux") { [127, 0, 0, 2] } else { [127, 0, 0, 1] };

#[test]
fn thousands_of_mutated_requests() {
    const REQUESTS: usize = 6_000;
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut random = Random(0x5eed);
    for round in 0..REQUESTS {
        let request = random.request();
        let mut connection = connect_from(&server, STRANGER, 0);
        let _ = connection.write_all(&request);
        if round % 500 == 0 {
            assert!(is_served(&server), "after {:?}", String::from_utf8_lossy(&request));
        }
    }
    eventually("served", || is_served(&server));
    witness.missed_nothing(server);
}

/// A fixed sequence (xorshift), so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// A request that is valid, then bent in up to three places.
    fn request(&mut self) -> Vec<u8> {
        let method = self.pick(&["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "GeT", ""]);
        let path = self.pick(&[
            "/",
            "/stream",
            "/stream?since=0",
            "/price",
            "/metrics",
            "/healthz",
            "/../x",
            "*",
        ]);
        let version = self.pick(&["1.1", "1.1", "1.1", "1.1", "1.0", "1.0", "0.9", "7.5", ""]);
        let mut request = format!("{method} {path} HTTP/{version}\r\n");
        for _ in 0..self.below(4) {
            let line = self.pick(&[
                "Host: x",
                "Connection: close",
                "Connection: keep-alive",
                "Connection: upgrade",
                "Content-Length: 0",
                "Content-Length: 3",
                "Content-Length: 2000",
                "Transfer-Encoding: chunked",
                "Expect: 100-continue",
                "Last-Event-ID: 1795426752977",
                "Last-Event-ID: no",
                "X",
                ": ",
            ]);
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str(self.pick(&[
            "\r\n",
            "\r\n",
            "\r\n\r\nabc",
            "\r\n5\r\nhello\r\n0\r\n\r\n",
            "",
        ]));
        let mut bytes = request.into_bytes();
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

// ------------------------------------------------------------------------ slow, stuck, out of reach

const STUCK: &str = "btc_ticker_streams_ended_total{reason=\"stuck\"}";
/// The service waits for a minute.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_slow_reader_that_keeps_reading_is_not_disconnected() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "1ms"]);
    // More than all buffers on the way hold, and more with each millisecond.
    let updates = || server.metric("btc_ticker_history_updates");
    eventually_within(LONG, "a long history", || updates() >= 3_000.0);
    let mut slow = server.connect();
    slow.write_all(b"GET /stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let begun = Instant::now();
    // 6 KB/s.
    while begun.elapsed() < Duration::from_secs(40) {
        slow.read_exact(&mut [0; 600]).expect("the stream continues");
        thread::sleep(Duration::from_millis(100));
    }
    // What has arrived can be read even after the server has reset the connection.
    assert_eq!(server.metric(STUCK), 0.0);
    assert_eq!(server.metric("btc_ticker_clients"), 1.0);
}

#[test]
fn a_stuck_reader_is_disconnected() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "5ms"]);
    let mut others = server.stream("/stream?since=0");
    let mut seen = others.updates(3);
    // They never read, so before long their buffers are full.
    let mut stream = common::narrow(&server);
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut requests = common::narrow(&server);
    requests.write_all(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200)).unwrap();
    eventually("they are in", || server.metric("btc_ticker_connections") >= 4.0);
    let begun = Instant::now();
    let connections = || server.metric("btc_ticker_connections");
    eventually_within(LONG, "they are disconnected", || {
        seen.extend(others.updates(3));
        server.metric(STUCK) == 1.0 && connections() == 2.0
    });
    assert!(begun.elapsed() > Duration::from_secs(45), "after {:?}", begun.elapsed());
    server.assert_complete(&seen);
}

/// A host of its own on this machine, joined to it by a cable that can be cut.
struct FarHost;

const FAR: &str = "btc-ticker-far";

impl FarHost {
    /// `None` where this system does not let us make one.
    fn build() -> Option<FarHost> {
        let host = FarHost;
        let steps = [
            format!("ip netns add {FAR}"),
            format!("ip link add far0 type veth peer name far1 netns {FAR}"),
            "ip addr add 10.213.7.1/24 dev far0".to_owned(),
            "ip link set far0 up".to_owned(),
            format!("ip -n {FAR} addr add 10.213.7.2/24 dev far1"),
            format!("ip -n {FAR} link set far1 up"),
        ];
        steps.iter().all(|step| run(step)).then_some(host)
    }

    fn cut(&self) {
        assert!(run("ip link set far0 down"));
    }
}

impl Drop for FarHost {
    fn drop(&mut self) {
        run("ip link del far0");
        run(&format!("ip netns del {FAR}"));
    }
}

fn run(command: &str) -> bool {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_peer_whose_network_has_failed_is_noticed() {
    let Some(host) = FarHost::build() else {
        return common::skipped("a lost network was not tested: it takes ip (iproute2), as root");
    };
    let source = Source::start();
    let server = Server::start_at("10.213.7.1:0", &source, &[]);
    let url = server.url("/stream");
    let mut curl = Command::new("ip");
    let mut curl = curl
        .args(["netns", "exec", FAR, "curl", "-sN", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 16];
    curl.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    // The cable is cut, so nothing tells the server: no FIN, no reset.
    host.cut();
    eventually_within(LONG, "it is disconnected", || server.metric(STUCK) == 1.0);
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
    curl.kill().unwrap();
    curl.wait().unwrap();
}
