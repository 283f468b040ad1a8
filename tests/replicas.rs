//! Several replicas: a client may come back to any of them, because its cursor is a time.
//! Real replicas behind a real nginx that runs `deploy/nginx.conf`; clients reconnect as browsers do.
//! A replica follows an origin as a client does, whatever becomes of either.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use btc_ticker::system::unix_millis;
use common::{PATIENCE, Say, Server, Source, Stream, assert_in_order, eventually, folder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::TlsConfig;

const CLIENTS: u64 = 6;
/// How much the price rises while some of the clients stay away.
const AWAY: u64 = 2;

#[test]
fn replicas_of_one_source_cover_each_other() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let replica =
        |address: &str| Server::start_at(address, &market.source, &["--interval", "50ms"]);
    let clients = failovers(nginx, "one-source", &market, replica);
    for connections in clients {
        // The price of the source may stand still for several polls.
        let runs = connections.into_iter().map(|updates| {
            let mut prices: Vec<u64> = updates.iter().map(|update| update.price).collect();
            prices.dedup();
            prices
        });
        let seen = runs.reduce(|mut seen, prices| {
            // What was seen last, and only that, may be seen once more.
            let again = seen.last() == prices.first();
            seen.extend(&prices[usize::from(again)..]);
            seen
        });
        let seen = seen.unwrap();
        let expected: Vec<u64> = (seen[0]..).take(seen.len()).collect();
        assert_eq!(seen, expected, "lost, or doubled beyond the one that was seen last");
    }
}

#[test]
fn replicas_of_one_origin_are_as_one() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let origin = Server::start(&market.source, &["--interval", "50ms"]);
    let replica = |address: &str| replica_at(address, &origin, &[]);
    let clients = failovers(nginx, "one-origin", &market, replica);
    let mut published: Vec<Update> = Vec::new();
    let mut stream = origin.stream("/stream?since=0");
    let last = clients.iter().map(|connections| *connections.concat().last().unwrap());
    let last = last.max_by_key(|update| update.timestamp).unwrap();
    while published.last() != Some(&last) {
        published.push(Update::of(&stream.update().json()));
    }
    for connections in clients {
        let seen = connections.concat();
        let joined = published.iter().position(|update| *update == seen[0]).unwrap();
        assert_eq!(seen, published[joined..joined + seen.len()], "lost or doubled");
    }
}

/// A replica that follows this server.
fn replica_at(address: &str, origin: &Server, arguments: &[&str]) -> Server {
    follow(address, &origin.url("/"), arguments)
}

fn replica_of(origin: &Server, arguments: &[&str]) -> Server {
    replica_at("127.0.0.1:0", origin, arguments)
}

fn follow(address: &str, url: &str, arguments: &[&str]) -> Server {
    let mut command = Server::command();
    command.args(["--listen", address, "--follow", url, "--interval", "100ms"]);
    Server::run(command.args(arguments))
}

/// All updates that a server has, up to this one.
fn all_up_to(server: &Server, last: &common::Event) -> Vec<common::Event> {
    let mut stream = server.stream("/stream?since=0");
    let mut updates = vec![stream.update()];
    while updates.last().unwrap().id < last.id {
        updates.push(stream.update());
    }
    updates
}

fn has_price(server: &Server) {
    eventually("a price", || server.get("/price").status == 200);
}

