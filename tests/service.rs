//! What a client receives: every update, those that it missed, and a `gap` if some are missing. Also requests,
//! options and the shutdown. Runs the real binary over real sockets.

use crate::common::redis::Redis;
use crate::common::{Say, Server, Source, Stream, assert_in_order, eventually, narrow};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn a_stream_begins_with_its_headers_retry_and_a_status() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let last = server.stream("/stream").update().id.unwrap();
    let mut retries = Vec::new();
    let header = format!("Last-Event-ID: {last}\r\n");
    for (path, header) in [("/stream", ""), ("/stream?since=0", ""), ("/stream", &header)].repeat(3)
    {
        let mut stream = server.stream_with(path, header);
        for (name, value) in [
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store, no-transform"),
            ("X-Accel-Buffering", "no"),
            ("Connection", "close"),
            ("Access-Control-Allow-Origin", "*"),
        ] {
            assert_eq!(stream.header(name), Some(value));
        }
        let first = stream.next().unwrap();
        assert_eq!(first.name.as_deref(), Some("status"));
        retries.push(first.retry.expect("retry in the first block"));
        let status = first.json();
        let fields: Vec<_> = status.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["latest", "now", "reason", "simulated", "stale"]);
        let (latest, now) = (status["latest"].as_u64().unwrap(), status["now"].as_u64().unwrap());
        assert!(latest >= last && now >= latest, "{status}");
        assert_in_order(&stream.updates(3));
    }
    assert!(retries.iter().all(|retry| (2_000..=5_000).contains(retry)), "{retries:?}");
    assert!(retries.iter().any(|retry| *retry != retries[0]), "clients would reconnect at once");
}

#[test]
fn since_is_a_date_or_unix_time_or_how_long_ago() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let first = server.stream("/stream?since=0").update();
    let millis = first.id.unwrap() as i64;
    let date = jiff::Timestamp::from_millisecond(millis).unwrap();
    let zoned = date.to_string().replace('Z', "+00:00");
    for since in [date.to_string(), date.to_string().replace(':', "%3A"), zoned] {
        let next = server.stream(&format!("/stream?since={since}")).update();
        server.assert_complete(&[first.clone(), next]);
    }
    // All of these are before the process started.
    for since in [(millis / 1000 - 1).to_string(), "-5m".into(), "1h%2030m".into(), "1h+30m".into()]
    {
        let mut stream = server.stream(&format!("/stream?since={since}"));
        stream.named("gap");
        assert_eq!(stream.update(), first, "{since}");
    }
}

#[test]
fn an_unknown_id_gets_a_gap_then_live_updates() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let id = server.stream("/stream").update().id.unwrap();
    let day = 86_400_000;
    // From a clock that was ahead, from one far ahead, and from another server at this address.
    for (id, since) in [
        ((id + day).to_string(), Some(id + day)),
        ((id + 3_000 * day).to_string(), Some(id + 3_000 * day)),
        ("c3f1-aa".to_owned(), None),
        ("9".repeat(30), None),
    ] {
        let mut stream = server.resume(&id);
        let gap = stream.named("gap");
        assert_eq!(gap["since"].as_u64(), since, "{id}");
        let updates = stream.updates(3);
        assert_eq!(gap["oldest"].as_u64(), updates[0].id);
        server.assert_complete(&updates);
    }
    // A future time, in any unit, is not an error either.
    for since in [id + day, (id + day) * 1_000, (id + day) * 1_000_000] {
        let mut stream = server.stream(&format!("/stream?since={since}"));
        stream.named("gap");
        stream.update();
        assert_eq!(server.get(&format!("/history?since={since}")).body, "[]");
    }
}

#[test]
fn before_the_first_update_requests_get_503_and_streams_a_status_and_keep_alive_comments() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &["--heartbeat", "20ms"]);
    for path in ["/price", "/history"] {
        let early = server.get(path);
        assert_eq!((early.status, early.header("Retry-After")), (503, Some("5")), "{path}");
        assert!(early.error().contains("no price yet"));
    }
    let mut stream = server.stream("/stream");
    assert!(stream.line().starts_with("retry: "));
    assert_eq!(stream.named("status")["latest"], Value::Null);
    assert_eq!((stream.line(), stream.line()), (":".into(), ":".into()));
    let mut foreign = server.resume(99_999_999_999_999_u64);
    assert_eq!(foreign.named("gap")["oldest"], Value::Null);
    source.allow(u64::MAX);
    stream.update();
    server.assert_complete(&foreign.updates(3)); // No second gap.
}

