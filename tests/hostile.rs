//! Traffic that the HTTP library by itself does not survive. After each of these a normal client is
//! served at once, and the streams that were open have missed nothing.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;

use common::{Answer, Event, Server, Source, Stream, eventually};
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

/// Opens connections and keeps them, as many as the system lets it.
fn crowd(server: &Server, size: usize, request: &str) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..size {
        let mut connection = server.connect();
        // It may have been closed already; that is what the test is about.
        let _ = connection.write_all(request.as_bytes());
        crowd.push(connection);
    }
    crowd
}

/// What a newcomer gets. Connections beyond the limit of descriptors are not accepted, or are dropped
/// by an accept loop that ends, so an answer may not come.
fn answer(server: &Server, path: &str) -> Option<Answer> {
    let mut connection = server.connect();
    connection.set_read_timeout(Some(std::time::Duration::from_secs(4))).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\n\r\n").ok()?;
    Answer::read(&mut BufReader::new(connection), true)
}

fn is_served(server: &Server) -> bool {
    answer(server, "/price").is_some_and(|answer| answer.status == 200)
}

/// How many accept loops were replaced because of an error, and because of a panic.
fn restarts(server: &Server) -> (f64, f64) {
    let mut metrics = None;
    eventually("metrics", || {
        metrics = answer(server, "/metrics");
        metrics.is_some()
    });
    let metrics = metrics.unwrap();
    let by = |reason: &str| {
        metrics.metric(&format!("btc_ticker_accept_restarts_total{{reason=\"{reason}\"}}"))
    };
    (by("error"), by("panic"))
}

#[test]
fn the_accept_loop_heals_whether_it_reports_or_panics() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 128", &source, &[]);
    let witness = Witness::of(&server);
    let mut odd = Vec::new();
    for wave in 0.. {
        let crowd = crowd(&server, 300, "GET /stream HTTP/1.1\r\n\r\n");
        drop(crowd);
        eventually("served again", || is_served(&server));
        let (errors, panics) = restarts(&server);
        if errors > 0.0 && panics > 0.0 {
            break;
        }
        assert!(wave < 20, "both ways to die: {errors} errors, {panics} panics");
        // A connection takes two descriptors: which of them is the last one decides how it dies.
        eventually("a place", || {
            let mut connection = server.connect();
            let asked = connection.write_all(b"GET /stream HTTP/1.1\r\n\r\n");
            let mut head = [0; 12];
            let is_in =
                asked.is_ok() && connection.read_exact(&mut head).is_ok() && head.ends_with(b"200");
            if is_in {
                odd.push(connection);
            }
            is_in
        });
    }
    drop(odd);
    witness.missed_nothing(server);
}

#[test]
fn two_hundred_healings_leave_nothing_behind() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 64", &source, &[]);
    let witness = Witness::of(&server);
    eventually("settled", || server.threads() < 20);
    let (threads, descriptors) = (server.threads(), server.descriptors());
    let healings = || restarts(&server).0 + restarts(&server).1;
    while healings() < 200.0 {
        drop(crowd(&server, 100, "GET /stream HTTP/1.1\r\n\r\n"));
        eventually("served again", || is_served(&server));
    }
    eventually("threads are where they were", || server.threads() <= threads);
    eventually("descriptors are where they were", || server.descriptors() <= descriptors);
    witness.missed_nothing(server);
}

#[test]
fn silence_is_bounded_and_keeps_nobody_out() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let mut silent = Vec::new();
    for request in
        ["", "GET /pri", "GET /price HTTP/1.1\r\nHost: x\r\n", "GET /price HTTP/1.1\r\n\r\n"]
    {
        silent.extend(crowd(&server, 125, request));
    }
    assert!(is_served(&server), "500 silent connections keep a newcomer out");
    for mut connection in silent {
        let mut rest = Vec::new();
        if let Err(error) = connection.read_to_end(&mut rest) {
            // A reset is an end as well; that nothing happens is not.
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is still open");
        }
    }
    witness.missed_nothing(server);
}

#[test]
fn a_settled_client_costs_one_thread_and_one_descriptor() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut first = server.stream("/stream");
    first.update();
    let (mut threads, mut descriptors) = (0, 0);
    eventually("settled", || {
        let before = (threads, descriptors);
        (threads, descriptors) = (server.threads(), server.descriptors());
        thread::sleep(std::time::Duration::from_millis(500));
        before == (threads, descriptors)
    });
    let streams: Vec<Stream> = (0..200).map(|_| server.stream("/stream")).collect();
    eventually("a thread each", || server.threads() <= threads + 200);
    eventually("a descriptor each", || server.descriptors() <= descriptors + 200);
    assert!(server.threads() >= 200 && server.descriptors() >= 200);
    drop(streams);
}

