//! Clients that are slow, stuck or out of reach: what takes the service a minute to tell apart. These
//! tests wait side by side.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, Source, eventually, eventually_within};

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