#[test]
fn the_history_is_an_array_and_can_be_paged_through() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "50ms"]);
    eventually("ten updates", || server.metric("btc_ticker_history_updates") >= 10.0);
    source.say(Say::status(500));
    eventually("publishing stops", || server.fetches("HTTP 500") > 0.0);
    let latest = server.get("/price").json();
    let mut stream = server.stream("/stream?since=0");
    let mut all = vec![stream.update().json()];
    while all[all.len() - 1] != latest {
        all.push(stream.update().json());
    }
    let last = all.len() - 1;
    let get = |query: &str| {
        let answer = server.get(&format!("/history{query}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        (answer.json().as_array().unwrap().clone(), answer.header("X-Gap").map(str::to_owned))
    };
    let time = |index: usize| all[index]["timestamp"].as_u64().unwrap();
    assert_eq!(get(""), (all.clone(), None));
    assert_eq!(get("?limit=3"), (all[last - 2..].to_vec(), None));
    assert_eq!(get("?limit=1000"), (all.clone(), None));
    assert_eq!(get(&format!("?since={}", time(4))), (all[5..].to_vec(), None));
    assert_eq!(get(&format!("?since={}&limit=2", time(4))), (all[5..7].to_vec(), None));
    assert_eq!(get(&format!("?since={}", time(last))), (vec![], None));
    // In pages of three.
    let mut pages = Vec::new();
    let mut since = 0;
    loop {
        let (page, _) = get(&format!("?limit=3&since={since}"));
        let Some(last) = page.last() else { break };
        since = last["timestamp"].as_u64().unwrap();
        pages.extend(page);
    }
    assert_eq!(pages, all);
    // Updates from before the process started are missing.
    let (page, gap) = get("?since=1h&limit=1");
    assert_eq!(page, all[..1]);
    let gap: Value = serde_json::from_str(&gap.unwrap()).unwrap();
    assert_eq!(gap["oldest"].as_u64(), Some(time(0)));
    // `Last-Event-ID` is for streams only.
    let request = "GET /history HTTP/1.1\r\nHost: x\r\nLast-Event-ID: nonsense\r\n\r\n";
    assert_eq!(server.ask(request).json().as_array().unwrap().len(), all.len());

    for query in ["limit=0", "limit=1001", "limit=", "limit=-1", "limit=x", "since=x", "since="] {
        let answer = server.get(&format!("/history?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.error().contains(&query[..5]), "{}", answer.error());
    }
    let answer = server.get("/history");
    for (name, value) in [
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Expose-Headers", "X-Gap"),
        ("Cache-Control", "no-store, no-transform"),
        ("Content-Type", "application/json"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    let head = server.ask("HEAD /history HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head.header("Content-Length"), answer.header("Content-Length"));
}

#[test]
fn updates_that_expired_or_were_lost_in_a_restart_are_reported_as_a_gap() {
    let source = Source::start();
    let server = Server::start(&source, &["--retention", "600ms"]);
    let mut stream = server.stream("/stream?since=0");
    let first = stream.update().id.unwrap();
    stream.updates(20);
    let mut late = server.stream(&format!("/stream?since={first}"));
    let gap = late.named("gap");
    assert_eq!(gap["since"].as_u64(), Some(first));
    let oldest = late.update();
    assert_eq!(gap["oldest"].as_u64(), oldest.id);
    assert_in_order(&[vec![oldest], late.updates(3)].concat());

    // Nothing is missing: no gap.
    let mut all = server.stream("/stream?since=0");
    all.update();
    let latest = all.update().id.unwrap();
    server.stream(&format!("/stream?since={latest}")).update();
    // The process was not running then.
    server.stream("/stream?since=2020-01-01T00:00:00Z").named("gap");

    let address = server.address.to_string();
    server.stop(Signal::SIGTERM);
    let server = Server::start_at(&address, &source, &[]);
    let mut stream = server.resume(latest);
    assert_eq!(stream.named("gap")["since"].as_u64(), Some(latest));
    stream.updates(2);
}

#[test]
fn a_reader_that_pauses_misses_nothing_and_does_not_block_others() {
    // More than all buffers on the way to a client hold.
    const BURST: usize = 20_000;
    let Some(redis) = Redis::start("pauses", &[]) else { return };
    redis.fill(1);
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--store", &redis.url()]);
    let mut others = server.stream("/stream?since=0");
    let mut slow = Stream::open(narrow(&server), "/stream?since=0", "");
    let first = others.update();
    assert_eq!(slow.update(), first);
    redis.fill(BURST as u64);
    let seen = others.updates(BURST);
    assert_eq!(slow.updates(BURST), seen);
    server.assert_complete(&seen);
}

#[test]
fn an_idle_stream_gets_keep_alive_comments() {
    let source = Source::start();
    let server = Server::start(&source, &["--heartbeat", "50ms", "--interval", "60s"]);
    let mut stream = server.stream("/stream?since=0");
    stream.update();
    for _ in 0..3 {
        // Without an empty line after it: a comment belongs to the next event.
        assert_eq!(stream.line(), ":");
    }
}

#[test]
fn no_fault_of_the_source_becomes_an_update_or_ends_a_stream() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "50ms"]);
    let mut stream = server.stream("/stream?since=0");
    let mut expected = stream.update().price() + 1.0;
    let body = |body: &str| Say::Body(body.to_owned());
    let status = |status: u16| Say::Status(status, String::new(), "{\"price\":666}".into());
    for (outcome, fault) in [
        ("timed out", Say::Nothing),
        ("HTTP 401", status(401)),
        ("HTTP 500", status(500)),
        ("HTTP 204", status(204)),
        ("not JSON", body("<!DOCTYPE html><title>Down for maintenance</title>")),
        ("not JSON", body("{\"price\":")),
        ("not JSON", body("")),
        ("no price", body("{\"cost\":1}")),
        ("no price", body("[]")),
        ("not a price", body("{\"price\":\"NaN\"}")),
        ("not a price", body("{\"price\":\"inf\"}")),
        ("not a price", body("{\"price\":-1}")),
        ("not a price", body("{\"price\":0}")),
        ("not a price", body("{\"price\":null}")),
        ("not a price", body("{\"price\":{\"USD\":5}}")),
        ("not JSON", body("{\"price\":1e999}")),
        ("too large", Say::Body(format!("{{\"price\":1,\"x\":\"{}\"}}", "x".repeat(10_000_000)))),
    ] {
        let before = server.fetches(outcome);
        source.say(fault);
        eventually(outcome, || server.fetches(outcome) > before);
        source.say(Say::Prices);
        // Prices that were fetched just before the fault may also arrive.
        let update = stream.update();
        assert!(update.price() >= expected && update.price() < 666.0, "{update:?}");
        expected = update.price() + 1.0;
    }
    source.say(body("{\"price\":\"97123.45\"}"));
    eventually("a price in a string", || stream.update().price() == 97123.45);
}

#[test]
fn errors_say_what_was_wrong_and_what_to_send_instead() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    for since in ["", "yesterday", "-1", "1.5", "2026-11-23", "%00", "NaN"] {
        for path in ["/stream", "/history"] {
            let answer = server.get(&format!("{path}?since={since}"));
            assert_eq!(answer.status, 400, "{since:?}");
            for form in ["1795426752977", "1795426752", "2026-11-23T09:30:00Z", "5m"] {
                assert!(answer.error().contains(form));
            }
        }
    }
    for method in ["POST", "PUT", "DELETE", "BREW"] {
        let head = format!("{method} /price HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n");
        let answer = server.ask(&(head + "hi"));
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD, OPTIONS")));
        assert!(answer.error().contains("GET"));
    }
    let unknown = server.get("/prices");
    assert_eq!((unknown.status, unknown.header("Content-Type")), (404, Some("application/json")));
    assert!(unknown.error().contains("/price"));
}

#[test]
fn a_page_of_another_origin_may_use_fetch() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    for path in ["/stream", "/price", "/history", "*"] {
        let answer = server.ask(&format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: https://example.com\r\n\
             Access-Control-Request-Headers: last-event-id\r\n\r\n"
        ));
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        for (name, value) in [
            ("Allow", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control"),
            ("Access-Control-Max-Age", "86400"),
        ] {
            assert_eq!(answer.header(name), Some(value));
        }
    }
    // OPTIONS does not check the path; GET does.
    assert_eq!(server.ask("OPTIONS /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").status, 204);
    assert_eq!(server.ask("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").status, 404);
}

#[test]
fn head_has_the_headers_of_get() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "60s"]);
    server.stream("/stream?since=0").update();
    let policy = server.get("/");
    assert!(policy.header("Content-Security-Policy").unwrap().contains("default-src 'none'"));
    for path in ["/", "/price", "/history", "/healthz", "/metrics", "/app.js", "/style.css"] {
        let get = server.get(path);
        let head = server.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        assert!(!get.body.is_empty());
        if path != "/metrics" && path != "/healthz" {
            assert_eq!(head.header("Content-Length"), get.header("Content-Length"), "{path}");
        }
    }
    let head = server.ask("HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")));
    assert_eq!(server.metric("btc_ticker_clients_accepted_total"), 1.0, "HEAD opens no stream");
}