/// Has clients follow two replicas, kills one of those, has it back, and kills the other. Returns
/// what each client has seen on each of its connections.
fn failovers(
    nginx: &str,
    name: &str,
    market: &Market,
    replica: impl Fn(&str) -> Server,
) -> Vec<Vec<Vec<Update>>> {
    let (left, right) = (replica("127.0.0.1:0"), replica("127.0.0.1:0"));
    market.move_on(1, &[&left, &right]);
    let proxy = Proxy::start(nginx, name, &[left.address, right.address]);
    let clients: Vec<_> =
        (0..CLIENTS).map(|i| Client::join(&proxy, market, i % 2 * AWAY)).collect();
    let all_are_here = || {
        let here = |client: &Client| client.seen.load(Ordering::Relaxed) >= market.price();
        eventually("every client has the price", || clients.iter().all(here));
    };
    all_are_here();
    for replica in [&left, &right] {
        let clients = replica.get("/healthz").json()["clients"].as_u64().unwrap();
        assert!((1..CLIENTS).contains(&clients), "the proxy divides the clients");
    }
    market.move_on(3, &[&left, &right]);

    let address = left.address.to_string();
    left.stop(Signal::SIGKILL);
    market.move_on(AWAY + 2, &[&right]);
    all_are_here();

    let left = replica(&address);
    market.move_on(1, &[&left, &right]);
    // What is older, only the other one has.
    all_are_here();
    market.move_on(1, &[&left, &right]);
    right.stop(Signal::SIGKILL);
    market.move_on(AWAY + 2, &[&left]);
    all_are_here();

    clients.iter().for_each(|client| client.leave.store(true, Ordering::Relaxed));
    market.move_on(1, &[&left]);
    clients
        .into_iter()
        .map(|client| client.thread.join().expect("a client that fared well"))
        .collect()
}

#[test]
fn a_replica_and_its_replica_have_all_that_the_origin_has_with_the_same_ids() {
    let source = Source::start();
    let origin = Server::start(&source, &["--interval", "20ms"]);
    let first = origin.stream("/stream?since=0").updates(30);
    let replica = replica_of(&origin, &[]);
    has_price(&replica);
    let below = replica_of(&replica, &[]);
    has_price(&below);
    let mut live: Vec<_> =
        [&origin, &replica, &below].map(|server| server.stream("/stream")).into();
    let last = live[0].updates(10).pop().unwrap();
    let expected = all_up_to(&origin, &last);
    assert_eq!(expected[..30], first);
    for server in [&replica, &below] {
        assert_eq!(all_up_to(server, &last), expected);
        let health = server.get("/healthz").json();
        assert_eq!((&health["status"], &health["source"]), (&json!("ok"), &json!("origin")));
    }
    // What was before the first one, nobody here can know.
    let before = first[0].id.unwrap() - 1;
    for server in [below, replica] {
        server.stream(&format!("/stream?since={before}")).named("gap");
        let (status, log) = server.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("not waiting"), "the follower ends by itself: {log}");
    }
}

#[test]
fn a_client_that_changes_between_origin_and_replicas_loses_nothing() {
    let source = Source::start();
    let origin = Server::start(&source, &["--interval", "20ms"]);
    let replicas = [replica_of(&origin, &[]), replica_of(&origin, &[])];
    replicas.iter().for_each(has_price);
    let mut seen = origin.stream("/stream?since=0").updates(3);
    for turn in 0..30 {
        let last = seen.last().unwrap().id.unwrap();
        let server = [&replicas[0], &origin, &replicas[1]][turn % 3];
        // The moment in which one is ahead of another is over.
        let has_it = || server.get("/price").json()["timestamp"].as_u64() >= Some(last);
        eventually("it has what the client has", has_it);
        let header = format!("Last-Event-ID: {last}\r\n");
        seen.extend(server.stream_with("/stream", &header).updates(1 + turn % 4));
    }
    assert_in_order(&seen);
    assert_eq!(all_up_to(&origin, seen.last().unwrap()), seen);
}

#[test]
fn a_replica_that_was_cut_off_has_everything_when_it_is_back() {
    let source = Source::start();
    let journal = folder("cut-off").join("journal");
    let keep = ["--journal", journal.to_str().unwrap(), "--interval", "20ms"];
    let origin = Server::start(&source, &keep);
    let address = origin.address.to_string();
    let replica = replica_of(&origin, &[]);
    has_price(&replica);
    let mut stream = replica.stream("/stream?since=0");
    let mut seen = stream.updates(5);
    // The origin dies and comes back with its journal.
    let mut origin = origin;
    for _ in 0..3 {
        origin.stop(Signal::SIGKILL);
        origin = Server::start_at(&address, &source, &keep);
        seen.extend(stream.updates(20));
    }
    assert_in_order(&seen);
    assert_eq!(all_up_to(&origin, seen.last().unwrap()), seen, "no gap, nothing twice");
}

