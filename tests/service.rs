//! What a client receives: every update, what it missed, and a gap if something is missing.
//! The real binary, over real sockets.

mod common;

use std::io::{Read, Write};
use std::process::Command;

use common::{Say, Server, Source, Stream, assert_in_order, eventually};
use nix::sys::signal::Signal;

#[test]
fn several_clients_get_the_same_updates() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut streams: Vec<Stream> = (0..5).map(|_| server.stream("/stream?since=0")).collect();
    let expected = streams[0].updates(8);
    server.assert_complete(&expected);
    assert_eq!(expected[0].price(), 1.0, "since=0 is all there is");
    for stream in &mut streams[1..] {
        assert_eq!(stream.updates(8), expected);
    }
}

#[test]
fn a_stream_has_the_head_and_the_form_that_browsers_want() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut stream = server.stream("/stream");
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
    let retry = first.retry.expect("it comes with the first event");
    assert!((2_000..=5_000).contains(&retry));
    let others: Vec<_> = (0..8).map(|_| server.stream("/stream").next().unwrap().retry).collect();
    assert!(others.iter().any(|other| *other != Some(retry)), "all come back at once: {others:?}");
    assert_in_order(&stream.updates(3));
}

#[test]
fn without_since_the_latest_update_comes_at_once() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream?since=0").updates(3);
    source.ration();
    let latest = server.get("/price").json();
    let update = server.stream("/stream").update();
    assert_eq!(update.json(), latest);
}

#[test]
fn who_was_away_gets_exactly_what_was_missed_and_is_live_again() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let before = server.stream("/stream?since=0").updates(3);
    let last = before[2].id.unwrap();
    server.stream("/stream").updates(6);

    let mut by_since = server.stream(&format!("/stream?since={last}"));
    let mut by_header = server.stream_with("/stream", &format!("Last-Event-ID: {last}\r\n"));
    // A browser that reconnects sends both, and its header is the newer.
    let both = format!("/stream?since={}", before[0].id.unwrap());
    let mut by_both = server.stream_with(&both, &format!("Last-Event-ID: {last}\r\n"));
    for stream in [&mut by_since, &mut by_header, &mut by_both] {
        server.assert_complete(&[before.clone(), stream.updates(9)].concat());
    }
}

#[test]
fn since_may_be_a_date_or_seconds_or_how_long_ago() {
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
    // A whole second before, and longer ago: which is before this process too.
    for since in [(millis / 1000 - 1).to_string(), "-5m".into(), "1h%2030m".into(), "1h+30m".into()]
    {
        let mut stream = server.stream(&format!("/stream?since={since}"));
        stream.named("gap");
        assert_eq!(stream.update(), first, "{since}");
    }
}

#[test]
fn an_id_from_another_life_gets_a_gap_and_then_live_updates() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let id = server.stream("/stream").update().id.unwrap();
    let day = 86_400_000;
    // From a clock that was ahead, from one that was far ahead, and from another server at this address.
    for (id, since) in [
        ((id + day).to_string(), Some(id + day)),
        ((id + 3_000 * day).to_string(), Some(id + 3_000 * day)),
        ("c3f1-aa".to_owned(), None),
        ("9".repeat(30), None),
    ] {
        let header = format!("Last-Event-ID: {id}\r\n");
        let mut stream = server.stream_with("/stream", &header);
        let gap = stream.named("gap");
        assert_eq!(gap["since"].as_u64(), since, "{id}");
        let updates = stream.updates(3);
        assert_eq!(gap["oldest"].as_u64(), updates[0].id);
        server.assert_complete(&updates);
    }
    // A time in the future, in any unit, is no mistake either.
    for since in [id + day, (id + day) * 1_000, (id + day) * 1_000_000] {
        let mut stream = server.stream(&format!("/stream?since={since}"));
        stream.named("gap");
        stream.update();
        assert_eq!(server.get(&format!("/history?since={since}")).body, "[]");
    }
}

#[test]
fn before_the_first_update_an_id_from_another_life_gets_its_gap_once() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &[]);
    let mut stream = server.stream_with("/stream", "Last-Event-ID: 99999999999999\r\n");
    assert_eq!(stream.named("gap")["oldest"], serde_json::Value::Null);
    source.allow(u64::MAX);
    server.assert_complete(&stream.updates(3));
}