#[test]
fn simulated_prices_are_marked_in_every_response() {
    let server = Server::demo(&[]);
    let mut stream = server.stream("/stream");
    assert_eq!(stream.named("status")["simulated"], true);
    assert!(stream.updates(3).iter().all(|update| update.price() > 1_000.0));
    assert_eq!(server.get("/history").header("X-Price-Source"), Some("demo (simulated)"));
    assert_eq!(server.get("/healthz").json()["simulated"], true);
    let metric = "btc_ticker_price_usd{source=\"demo (simulated)\"}";
    assert!(server.get("/metrics").body.contains(metric));
    assert!(server.get("/").body.contains("data-simulated=\"true\""));
}

#[test]
fn streams_end_with_the_service() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let source = Source::start();
        // A shell in the background starts the tests with these signals ignored.
        let line = "exec env --default-signal=INT,HUP \"$0\" \"$@\"";
        let server = Server::start_by_shell(line, &source, &[]);
        let mut streams: Vec<Stream> = (0..50).map(|_| server.stream("/stream")).collect();
        streams[49].update();
        let log = server.stop_cleanly(signal);
        assert!(log.contains("received a signal"), "{log}");
        let waits = log.contains("before all threads have ended");
        assert!(!waits, "every stream ends on its own: {log}");
        streams.into_iter().for_each(Stream::ends);
    }
}