#[test]
fn what_the_origin_has_lost_the_clients_of_its_replicas_are_told() {
    let source = Source::start();
    let origin = Server::start(&source, &[]);
    let address = origin.address.to_string();
    let journal = folder("passed-on").join("journal");
    let keep = ["--journal", journal.to_str().unwrap()];
    let replica = replica_of(&origin, &keep);
    has_price(&replica);
    let mut stream = replica.stream("/stream?since=0");
    let seen = stream.updates(3);
    origin.stop(Signal::SIGKILL);
    // It comes back without a past.
    let origin = Server::start_at(&address, &source, &[]);
    let mut last = seen[2].id;
    let gap = loop {
        let event = stream.beyond_status();
        match event.name.as_deref() {
            Some("gap") => break event.json(),
            _ => last = event.id,
        }
    };
    let next = stream.update();
    assert_eq!((gap["since"].as_u64(), gap["oldest"].as_u64()), (last, next.id));
    // And the replica knows it after a restart as well.
    replica.stop(Signal::SIGKILL);
    let replica = replica_of(&origin, &keep);
    for since in [seen[0].id, last] {
        let mut late = replica.stream(&format!("/stream?since={}", since.unwrap()));
        assert_eq!(late.named("gap")["since"].as_u64(), since);
    }
    let mut after = replica.stream(&format!("/stream?since={}", next.id.unwrap()));
    after.update();
    // And so does a replica of it, which has asked for all there is.
    let below = replica_of(&replica, &[]);
    has_price(&below);
    below.stream(&format!("/stream?since={}", last.unwrap())).named("gap");
}

#[test]
fn a_replica_with_a_journal_comes_back_with_all_of_it_and_without_a_gap() {
    let source = Source::start();
    let origin = Server::start(&source, &["--interval", "20ms"]);
    let journal = folder("replica").join("journal");
    let keep = ["--journal", journal.to_str().unwrap()];
    let mut last = 0;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let replica = replica_of(&origin, &keep);
        has_price(&replica);
        let mut stream = replica.stream_with("/stream", &format!("Last-Event-ID: {last}\r\n"));
        seen.extend(stream.updates(10));
        last = seen.last().unwrap().id.unwrap();
        replica.stop(Signal::SIGKILL);
        // Damage, and a line that was not written to its end: the origin has what it lacks.
        let mut file = std::fs::OpenOptions::new().append(true).open(&journal).unwrap();
        file.write_all(b"gibberish\n{\"timest").unwrap();
    }
    assert_in_order(&seen);
    assert_eq!(all_up_to(&origin, seen.last().unwrap()), seen);
    // While the origin is down it has what it had, and says so.
    origin.stop(Signal::SIGKILL);
    let replica = replica_at("127.0.0.1:0", &origin_at_nowhere(), &keep);
    let mut stream = replica.stream("/stream?since=0");
    assert_eq!(stream.updates(seen.len()), seen);
    eventually("stale", || replica.get("/healthz").json()["status"] == "stale");
}

#[test]
fn a_journal_that_was_a_pollers_does_not_hide_what_the_origin_has() {
    let source = Source::start();
    let origin = Server::start(&source, &[]);
    let seen = origin.stream("/stream?since=0").updates(5);
    let (first, last) = (seen[0].id.unwrap(), seen[4].id.unwrap());
    // It began after all of these, and had no update.
    let journal = folder("no-update").join("journal");
    std::fs::write(&journal, common::journal_header(false, last + 1)).unwrap();
    let replica = replica_of(&origin, &["--journal", journal.to_str().unwrap()]);
    has_price(&replica);
    let mut stream = replica.stream(&format!("/stream?since={first}"));
    assert_eq!(stream.updates(4), seen[1..]);
}

/// A server that has gone.
fn origin_at_nowhere() -> Server {
    let source = Source::start();
    let mut gone = Server::start(&source, &[]);
    gone.signal(Signal::SIGKILL);
    gone.child.wait().unwrap();
    gone
}