#[test]
fn the_history_is_an_array_that_one_can_go_on_from() {
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--interval", "50ms"]);
    let empty = server.get("/history");
    assert_eq!((empty.status, empty.header("Retry-After")), (503, Some("5")));
    source.say(Say::Prices);
    eventually("ten updates", || server.metric("btc_ticker_history_updates") >= 10.0);
    source.say(Say::Status(500, String::new(), String::new()));
    let failures = "btc_ticker_fetches_total{outcome=\"HTTP 500\"}";
    eventually("no more", || server.metric(failures) > 0.0);
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
    // Three at a time, from the last one on.
    let mut pages = Vec::new();
    let mut since = 0;
    loop {
        let (page, _) = get(&format!("?limit=3&since={since}"));
        let Some(last) = page.last() else { break };
        since = last["timestamp"].as_u64().unwrap();
        pages.extend(page);
    }
    assert_eq!(pages, all);
    // Before this process nobody knows: said as the stream does.
    let (page, gap) = get("?since=1h&limit=1");
    assert_eq!(page, all[..1]);
    let gap: serde_json::Value = serde_json::from_str(&gap.unwrap()).unwrap();
    assert_eq!(gap["oldest"].as_u64(), Some(time(0)));
    // It is no stream: this header is another's.
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
fn what_is_gone_is_told_and_what_is_not_is_not() {
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

    let mut all = server.stream("/stream?since=0");
    all.update();
    let latest = all.update().id.unwrap();
    server.stream(&format!("/stream?since={latest}")).update();
    // Before this process: it cannot know.
    server.stream("/stream?since=2020-01-01T00:00:00Z").named("gap");
}

#[test]
fn a_restarted_server_says_that_its_memory_is_new() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let last = server.stream("/stream").update().id.unwrap();
    let address = server.address.to_string();
    server.stop(Signal::SIGTERM);
    let server = Server::start_at(&address, &source, &[]);
    let mut stream = server.stream_with("/stream", &format!("Last-Event-ID: {last}\r\n"));
    assert_eq!(stream.named("gap")["since"].as_u64(), Some(last));
    stream.updates(2);
}

#[test]
fn a_reader_that_pauses_misses_nothing_and_does_not_block_others() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "1ms"]);
    // More than the buffers on the way to a client take.
    let mut others = server.stream("/stream?since=0");
    others.updates(5_000);
    let mut slow = Stream::open(common::narrow(&server), "/stream?since=0", "");
    let mut all = vec![slow.update()];
    // More than its channel holds.
    let seen = others.updates(1_000);
    while all.last().unwrap().id < seen.last().unwrap().id {
        all.push(slow.update());
    }
    all.extend(slow.updates(100));
    server.assert_complete(&seen);
    server.assert_complete(&all);
}

#[test]
fn a_quiet_stream_gets_a_heartbeat() {
    let source = Source::start();
    let server = Server::start(&source, &["--heartbeat", "50ms", "--interval", "60s"]);
    let mut stream = server.stream("/stream?since=0");
    stream.update();
    for _ in 0..3 {
        // No empty line follows: it is a part of the next event.
        assert_eq!(stream.line(), ":");
    }
}

#[test]
fn no_fault_of_the_source_becomes_an_update_and_the_stream_goes_on() {
    let source = Source::start();
    let arguments = ["--interval", "50ms"];
    let server = Server::start(&source, &arguments);
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
        let count = format!("btc_ticker_fetches_total{{outcome=\"{outcome}\"}}");
        let before = server.metric(&count);
        source.say(fault);
        eventually(outcome, || server.metric(&count) > before);
        source.say(Say::Prices);
        // Prices counted up while the fault was being set and lifted; they are all there.
        let update = stream.update();
        assert!(update.price() >= expected && update.price() < 666.0, "{update:?}");
        expected = update.price() + 1.0;
    }
    source.say(body("{\"price\":\"97123.45\"}"));
    eventually("a price in a string", || stream.update().price() == 97123.45);
}

