//! How the service tells how it is: to clients, to whoever operates it, and to the source that it
//! must not pester when that fails.

mod common;

use std::io::{Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Say, Server, Source, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn status(code: u16, headers: &str, body: &str) -> Say {
    Say::Status(code, headers.to_owned(), body.to_owned())
}

#[test]
fn clients_are_told_when_prices_stop_and_when_they_come_again() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut stream = server.stream("/stream");
    stream.update();
    source.say(status(500, "", "oops"));
    let mut last = None;
    let told = loop {
        let event = stream.event();
        match event.name.as_deref() {
            None => last = event.id,
            Some("status") if event.json()["reason"] == "HTTP 500" => break event.json(),
            // On a loaded machine it may have seemed stale before.
            Some("status") => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told["stale"], true);
    let latest = told["latest"].as_u64();
    assert!(last.is_none() || latest == last, "the last update");

    let mut late = server.stream("/stream?since=0");
    let first = late.named("status");
    assert_eq!((&first["reason"], &first["latest"]), (&told["reason"], &told["latest"]));
    late.update();
    source.say(Say::Prices);
    for stream in [&mut stream, &mut late] {
        let mut event = stream.event();
        while event.name.is_none() {
            event = stream.event(); // What the late one had missed, and the update that ended it.
        }
        assert_eq!(event.json()["stale"], false);
    }
    eventually("a newcomer sees fresh prices", || {
        server.stream("/stream").named("status")["stale"] == false
    });
}

#[test]
fn prices_that_never_came_are_stale_without_a_latest() {
    let source = Source::start();
    source.say(Say::Body("{\"price\":\"soon\"}".into()));
    let server = Server::start(&source, &[]);
    let mut stream = server.stream("/stream");
    let mut told = stream.named("status");
    while told["stale"] == false {
        told = stream.named("status");
    }
    assert_eq!((told["reason"].as_str(), told["latest"].as_u64()), (Some("not a price"), None));
    assert_eq!(server.get("/price").status, 503);
    let health = server.get("/healthz");
    assert_eq!((health.status, &health.json()["status"]), (503, &"starting".into()));
    assert_eq!(health.json()["reason"], "not a price");
    eventually("in the log", || server.log().contains("prices are stale"));
}

#[test]
fn every_stream_begins_with_a_status() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let last = server.stream("/stream").update().id.unwrap();
    let header = format!("Last-Event-ID: {last}\r\n");
    for (path, header) in [("/stream", ""), ("/stream?since=0", ""), ("/stream", &header)] {
        let status = server.stream_with(path, header).named("status");
        let fields: Vec<_> = status.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["latest", "now", "reason", "simulated", "stale"]);
        let (latest, now) = (status["latest"].as_u64().unwrap(), status["now"].as_u64().unwrap());
        assert!(latest >= last && now >= latest, "{status}");
    }
}

#[test]
fn the_latest_price_stays_however_old_it_is() {
    let source = Source::start();
    let server = Server::start(&source, &["--retention", "100ms"]);
    let mut stream = server.stream("/stream");
    stream.update();
    source.say(Say::Nothing);
    let latest = server.get("/price").json();
    eventually("it is older than the retention", || {
        server.get("/healthz").json()["last_update_age_seconds"].as_f64() > Some(0.5)
    });
    assert_eq!(server.get("/price").json(), latest);
    assert_eq!(server.stream("/stream").update().json(), latest);
    eventually("stale", || server.get("/healthz").json()["status"] == "stale");
}

#[test]
fn health_goes_from_starting_to_ok_to_stale_and_back() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &[]);
    let health = || {
        let answer = server.get("/healthz");
        let status = answer.json()["status"].as_str().unwrap().to_owned();
        (answer.status, status)
    };
    let is = |code: u16, status: &str| health() == (code, status.to_owned());
    assert!(is(503, "starting"));
    source.allow(u64::MAX);
    eventually("ok", || is(200, "ok"));
    let answer = server.get("/healthz").json();
    assert_eq!(answer["source"], "custom source");
    assert!(answer["last_update_age_seconds"].as_f64().unwrap() < 30.0);
    assert!(answer["updates_retained"].as_u64().unwrap() >= 1);
    assert_eq!(answer["clients"], 0);
    source.say(Say::Nothing);
    eventually("stale", || is(200, "stale"));
    source.say(Say::Prices);
    eventually("ok again", || is(200, "ok"));
}

/// The pauses between the requests that failed, as the source saw them.
fn pauses(source: &Source, failures: usize) -> Vec<Duration> {
    source.say(status(500, "", ""));
    let before = source.requests().len();
    eventually("failures", || source.requests().len() > before + failures);
    let requests = source.requests();
    requests[before..].windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn a_source_that_fails_is_asked_less_and_less_and_then_as_ever() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "50ms"]);
    server.stream("/stream").update();
    let pauses = pauses(&source, 6);
    // Where the machine is busy they may be longer, but they are never shorter.
    for (failure, pause) in pauses.iter().enumerate().skip(1).take(5) {
        let least = Duration::from_millis(50).mul_f64(0.75) * (1 << failure);
        assert!(*pause >= least, "{pause:?} after {} failures: {pauses:?}", failure + 1);
    }
    source.say(Say::Prices);
    // At the pause that it had come to, this would take minutes.
    let before = source.requests().len();
    eventually("the interval again", || source.requests().len() > before + 20);
}

