//! The page in a real Chromium, and in Firefox. What the tests need comes first.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::common::browser::{Browser, DESKTOP, Firefox, LANDSCAPE, PHONE, screen};
use crate::common::{PATIENCE, Say, Server, Source, eventually, listen, read_head};
use btc_ticker::system::unix_millis;
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};

const MINUTE: u64 = 60_000;

/// An update as the page holds it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
struct Point {
    timestamp: u64,
    price: f64,
    /// Whether the page shows that updates before it are missing.
    #[serde(default)]
    broken: bool,
}

fn at(timestamp: u64, price: f64) -> Point {
    Point { timestamp, price, broken: false }
}

/// Returns the updates that the page holds.
fn points(browser: &Browser) -> Vec<Point> {
    serde_json::from_value(browser.eval("ticker.points")).unwrap()
}

/// Returns what a page should hold that was open all the time: every update of a server, with a break after
/// more than `hole` milliseconds without one.
fn history(server: &Server, hole: u64) -> Vec<Point> {
    let mut points: Vec<Point> = serde_json::from_value(server.get("/history").json()).unwrap();
    for i in 1..points.len() {
        points[i].broken = points[i].timestamp - points[i - 1].timestamp > hole;
    }
    points
}

/// A proxy between browser and server. It can switch to another server, or leave the streams to the test.
struct Gate {
    address: SocketAddr,
    state: Arc<Mutex<GateState>>,
    streams: Receiver<Stream>,
}

struct GateState {
    server: SocketAddr,
    way: Way,
    connections: Vec<TcpStream>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    /// Closes every connection without an answer.
    Shut,
    /// The test answers the streams, the server everything else.
    Scripted,
}