#[test]
fn errors_say_what_was_wrong_and_what_is_right() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &[]);
    let early = server.get("/price");
    assert_eq!((early.status, early.header("Retry-After")), (503, Some("5")));
    assert!(early.error().contains("no price yet"));

    for since in ["", "yesterday", "-1", "1.5", "2026-11-23", "%00", "NaN"] {
        for answer in [
            server.get(&format!("/stream?since={since}")),
            server.get(&format!("/history?since={since}")),
        ] {
            assert_eq!(answer.status, 400, "{since:?}");
            for form in ["1795426752977", "1795426752", "2026-11-23T09:30:00Z", "5m"] {
                assert!(answer.error().contains(form));
            }
        }
    }
    for method in ["POST", "PUT", "DELETE", "BREW"] {
        let answer = server
            .ask(&format!("{method} /price HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD, OPTIONS")));
        assert!(answer.error().contains("GET"));
    }
    let lost = server.get("/prices");
    assert_eq!((lost.status, lost.header("Content-Type")), (404, Some("application/json")));
    assert!(lost.error().contains("/price"));
}

#[test]
fn before_the_first_update_there_is_a_status_and_keep_alive_comments() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &["--heartbeat", "20ms"]);
    let mut stream = server.stream("/stream");
    assert!(stream.line().starts_with("retry: "));
    assert_eq!(stream.named("status")["latest"], serde_json::Value::Null);
    assert_eq!((stream.line(), stream.line()), (":".into(), ":".into()));
    source.allow(1);
    stream.update();
}

#[test]
fn a_page_of_another_origin_may_stream_by_fetch() {
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
    // The path is not looked at; who then asks for it is told.
    assert_eq!(server.ask("OPTIONS /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").status, 204);
    assert_eq!(server.ask("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").status, 404);
}

#[test]
fn price_is_the_latest_update_and_head_is_get_without_a_body() {
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "60s"]);
    let update = server.stream("/stream?since=0").update();
    let price = server.get("/price");
    assert_eq!((price.status, price.body.as_str()), (200, update.data.as_deref().unwrap()));
    for path in ["/", "/price", "/history", "/healthz", "/metrics", "/app.js", "/style.css"] {
        let (get, head) =
            (server.get(path), server.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")));
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        assert!(!get.body.is_empty());
        if path != "/metrics" && path != "/healthz" {
            assert_eq!(head.header("Content-Length"), get.header("Content-Length"), "{path}");
        }
    }
    let head = server.ask("HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")));
    assert_eq!(server.metric("btc_ticker_clients_accepted_total"), 1.0, "the first was no HEAD");
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    server.stream("/stream").update();
    let mut connection = server.connect();
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let requests = [ask("/price"), ask("/nowhere"), ask("/healthz"), ask("/price")].concat();
    connection.write_all(requests.as_bytes()).unwrap();
    let mut reader = std::io::BufReader::new(connection);
    let statuses = [(); 4].map(|()| common::Answer::read(&mut reader, true).unwrap().status);
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[test]
fn the_page_takes_nothing_from_elsewhere() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let page = server.get("/");
    assert!(page.header("Content-Security-Policy").unwrap().contains("default-src 'none'"));
}

#[test]
fn simulated_prices_are_marked_wherever_they_show() {
    let mut command = Server::command();
    let server = Server::run(command.args([
        "--source",
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--interval",
        "100ms",
    ]));
    let mut stream = server.stream("/stream");
    let marked = |head: Option<&str>| head.is_some_and(|value| value.contains("simulated"));
    assert!(marked(stream.header("X-Price-Source")));
    assert!(marked(Some(&stream.line())));
    assert_eq!(stream.named("status")["simulated"], true);
    assert!(stream.updates(3).iter().all(|update| update.price() > 1_000.0));
    assert!(marked(server.get("/history").header("X-Price-Source")));
    assert!(marked(server.get("/price").header("X-Price-Source")));
    assert_eq!(server.get("/healthz").json()["simulated"], true);
    assert!(
        server.get("/metrics").body.contains("btc_ticker_price_usd{source=\"demo (simulated)\"}")
    );
    assert!(server.get("/").body.contains("data-simulated=\"true\""));
}