#[test]
fn a_burst_is_answered() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    // Nobody accepts while all of them connect, so this is the listen backlog and nothing else.
    server.signal(Signal::SIGSTOP);
    let second = std::time::Duration::from_millis(900); // Less than a SYN takes to be repeated.
    let connect = || {
        let connection = TcpStream::connect_timeout(&server.address, second);
        let mut connection = connection.expect("a place in the listen backlog");
        connection.set_read_timeout(Some(common::PATIENCE)).unwrap();
        connection.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
        connection
    };
    let crowd: Vec<TcpStream> = (0..1_000).map(|_| connect()).collect();
    server.signal(Signal::SIGCONT);
    let streams: Vec<Stream> = crowd.into_iter().map(Stream::receive).collect();
    for mut stream in streams {
        stream.updates(2);
    }
}

/// What each of these gets back does not matter, and often is nothing.
#[test]
fn no_request_kills_or_wedges_it() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let witness = Witness::of(&server);
    let get =
        |headers: &str| format!("GET /price HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
    let length = |value: &str| get(&format!("Content-Length: {value}\r\n"));
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let hostile = [
        length("9000000000000000000"),
        length("18446744073709551615"),
        length("99999999999999999999999999"),
        length("1073741824"),
        length("-5"),
        length("x"),
        get("Content-Length: 5\r\nContent-Length: 9000000000000000000\r\n"),
        get(
            "Content-Length: 9000000000000000000\r\nExpect: 100-continue\r\nConnection: upgrade\r\n",
        ),
        get("Expect: 100-continue\r\nContent-Length: 500000\r\n"),
        get("Expect: a miracle\r\n"),
        get("Connection: upgrade\r\nUpgrade: websocket\r\n"),
        b"GET /stream HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec(),
        format!("{chunked}5\r\nhello\r\n0\r\n\r\n").into_bytes(),
        format!("{chunked}FFFFFFFFFFFFFFFF\r\nx").into_bytes(),
        format!("{chunked}-1\r\nzz\r\n").into_bytes(),
        format!("{chunked}{}", "1\r\nx\r\n".repeat(50_000)).into_bytes(),
        get("Transfer-Encoding: gzip\r\nContent-Length: 12\r\n"),
        b"GET /stream HTTP/1.1\r\n\r\nGET /price HTTP/1.1\r\n\r\n".to_vec(),
        b"GET /stream HTTP/1.1\r\n\r\n".repeat(100),
        b"GET /price HTTP/1.1\r\n\r\n".repeat(10_000),
        b"\x00\x01\x02\x1b[31m / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET /\x07\x08?since=\x0b HTTP/1.1\r\nX: \x01\x02\r\n\r\n".to_vec(),
        "GET /€?since=€ HTTP/1.1\r\nHöst: ü\r\n\r\n".into(),
        b"GET /stream?since=\xff\xfe HTTP/1.1\r\n\r\n".to_vec(),
        get("Host: \u{202e}\r\nno colon here\r\n"),
        b"GET / HTTP/0.9\r\n\r\n".to_vec(),
        b"GET / HTTP/2.0\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"\n".repeat(100_000),
        b"GET /stream\r\n\r\n".to_vec(),
        b"GET http://x/price HTTP/1.1\r\n\r\n".to_vec(),
        b"CONNECT x:80 HTTP/1.1\r\n\r\n".to_vec(),
        format!("GET /stream?{} HTTP/1.1\r\n\r\n", "a=b&".repeat(250_000)).into_bytes(),
        format!("GET /stream?since={} HTTP/1.1\r\n\r\n", "9".repeat(1_000_000)).into_bytes(),
        format!("GET /stream?since=-{} HTTP/1.1\r\n\r\n", "0".repeat(1_000)).into_bytes(),
        format!("GET /stream HTTP/1.1\r\nLast-Event-ID: {}\r\n\r\n", "9".repeat(100_000))
            .into_bytes(),
        get(&"X: y\r\n".repeat(20_000)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), // A TLS handshake.
    ];
    let mut open = Vec::new();
    for request in &hostile {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let mut connection = server.connect();
        // The server may close while this is still being written, or never read all of it.
        connection.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        let _ = connection.write_all(request);
        open.push(connection);
        assert!(is_served(&server), "after {shown:?}");
    }
    drop(open);
    assert!(is_served(&server));
    witness.missed_nothing(server);
}

#[test]
fn an_absurd_body_is_refused_in_words() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let answer = server.ask("POST / HTTP/1.1\r\nContent-Length: 9000000000000000000\r\n\r\n");
    assert_eq!((answer.status, answer.header("Connection")), (413, Some("close")));
    assert!(answer.error().contains("body"));
    assert_eq!(server.metric("btc_ticker_requests_abandoned_total"), 1.0);
}