impl Gate {
    fn before(server: &Server, way: Way) -> Gate {
        let state = GateState { server: server.address, way, connections: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let (sender, streams) = unbounded();
        let address = listen(move |client| pass(client, &shared, &sender));
        Gate { address, state, streams }
    }

    /// Cuts all connections; later ones go this way.
    fn turn(&self, way: Way) {
        let mut state = self.state.lock().unwrap();
        state.way = way;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn lead_to(&self, server: &Server) {
        self.state.lock().unwrap().server = server.address;
        self.turn(Way::Open);
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Waits for the next stream that the page asks for.
    fn stream(&self) -> Stream {
        self.streams.recv_timeout(PATIENCE).expect("the page asks for a stream")
    }
}

/// Passes one request on, and its answer back.
fn pass(mut client: TcpStream, state: &Mutex<GateState>, streams: &Sender<Stream>) {
    let Some(head) = read_head(&mut BufReader::new(&client)) else { return };
    let (server, way) = {
        let mut state = state.lock().unwrap();
        state.connections.push(client.try_clone().unwrap());
        (state.server, state.way)
    };
    let is_stream = head.split([' ', '?']).nth(1) == Some("/stream");
    if is_stream && way == Way::Scripted {
        let _ = streams.send(Stream { head, socket: client });
        return;
    }
    if way != Way::Shut {
        // Either side may end the connection at any time.
        let _ = forward(&head, server, &mut client);
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn forward(head: &str, server: SocketAddr, client: &mut TcpStream) -> io::Result<()> {
    let mut upstream = TcpStream::connect(server)?;
    let head = head.replace("Connection: keep-alive", "Connection: close");
    upstream.write_all(head.as_bytes())?;
    let mut answer = BufReader::new(upstream);
    let mut line = Vec::new();
    while answer.read_until(b'\n', &mut line)? > 0 {
        // The browser reconnects after 0.1 s rather than 2 to 5 s.
        let is_retry = line.starts_with(b"retry: ");
        client.write_all(if is_retry { b"retry: 100\n" } else { &line })?;
        line.clear();
    }
    Ok(())
}

/// A stream that the test writes.
struct Stream {
    /// The head of the request.
    head: String,
    socket: TcpStream,
}

impl Stream {
    fn open(&self) {
        self.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 100\n");
    }

    /// After this a browser does not reconnect on its own.
    fn refuse(self) {
        self.send("HTTP/1.1 503 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }

    /// Ignores errors: the page may have closed the stream.
    fn send(&self, text: &str) {
        let _ = (&self.socket).write_all(text.as_bytes());
    }

    fn status(&self, latest: Option<u64>, now: u64) {
        let data = json!({"simulated": false, "stale": false, "reason": null, "latest": latest, "now": now});
        self.send(&format!("event: status\ndata: {data}\n\n"));
    }

    fn gap(&self, since: u64, oldest: Option<u64>) {
        let data = json!({"since": since, "oldest": oldest});
        self.send(&format!("event: gap\ndata: {data}\n\n"));
    }

    fn updates(&self, updates: &[Point]) {
        for Point { timestamp, price, .. } in updates {
            let data = json!({"timestamp": timestamp, "price": price});
            self.send(&format!("id: {timestamp}\ndata: {data}\n\n"));
        }
    }

    /// Sends a complete backlog, whose last update is new.
    fn live(&self, updates: &[Point]) {
        let latest = updates.last().unwrap().timestamp;
        self.open();
        self.status(Some(latest), latest);
        self.updates(updates);
    }

    fn since(&self) -> &str {
        self.head.split(' ').nth(1).unwrap().split_once("since=").unwrap().1
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Starts a server whose page expects an update a minute, and which has none itself.
fn silent_server() -> Server {
    let source = Source::start();
    source.say(Say::Nothing);
    Server::start(&source, &["--interval", "60s"])
}

/// Opens the page of a server, but leaves its streams to the test, and its clock too.
fn open_scripted(browser: &Browser, server: &Server) -> (Gate, Stream) {
    let gate = Gate::before(server, Way::Scripted);
    browser.stop_clock();
    browser.open(&gate.url());
    let stream = gate.stream();
    (gate, stream)
}

/// Opens a page that shows an update a minute for 20 minutes.
fn open_chart(browser: &Browser) -> (Server, Gate, Stream) {
    let server = silent_server();
    let (gate, stream) = open_scripted(browser, &server);
    stream.live(&minutes(20));
    browser.until_says("#state-word", "Live");
    (server, gate, stream)
}

/// Returns an update a minute for so many minutes, up to the last full ten minutes. The label of the first one
/// would extend beyond the edge of the chart.
fn minutes(minutes: u64) -> Vec<Point> {
    let from = unix_millis() / (10 * MINUTE) * (10 * MINUTE) - minutes * MINUTE;
    (0..=minutes).map(|i| at(from + i * MINUTE, 500.0 + i as f64)).collect()
}

fn body(price: &str) -> Say {
    Say::Body(format!(r#"{{"price":{price}}}"#))
}

/// Silences the source and waits until the page has its last price.
fn silence(source: &Source, browser: &Browser) {
    source.say(Say::Nothing);
    browser.until(&format!("ticker.points.at(-1).price === {}", source.last_price()));
}

/// Returns the choices of the time shown.
fn offered(browser: &Browser) -> Value {
    browser.eval("$$('.zoom button').filter((button) => button.checkVisibility()).map((button) => button.textContent)")
}

/// Checks for some frames that every price and time of the axes is legible.
fn assert_axis_is_clear(browser: &Browser) {
    let found = browser.run(
        "let frames = 0;
        const look = () => {
            const { em, tag, prices, times } = ticker.axis;
            const covered = prices.filter(({ y }) => Math.abs(y - tag) < 1.25 * em);
            const cut = times.filter(({ from }, i) => from < (i ? times[i - 1].to : 0));
            if (covered.length || cut.length || frames++ > 20) done({ tag, covered, cut });
            else requestAnimationFrame(look);
        };
        look();",
    );
    assert_eq!((&found["covered"], &found["cut"]), (&json!([]), &json!([])), "{found}");
}

/// Returns whether the line of the price, in its colour, crosses the canvas. (Reads a copy: Chromium warns of
/// reads from the original.)
fn is_drawn(browser: &Browser) -> bool {
    let crosses = browser.run(
        "const canvas = $('canvas');
        const { width, height } = canvas;
        const pen = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
        pen.drawImage(canvas, 0, 0);
        pen.fillStyle = getComputedStyle(canvas).getPropertyValue('--line');
        pen.fillRect(0, 0, 1, 1);
        const pixels = new Uint32Array(pen.getImageData(0, 0, width, height).data.buffer);
        const columns = new Set();
        pixels.forEach((pixel, i) => pixel === pixels[0] && columns.add(i % width));
        done(columns.size > width / 2);",
    );
    crosses == true
}

#[test]
fn price_and_chart_appear_in_the_language_of_the_browser() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    source.say(Say::Nothing);
    // Its interval is long: a slow browser starts before prices are stale.
    let silent = silent_server();
    browser.open(&silent.url("/"));
    browser.until("ticker.state === 'waiting'");
    browser.until_says("#state-word", "Waiting");
    browser.until_says("#updated", "No price yet");

    // At this interval a crowded machine is seldom late, and the page announces only a state that lasts.
    let server = Server::start(&source, &["--interval", "500ms"]);
    browser.open(&server.url("/"));
    source.say(body("97123.45"));
    browser.until("ticker.state === 'live' && ticker.points.length > 4");
    browser.until_says("#price-shown", "$97,123.45");
    browser.until("document.title === '$97,123.45 BTC/USD'");
    browser.until_matches("#updated", r"^Updated \d+:\d\d:\d\d\s[AP]M, \d s ago$");
    browser.until_says("#announcement", "Live, $97,123.45");
    assert!(is_drawn(&browser));
    assert!(!browser.is_visible(".simulated"));
    assert_eq!(offered(&browser), json!(["All"]), "a minute has no five");

    browser.speak("de-DE");
    browser.open(&server.url("/"));
    browser.until_says("#price-shown", "97.123,45\u{a0}$");
    browser.until("document.title === '97.123,45\u{a0}$ BTC/USD'");
    browser.until_matches("#updated", r"^Updated \d+:\d\d:\d\d, \d s ago$");
    browser.until("ticker.axis.prices.length > 1");
    browser.until("ticker.axis.prices.every(({ label }) => label.startsWith('97.1'))");
    browser.assert_no_complaints();
}

#[test]
fn a_change_has_its_sign_its_digits_and_a_colour_only_if_there_is_one() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    source.say(body("97000"));
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until_says("#change-amount", "±0.00 (0.00%)");
    for (price, change, direction) in [
        ("97002.59", "▲ +2.59 (+0.0027%)", "up"),
        ("96997.41", "▼ −2.59 (−0.0027%)", "down"),
        ("98000", "▲ +1,000.00 (+1.03%)", "up"),
        ("97000.004", "±0.00 (0.00%)", "none"),
    ] {
        source.say(body(price));
        browser.until_says("#change-amount", change);
        assert_eq!(browser.eval("$('#change').dataset.direction"), direction);
    }
    assert_eq!(browser.style("#change", "color"), browser.style("body", "color"));
    // The latest price is level with a label and does not hide it.
    browser.until("ticker.axis.prices.some(({ label }) => label === '97,000')");
    assert_axis_is_clear(&browser);
    browser.assert_no_complaints();
}

#[test]
fn a_failing_source_shows_with_its_reason_and_its_recovery_too_and_nothing_moves() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    let fail = || source.say(Say::status(401));
    fail();
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    // Returns the top and the bottom of the chart on each screen.
    let places = |state: &str| {
        browser.until(&format!("ticker.state === '{state}'"));
        [PHONE, LANDSCAPE, screen(768, 1024, 1), DESKTOP].map(|screen| {
            browser.resize(screen);
            let place = browser.eval("$('#chart').getBoundingClientRect()");
            ["top", "bottom"].map(|edge| place[edge].as_f64().unwrap())
        })
    };
    // The source has never worked.
    let first = places("stale");
    assert!(first[1][1] < 375.0, "a phone in landscape does not show the chart: {first:?}");
    browser.until_says("#updated", "No price yet: HTTP 401");
    source.say(body("97123.45"));
    browser.until("ticker.points.length > 9");
    assert_eq!(places("live"), first);

    fail();
    assert_eq!(places("stale"), first);
    let since = r"^No new price since \d.*: HTTP 401$";
    browser.until_matches("#updated", since);
    browser.until_says("#state-word", "No new prices");
    browser.until("document.title.endsWith('(no new prices)')");
    assert_eq!(browser.style("#updated", "color"), browser.style("#state-word", "color"));
    // A page that is opened now shows it, too.
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale' && ticker.points.length > 0");
    source.say(Say::Prices);
    browser.until("ticker.state === 'live'");
    browser.until("ticker.points.some((point) => point.broken)");
    browser.until("$('#holes').checkVisibility()");
    server.stop(Signal::SIGKILL);
    assert_eq!(places("reconnecting"), first);

    // The latest price outlives the retention, with its time.
    let server = Server::start(&source, &["--retention", "100ms"]);
    eventually("there is a price", || server.get("/price").status == 200);
    fail();
    eventually("stale", || server.get("/healthz").json()["status"] == "stale");
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale' && ticker.points.length > 0");
    browser.until_matches("#updated", since);
    browser.assert_only_network_complaints();
}

#[test]
fn other_prices_at_the_same_address_begin_a_new_chart() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    // The demo is older than all that the page will hold.
    let demo = Server::demo(&["--interval", "500ms"]);
    eventually("there are simulated prices", || demo.get("/price").status == 200);
    let real = Server::start(&source, &[]);
    let gate = Gate::before(&real, Way::Open);
    browser.open(&gate.url());
    browser.eval("window.sameDocument = true");
    browser.until("ticker.state === 'live' && ticker.points.length > 5");
    assert!(!browser.is_visible(".simulated"));

    gate.lead_to(&demo);
    browser.until("document.title.startsWith('Simulated: $9')");
    assert!(browser.is_visible(".simulated"));
    browser.until_says("#state", "Live simulated prices");
    browser.until_says("#source", "demo");
    browser.until_matches("#announcement", "^Simulated prices, Live, [$]9");
    browser.until("ticker.points.length > 5");
    // By its own interval: four intervals of the real server would be a hole.
    let simulated = points(&browser);
    assert_eq!(simulated, history(&demo, 2000)[..simulated.len()]);

    gate.lead_to(&real);
    browser.until("ticker.state === 'live' && document.title.startsWith('$')");
    assert!(!browser.is_visible(".simulated"));
    browser.until_says("#state", "Live ");
    browser.until_says("#source", "custom source");
    browser.until_matches("#announcement", "^Live, [$]");
    silence(&source, &browser);
    assert_eq!(points(&browser), history(&real, 400));
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_only_network_complaints();
}

#[test]
fn updates_missed_during_an_outage_arrive_once_and_a_restart_needs_no_reload() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    // The restart takes less than four intervals, so only the event `gap` marks the break.
    let start = || Server::start(&source, &["--interval", "500ms"]);
    let server = start();
    let gate = Gate::before(&server, Way::Open);
    browser.stop_clock();
    browser.hasten();
    browser.open(&gate.url());
    browser.eval("window.sameDocument = true");
    let until_more_than = |length: usize| {
        browser.until(&format!("ticker.state === 'live' && ticker.points.length > {length}"));
    };
    until_more_than(2);

    gate.turn(Way::Scripted);
    // The browser reconnects on its own, and after it has given up, the page does, again and again.
    gate.stream().refuse();
    gate.stream().refuse();
    gate.stream().open();
    browser.until("ticker.state === 'reconnecting'");
    let held = points(&browser).len();
    gate.turn(Way::Open);
    until_more_than(held + 2);
    silence(&source, &browser);
    let mut expected = history(&server, 2000);
    assert_eq!(points(&browser), expected);

    server.stop(Signal::SIGTERM);
    browser.until("ticker.state === 'reconnecting'");
    source.say(Say::Prices);
    let server = start();
    gate.lead_to(&server);
    until_more_than(expected.len() + 2);
    silence(&source, &browser);
    let mut more = history(&server, 2000);
    more[0].broken = true;
    expected.append(&mut more);
    assert_eq!(points(&browser), expected);
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_only_network_complaints();
}

#[test]
fn twelve_tabs_share_the_connections_of_a_browser() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "500ms"]);
    let open = |_| {
        let tab = browser.new_tab();
        browser.devtools("Network.setCacheDisabled", json!({"cacheDisabled": true}));
        // The timers of all hidden tabs fire together, as in a browser that aligns them to save power.
        browser.hasten();
        browser.open(&server.url("/"));
        tab
    };
    let tabs: Vec<String> = (0..12).map(open).collect();
    for tab in &tabs {
        browser.show(tab);
        let price = source.last_price();
        browser.until(&format!("ticker.state === 'live' && ticker.points.at(-1).price >= {price}"));
        assert_eq!(browser.run("fetch('price').then((answer) => done(answer.status))"), 200);
        browser.assert_no_complaints();
    }
    // The tab shown last keeps a live title in the background, and the others say that theirs is not. When it
    // is closed, another one takes over.
    browser.show(&browser.new_tab());
    let streams_alone = |others: usize| {
        let mut titles = HashSet::new();
        let mut streaming = Value::Null;
        eventually("one tab has a live title, which changes, and the others are paused", || {
            let tabs = browser.tabs(&server.url("/"));
            let titled = |end: &'static str| {
                tabs.iter().filter(move |tab| tab["title"].as_str().unwrap().ends_with(end))
            };
            let Some(live) = titled(" BTC/USD").next() else { return false };
            if titled(" BTC/USD (paused)").count() == others {
                titles.insert(live["title"].to_string());
                streaming = live["targetId"].clone();
            }
            titles.len() > 1
        });
        eventually("it alone streams", || server.metric("btc_ticker_clients") == 1.0);
        streaming
    };
    let last = streams_alone(11);
    browser.devtools("Target.closeTarget", json!({"targetId": last}));
    streams_alone(10);
    // The other tabs pause for a tab that is shown; it is hidden at once, with a higher rank than theirs.
    let accepted = || server.metric("btc_ticker_clients_accepted_total");
    let before = accepted();
    browser.open(&server.url("/price"));
    browser.eval(
        "void ((tabs) => [-Infinity, 0].forEach((rank) => tabs.postMessage(rank)))(new BroadcastChannel('btc-ticker'))",
    );
    eventually("a tab resumes", || accepted() > before);
    streams_alone(10);
}

#[test]
fn firefox_shows_the_price_in_any_number_of_tabs() {
    let Some(mut firefox) = Firefox::start() else { return };
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "500ms"]);
    let open = |_| {
        let tab = firefox.command("NewWindow", json!({"type": "tab"}))["handle"].take();
        firefox.switch_to(&tab, true);
        firefox.command("Navigate", json!({"url": server.url("/")}));
        firefox.until("ticker.state === 'live'");
        tab
    };
    let tabs: Vec<Value> = (0..8).map(open).collect();
    for tab in &tabs[..7] {
        firefox.switch_to(tab, false);
        firefox.until("document.hidden && document.title.endsWith('BTC/USD (paused)')");
    }
    for tab in &tabs {
        firefox.switch_to(tab, true);
        let price = source.last_price();
        firefox.until(&format!("ticker.state === 'live' && ticker.points.at(-1).price >= {price}"));
    }
    firefox.until("/^Live, [$]\\d+[.]00$/.test($('#announcement').textContent)");
    firefox.until("document.documentElement.scrollHeight <= innerHeight");
}