#[test]
fn streams_end_with_the_service() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let source = Source::start();
        // Where the tests run in the background, these signals may be ignored.
        let line = "exec env --default-signal=INT,HUP \"$0\" \"$@\"";
        let server = Server::start_by_shell(line, &source, &[]);
        let mut streams: Vec<Stream> = (0..50).map(|_| server.stream("/stream")).collect();
        streams[49].update();
        let (status, log) = server.stop(signal);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("received a signal"), "{log}");
        assert!(!log.contains("still wait"), "every stream ends by itself: {log}");
        assert!(streams.into_iter().all(Stream::ends));
    }
}

#[test]
fn a_service_with_a_thousand_streams_and_a_silent_source_ends_as_well() {
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--interval", "20s"]);
    let streams: Vec<Stream> = (0..1_000).map(|_| server.stream("/stream")).collect();
    assert_eq!(server.metric("btc_ticker_clients"), 1_000.0);
    eventually("it waits for the source", || !source.requests().is_empty());
    let (status, log) = server.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("still wait"), "every thread ends by itself: {log}");
    assert!(!log.contains("no price"), "and that is no failure of the source: {log}");
    assert!(streams.into_iter().all(Stream::ends));
}

#[test]
fn options_that_make_no_sense_are_refused_with_what_would() {
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
        (&["--store", "localhost:6379"], "redis://"),
        (&["--store", "http://localhost:6379"], "redis://"),
        (&["--journal", "x"], "--help"),
        (&["--follow", "http://a"], "--help"),
    ] {
        let output = Server::command().args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(hint), "{arguments:?}: {error}");
    }
}

#[test]
fn an_environment_variable_that_is_wrong_is_named_and_one_that_is_empty_is_none() {
    let fail = |arguments: &[&str]| {
        let mut command = Server::command();
        command.env("BTC_TICKER_INTERVAL", "never").args(arguments);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = fail(&[]);
    assert!(error.contains("variable BTC_TICKER_INTERVAL") && error.contains("5s"), "{error}");
    let error = fail(&["--interval", "soon"]);
    assert!(!error.contains("BTC_TICKER_INTERVAL"), "{error}");

    let mut command = Server::command();
    for name in ["STORE", "SOURCE_URL", "PRICE_AT", "INTERVAL", "MAX_CLIENTS"] {
        command.env(format!("BTC_TICKER_{name}"), "");
    }
    command.env("BTC_TICKER_RETENTION", "1w").env("BTC_TICKER_HEARTBEAT", "1d");
    let server = Server::run(command.args(["--source", "demo", "--listen", "127.0.0.1:0"]));
    eventually("kept as long as the limit allows", || {
        server.log().contains("every 5s, kept for 5d 18h 53m 20s")
    });
    drop(server);
    let output = Server::command().env("BTC_TICKER_SOURCE", "").arg("--help").output().unwrap();
    assert!(output.status.success());
}

#[test]
fn an_address_in_use_is_told() {
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let address = server.address.to_string();
    let output =
        Server::command().args(["--source", "demo", "--listen", &address]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn help_tells_a_newcomer_what_to_do() {
    let output = Server::command().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for word in
        ["curl -N", "--source", "demo", "COINDESK_API_KEY", "BTC_TICKER_LISTEN", "[default: 5s]"]
    {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}

#[test]
fn the_service_can_ask_itself_how_it_is() {
    let source = Source::start();
    source.ration();
    let server = Server::start(&source, &[]);
    let ask = || {
        let mut command = Server::command();
        command.args(["--check-health", "--listen", &server.address.to_string()]);
        command.output().unwrap()
    };
    assert_eq!(ask().status.code(), Some(1), "there is no price yet");
    source.allow(1_000);
    server.stream("/stream").update();
    let output = ask();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"status\":\"ok\""));
}

#[test]
fn curl_sees_what_the_readme_shows() {
    let Ok(version) = Command::new("curl").arg("--version").output() else {
        return common::skipped("what the README shows was not tested: curl is not installed");
    };
    assert!(version.status.success());
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let mut curl = Command::new("curl");
    let url = server.url("/stream");
    let mut child = curl.args(["-sN", &url]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = String::new();
    while text.matches("data: {\"timestamp\":").count() < 3 {
        let mut bytes = [0; 1024];
        let read = output.read(&mut bytes).unwrap();
        assert!(read > 0, "curl ended after {text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