#[test]
fn retry_after_is_honoured() {
    for code in [429, 503] {
        let source = Source::start();
        let server = Server::start(&source, &[]);
        server.stream("/stream").update();
        source.say(status(code, "Retry-After: 2\r\n", "slow down"));
        let count = format!("btc_ticker_fetches_total{{outcome=\"HTTP {code}\"}}");
        eventually("a failure", || server.metric(&count) > 0.0);
        source.say(Say::Prices);
        let refused = *source.requests().last().unwrap();
        let before = source.requests().len();
        eventually("the next try", || source.requests().len() > before);
        let pause = source.requests()[before] - refused;
        assert!(pause >= Duration::from_millis(1_990), "{pause:?}");
    }
}

#[test]
fn the_log_tells_the_story_of_an_outage_once() {
    let source = Source::start();
    let arguments = ["--interval", "200ms"];
    let server = Server::start(&source, &arguments);
    server.stream("/stream").update();
    source.say(Say::Body("{\"cost\":5}".into()));
    let failed = || server.metric("btc_ticker_fetches_total{outcome=\"no price\"}");
    eventually("some failures", || failed() >= 4.0);
    source.say(Say::Prices);
    let ok = || server.metric("btc_ticker_fetches_total{outcome=\"ok\"}");
    let before = ok();
    eventually("recovered", || ok() > before);
    let (_, log) = server.stop(Signal::SIGTERM);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(": no price")).collect();
    assert_eq!(lines.iter().filter(|line| line.contains("nothing at /price")).count(), 1, "{log}");
    assert!(lines[0].contains("cost"), "the start of the answer: {log}");
    assert!(log.contains("failed fetches; the last: no price"), "{log}");
}

#[test]
fn the_log_tells_how_it_began_and_how_it_ended() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let address = server.address.to_string();
    server.stream("/stream").updates(2);
    let (_, log) = server.stop(Signal::SIGTERM);
    let version = env!("CARGO_PKG_VERSION");
    for word in [
        version,
        &address,
        "custom source (127.0.0.1)",
        "limits:",
        "connections (",
        "served 1 stream",
    ] {
        assert!(log.contains(word), "{word} is not in {log}");
    }
    assert!(!log.contains("/ticker"), "a URL may have secrets: {log}");
}

const KEY: &str = "k3y-0f-a-paid-plan";

/// CoinDesk's part, played by a local source.
fn coindesk(source: &Source, level: &str) -> Server {
    let mut command = Server::command();
    command.env("COINDESK_API_KEY", KEY).env("RUST_LOG", level);
    command.args(["--source", "coindesk", "--source-url", &source.url()]);
    command.args(["--listen", "127.0.0.1:0", "--interval", "100ms"]);
    Server::run(&mut command)
}