#[test]
fn a_replica_is_stale_when_its_origin_says_so_or_has_gone() {
    let source = Source::start();
    let fast = ["--heartbeat", "100ms"];
    let origin = Server::start(&source, &fast);
    let replica = replica_of(&origin, &fast);
    has_price(&replica);
    let below = replica_of(&replica, &["--heartbeat", "1s"]);
    has_price(&below);
    let mut stream = replica.stream("/stream");
    let mut stream_below = below.stream("/stream");
    let status = |stream: &mut Stream, is_stale: bool| loop {
        let event = stream.event();
        if event.name.is_some() && event.json()["stale"] == is_stale {
            return event.json();
        }
    };
    // The source of the origin fails, for longer than three intervals: what it says is passed on.
    source.say(Say::Status(500, String::new(), "oops".into()));
    eventually("the reason is the origin's", || status(&mut stream, true)["reason"] == "HTTP 500");
    assert_eq!(replica.get("/healthz").status, 503);
    eventually("also below", || status(&mut stream_below, true)["reason"] == "HTTP 500");
    source.say(Say::Prices);
    for stream in [&mut stream, &mut stream_below] {
        assert_eq!(stream.named("status")["stale"], false, "told before the first new price");
        assert_eq!(stream.event().name, None);
    }
    drop((below, stream_below));
    // The origin is frozen: its connection is open, and three heartbeats do not come.
    origin.signal(Signal::SIGSTOP);
    assert_eq!(status(&mut stream, true)["stale"], true);
    let timed_out = "btc_ticker_fetches_total{outcome=\"timed out\"}";
    eventually("it is given up", || replica.metric(timed_out) > 0.0);
    origin.signal(Signal::SIGCONT);
    status(&mut stream, false);
    stream.update();
    // It has nothing new for longer than three of the replica's intervals, and that is no fault.
    drop((replica, stream));
    let slow = Server::start(&source, &["--interval", "1h", "--heartbeat", "100ms"]);
    let replica = replica_of(&slow, &fast);
    has_price(&replica);
    let mut stream = replica.stream("/stream");
    stream.update();
    for _ in 0..10 {
        assert_eq!(stream.line(), ":");
    }
    assert_eq!(replica.get("/healthz").status, 200);
}

#[test]
fn before_it_has_heard_its_origin_a_replica_streams_nothing() {
    let replica = replica_at("127.0.0.1:0", &origin_at_nowhere(), &[]);
    // A client that waited here would get again what it has had elsewhere.
    for path in ["/stream", "/stream?since=5m", "/price"] {
        let answer = replica.get(path);
        assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("5")));
        assert!(answer.error().contains("no price yet"));
    }
    eventually("stale", || replica.get("/healthz").json()["status"] == "stale");
    assert!(replica.log().contains("no price from origin: connection failed"));
}

/// An origin that sends what it is told, once to each that connects, and keeps what they asked for.
struct FakeOrigin {
    url: String,
    requests: Arc<std::sync::Mutex<Vec<String>>>,
}

impl FakeOrigin {
    fn say(what: String) -> FakeOrigin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let heads = requests.clone();
        thread::spawn(move || {
            let mut open = Vec::new();
            for mut connection in listener.incoming().flatten() {
                let mut head = [0; 1024];
                let read = connection.read(&mut head).unwrap_or(0);
                heads.lock().unwrap().push(String::from_utf8_lossy(&head[..read]).to_lowercase());
                let _ = connection.write_all(what.as_bytes());
                // They are still open when it has nothing more to say.
                open.push(connection);
            }
        });
        FakeOrigin { url, requests }
    }
}