#[test]
fn a_backlog_on_a_slow_line_is_not_taken_for_the_present() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    source.say(body("97123.45"));
    let server = Server::start(&source, &["--interval", "60s"]);
    eventually("there is a price", || server.get("/price").status == 200);
    let newest = server.get("/price").json()["timestamp"].as_u64().unwrap();
    let (_gate, stream) = open_scripted(&browser, &server);
    let updates: Vec<Point> =
        (0..60).map(|i| at(newest - 7_000 - (60 - i) * MINUTE, 500.0)).collect();
    stream.open();
    stream.status(Some(newest), newest + 7_000);
    stream.updates(&updates[..30]);
    browser.until("ticker.points.length === 30");
    browser.until_says("#state-word", "Loading");
    browser.until_matches("#updated", "^Price as of .*; newer ones are loading$");
    browser.pass(1_001);
    // The price is current, although the chart is not.
    browser.until_says("#price-shown", "$97,123.45");
    browser.until_matches("#updated", "^Price as of .*; the chart is loading$");
    assert!(!browser.is_visible("#holes"));
    stream.updates(&updates[30..]);
    browser.until("ticker.points.length === 60");
    assert_eq!(browser.eval("ticker.state"), "catching-up");
    stream.updates(&[at(newest, 97123.45)]);
    browser.until("ticker.state === 'live'");
    // As old as the server says, and the second that has passed.
    browser.until_matches("#updated", ", 8 s ago$");
    browser.assert_no_complaints();
}