#[test]
fn the_key_goes_to_the_source_and_nowhere_else() {
    let source = Source::start();
    let good = r#"{"Data":{"BTC-USD":{"VALUE":97123.45}},"Err":{}}"#;
    source.say(Say::Body(good.into()));
    let server = coindesk(&source, "trace,ureq=trace,ureq_proto::util=trace,rustls=trace");
    let mut stream = server.stream("/stream");
    assert_eq!(stream.update().price(), 97123.45);
    let head = source.heads().pop().unwrap();
    let wanted = format!("authorization: apikey {KEY}");
    assert!(head.to_ascii_lowercase().contains(&wanted), "{head}");
    assert!(!head.lines().next().unwrap().contains(KEY), "never in the URL");

    // A source that repeats what it got.
    source.say(status(401, "", &format!(r#"{{"Err":{{"message":"{KEY} is unknown"}}}}"#)));
    let mut shown = stream.head.clone();
    eventually("told", || {
        let event = stream.event();
        shown.push_str(&format!("{event:?}"));
        event.data.is_some_and(|data| data.contains("HTTP 401"))
    });
    for path in ["/", "/price", "/healthz", "/metrics", "/stream?since=x", "/nowhere"] {
        let answer = server.get(path);
        shown.push_str(&answer.head);
        shown.push_str(&answer.body);
    }
    let (_, log) = server.stop(Signal::SIGTERM);
    assert!(log.contains("DEBUG ureq"), "more than the service's own lines");
    assert!(log.contains("is unknown") && log.contains("paid plan"), "what to do: {log}");
    // A dump has it in pieces.
    let halves = [&KEY[..KEY.len() / 2], &KEY[KEY.len() / 2..]];
    for text in [&log, &shown] {
        assert!(!halves.iter().any(|half| text.contains(half)), "in {text}");
    }
    assert!(!log.contains("TRACE"), "no bytes that other crates send and receive");
}

#[test]
fn simulated_prices_do_not_pass_for_real_ones() {
    let source = Source::start();
    source.say(status(200, "X-Price-Source: demo (simulated)\r\n", "{\"price\":5}"));
    let server = Server::start(&source, &[]);
    eventually("it is the reason", || {
        server.get("/healthz").json()["reason"] == "demo (simulated)"
    });
    assert_eq!(server.get("/price").status, 503);
}

#[test]
fn a_newcomer_without_a_key_is_told_where_prices_come_from() {
    let mut command = Server::command();
    let server = Server::run(command.args(["--listen", "127.0.0.1:0"]));
    for word in ["COINDESK_API_KEY is not set", "Coinbase", "developers.coindesk.com"] {
        eventually(word, || server.log().contains(word));
    }
    assert_eq!(server.get("/healthz").json()["source"], "Coinbase");
}

#[test]
fn a_newcomer_without_internet_is_told_what_works_without() {
    let mut command = Server::command();
    // This name never resolves.
    command.args(["--source", "coinbase", "--source-url", "https://api.invalid/price"]);
    command.args(["--listen", "127.0.0.1:0", "--interval", "100ms"]);
    let server = Server::run(&mut command);
    eventually("in the log", || server.log().contains("--source demo works without internet"));
    eventually("the reason, without the hint", || {
        server.get("/healthz").json()["reason"] == "name look-up failed"
    });
    assert!(server.metric("btc_ticker_fetches_total{outcome=\"name look-up failed\"}") > 0.0);
}

#[test]
fn metrics_agree_with_what_happened() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "3", "--interval", "50ms"]);
    let failed = || server.metric("btc_ticker_fetches_total{outcome=\"HTTP 500\"}");
    let published = || server.metric("btc_ticker_updates_published_total");
    // Some more updates, and then none: how many there are by then.
    let publish_some = || {
        let (before, failures) = (published(), failed());
        source.say(Say::Prices);
        eventually("four updates", || published() >= before + 4.0);
        source.say(status(500, "", ""));
        eventually("no more", || failed() > failures);
        published()
    };
    let first = publish_some();
    let mut streams: Vec<_> = (0..3).map(|_| server.stream("/stream?since=0")).collect();
    for stream in &mut streams {
        stream.updates(first as usize);
    }
    for _ in 0..2 {
        assert_eq!(server.get("/stream").status, 503);
    }
    let all = publish_some();
    for stream in &mut streams {
        stream.updates((all - first) as usize);
    }
    server.get("/nowhere");
    server.get("/elsewhere");
    server.get("/stream?since=x");
    for (name, value) in [
        ("updates_published_total", all),
        ("history_updates", all),
        ("updates_replayed_total", 3.0 * first),
        ("updates_delivered_total", 3.0 * (all - first)),
        ("fetches_total{outcome=\"ok\"}", all),
        (
            "price_usd{source=\"custom source\"}",
            server.get("/price").json()["price"].as_f64().unwrap(),
        ),
        ("clients", 3.0),
        ("clients_max", 3.0),
        ("clients_accepted_total", 3.0),
        ("clients_refused_total", 2.0),
        ("clients_fell_behind_total", 0.0),
        ("http_requests_total{path=\"other\",status=\"404\"}", 2.0),
        ("http_requests_total{path=\"/stream\",status=\"200\"}", 3.0),
        ("http_requests_total{path=\"/stream\",status=\"400\"}", 1.0),
        ("http_requests_total{path=\"/stream\",status=\"503\"}", 2.0),
    ] {
        assert_eq!(server.metric(&format!("btc_ticker_{name}")), value, "{name}");
    }
    assert!(server.metric("btc_ticker_last_update_age_seconds") > 0.0);
    drop(streams);
    source.say(Say::Prices);
    let disconnected = "btc_ticker_streams_ended_total{reason=\"disconnected\"}";
    eventually("they are noticed", || server.metric(disconnected) == 3.0);
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
}

#[test]
fn prometheus_likes_the_metrics() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        return common::skipped("metrics were not checked by promtool (on Debian: prometheus)");
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    server.get("/nowhere");
    let metrics = server.get("/metrics");
    assert!(metrics.header("Content-Type").unwrap().contains("version=0.0.4"));
    promtool.stdin.take().unwrap().write_all(metrics.body.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{}", metrics.body);
}

#[test]
fn where_nobody_reads_what_it_says_it_runs_all_the_same() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut command = Server::command();
    command.args(["--source", "demo", "--listen", &address.to_string()]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut server = command.spawn().unwrap();
    eventually("it listens", || TcpStream::connect(address).is_ok());
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored_but_sigterm_does_not() {
    let source = Source::start();
    let line = "trap '' HUP INT TERM; exec \"$0\" \"$@\"";
    let server = Server::start_by_shell(line, &source, &[]);
    let mut stream = server.stream("/stream");
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        server.signal(signal);
        stream.updates(5);
    }
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
}