#[test]
fn what_is_no_stream_of_prices_is_a_failure_with_a_reason() {
    let now = unix_millis();
    let day = 86_400_000;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
    let event = |time: u64, price: f64| {
        format!("id: {time}\ndata: {{\"timestamp\":{time},\"price\":{price:?}}}\n\n")
    };
    let stream = |body: &str| format!("{head}\r\n{}{body}", event(now, 5.0));
    for (outcome, what) in [
        ("not a stream", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>".to_owned()),
        ("HTTP 503", "HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\n\r\n{}".into()),
        ("HTTP 404", "HTTP/1.1 404 Gone\r\nContent-Type: application/json\r\n\r\n{}".into()),
        ("request failed", "SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
        ("request failed", format!("{head}{}", "X: y\r\n".repeat(100_000))),
        ("demo (made up)", format!("{head}{}X-Price-Source: demo\r\n\r\n", "X: y\r\n".repeat(64))),
        ("demo (made up)", format!("{head}x-price-source: demo\r\n\r\n{}", event(now, 5.0))),
        ("too large", stream(&"x".repeat(70_000))),
        ("not a price", stream("data: {\"price\":5}\n\n")),
        ("not a price", stream("data: hello\n\n")),
        ("not a price", stream(&event(now + 1, -5.0))),
        ("not a price", stream(&event(now + 2 * day, 5.0))),
        ("not a stream", stream("event: status\ndata: stale\n\n")),
    ] {
        let origin = FakeOrigin::say(what.clone());
        let replica = follow("127.0.0.1:0", &origin.url, &["--heartbeat", "1s"]);
        let failures = format!("btc_ticker_fetches_total{{outcome=\"{outcome}\"}}");
        eventually(&what, || replica.metric(&failures) > 0.0);
        // It tries again, less and less often, from the last one that was good.
        let requests = || origin.requests.lock().unwrap().clone();
        eventually("it comes back", || requests().len() > 1);
        let last =
            if what.contains(&event(now, 5.0)) && outcome != "demo (made up)" { now } else { 0 };
        assert!(requests()[0].contains("last-event-id: 0\r\n"));
        assert!(requests()[1].contains(&format!("last-event-id: {last}\r\n")), "{what}");
        let history = replica.get("/history");
        if last > 0 {
            assert_eq!(history.json().as_array().unwrap().len(), 1);
        } else {
            assert_eq!(history.status, 503, "it has no past");
        }
    }
}

#[test]
fn timestamps_that_do_not_rise_are_passed_over() {
    let now = unix_millis();
    let event = |time: u64| format!("data: {{\"timestamp\":{time},\"price\":5.5}}\n\n");
    let times = [now, now - 1, now, now + 1, now + 3_600_000, now + 2];
    let body: String = times.map(event).concat();
    let origin = FakeOrigin::say(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{body}"
    ));
    let replica = follow("127.0.0.1:0", &origin.url, &[]);
    let newest = Some(now + 3_600_000);
    eventually("all", || replica.get("/price").json()["timestamp"].as_u64() == newest);
    let history = replica.get("/history").json();
    let known =
        history.as_array().unwrap().iter().map(|update| update["timestamp"].as_u64().unwrap());
    assert!(known.eq([now, now + 1, now + 3_600_000]), "{history}");
}

#[test]
fn a_client_that_is_ahead_of_a_replica_gets_nothing_twice() {
    let now = unix_millis();
    let event = |time: u64| format!("id: {time}\ndata: {{\"timestamp\":{time},\"price\":5.5}}\n\n");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let replica = follow("127.0.0.1:0", &url, &[]);
    let (mut origin, _) = listener.accept().unwrap();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    origin.write_all(format!("{head}{}", event(now - 90_000)).as_bytes()).unwrap();
    has_price(&replica);
    // It has had two more elsewhere, which are still to come here.
    let mut ahead = replica.stream_with("/stream", &format!("Last-Event-ID: {}\r\n", now - 70_000));
    ahead.named("status");
    let mut behind = replica.stream(&format!("/stream?since={}", now - 90_000));
    let rest = [now - 80_000, now - 70_000, now - 60_000];
    origin.write_all(rest.map(event).concat().as_bytes()).unwrap();
    assert_eq!(ahead.event().id, Some(now - 60_000), "the first that it has not had");
    let ids: Vec<_> = behind.updates(3).iter().map(|event| event.id.unwrap()).collect();
    assert_eq!(ids, rest);
}

#[test]
fn an_origin_whose_updates_are_refused_is_none_that_is_well() {
    // Its clock was an hour ahead. Then it began anew.
    let journal = folder("refused").join("journal");
    let now = unix_millis();
    let ahead = now + 3_600_000;
    let kept = format!("{{\"timestamp\":{ahead},\"price\":5.5}}\n");
    std::fs::write(&journal, common::journal_header(false, now) + &kept).unwrap();
    let origin = FakeOrigin::say(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\
         event: status\ndata: {{\"stale\":false}}\n\n:\n\
         data: {{\"timestamp\":{now},\"price\":6.5}}\n\n"
    ));
    let replica = follow("127.0.0.1:0", &origin.url, &["--journal", journal.to_str().unwrap()]);
    let told = replica.stream("/stream?since=0").named("status");
    assert_eq!(told["stale"], false);
    eventually("stale", || replica.get("/healthz").json()["status"] == "stale");
    let requests = origin.requests.lock().unwrap().len();
    eventually("it asks again", || origin.requests.lock().unwrap().len() > requests + 1);
    assert_eq!(replica.get("/healthz").json()["status"], "stale", "and still is");
    let log = replica.log();
    assert!(log.contains("not new") && !log.contains("again after"), "{log}");
}

#[test]
fn an_origin_that_is_back_is_well_before_it_has_an_update() {
    let origin =
        FakeOrigin::say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:\n".to_owned());
    // After that it is quiet, for more than three heartbeats.
    let replica = follow("127.0.0.1:0", &origin.url, &["--heartbeat", "100ms"]);
    eventually("back", || replica.log().contains("prices from origin again after"));
}

#[test]
fn a_replica_of_a_demo_refuses_it() {
    let mut demo = Server::command();
    demo.args(["--source", "demo", "--listen", "127.0.0.1:0", "--interval", "100ms"]);
    let demo = Server::run(&mut demo);
    has_price(&demo);
    let replica = replica_of(&demo, &[]);
    eventually("stale", || replica.get("/healthz").json()["status"] == "stale");
    assert_eq!(replica.get("/price").status, 503);
    eventually("in the log", || replica.log().contains("demo (made up)"));
}

#[test]
fn a_clock_that_was_ahead_silences_nobody() {
    let source = Source::start();
    source.say(Say::Nothing);
    let replica = Server::start(&source, &["--heartbeat", "1h"]);
    let an_hour_ahead = unix_millis() + 3_600_000;
    let mut stream = replica.stream_with("/stream", &format!("Last-Event-ID: {an_hour_ahead}\r\n"));
    source.say(Say::Prices);
    stream.updates(2);
}

#[test]
fn the_proxy_keeps_away_what_the_service_need_not_see() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let replica = Server::start(&market.source, &[]);
    market.move_on(1, &[&replica]);
    let silent = Source::start();
    silent.say(Say::Nothing);
    let fresh = Server::start(&silent, &[]);
    let proxy = Proxy::start(nginx, "limits", &[replica.address, fresh.address]);
    let agent = agent();
    // Its errors have the form of those of the service.
    let error_of = |mut response: Response<ureq::Body>| {
        let status = response.status().as_u16();
        if status >= 400 {
            assert_eq!(response.headers()["Content-Type"], "application/json", "{status}");
            let text = response.body_mut().read_to_string().unwrap();
            let json: Value = serde_json::from_str(&text).unwrap();
            assert!(json["error"].as_str().unwrap().len() > 20, "{status}: {text}");
        }
        status
    };
    let status = |path: &str, header: &str| {
        let request = agent.get(proxy.url(path)).header("X-Header", header);
        error_of(request.call().unwrap())
    };
    // One of the replicas has no price yet, and nobody notices.
    (0..4).for_each(|_| assert_eq!(status("/price", ""), 200));
    assert_eq!(status("/", ""), 200);
    assert_eq!(status("/metrics", ""), 404);
    assert_eq!(status("/price", &"x".repeat(20_000)), 400);
    assert_eq!(status(&format!("/price?{}", "x".repeat(20_000)), ""), 414);
    let body = agent.post(proxy.url("/price")).send("x".repeat(2_000)).unwrap();
    assert_eq!(error_of(body), 413);

    let plain = agent.get(format!("http://{}/stream?since=0", proxy.plain)).call().unwrap();
    assert_eq!(plain.status(), 301);
    assert_eq!(plain.headers()["Location"], "https://127.0.0.1/stream?since=0");

    let stream = || agent.get(proxy.url("/stream")).call().unwrap();
    let streams: Vec<_> = (0..100).map(|_| stream()).collect();
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(error_of(stream()), 429);
    assert_eq!(status("/price", ""), 429);
    drop(streams);
    eventually("there is room again", || stream().status() == 200);

    replica.stop(Signal::SIGKILL);
    // Which of the two it is depends on whom nginx asks last.
    assert!([502, 503].contains(&status("/price", "")));
    fresh.stop(Signal::SIGKILL);
    assert_eq!(status("/price", ""), 502);
    // A browser does not come back after a 502, but after a broken connection it does.
    agent.get(proxy.url("/stream")).call().expect_err("a stream from nobody");
}

// ---------------------------------------------------------------------------------- the source

/// A source whose price is 1, 2, 3 and so on, and rises when the test says so.
struct Market {
    source: Source,
    price: Arc<AtomicU64>,
}

impl Market {
    fn open() -> Market {
        let market = Market { source: Source::start(), price: Arc::default() };
        market.rise();
        market
    }

    /// Lets the price rise `times` times, each time only when all `replicas` have it.
    fn move_on(&self, times: u64, replicas: &[&Server]) {
        for _ in 0..times {
            self.rise();
            for replica in replicas {
                eventually("the replica has the price", || price_of(replica) == Some(self.price()));
            }
        }
    }

    fn rise(&self) {
        self.price.fetch_add(1, Ordering::Relaxed);
        self.source.say(Say::Body(json!({"price": self.price()}).to_string()));
    }

    fn price(&self) -> u64 {
        self.price.load(Ordering::Relaxed)
    }
}

fn price_of(server: &Server) -> Option<u64> {
    server.get("/price").json()["price"].as_f64().map(|price| price as u64)
}

// ---------------------------------------------------------------------------------- the clients

#[derive(Clone, Copy, Debug, PartialEq)]
struct Update {
    timestamp: u64,
    price: u64,
}

impl Update {
    fn of(json: &Value) -> Update {
        let price = json["price"].as_f64().unwrap() as u64;
        Update { timestamp: json["timestamp"].as_u64().unwrap(), price }
    }
}

/// Follows the stream through the proxy, on a thread of its own, until it is told to leave.
struct Client {
    seen: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<Update>>>,
}

impl Client {
    /// `away`: how much the price has to rise before the client comes back from a stream that ended.
    fn join(proxy: &Proxy, market: &Market, away: u64) -> Client {
        let (seen, leave) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut follower = Follower {
            agent: agent(),
            url: proxy.url("/stream"),
            last: None,
            seen: seen.clone(),
            leave: leave.clone(),
        };
        let price = market.price.clone();
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !follower.leave.load(Ordering::Relaxed) {
                let updates = follower.follow();
                if !updates.is_empty() {
                    connections.push(updates);
                }
                if !follower.leave.load(Ordering::Relaxed) {
                    let back = price.load(Ordering::Relaxed) + away;
                    eventually("the price rises", || price.load(Ordering::Relaxed) >= back);
                }
            }
            connections
        });
        Client { seen, leave, thread }
    }
}