#[test]
fn the_clock_of_the_device_changes_nothing() {
    const HOUR: i64 = 3_600_000;
    let Some(browser) = Browser::start() else { return };
    for wrong in [HOUR, -HOUR] {
        browser.prepare(&format!("var wrong = {wrong}"));
        let server = silent_server();
        let (gate, first) = open_scripted(&browser, &server);
        let updates = minutes(60);
        let latest = updates[60].timestamp;
        first.live(&updates);
        browser.until("ticker.state === 'live' && ticker.points.length === 61");
        browser.until_matches("#updated", ", 0 s ago$");
        browser.pass(2_001);
        browser.until_matches("#announcement", "^Live, ");
        assert!(!browser.is_visible("#holes"));
        // The clock is set: the page opens a new stream, in case the device slept, and changes no word.
        browser.eval("void (window.said = new Set(), new MutationObserver(() => {
            said.add($('#state').textContent).add($('#announcement').textContent);
        }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true }))");
        browser.eval(&format!("void (wrong = {})", -wrong));
        browser.pass(0);
        let stream = gate.stream();
        assert_eq!(stream.since(), latest.to_string());
        stream.open();
        stream.status(Some(latest), latest + 30_000);
        browser.until_matches("#updated", ", 30 s ago$");
        assert_eq!(browser.eval("said.size"), 2, "{}", browser.eval("[...said]"));
        assert_eq!(points(&browser).len(), 61);
        browser.assert_no_complaints();
        browser.open("about:blank"); // so that the page does not complain of the end of its streams
    }
}

