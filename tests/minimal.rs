//! The promises that the service and the minimal version, `peers/minimal.rs`, both keep, and the minimal
//! version's own. The real binaries, over real sockets.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::common::{Say, Server, Source, Stream, assert_in_order, eventually, quiet};
use nix::sys::signal::Signal;

/// The binary of the example, which `cargo test` builds beside the tests.
fn minimal() -> Command {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(2).expect("target/debug/deps/minimal-…");
    let program = target.join("examples/minimal");
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers/minimal.rs");
    let changed = |path| std::fs::metadata(path).and_then(|it| it.modified()).ok();
    assert!(
        changed(&program) > changed(&source),
        "{} is not up to date; run `cargo build --example minimal`, or `cargo test` without --test",
        program.display()
    );
    quiet(program)
}

fn start(source: &Source, arguments: &[&str]) -> Server {
    Server::poll(minimal(), source, arguments)
}

/// The service, and the minimal version.
const BOTH: [fn(&Source, &[&str]) -> Server; 2] = [Server::start, start];

#[test]
fn a_client_gets_the_latest_update_and_then_every_update_in_order() {
    for start in BOTH {
        let source = Source::start();
        source.ration();
        let server = start(&source, &[]);
        assert_eq!(server.get("/price").status, 503, "there is no price yet");
        source.allow(3);
        let latest = server.stream("/stream?since=0").updates(3).pop().unwrap();
        let price = server.get("/price");
        assert_eq!(price.status, 200);
        assert_eq!(price.header("Content-Type"), Some("application/json"));
        assert_eq!(price.body, latest.data.clone().unwrap());
        assert_eq!(price.json().as_object().unwrap().len(), 2);

        let mut stream = server.stream("/stream");
        assert_eq!(stream.header("Content-Type"), Some("text/event-stream"));
        let mut updates = stream.updates(1);
        assert_eq!(updates[0], latest);
        source.allow(5);
        updates.extend(stream.updates(5));
        server.assert_complete(&updates);
    }
}

#[test]
fn a_client_that_was_away_gets_exactly_what_it_missed_and_is_live_again() {
    for start in BOTH {
        let source = Source::start();
        let server = start(&source, &[]);
        let before = server.stream("/stream?since=0").updates(3);
        assert_eq!(before[0].price(), 1.0, "since=0 stands for all updates");
        let (first, last) = (before[0].id.unwrap(), before[2].id.unwrap());
        server.stream("/stream").updates(6);

        let by_since = server.stream(&format!("/stream?since={last}"));
        // A browser that reconnects sends both; the header is newer.
        let id = format!("Last-Event-ID: {last}\r\n");
        let by_both = server.stream_with(&format!("/stream?since={first}"), &id);
        for mut stream in [by_since, server.resume(last), by_both] {
            server.assert_complete(&[before.clone(), stream.updates(9)].concat());
        }
    }
}

#[test]
fn simulated_prices_are_marked_wherever_they_show() {
    for mut command in [Server::command(), minimal()] {
        let demo = ["--source", "demo", "--listen", "127.0.0.1:0", "--interval", "100ms"];
        let server = Server::run(command.args(demo));
        let mut stream = server.stream("/stream");
        assert_eq!(stream.header("X-Price-Source"), Some("demo (simulated)"));
        assert!(stream.line().contains("simulated"));
        stream.updates(2);
        assert_eq!(server.get("/price").header("X-Price-Source"), Some("demo (simulated)"));
    }
    for start in BOTH {
        let source = Source::start();
        assert_eq!(start(&source, &[]).stream("/stream").header("X-Price-Source"), None);
    }
}

#[test]
fn every_update_comes_exactly_once_to_clients_that_join_while_it_publishes() {
    const JOINS: usize = 4_000;
    let source = Source::start();
    let server = start(&source, &["--interval", "0ms"]);
    // Two only: if many connections arrive at once, tiny_http may leave some of them without a thread.
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let mut last = server.stream("/stream?since=0").update();
                for _ in 0..JOINS {
                    let path = format!("/stream?since={}", last.id.unwrap());
                    let mut stream = server.stream(&path);
                    for _ in 0..2 {
                        let update = stream.update();
                        assert_eq!(update.price(), last.price() + 1.0, "lost or doubled");
                        assert!(update.id > last.id, "ids rise");
                        last = update;
                    }
                }
            });
        }
    });
}

#[test]
fn what_is_not_a_price_is_not_an_update() {
    let source = Source::start();
    let server = start(&source, &["--interval", "10ms"]);
    let mut stream = server.stream("/stream?since=0");
    for body in ["not JSON", "{}", "{\"price\":-1}", "{\"price\":\"NaN\"}", "{\"price\":null}"] {
        let asked = source.requests().len();
        source.say(Say::Body(body.to_owned()));
        eventually("it was asked again", || source.requests().len() > asked + 1);
        source.say(Say::Prices);
        assert!(stream.update().price() >= 1.0, "{body}");
    }
    assert_in_order(&stream.updates(2));
    eventually("the log has it", || server.log().contains("no price"));
}

#[test]
fn what_it_cannot_answer_is_refused() {
    let source = Source::start();
    let server = start(&source, &[]);
    let statuses = [
        server.get("/nowhere").status,
        server.get("/stream?since=yesterday").status,
        server.ask("POST /price HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").status,
    ];
    assert_eq!(statuses, [404, 400, 405]);
}

#[test]
fn streams_end_and_the_process_exits_at_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let source = Source::start();
        let server = start(&source, &[]);
        let mut streams: Vec<Stream> = (0..10).map(|_| server.stream("/stream")).collect();
        streams[9].update();
        server.stop_cleanly(signal);
        streams.into_iter().for_each(Stream::ends);
    }
}
