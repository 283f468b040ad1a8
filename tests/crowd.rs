//! As many connections as this machine allows: the process does not abort, and recovers once they are closed.

mod common;

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Answer, PATIENCE, Server, Source, eventually, eventually_within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that this test needs besides its connections.
const OWN: u64 = 100;

#[test]
fn no_number_of_connections_aborts_the_process() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let source = Source::start();
    let mut server = Server::start(&source, &["--interval", "1s"]);
    // More than there are places. Ports are another limit: some 28,000 from one address to another.
    let places = server.metric("btc_ticker_connections_max") as u64;
    let size = (places + 1_000).min(hard - OWN).min(25_000);
    let most = server.metric("btc_ticker_clients_max") as usize;
    let body = "GET /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n";
    for (wave, size, request) in [
        ("streams", size, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("bodies that never arrive", size / 4, body),
    ] {
        let mut crowd = Vec::new();
        for _ in 0..size {
            // A timeout means that even the listen queue is full.
            let short = Duration::from_millis(100);
            let Ok(mut connection) = TcpStream::connect_timeout(&server.address, short) else {
                continue;
            };
            let _ = connection.write_all(request.as_bytes());
            crowd.push(connection);
        }
        let (connected, threads) = (crowd.len(), server.threads());
        println!("{wave}: {connected} of {size} connected, {threads} threads");
        assert!(server.child.try_wait().unwrap().is_none(), "{wave}: {}", server.log());
        if wave == "streams" {
            let expected = connected.min(most) as f64;
            eventually("every place is taken", || {
                server.metric("btc_ticker_clients") >= expected * 0.99
            });
        }
        drop(crowd);
    }
    eventually_within(2 * PATIENCE, "the service recovers", || {
        let served = server.child.try_wait().unwrap().is_none() && {
            let mut connection = server.connect();
            connection.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            connection.write_all(b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
                && Answer::read(&mut BufReader::new(connection), true).is_some()
        };
        served && server.metric("btc_ticker_clients") == 0.0
    });
    println!("{}", server.get("/metrics").body);
}