#[test]
fn a_silent_stream_is_replaced_by_another_one_and_then_by_the_price() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    source.say(body("97123.45"));
    let server = Server::start(&source, &[]);
    // A connection dies without notice.
    let (gate, dead) = open_scripted(&browser, &server);
    dead.live(&[at(1_000_000, 1.0), at(1_000_100, 2.0)]);
    browser.until("ticker.state === 'live'");
    browser.pass(6_000);
    let stream = gate.stream();
    assert_eq!(stream.since(), "1000100");
    browser.until("ticker.state === 'reconnecting'");
    stream.live(&[at(1_000_200, 3.0)]);
    browser.until("ticker.state === 'live' && ticker.points.length === 3");

    // A proxy holds the stream back: the first attempt receives nothing, the second one only a head.
    browser.pass(6_000);
    let _silent = gate.stream();
    browser.pass(6_000);
    let headed = gate.stream();
    headed.open();
    browser.pass(11_000);
    browser.until("ticker.state === 'held-back'");
    browser.until_says("#price-shown", "$97,123.45");
    browser.until("document.title === '$97,123.45 BTC/USD (not live)'");
    browser.until_matches("#updated", r"^Blocked by a proxy or virus scanner\? Price as of \d.*M$");
    source.say(body("98000"));
    eventually("the price changes", || server.get("/price").body.contains("98000"));
    browser.pass(2_000);
    browser.until_says("#price-shown", "$98,000.00");
    for screen in [screen(320, 568, 2), LANDSCAPE] {
        browser.resize(screen);
        // The sentence is visible in full.
        let cut = browser.eval("$('#updated').scrollHeight - $('#updated').clientHeight");
        assert_eq!(cut, 0, "{screen:?}");
        // Each choice of the time is on one line.
        let lines = browser.eval(
            "$$('.zoom button').map((button) => {
                const text = new Range();
                text.selectNodeContents(button);
                return text.getClientRects().length;
            })",
        );
        assert_eq!(lines, json!([1, 1, 1, 1]), "{screen:?}");
    }
    // Without an answer from /price it is not the proxy.
    let third = gate.stream();
    third.open();
    gate.turn(Way::Shut);
    browser.pass(2_000);
    browser.until("ticker.state === 'reconnecting'");
    gate.turn(Way::Open);
    browser.until("ticker.state === 'live'");
    browser.until_says("#price-shown", "$98,000.00");
}

