//! As many connections as this machine grants: whatever they do, the process does not abort, and
//! when they have gone it serves as before.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Server, Source, eventually_within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that this test needs besides its crowd.
const OWN: u64 = 100;

#[test]
fn no_number_of_connections_aborts_it() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // A port for each is the other limit: some 28,000 from one address to another.
    let size = (hard - OWN).min(25_000);
    let source = Source::start();
    let mut server = Server::start(&source, &["--interval", "1s"]);
    let most = server.metric("btc_ticker_clients_max") as usize;
    let body = "GET /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n";
    for (wave, size, request) in [
        ("streams", size, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("bodies that do not come", size / 4, body),
    ] {
        let mut crowd = Vec::new();
        for _ in 0..size {
            // One that finds no place even in the listen queue has tried.
            let connection =
                TcpStream::connect_timeout(&server.address, Duration::from_millis(100));
            let Ok(mut connection) = connection else { continue };
            let _ = connection.write_all(request.as_bytes());
            crowd.push(connection);
        }
        let (connected, threads) = (crowd.len(), server.threads());
        println!("{wave}: {connected} of {size} connected, {threads} threads");
        assert!(server.child.try_wait().unwrap().is_none(), "{wave}: {}", server.log());
        if wave == "streams" {
            // All that find a place are served.
            let expected = connected.min(most) as f64;
            eventually_within(PATIENCE, "a place for each", || {
                server.metric("btc_ticker_clients") >= expected * 0.99
            });
        }
        drop(crowd);
    }
    eventually_within(2 * PATIENCE, "served again", || {
        let served = server.child.try_wait().unwrap().is_none() && {
            let mut connection = server.connect();
            connection.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            connection.write_all(b"GET /price HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
                && common::Answer::read(&mut std::io::BufReader::new(connection), true).is_some()
        };
        served && server.metric("btc_ticker_clients") == 0.0
    });
    println!("{}", server.get("/metrics").body);
}
