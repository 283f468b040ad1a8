//! What the service reports to clients and operators: staleness, health, metrics and the log; and how it backs
//! off when the source fails.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Say, Server, Source, eventually};
use nix::sys::signal::Signal;

/// A response with a header line and a body.
fn answer(status: u16, header: &str, body: &str) -> Say {
    Say::Status(status, format!("{header}\r\n"), body.to_owned())
}

#[test]
fn clients_receive_a_status_when_prices_become_stale_and_when_they_recover() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut stream = server.stream("/stream");
    stream.update();
    source.say(Say::status(500));
    let mut last = None;
    let status = loop {
        let event = stream.event();
        match event.name.as_deref() {
            None => last = event.id,
            Some("status") if event.json()["reason"] == "HTTP 500" => break event.json(),
            // On a loaded machine, prices may have been stale before.
            Some("status") => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status["stale"], true);
    let latest = status["latest"].as_u64();
    assert!(last.is_none() || latest == last, "latest is the last update");

    let mut late = server.stream("/stream?since=0");
    let first = late.named("status");
    assert_eq!((&first["reason"], &first["latest"]), (&status["reason"], &status["latest"]));
    late.update();
    source.say(Say::Prices);
    for stream in [&mut stream, &mut late] {
        let mut event = stream.event();
        while event.name.is_none() {
            event = stream.event(); // The backlog, and the update that ended the outage.
        }
        assert_eq!(event.json()["stale"], false);
    }
    eventually("a new client receives fresh prices", || {
        server.stream("/stream").named("status")["stale"] == false
    });
}

#[test]
fn prices_that_never_arrived_are_stale_without_a_latest() {
    for (say, reason) in [
        (Say::Body("{\"price\":\"soon\"}".into()), "not a price"),
        // A demo server, which is not a source of real prices.
        (answer(200, "X-Price-Source: demo (simulated)", "{\"price\":5}"), "demo (simulated)"),
    ] {
        let source = Source::start();
        source.say(say);
        let server = Server::start(&source, &[]);
        let mut stream = server.stream("/stream");
        let mut status = stream.named("status");
        while status["stale"] == false {
            status = stream.named("status");
        }
        assert_eq!((status["reason"].as_str(), status["latest"].as_u64()), (Some(reason), None));
        assert_eq!(server.get("/price").status, 503);
        let health = server.get("/healthz");
        assert_eq!((health.status, &health.json()["status"]), (503, &"starting".into()));
        assert_eq!(health.json()["reason"], reason);
        eventually("the log reports it", || server.log().contains("prices are stale"));
    }
}

#[test]
fn health_goes_from_starting_to_ok_to_stale_and_back_and_the_latest_price_never_expires() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &["--retention", "100ms"]);
    let is = |code: u16, status: &str| {
        let health = server.get("/healthz");
        (health.status, &health.json()["status"]) == (code, &status.into())
    };
    assert!(is(503, "starting"));
    source.allow(u64::MAX);
    eventually("ok", || is(200, "ok"));
    let health = server.get("/healthz").json();
    assert_eq!(health["source"], "custom source");
    assert!(health["last_update_age_seconds"].as_f64().unwrap() < 30.0);
    assert!(health["updates_retained"].as_u64().unwrap() >= 1);
    assert_eq!(health["clients"], 0);

    let mut stream = server.stream("/stream");
    stream.update();
    source.say(Say::Nothing);
    while stream.named("status")["stale"] == false {}
    assert!(is(200, "stale"));
    let latest = server.get("/price").json();
    eventually("the latest price is older than the retention", || {
        server.get("/healthz").json()["last_update_age_seconds"].as_f64() > Some(0.5)
    });
    assert_eq!(server.get("/price").json(), latest);
    assert_eq!(server.stream("/stream").update().json(), latest);
    source.say(Say::Prices);
    eventually("ok again", || is(200, "ok"));
}