#[test]
fn a_server_with_another_history_starts_the_page_over() {
    let Some(browser) = Browser::start() else { return };
    let server = silent_server();
    let (gate, stream) = open_scripted(&browser, &server);
    browser.eval("window.sameDocument = true");
    let held = minutes(10);
    let newest = held[10].timestamp;
    let ago = |minutes: u64| newest - minutes * MINUTE;
    let expect = |updates: &[Point]| {
        let length = updates.len();
        browser.until(&format!("ticker.state === 'live' && ticker.points.length === {length}"));
        assert_eq!(points(&browser), updates);
    };
    stream.live(&held);
    expect(&held);

    // The clock of the server was two minutes ahead. It was corrected, and the server has restarted.
    drop(stream);
    let stream = gate.stream();
    assert!(stream.head.contains(&format!("Last-Event-ID: {newest}")), "{}", stream.head);
    stream.open();
    stream.status(None, ago(2));
    stream.gap(newest, None);
    browser.until("ticker.state === 'waiting'");
    browser.until_matches("#updated", r"^Last price at \d");
    let after = [at(ago(2) + 30_000, 600.0), at(ago(1) + 30_000, 601.0)];
    stream.updates(&after[..1]);
    let stream = gate.stream();
    assert_eq!(stream.since(), "0");
    stream.live(&after);
    expect(&after);
    browser.until_says("#price-shown", "$601.00");

    // It was days ahead: the status alone shows that.
    drop(stream);
    let stream = gate.stream();
    stream.open();
    let after = [at(ago(5000), 700.0), at(ago(4999), 701.0)];
    stream.status(Some(after[1].timestamp), after[1].timestamp);
    let stream = gate.stream();
    assert_eq!(stream.since(), "0");
    stream.live(&after);
    expect(&after);

    // A gap before newer updates is a break and nothing else.
    drop(stream);
    let stream = gate.stream();
    let mut more = at(ago(4998), 702.0);
    stream.open();
    stream.status(Some(more.timestamp), more.timestamp);
    stream.gap(after[1].timestamp, Some(more.timestamp));
    stream.updates(&[more]);
    more.broken = true;
    expect(&[after[0], after[1], more]);
    // An update that the page holds already changes nothing.
    let last = at(ago(4997), 703.0);
    stream.updates(&[after[1], more, last]);
    expect(&[after[0], after[1], more, last]);
    // Days later the page forgets them all, and with them the break before the new one.
    stream.updates(&held[10..]);
    expect(&held[10..]);
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_no_complaints();
}

#[test]
fn arabic_times_and_numbers_do_not_reorder_the_words() {
    let Some(browser) = Browser::start() else { return };
    browser.speak("ar-EG");
    let _world = open_chart(&browser);
    browser.until_matches("#change-since", "[صم]"); // AM or PM
    // Each part begins where the one before it ends.
    for line in ["#change-amount", "#change-since", "#updated"] {
        let lefts = browser.eval(&format!(
            "[...$('{line}').childNodes].filter((node) => node.textContent).map((node) => {{
                const range = new Range();
                range.selectNodeContents(node);
                return range.getBoundingClientRect().left;
            }})"
        ));
        let lefts: Vec<f64> = serde_json::from_value(lefts).unwrap();
        assert!(lefts.len() > 1 && lefts.is_sorted(), "{line}: {lefts:?}");
    }
    for screen in [DESKTOP, PHONE] {
        browser.resize(screen);
        assert_axis_is_clear(&browser);
    }
    browser.assert_no_complaints();
}