struct Follower {
    agent: Agent,
    url: String,
    last: Option<Update>,
    seen: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
}

impl Follower {
    /// Reads one stream from the last update on, until it ends or the client is to leave.
    fn follow(&mut self) -> Vec<Update> {
        let mut stream = None;
        eventually("the proxy opens a stream", || {
            stream = self.open();
            stream.is_some()
        });
        let body = stream.unwrap().into_body().into_reader();
        let mut updates = Vec::new();
        // Whether a stream ends well or breaks is the same to a browser.
        for line in BufReader::new(body).lines().map_while(Result::ok) {
            assert_ne!(line, "event: gap", "after {:?}", self.last);
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let json: Value = serde_json::from_str(data).unwrap();
            if json["price"].is_null() {
                continue; // A status.
            }
            let update = Update::of(&json);
            updates.push(update);
            self.last = Some(update);
            self.seen.store(update.price, Ordering::Relaxed);
            if self.leave.load(Ordering::Relaxed) {
                break;
            }
        }
        updates
    }

    fn open(&self) -> Option<Response<ureq::Body>> {
        let mut request = self.agent.get(&self.url);
        if let Some(last) = self.last {
            request = request.header("Last-Event-ID", last.timestamp.to_string());
        }
        request.call().ok().filter(|response| response.status() == 200)
    }
}