#[test]
fn retries_back_off_and_polling_resumes_at_the_interval() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "50ms"]);
    server.stream("/stream").update();
    source.say(Say::status(500));
    let before = source.requests().len();
    eventually("six failures", || source.requests().len() > before + 6);
    let requests = &source.requests()[before..];
    let pauses: Vec<Duration> = requests.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // On a loaded machine they may be longer, but never shorter.
    for (failure, pause) in pauses.iter().enumerate().skip(1).take(5) {
        let least = Duration::from_millis(50).mul_f64(0.75) * (1 << failure);
        assert!(*pause >= least, "{pause:?} after {} failures: {pauses:?}", failure + 1);
    }
    source.say(Say::Prices);
    // Without the reset of the back-off, this would take minutes.
    let before = source.requests().len();
    eventually("polling at the interval", || source.requests().len() > before + 20);
}

#[test]
fn retry_after_is_respected() {
    for code in [429, 503] {
        let source = Source::start();
        let server = Server::start(&source, &[]);
        server.stream("/stream").update();
        source.say(answer(code, "Retry-After: 2", "slow down"));
        let refused = || server.fetches(&format!("HTTP {code}"));
        eventually("two fetches are refused", || refused() >= 2.0);
        let [.., first, second] = source.requests()[..] else { panic!("two requests") };
        let pause = second - first;
        assert!(pause >= Duration::from_millis(1_990), "{pause:?}");
    }
}

#[test]
fn the_log_has_a_line_for_each_event() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "200ms"]);
    let address = server.address.to_string();
    server.stream("/stream").updates(2);
    source.say(Say::Body("{\"cost\":5}".into()));
    eventually("four fetches fail", || server.fetches("no price") >= 4.0);
    source.say(Say::Prices);
    let before = server.fetches("ok");
    eventually("the source recovers", || server.fetches("ok") > before);
    let (_, log) = server.stop(Signal::SIGTERM);
    for text in [
        env!("CARGO_PKG_VERSION"),
        &address,
        "custom source (127.0.0.1)",
        "limits:",
        "connections (",
        "failed fetches; the last: no price",
        "served 1 stream",
    ] {
        assert!(log.contains(text), "{text} is not in {log}");
    }
    let failures: Vec<&str> = log.lines().filter(|line| line.contains(": no price")).collect();
    let explained = failures.iter().filter(|line| line.contains("nothing at /price"));
    assert_eq!(explained.count(), 1, "one line for the outage: {log}");
    assert!(failures[0].contains("cost"), "the start of the answer: {log}");
    assert!(!log.contains("/ticker"), "a URL may contain secrets: {log}");
}

#[test]
fn a_source_that_fails_again_and_again_does_not_flood_the_log() {
    let source = Source::start();
    let began = Instant::now();
    let server = Server::start(&source, &["--interval", "20ms"]);
    server.stream("/stream").update();
    for _ in 0..10 {
        let before = server.fetches("HTTP 500");
        source.say(Say::status(500));
        eventually("a fetch fails", || server.fetches("HTTP 500") > before);
        eventually("stale", || server.get("/healthz").json()["status"] == "stale");
        let before = server.fetches("ok");
        source.say(Say::Prices);
        eventually("the source recovers", || server.fetches("ok") > before);
        eventually("ok", || server.get("/healthz").json()["status"] == "ok");
    }
    let log = server.stop_cleanly(Signal::SIGTERM);
    let most = 1 + began.elapsed().as_secs() as usize / 10;
    for (begin, end) in [(": HTTP 500 (", "again after"), ("prices are stale", "fresh again")] {
        let (begins, ends) = (log.matches(begin).count(), log.matches(end).count());
        assert!((1..=most).contains(&begins) && ends <= begins, "{begin}: {log}");
    }
}

const KEY: &str = "k3y-0f-a-paid-plan";