#[test]
fn an_invalid_option_is_refused_with_a_valid_example() {
    for (arguments, hint) in [
        (&["--interval", "5"][..], "5s"),
        (&["--interval", "0s"], "1ms"),
        (&["--interval", "-5s"], "1ms"),
        (&["--heartbeat", "soon"], "1h"),
        (&["--retention", "1s"], "at least --interval"),
        (&["--max-clients", "0"], "from 1 to 1000000"),
        (&["--max-clients", "-1"], "from 1 to 1000000"),
        (&["--listen", "8080"], "127.0.0.1:8080"),
        (&["--source", "mtgox"], "coindesk, coinbase, demo"),
        (&["--source-url", "api.example.com"], "https://"),
        (&["--price-at", "data.amount"], "/data/amount"),
        (&["--source", "demo", "--price-at", "/x"], "--source-url"),
        (&["--retention", "367d"], "366d"),
        (&["--retention", "1y"], "7d"),
        (&["--source-url", "http://user:SEKRET@a:99999/"], "absolute URL"),
        (&["--source-url", "httpx://a/?key=SEKRET"], "absolute URL"),
        (&["--store", "localhost:6379"], "redis://"),
        (&["--store", "http://localhost:6379"], "redis://"),
        (&["--journal", "x"], "--help"),
        (&["--follow", "http://a"], "--help"),
    ] {
        let error = Server::fails(Server::command().args(arguments), 2);
        assert!(error.contains(hint), "{arguments:?}: {error}");
        assert!(!error.contains("SEKRET"), "{error}");
    }
}

#[test]
fn an_invalid_environment_variable_is_named_and_an_empty_one_is_unset() {
    let mut command = Server::command();
    command.env("BTC_TICKER_INTERVAL", "never");
    let error = Server::fails(&mut command, 2);
    assert!(error.contains("variable BTC_TICKER_INTERVAL") && error.contains("5s"), "{error}");
    let error = Server::fails(command.args(["--interval", "soon"]), 2);
    assert!(!error.contains("BTC_TICKER_INTERVAL"), "{error}");

    let mut command = Server::command();
    for name in ["STORE", "SOURCE_URL", "PRICE_AT", "INTERVAL", "MAX_CLIENTS"] {
        command.env(format!("BTC_TICKER_{name}"), "");
    }
    command.env("BTC_TICKER_RETENTION", "1w").env("BTC_TICKER_HEARTBEAT", "1d");
    let server = Server::run(command.args(["--source", "demo", "--listen", "127.0.0.1:0"]));
    eventually("the log has the effective retention", || {
        server.log().contains("every 5s, kept for 5d 18h 53m 20s")
    });
}

#[test]
fn an_address_in_use_is_reported() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let address = server.address.to_string();
    let error =
        Server::fails(Server::command().args(["--source", "demo", "--listen", &address]), 1);
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
}

#[test]
fn help_shows_how_to_start() {
    let output = Server::command().env("BTC_TICKER_SOURCE", "").arg("--help").output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in
        ["curl -N", "--source", "demo", "COINDESK_API_KEY", "BTC_TICKER_LISTEN", "[default: 5s]"]
    {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}