/// A client that trusts every certificate, the one that the test has just made too.
fn agent() -> Agent {
    let config = Agent::config_builder()
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_per_read(Some(PATIENCE))
        .proxy(None);
    config.build().into()
}

// ---------------------------------------------------------------------------------- the proxy

/// nginx with the configuration of `deploy/`. Ended when it is dropped.
struct Proxy {
    child: Child,
    folder: PathBuf,
    plain: SocketAddr,
    secure: SocketAddr,
}

/// How nginx is called here. Where there is none nothing can be tested behind it: said aloud, and
/// a failure where tests are what the machine is for.
fn nginx() -> Option<&'static str> {
    let answers = |tool: &&str| {
        let argument = if *tool == "openssl" { "version" } else { "-v" };
        Command::new(tool).arg(argument).output().is_ok()
    };
    let found = ["nginx", "/usr/sbin/nginx"].into_iter().find(answers);
    if let Some(nginx) = found.filter(|_| answers(&"openssl")) {
        return Some(nginx);
    }
    common::skipped(
        "replicas were not tested behind nginx: it or openssl is missing \
         (on Debian: nginx-light openssl)",
    );
    None
}

impl Proxy {
    fn start(nginx: &str, name: &str, replicas: &[SocketAddr]) -> Proxy {
        let folder = folder(&format!("nginx-{name}"));
        std::fs::create_dir(folder.join("tls")).unwrap();
        make_certificate(&folder);
        let one = include_str!("../deploy/replicas.conf");
        let all = replicas.iter().map(|at| one.replace("127.0.0.1:8080", &at.to_string()));
        std::fs::write(folder.join("replicas.conf"), all.collect::<String>()).unwrap();
        // Another program may take a port before nginx does; then nginx ends, and others are tried.
        let mut started = None;
        eventually("nginx listens", || {
            started = Proxy::try_start(nginx, &folder);
            started.is_some()
        });
        started.unwrap()
    }