#[test]
fn the_key_is_sent_to_the_source_and_shown_nowhere() {
    let source = Source::start();
    let good = r#"{"Data":{"BTC-USD":{"VALUE":97123.45}},"Err":{}}"#;
    source.say(Say::Body(good.into()));
    let mut command = Server::command();
    command.env("COINDESK_API_KEY", KEY);
    command.env("RUST_LOG", "trace,ureq=trace,ureq_proto::util=trace,rustls=trace");
    command.args(["--source", "coindesk", "--source-url", &source.url()]);
    let server = Server::run(command.args(["--listen", "127.0.0.1:0", "--interval", "500ms"]));
    let mut stream = server.stream("/stream");
    assert_eq!(stream.update().price(), 97123.45);
    let head = source.heads().pop().unwrap();
    let wanted = format!("authorization: apikey {KEY}");
    assert!(head.to_ascii_lowercase().contains(&wanted), "{head}");
    assert!(!head.lines().next().unwrap().contains(KEY), "never in the URL");

    // A source that echoes the key.
    let echo = format!(r#"{{"Err":{{"message":"{KEY} is unknown"}}}}"#);
    source.say(Say::Status(401, String::new(), echo));
    let mut shown = stream.head.clone();
    eventually("clients receive the reason", || {
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
    assert!(log.contains("DEBUG ureq"), "other crates log, too");
    assert!(
        log.contains("is unknown") && log.contains("paid plan"),
        "the cause and the remedy: {log}"
    );
    // A hex dump would split it.
    let halves = [&KEY[..KEY.len() / 2], &KEY[KEY.len() / 2..]];
    for text in [&log, &shown] {
        assert!(!halves.iter().any(|half| text.contains(half)), "in {text}");
    }
    assert!(!log.contains("TRACE"), "other crates log bytes at trace");
}

#[test]
fn without_a_key_the_log_names_the_source_and_how_to_get_a_key() {
    let mut command = Server::command();
    let server = Server::run(command.args(["--listen", "127.0.0.1:0"]));
    for word in ["COINDESK_API_KEY is not set", "Coinbase", "developers.coindesk.com"] {
        eventually(word, || server.log().contains(word));
    }
    assert_eq!(server.get("/healthz").json()["source"], "Coinbase");
}

#[test]
fn without_internet_the_log_recommends_the_demo() {
    let mut command = Server::command();
    // This name never resolves.
    command.args(["--source", "coinbase", "--source-url", "https://api.invalid/price"]);
    command.args(["--listen", "127.0.0.1:0", "--interval", "100ms"]);
    let server = Server::run(&mut command);
    eventually("the log recommends it", || {
        server.log().contains("--source demo works without internet")
    });
    eventually("health has the reason, without the hint", || {
        server.get("/healthz").json()["reason"] == "name look-up failed"
    });
    assert!(server.fetches("name look-up failed") > 0.0);
}

#[test]
fn metrics_count_what_happened() {
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "3", "--interval", "50ms"]);
    let failed = || server.fetches("HTTP 500");
    let published = || server.metric("btc_ticker_updates_published_total");
    // Publishes a few updates and stops. Returns the total.
    let publish_some = || {
        let (before, failures) = (published(), failed());
        source.say(Say::Prices);
        eventually("four updates are published", || published() >= before + 4.0);
        source.say(Say::status(500));
        eventually("publishing stops", || failed() > failures);
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
    let price = server.get("/price").json()["price"].as_f64().unwrap();
    for (name, value) in [
        ("updates_published_total", all),
        ("history_updates", all),
        ("updates_replayed_total", 3.0 * first),
        ("updates_delivered_total", 3.0 * (all - first)),
        ("fetches_total{outcome=\"ok\"}", all),
        ("price_usd{source=\"custom source\"}", price),
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
    eventually("the server detects it", || server.metric(disconnected) == 3.0);
    assert_eq!(server.metric("btc_ticker_clients"), 0.0);
}

#[test]
fn promtool_accepts_the_metrics() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        return crate::common::skipped(
            "metrics were not checked: promtool is not installed (on Debian: prometheus)",
        );
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    server.get("/nowhere");
    let metrics = server.get("/metrics");
    assert!(metrics.header("Content-Type").unwrap().contains("version=0.0.4"));
    promtool.stdin.take().unwrap().write_all(metrics.body.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let found = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    assert!(output.status.success() && found.trim().is_empty(), "{found}\n{}", metrics.body);
}

#[test]
fn ignored_signals_stay_ignored_except_sigterm() {
    let source = Source::start();
    let line = "trap '' HUP INT TERM; exec \"$0\" \"$@\"";
    let server = Server::start_by_shell(line, &source, &[]);
    let mut stream = server.stream("/stream");
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        server.signal(signal);
        stream.updates(5);
    }
    server.stop_cleanly(Signal::SIGTERM);
}