#[test]
fn a_request_behind_a_stream_ends_the_stream() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut connection = server.connect();
    connection.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    let mut stream = connection.try_clone().unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    connection.write_all(b"GET /price HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(String::from_utf8_lossy(&rest).matches("HTTP/1.1").count(), 0, "no second answer");
    let ended = "btc_ticker_clients_let_go_total{reason=\"interrupted\"}";
    eventually("told by the metrics", || server.metric(ended) == 1.0);
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
fn a_peer_whose_network_is_gone_is_noticed() {
    let Some(host) = FarHost::build() else {
        assert!(std::env::var_os("CI").is_none(), "CI needs ip (iproute2) and the right to use it");
        return eprintln!("SKIPPED: no network namespace can be made here (ip netns, as root)");
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
    let let_go = "btc_ticker_clients_let_go_total{reason=\"stuck\"}";
    common::eventually_within(3 * common::PATIENCE, "it is let go", || {
        server.metric(let_go) == 1.0
    });
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
    curl.kill().unwrap();
    curl.wait().unwrap();
}

#[test]
fn absurd_requests_behind_streams_keep_no_place() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "5"]);
    server.stream("/stream").update();
    eventually("an empty house", || server.metric("btc_ticker_clients") == 0.0);
    let absurd =
        "GET /stream HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 9000000000000000000\r\n\r\n";
    drop(crowd(&server, 5, absurd));
    let abandoned = || server.metric("btc_ticker_requests_abandoned_total");
    eventually("all have been seen", || abandoned() == 5.0);
    eventually("and are gone", || server.metric("btc_ticker_clients") == 0.0);
    assert_eq!(server.stop(Signal::SIGTERM).0.code(), Some(0));
}

#[test]
fn a_small_limit_of_threads_is_lived_with() {
    let source = Source::start();
    // As root the limit is not in force, but it is what the service reads.
    let server = Server::start_with_limit("-u 300", &source, &[]);
    server.stream("/stream").update();
    eventually("it says so", || server.log().contains("ulimit -u 300"));
}

#[test]
fn a_port_that_was_another_clients_is_no_obstacle() {
    let source = Source::start();
    // No update comes that would tell the server that the first client has gone.
    let server = Server::start(&source, &["--interval", "60s", "--source-timeout", "5s"]);
    server.stream("/stream").update();
    let mut port = 0;
    for _ in 0..3 {
        let connection = connect_from(&server, [127, 0, 0, 1], port);
        port = connection.local_addr().unwrap().port();
        Stream::open(connection, "/stream", "").update();
    }
    assert_eq!(server.metric("btc_ticker_clients_let_go_total{reason=\"gone\"}"), 2.0);
}

/// A connection from a port of one's own choice, or from any (0), that is reset when it is dropped,
/// so that its port is free at once.
fn connect_from(server: &Server, ip: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
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

#[test]
fn full_is_an_answer() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "5"]);
    let mut inside: Vec<Stream> = (0..5).map(|_| server.stream("/stream?since=0")).collect();
    for _ in 0..20 {
        let refused = server.get("/stream");
        assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
        assert!(refused.error().contains("full"));
    }
    assert_eq!(server.get("/price").status, 200, "only streams are counted");
    let seen: Vec<Vec<Event>> = inside.iter_mut().map(|stream| stream.updates(10)).collect();
    assert!(seen.iter().all(|updates| *updates == seen[0]));
    drop(inside);
    eventually("places are free again", || server.metric("btc_ticker_clients") == 0.0);
    server.assert_complete(&seen[0]);
}

#[test]
fn asking_for_more_than_the_machine_has_is_told_and_survived() {
    let source = Source::start();
    let server = Server::start_with_limit("-n 200", &source, &["--max-clients", "100000"]);
    for word in ["ulimit -Hn to 150033", "vm.max_map_count"] {
        eventually(word, || server.log().contains(word));
    }
    let possible = server.metric("btc_ticker_clients_max");
    assert!(possible > 50.0 && possible < 200.0, "{possible}");
    let streams: Vec<Stream> = (0..50).map(|_| server.stream("/stream")).collect();
    drop(streams);
}

#[test]
fn a_stuck_reader_is_let_go() {
    let source = Source::start();
    let arguments = ["--interval", "5ms", "--source-timeout", "4ms"];
    let server = Server::start(&source, &arguments);
    let witness = Witness::of(&server);
    // It never reads, so before long its buffers are full.
    let mut stuck = common::narrow(&server);
    stuck.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    let let_go = "btc_ticker_clients_let_go_total{reason=\"stuck\"}";
    eventually("it is in", || server.metric("btc_ticker_clients") == 2.0);
    common::eventually_within(3 * common::PATIENCE, "it is let go", || {
        server.metric(let_go) == 1.0
    });
    drop(stuck);
    server.stream("/stream").update();
    witness.missed_nothing(server);
}