#[test]
fn the_chart_is_printed_for_the_paper() {
    let Some(browser) = Browser::start() else { return };
    browser.resize(DESKTOP);
    browser.dress("dark", false);
    let _world = open_chart(&browser);
    browser.eval(
        "void addEventListener('beforeprint', () => {
            const canvas = $('canvas');
            const { width, height } = canvas.getBoundingClientRect();
            const style = getComputedStyle(canvas);
            window.printed = {
                stretched: canvas.width / canvas.height / (width / height),
                colours: [style.getPropertyValue('--paper'), style.getPropertyValue('--line')],
            };
        })",
    );
    browser.post("/print", json!({}));
    let stretched = browser.eval("printed.stretched").as_f64().unwrap();
    assert!((stretched - 1.0).abs() < 0.01, "{stretched}");
    assert_eq!(browser.eval("printed.colours"), json!(["#ffffff", "#a8500a"]));
    // Afterwards the screen is as before.
    browser.until_fitted();
    assert_eq!(browser.style("body", "--paper"), "#151412");
    browser.assert_no_complaints();
}

#[test]
fn without_javascript_the_page_says_so_and_nothing_else() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(&server.url("/"));
    let expression = json!({"expression": "document.body.innerText.split(/\\s*\\n\\s*/)", "returnByValue": true});
    let seen = browser.devtools("Runtime.evaluate", expression)["result"]["value"].take();
    let message = "This page needs JavaScript. The latest price is at /price.";
    assert_eq!(seen[0], message, "{seen}");
    assert_eq!(seen[1], "BTC/USD one bitcoin in US dollars", "{seen}");
    assert_eq!(seen[2], "Source: custom source. Times are local.", "{seen}");
}

#[test]
fn keys_walk_through_the_chart_and_a_screen_reader_reads_the_price_in_one_piece() {
    const TAB: &str = "\u{e004}";
    const ENTER: &str = "\u{e007}";
    const LEFT: &str = "\u{e012}";
    const ESCAPE: &str = "\u{e00c}";
    let Some(browser) = Browser::start() else { return };
    let _world = open_chart(&browser);
    assert_eq!(offered(&browser), json!(["5 min", "15 min", "All"]));
    assert_axis_is_clear(&browser);
    browser.press(&[TAB, ENTER]);
    browser.until("$('[data-minutes=\"5\"]').ariaPressed === 'true'");
    browser.until("$$('[aria-pressed=true]').length === 1");
    browser.press(&[TAB, TAB, TAB]);
    assert_eq!(browser.eval("document.activeElement.id"), "chart");
    browser.press(&[LEFT, LEFT]);
    browser.until_says("#reading-price", "$518.00");
    assert!(browser.is_visible("#reading"));
    browser.until("document.activeElement.ariaValueText.startsWith('$518.00, ')");
    browser.press(&[ESCAPE]);
    browser.until("$('#reading').hidden");

    let price = json!({"expression": "document.querySelector('#price')"});
    let price = browser.devtools("Runtime.evaluate", price)["result"]["objectId"].take();
    let texts = json!({"objectId": price, "role": "StaticText"});
    let texts = browser.devtools("Accessibility.queryAXTree", texts)["nodes"].take();
    let spoken = texts.as_array().unwrap().iter().filter(|node| node["ignored"] == false);
    let spoken: Vec<&Value> = spoken.map(|node| &node["name"]["value"]).collect();
    assert_eq!(spoken, ["$520.00"]);
    browser.assert_no_complaints();
}

#[test]
fn simulated_prices_say_so_on_every_screen() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::demo(&["--interval", "50ms"]);
    browser.open(&server.url("/"));
    browser.until("ticker.points.length > 20");
    browser.until("document.title.startsWith('Simulated: $')");

    // A low chart has room for one label beside the tag of the latest price.
    for (screen, least) in [(DESKTOP, 2), (PHONE, 2), (LANDSCAPE, 1)] {
        browser.resize(screen);
        for theme in ["light", "dark"] {
            browser.dress(theme, false);
            browser.until_fitted();
            // Nothing extends beyond the edge.
            assert_eq!(browser.eval("document.documentElement.scrollWidth"), screen.width);
            assert!(browser.is_visible(".simulated"));
            // The next frame has the colours of the theme.
            eventually(&format!("{screen:?}, {theme}"), || is_drawn(&browser));
            let labels = browser.eval("ticker.axis.prices.length").as_u64();
            assert!(labels.unwrap() >= least, "{screen:?}: {labels:?}");
            assert_axis_is_clear(&browser);
        }
        let is_shown = browser.eval("$('#chart').getBoundingClientRect().bottom < innerHeight");
        assert_eq!(is_shown, true, "{screen:?}: the chart is below the fold");
    }
    browser.assert_no_complaints();
}