    fn try_start(nginx: &str, folder: &PathBuf) -> Option<Proxy> {
        let (plain, secure) = (free_address(), free_address());
        let mut config = include_str!("../deploy/nginx.conf").to_owned();
        for (deployed, tested) in [
            ("listen 80;", format!("listen {plain};")),
            ("listen 443 ssl", format!("listen {secure} ssl")),
            ("http {", format!("http {{\n{OWN_FILES}")),
        ] {
            assert_eq!(config.matches(deployed).count(), 1, "{deployed}");
            config = config.replace(deployed, &tested);
        }
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(nginx);
        command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
        command.args(["-e", "error.log", "-g", "daemon off; pid nginx.pid;"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut proxy = Proxy { child, folder: folder.clone(), plain, secure };
        let mut listens = false;
        eventually("nginx listens or ends", || {
            // Written when the ports are its own.
            listens = folder.join("nginx.pid").exists();
            listens || proxy.child.try_wait().unwrap().is_some()
        });
        listens.then_some(proxy)
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.secure)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Not by SIGKILL, which its workers would survive.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("error.log")).unwrap_or_default();
            eprintln!("nginx logged:\n{log}");
        }
    }
}

/// In place of the folders of the system.
const OWN_FILES: &str = "access_log off; client_body_temp_path body; proxy_temp_path proxy; \
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;";

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn make_certificate(folder: &PathBuf) {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder).args(["req", "-x509", "-newkey", "ec", "-nodes"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]);
    openssl.args(["-keyout", "tls/key.pem", "-out", "tls/certificate.pem"]);
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