#[test]
fn the_page_breaks_no_rule_of_accessibility() {
    let axe = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/clients/node/node_modules/axe-core/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(axe) else {
        return crate::common::skipped(
            "accessibility was not tested: npm install --prefix target/clients/node axe-core",
        );
    };
    let Some(browser) = Browser::start() else { return };
    let check = || {
        browser.post("/execute/sync", json!({"script": axe, "args": []}));
        for (theme, forced) in [("light", false), ("dark", false), ("light", true), ("dark", true)]
        {
            browser.dress(theme, forced);
            let found = browser.run(
                "const nodes = ({ id, impact, nodes }) => nodes.map(({ html }) => [id, impact, html]);
                axe.run().then(({ violations }) => done(violations.flatMap(nodes)), (error) => done(`${error}`));",
            );
            assert_eq!(found, json!([]), "{theme}, forced colours: {forced}");
            // The fill of the dot is visible, and so is the choice of the time.
            let dot = "getComputedStyle($('#state'), '::before').backgroundColor";
            assert_ne!(browser.eval(dot), browser.style("body", "background-color"));
            let zoom =
                |pressed| browser.style(&format!("[aria-pressed={pressed}]"), "background-color");
            assert_ne!(zoom(true), zoom(false));
            if !forced {
                let theme = "$$('[name=theme-color]').find(({ media }) => matchMedia(media).matches).content";
                assert_eq!(browser.eval(theme), browser.style("body", "--paper"));
            }
        }
    };
    let _world = open_chart(&browser);
    check();
    let demo = Server::demo(&[]);
    browser.open(&demo.url("/"));
    browser.until("ticker.state === 'live' && ticker.points.length > 5");
    check();
    let size = browser.run(
        "const icon = new Image();
        icon.onload = () => done([icon.naturalWidth, icon.naturalHeight]);
        icon.src = $('[rel=apple-touch-icon]').href;",
    );
    assert_eq!(size, json!([180, 180]));
    browser.assert_no_complaints();
}

/// `UPDATE_PICTURE=1 cargo test --test promises picture` takes it, and fails because of its size until
/// `pngquant --force --ext .png 64 static/page.png` has reduced it.
#[test]
fn the_readme_has_a_picture_of_the_page() {
    let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("static/page.png");
    if std::env::var_os("UPDATE_PICTURE").is_some()
        && let Some(browser) = Browser::start()
    {
        // An hour of simulated prices, which begins as the demo does.
        let now = unix_millis();
        let price = |step: u64| {
            let waves = 800.0 * (step as f64 / 90.0).sin() + 30.0 * (step as f64 / 7.0).sin();
            97_000.0 + waves + (step * 7919 % 31) as f64
        };
        let updates: Vec<Point> =
            (0..=714).map(|step| at(now - 5_000 * (714 - step), price(step))).collect();
        let server = Server::demo(&["--interval", "5s"]);
        browser.resize(screen(960, 600, 1));
        let (_gate, stream) = open_scripted(&browser, &server);
        stream.open();
        let status =
            json!({"simulated": true, "stale": false, "reason": null, "latest": now, "now": now});
        stream.send(&format!("event: status\ndata: {status}\n\n"));
        stream.updates(&updates);
        browser.until("ticker.state === 'live'");
        browser.until_fitted();
        std::fs::write(&picture, browser.screenshot()).unwrap();
    }
    let bytes = std::fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    assert!(bytes.len() < 60_000, "{} bytes", bytes.len());
}

#[test]
fn the_snippet_of_the_readme_works_on_a_page_of_another_origin() {
    let Some(browser) = Browser::start() else { return };
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "1"]);
    let gate = Gate::before(&server, Way::Open);
    // The service is full when the page is opened; later there is room.
    let other = server.stream("/stream");
    let readme = include_str!("../README.md").split("```html\n").nth(1).unwrap();
    let snippet = readme.split("```").next().unwrap();
    let page = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("snippet.html");
    std::fs::write(&page, snippet.replace("localhost:8080", &gate.address.to_string())).unwrap();
    browser.hasten();
    browser.open(&format!("file://{}", page.display()));
    let shows = |price: u64| {
        let at_least = "Number($('#price').textContent.split('$')[1])";
        browser.until(&format!("{at_least} >= {price}"));
    };
    let refused = || server.metric("btc_ticker_clients_refused_total");
    eventually("the page is turned away", || refused() >= 2.0);
    assert_eq!(browser.eval("$('#price').textContent"), "");
    drop(other);
    shows(5);
    browser.until_matches("#price", r"^\$\d+\.\d\d$");
    server.stop(Signal::SIGKILL);
    let server = Server::start(&source, &[]);
    gate.lead_to(&server);
    shows(source.last_price() + 1);
    // A page that streams with `fetch` sends a preflight request first.
    let options = "{ headers: { 'Last-Event-ID': '5', 'Cache-Control': 'no-store' } }";
    let url = server.url("/stream");
    let fetch = format!("fetch('{url}', {options}).then((answer) => done(answer.status))");
    assert_eq!(browser.run(&fetch), 200);
}
