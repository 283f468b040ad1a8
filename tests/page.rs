//! The page in a real Chromium, driven over WebDriver, which is plain JSON over HTTP, and in Firefox.
//! If a browser is not installed its tests say so and pass, except in CI, where they must run.
//! The drivers come first, then the tests.

mod common;

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use btc_ticker::system::unix_millis;
use common::{PATIENCE, Say, Server, Source, eventually, folder};

/// One browser at a time: browsers are heavy, and a starved one says nothing about the page.
static TURN: Mutex<()> = Mutex::new(());

/// A headless Chromium and its chromedriver.
struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    // Held open, because the driver writes to it.
    _output: BufReader<ChildStdout>,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Returns `None` if Chromium is not installed and `CI` is not set.
    fn start() -> Option<Browser> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (driver, output, port) = match start_driver() {
            Err(error) if error.kind() == ErrorKind::NotFound => return skip(),
            driver => driver.expect("chromedriver starts"),
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let mut browser = Browser {
            driver,
            session: format!("http://127.0.0.1:{port}/session"),
            agent,
            _output: output,
            _turn: turn,
        };
        let flags = [
            "--headless",
            "--no-sandbox", // which root cannot have; the only page is our own
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ];
        let wishes = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": flags},
            "timeouts": {"script": PATIENCE.as_millis()},
        }}});
        match browser.ask("", wishes) {
            Ok(session) => {
                let id = session["sessionId"].as_str().expect("a session has an id");
                browser.session = format!("{}/{id}", browser.session);
                // Not the language of the machine.
                browser.speak("en-US");
                Some(browser)
            }
            Err(problem) if problem.contains("cannot find") => skip(),
            Err(problem) => panic!("Chromium does not start: {problem}"),
        }
    }

    fn ask(&self, path: &str, body: Value) -> Result<Value, String> {
        let response = self
            .agent
            .post(format!("{}{path}", self.session))
            .header("Content-Type", "application/json")
            .send(body.to_string());
        let text = response.and_then(|mut response| response.body_mut().read_to_string());
        let mut answer: Value = serde_json::from_str(&text.expect("chromedriver answers")).unwrap();
        match answer["value"].take() {
            value if value.get("error").is_some() => {
                Err(format!("{path}: {} ({body})", value["message"]))
            }
            value => Ok(value),
        }
    }

    fn post(&self, path: &str, body: Value) -> Value {
        self.ask(path, body).unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn open(&self, url: &str) {
        self.post("/url", json!({"url": url}));
    }

    /// Returns the value of a JavaScript expression.
    fn eval(&self, expression: &str) -> Value {
        self.post("/execute/sync", json!({"script": format!("return {expression}"), "args": []}))
    }

    /// Waits until a JavaScript expression holds.
    fn until(&self, condition: &str) {
        let script = format!(
            "const done = arguments[0]; const look = () => ({condition}) ? done() : setTimeout(look, 20); look();"
        );
        self.post("/execute/async", json!({"script": script, "args": []}));
    }

    /// Presses keys one after the other, in the element that has the focus.
    fn press(&self, keys: &[&str]) {
        let actions: Vec<_> = keys
            .iter()
            .flat_map(|key| {
                [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
            })
            .collect();
        self.post(
            "/actions",
            json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}),
        );
    }

    fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters}))
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.agent.get(format!("{}{path}", self.session)).call();
        let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
        let answer: Value = serde_json::from_str(&text.expect("chromedriver answers")).unwrap();
        answer["value"].clone()
    }

    /// Returns the tab that receives the commands.
    fn tab(&self) -> String {
        self.get("/window").as_str().unwrap().to_owned()
    }

    /// Opens a tab, shows it, and sends commands to it from now on.
    fn new_tab(&self) -> String {
        let tab = self.post("/window/new", json!({"type": "tab"}));
        let tab = tab["handle"].as_str().unwrap().to_owned();
        self.show(&tab);
        tab
    }

    /// Sends commands to a tab from now on, and shows it.
    fn show(&self, tab: &str) {
        self.post("/window", json!({"handle": tab}));
        self.until("!document.hidden");
    }

    /// Returns the ids and titles of the tabs with this address. (WebDriver shows a tab before it reads from it.)
    fn titles(&self, url: &str) -> Vec<(String, String)> {
        let tabs = self.devtools("Target.getTargets", json!({}));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let tabs = tabs["targetInfos"].as_array().unwrap().iter().filter(|tab| tab["url"] == url);
        tabs.map(|tab| (text(&tab["targetId"]), text(&tab["title"]))).collect()
    }

    /// Sets the language of numbers and times for pages that are opened from now on.
    fn speak(&self, locale: &str) {
        self.devtools("Emulation.setLocaleOverride", json!({"locale": locale}));
    }

    /// Resizes the window. With two device pixels to a pixel it is a phone.
    fn resize(&self, width: u32, height: u32, density: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": density, "mobile": density > 1});
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        self.until(&format!("innerWidth === {width} && innerHeight === {height}"));
    }

    /// Sets the colour scheme, `light` or `dark`, and forced colours.
    fn dress(&self, theme: &str, forced: bool) {
        let forced = if forced { "active" } else { "none" };
        let features = json!([
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "forced-colors", "value": forced},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Waits until an element has this text.
    fn until_says(&self, selector: &str, text: &str) {
        self.until(&format!("document.querySelector('{selector}').textContent === '{text}'"));
    }

    fn has_banner(&self) -> bool {
        self.eval("document.querySelector('.simulated').checkVisibility()") == true
    }

    fn screenshot(&self, name: &str) {
        let shot = self.devtools("Page.captureScreenshot", json!({"format": "png"}));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
        std::fs::write(&path, from_base64(shot["data"].as_str().unwrap())).unwrap();
    }

    /// Returns the console messages since the last call, policy violations included.
    fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    fn assert_no_complaints(&self) {
        assert_eq!(self.complaints(), Vec::<String>::new());
    }

    /// For tests in which the server is unreachable: the browser logs that, too.
    fn assert_only_network_complaints(&self) {
        let mut complaints = self.complaints();
        complaints.retain(|text| {
            !(text.contains("/stream?since=")
                && (text.contains("net::ERR_") || text.contains("503")))
        });
        assert_eq!(complaints, Vec::<String>::new());
    }

    /// The updates that the page holds.
    fn points(&self) -> Vec<Point> {
        let points = self.eval("ticker.points");
        points.as_array().unwrap().iter().map(Point::read).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium and removes its profile, which killing the driver alone would not.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn skip() -> Option<Browser> {
    common::skipped(
        "the page was not tested, for there is no browser: apt-get install chromium chromium-driver",
    );
    None
}

/// Starts chromedriver and returns the port on which it listens. The port that it picks for IPv4 may be taken
/// for IPv6: then it exits, and the next attempt picks another one.
fn start_driver() -> io::Result<(Child, BufReader<ChildStdout>, u16)> {
    for _ in 0..10 {
        let mut command = Command::new("chromedriver");
        let mut driver = command.arg("--port=0").stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        if let Some(port) = announced_port(&mut output) {
            return Ok((driver, output, port));
        }
        driver.wait()?;
    }
    Err(io::Error::other("it has ended ten times"))
}

fn announced_port(output: &mut impl BufRead) -> Option<u16> {
    let mut lines = output.lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("started successfully on port"))?;
    line.trim_end_matches('.').rsplit(' ').next()?.parse().ok()
}

/// A headless Firefox, driven over Marionette, the protocol beneath its WebDriver: JSON messages over TCP, each
/// prefixed with its length.
struct Firefox {
    process: Child,
    connection: BufReader<TcpStream>,
    _turn: MutexGuard<'static, ()>,
}

impl Firefox {
    /// Returns `None` if Firefox is not installed and `CI` is not set.
    fn start() -> Option<Firefox> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = folder("firefox");
        std::fs::write(profile.join("user.js"), "user_pref('marionette.port', 0);").unwrap();
        let mut command = Command::new("firefox");
        command.args(["--marionette", "--headless", "--no-remote", "--profile"]).arg(&profile);
        command.env("HOME", &profile).stdout(Stdio::null()).stderr(Stdio::null());
        let process = match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                common::skipped("Firefox was not tested: apt-get install firefox-esr");
                return None;
            }
            process => process.unwrap(),
        };
        let mut port = None;
        eventually("Firefox listens", || {
            let text = std::fs::read_to_string(profile.join("MarionetteActivePort"));
            port = text.ok().and_then(|text| text.trim().parse().ok());
            port.is_some()
        });
        let connection = TcpStream::connect(("127.0.0.1", port.unwrap())).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut firefox = Firefox { process, connection: BufReader::new(connection), _turn: turn };
        firefox.receive();
        firefox.command("NewSession", json!({}));
        Some(firefox)
    }

    fn command(&mut self, name: &str, parameters: Value) -> Value {
        let message = json!([0, 1, format!("WebDriver:{name}"), parameters]).to_string();
        write!(self.connection.get_mut(), "{}:{message}", message.len()).unwrap();
        let mut answer = self.receive();
        assert_eq!(answer[2], Value::Null, "{name}");
        answer[3].take()
    }

    fn receive(&mut self) -> Value {
        let mut length = Vec::new();
        self.connection.read_until(b':', &mut length).unwrap();
        let length = String::from_utf8(length).unwrap();
        let mut message = vec![0; length.trim_end_matches(':').parse().unwrap()];
        self.connection.read_exact(&mut message).unwrap();
        serde_json::from_slice(&message).unwrap()
    }

    fn new_tab(&mut self) -> String {
        let tab = self.command("NewWindow", json!({"type": "tab"}));
        tab["handle"].as_str().unwrap().to_owned()
    }

    /// Sends commands to a tab from now on. Shows it first if `show` is set.
    fn switch_to(&mut self, tab: &str, show: bool) {
        self.command("SwitchToWindow", json!({"handle": tab, "focus": show}));
    }

    /// Waits until a JavaScript expression holds.
    fn until(&mut self, condition: &str) {
        let script = json!({"script": format!("return {condition}"), "args": []});
        eventually(condition, || self.command("ExecuteScript", script.clone())["value"] == true);
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').collect();
    let decode = |group: &[u8]| {
        let value = |byte: &u8| DIGITS.iter().position(|digit| digit == byte).unwrap() as u32;
        let bits =
            group.iter().fold(0, |bits, byte| bits << 6 | value(byte)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(decode).collect()
}

/// An update as the page holds it.
#[derive(Debug, PartialEq)]
struct Point {
    timestamp: u64,
    price: f64,
    /// Whether the page shows that updates before it are missing.
    broken: bool,
}

impl Point {
    fn read(json: &Value) -> Point {
        Point {
            timestamp: json["timestamp"].as_u64().unwrap(),
            price: json["price"].as_f64().unwrap(),
            broken: json["broken"] == true,
        }
    }
}

/// Returns what a page should hold that was open all the time: every update of a server that publishes no
/// more, with a break after more than `hole` milliseconds without one.
fn history(server: &Server, hole: u64) -> Vec<Point> {
    let newest = server.get("/price").json();
    let mut stream = server.stream("/stream?since=0");
    let mut points: Vec<Point> = Vec::new();
    while points.last().is_none_or(|point| point.timestamp < newest["timestamp"].as_u64().unwrap())
    {
        let event = stream.event();
        if event.name.is_none() {
            let mut point = Point::read(&event.json());
            point.broken =
                points.last().is_some_and(|last| point.timestamp - last.timestamp > hole);
            points.push(point);
        }
    }
    points
}

/// A proxy between browser and server. It can be shut, switch to another server, and leave the streams to the
/// test.
struct Gate {
    address: SocketAddr,
    state: Arc<Mutex<GateState>>,
    streams: Receiver<Stream>,
}

struct GateState {
    server: SocketAddr,
    way: Way,
    refused: usize,
    connections: Vec<TcpStream>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    Shut,
    /// The test answers the streams, the server everything else.
    Scripted,
}

impl Gate {
    fn before(server: &Server, way: Way) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = GateState { server: server.address, way, refused: 0, connections: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let (sender, streams) = unbounded();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (state, streams) = (shared.clone(), sender.clone());
                thread::spawn(move || pass(client, &state, &streams));
            }
        });
        Gate { address, state, streams }
    }

    /// A gate that is shut answers 503, after which a browser does not reconnect on its own.
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

    fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Waits for the next stream that the page asks for.
    fn stream(&self) -> Stream {
        self.streams.recv_timeout(PATIENCE).expect("the page asks for a stream")
    }
}

/// A page that expects an update a minute, which the test has to send.
fn scripted() -> (Server, Gate) {
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &["--interval", "60s"]);
    let gate = Gate::before(&server, Way::Scripted);
    (server, gate)
}

/// Passes one request on, and its answer back.
fn pass(mut client: TcpStream, state: &Mutex<GateState>, streams: &Sender<Stream>) {
    let mut head = String::new();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let (server, way) = {
        let mut state = state.lock().unwrap();
        state.connections.push(client.try_clone().unwrap());
        state.refused += usize::from(state.way == Way::Shut);
        (state.server, state.way)
    };
    if way == Way::Shut {
        let _ = client
            .write_all(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    if way == Way::Scripted && head.starts_with("GET /stream?") {
        let _ = streams.send(Stream { head, socket: client, simulated: false });
        return;
    }
    let Ok(mut upstream) = TcpStream::connect(server) else {
        return;
    };
    let head = head.replace("Connection: keep-alive", "Connection: close");
    upstream.write_all(head.as_bytes()).unwrap();
    let _ = io::copy(&mut upstream, &mut client);
    let _ = client.shutdown(Shutdown::Both);
}

/// A stream that the test writes.
struct Stream {
    /// The head of the request.
    head: String,
    socket: TcpStream,
    /// What its status says of its prices.
    simulated: bool,
}

impl Stream {
    fn open(&self) {
        self.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 100\n");
    }

    /// Ignores errors: the page may have closed the stream.
    fn send(&self, text: &str) {
        let _ = (&self.socket).write_all(text.as_bytes());
    }

    fn status(&self, latest: Option<u64>, now: u64) {
        let data = json!({"simulated": self.simulated, "stale": false, "reason": null, "latest": latest, "now": now});
        self.send(&format!("event: status\ndata: {data}\n\n"));
    }

    fn gap(&self, since: u64, oldest: Option<u64>) {
        let data = json!({"since": since, "oldest": oldest});
        self.send(&format!("event: gap\ndata: {data}\n\n"));
    }

    fn updates(&self, updates: &[(u64, f64)]) {
        let event = |&(timestamp, price): &(u64, f64)| {
            let data = json!({"timestamp": timestamp, "price": price});
            format!("id: {timestamp}\ndata: {data}\n\n")
        };
        self.send(&updates.iter().map(event).collect::<String>());
    }

    /// Sends a complete backlog, whose last update is new.
    fn live(&self, updates: &[(u64, f64)]) {
        let latest = updates.last().unwrap().0;
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

/// Returns an update a minute for so many minutes, up to the last full ten minutes. The label of the first one
/// would extend beyond the edge of the chart.
fn minutes(minutes: u64) -> Vec<(u64, f64)> {
    let from = (unix_millis() / 600_000) * 600_000 - minutes * 60_000;
    (0..=minutes).map(|i| (from + i * 60_000, 500.0 + i as f64)).collect()
}

fn timestamps(browser: &Browser) -> Vec<u64> {
    browser.points().iter().map(|point| point.timestamp).collect()
}

#[test]
fn price_and_chart_appear() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Nothing);
    // Not stale before a slow browser has started.
    let silent = Server::start(&source, &["--interval", "60s"]);
    browser.open(&silent.url("/"));
    browser.until("ticker.state === 'waiting'");
    browser.until_says("#state-word", "No price yet");
    browser.until_says("#updated", "Waiting for the first price");

    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    browser.until("ticker.state === 'live' && ticker.points.length > 9");
    browser.until_says("#price-shown", "$97,123.45");
    browser.until("document.title === '$97,123.45 BTC/USD'");
    browser.until("/^Updated \\d+:\\d\\d:\\d\\d\\s[AP]M, \\d s ago$/.test(document.querySelector('#updated').textContent)");
    browser.until_says("#announcement", "Live, $97,123.45");
    assert!(is_drawn(&browser));
    assert!(!browser.has_banner());
    assert_eq!(offered(&browser), ["All"], "a minute has no five");
    browser.assert_no_complaints();
}

/// Returns the times that a reader can choose.
fn offered(browser: &Browser) -> Vec<String> {
    let buttons = "[...document.querySelectorAll('.zoom button')]";
    let texts = browser.eval(&format!(
        "{buttons}.filter((button) => button.checkVisibility()).map((button) => button.textContent)"
    ));
    texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn numbers_and_times_are_written_as_the_reader_writes_them() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    let server = Server::start(&source, &[]);
    browser.speak("de-DE");
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'live' && ticker.points.length > 9");
    browser.until_says("#price-shown", "97.123,45\u{a0}$");
    browser.until("document.title === '97.123,45\u{a0}$ BTC/USD'");
    browser.until("/^Updated \\d+:\\d\\d:\\d\\d, \\d s ago$/.test(document.querySelector('#updated').textContent)");
    browser.until("ticker.axis.prices.length > 1");
    let labels = browser.eval("ticker.axis.prices.map(({ label }) => label)");
    for label in labels.as_array().unwrap() {
        assert!(label.as_str().unwrap().starts_with("97.1"), "{labels}");
    }
    browser.assert_no_complaints();
}

#[test]
fn a_change_has_its_sign_its_digits_and_a_colour_only_if_there_is_one() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let price = |price: &str| source.say(Say::Body(format!(r#"{{"price":{price}}}"#)));
    price("97000");
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until_says("#change-amount", "±0.00 (0.00%)");
    for (now, change, direction) in [
        ("97002.59", "▲ +2.59 (+0.0027%)", "up"),
        ("96997.41", "▼ −2.59 (−0.0027%)", "down"),
        ("98000", "▲ +1,000.00 (+1.03%)", "up"),
        ("97000.004", "±0.00 (0.00%)", "none"),
    ] {
        price(now);
        browser.until_says("#change-amount", change);
        assert_eq!(browser.eval("document.querySelector('#change').dataset.direction"), direction);
    }
    let colour = |selector: &str| {
        browser.eval(&format!("getComputedStyle(document.querySelector('{selector}')).color"))
    };
    assert_eq!(colour("#change"), colour("body"));
    // The latest price is level with a label and does not hide it.
    browser.until("ticker.axis.prices.some(({ label }) => label === '97,000')");
    assert_axis_is_clear(&browser);
    browser.assert_no_complaints();
}

/// Checks for some frames that every price and time of the axes is legible.
fn assert_axis_is_clear(browser: &Browser) {
    let script = "const done = arguments[0];
        let frames = 0;
        const look = () => {
            const { em, tag, prices, times } = ticker.axis;
            const covered = prices.filter(({ y }) => Math.abs(y - tag) < 1.25 * em);
            const cut = times.filter(({ from }, i) => from < (i ? times[i - 1].to : 0));
            if (covered.length || cut.length || frames++ > 20) done({ tag, covered, cut });
            else requestAnimationFrame(look);
        };
        look();";
    let found = browser.post("/execute/async", json!({"script": script, "args": []}));
    assert_eq!((&found["covered"], &found["cut"]), (&json!([]), &json!([])), "{found}");
}

/// Returns whether the line of the price, in its colour, crosses the canvas. (Reads a copy: Chromium warns of
/// reads from the original.)
fn is_drawn(browser: &Browser) -> bool {
    let script = "(() => {
        const canvas = document.querySelector('canvas');
        const { width, height } = canvas;
        const copy = Object.assign(document.createElement('canvas'), { width, height });
        const pen = copy.getContext('2d', { willReadFrequently: true });
        pen.drawImage(canvas, 0, 0);
        const { data } = pen.getImageData(0, 0, width, height);
        const line = getComputedStyle(canvas).getPropertyValue('--line').trim();
        const colour = [1, 3, 5].map((at) => parseInt(line.slice(at, at + 2), 16));
        const columns = new Set();
        for (let i = 0; i < data.length; i += 4) {
            const off = colour.reduce((sum, part, j) => sum + Math.abs(part - data[i + j]), 0);
            if (off < 30 && data[i + 3] === 255) columns.add((i / 4) % width);
        }
        return columns.size > width / 2;
    })()";
    browser.eval(script) == true
}

#[test]
fn a_stale_source_shows_and_its_recovery_too() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'live'");

    source.say(Say::Status(401, String::new(), "{}".into()));
    browser.until("ticker.state === 'stale'");
    browser.until(
        "/^No new price since .*: HTTP 401$/.test(document.querySelector('#updated').textContent)",
    );
    browser.until_says("#state-word", "No new prices");
    browser.until("document.title.endsWith('(no new prices)')");
    let style = |selector: &str| format!("getComputedStyle(document.querySelector('{selector}'))");
    browser.until(&format!("{}.color === {}.color", style("#updated"), style("#state-word")));
    // A new client is told, too.
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale' && ticker.points.length > 0");

    source.say(Say::Prices);
    browser.until("ticker.state === 'live'");
    browser.until("ticker.points.some((point) => point.broken)");
    browser.until("document.querySelector('#holes').checkVisibility()");
    browser.assert_no_complaints();
}

#[test]
fn a_source_that_never_worked_looks_like_one_that_fails() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Status(401, String::new(), "{}".into()));
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale'");
    browser.until_says("#state-word", "No new prices");
    browser.until_says("#updated", "No price yet: HTTP 401");
    source.say(Say::Prices);
    browser.until("ticker.state === 'live'");
    // The latest price outlives the retention, with its time.
    let server = Server::start(&source, &["--retention", "100ms"]);
    eventually("there is a price", || server.get("/price").status == 200);
    source.say(Say::Status(401, String::new(), "{}".into()));
    eventually("stale", || server.get("/healthz").json()["status"] == "stale");
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale' && ticker.points.length > 0");
    browser.until(
        "/^No new price since \\d.*: HTTP 401$/.test(document.querySelector('#updated').textContent)",
    );
    browser.assert_no_complaints();
}

#[test]
fn nothing_moves_when_prices_or_the_server_fail() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &[]);
    let gate = Gate::before(&server, Way::Open);
    browser.open(&gate.url());
    let screens = [(375, 667, 2), (740, 375, 2), (768, 1024, 1), (1280, 800, 1)];
    // The place of the chart on each.
    let places = |state: &str| -> Vec<Value> {
        browser.until(&format!("ticker.state === '{state}'"));
        screens.map(|(width, height, density)| {
            browser.resize(width, height, density);
            browser.eval("(({ top, bottom }) => [top, bottom])(document.querySelector('#chart').getBoundingClientRect())")
        }).to_vec()
    };
    let waiting = places("stale");
    let bottom = waiting[1][1].as_f64().unwrap();
    assert!(bottom < 375.0, "on its side a phone shows the chart without scrolling: {bottom}");
    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    browser.until("ticker.points.length > 9");
    assert_eq!(places("live"), waiting);
    source.say(Say::Status(401, String::new(), "{}".into()));
    assert_eq!(places("stale"), waiting);
    gate.turn(Way::Shut);
    assert_eq!(places("reconnecting"), waiting);
    browser.assert_only_network_complaints();
}

#[test]
fn other_prices_at_the_same_address_begin_a_new_chart() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    // The demo is older than anything that the page will hold.
    let mut demo = Server::command();
    demo.args(["--listen", "127.0.0.1:0", "--source", "demo", "--interval", "500ms"]);
    let demo = Server::run(&mut demo);
    eventually("there are simulated prices", || demo.get("/price").status == 200);
    let oldest = demo.stream("/stream?since=0").update().id.unwrap();
    let real = Server::start(&source, &[]);
    let gate = Gate::before(&real, Way::Open);
    browser.open(&gate.url());
    browser.eval("window.sameDocument = true");
    browser.until("ticker.state === 'live' && ticker.points.length > 5");
    assert!(!browser.has_banner());

    gate.lead_to(&demo);
    browser.until("document.title.startsWith('Simulated: $9')");
    assert!(browser.has_banner());
    browser.until_says("#state", "Live simulated prices");
    browser.until_says("#source", "demo");
    browser.until("document.querySelector('#announcement').textContent.startsWith('Simulated prices, Live, $9')");
    browser.until("ticker.points.length > 5");
    let points = browser.points();
    assert_eq!(points[0].timestamp, oldest);
    assert!(points.iter().all(|point| point.price > 10_000.0), "the source counts from 1");
    // By its own interval: four intervals of the real server would be a hole.
    assert!(!points.iter().any(|point| point.broken), "{points:?}");

    gate.lead_to(&real);
    browser.until("ticker.state === 'live' && document.title.startsWith('$')");
    assert!(!browser.has_banner());
    browser.until_says("#state", "Live ");
    browser.until_says("#source", "custom source");
    browser.until("document.querySelector('#announcement').textContent.startsWith('Live, $')");
    silence(&source, &browser);
    assert_eq!(browser.points(), history(&real, 400));
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_only_network_complaints();
}

#[test]
fn a_restarted_server_is_followed_without_a_reload() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    // The restart takes less than four intervals, so only the event `gap` marks the break.
    let start = |address: &str| {
        let mut command = Server::command();
        command.args(["--listen", address, "--interval", "1s"]);
        command.args(["--source-url", &source.url(), "--price-at", "/price"]);
        Server::run(&mut command)
    };
    let server = start("127.0.0.1:0");
    let address = server.address.to_string();
    browser.open(&server.url("/"));
    browser.eval("window.sameDocument = true");
    browser.until("ticker.state === 'live' && ticker.points.length > 2");
    silence(&source, &browser);
    let mut expected = history(&server, 4000);
    assert_eq!(browser.points(), expected);

    server.stop(Signal::SIGTERM);
    source.say(Say::Prices);
    let server = start(&address);
    browser.until("ticker.state === 'reconnecting'");
    browser.until(&format!(
        "ticker.state === 'live' && ticker.points.length > {}",
        expected.len() + 2
    ));
    silence(&source, &browser);
    let mut more = history(&server, 4000);
    more[0].broken = true;
    expected.append(&mut more);
    assert_eq!(browser.points(), expected);
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_only_network_complaints();
}

/// Silences the source and waits until the page has its last price.
fn silence(source: &Source, browser: &Browser) {
    source.say(Say::Nothing);
    browser.until(&format!("ticker.points.at(-1).price === {}", source.last_price()));
}

#[test]
fn what_was_missed_while_away_arrives_once() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let gate = Gate::before(&server, Way::Open);
    browser.open(&gate.url());
    browser.until("ticker.state === 'live' && ticker.points.length > 5");
    let before = browser.points().len();

    gate.turn(Way::Shut);
    browser.until("ticker.state === 'reconnecting'");
    // Once when the browser reconnects, and once when the page does.
    eventually("the page tries again after the browser has given up", || gate.refused() >= 2);
    gate.turn(Way::Open);
    browser.until(&format!("ticker.state === 'live' && ticker.points.length > {}", before + 20));
    source.say(Say::Nothing);
    browser.until("ticker.state === 'stale'");
    assert_eq!(browser.points(), history(&server, 400));
    browser.assert_only_network_complaints();
}

#[test]
fn twelve_tabs_share_the_connections_of_a_browser() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "500ms"]);
    let tabs: Vec<String> = (0..12)
        .map(|i| {
            let tab = if i == 0 { browser.tab() } else { browser.new_tab() };
            browser.devtools("Network.setCacheDisabled", json!({"cacheDisabled": true}));
            browser.open(&server.url("/"));
            tab
        })
        .collect();
    for tab in &tabs {
        browser.show(tab);
        let shown = Instant::now();
        let price = source.last_price();
        browser.until(&format!("ticker.state === 'live' && ticker.points.at(-1).price >= {price}"));
        assert!(shown.elapsed() < Duration::from_secs(2), "{:?}", shown.elapsed());
        browser.eval("void fetch('price').then((answer) => window.priceStatus = answer.status)");
        browser.until("window.priceStatus === 200");
        browser.assert_no_complaints();
    }
    // The tab that was shown last has a live title in the background too, and the others say that theirs is
    // not. When it is closed, another one takes over.
    browser.show(&browser.new_tab());
    let live = || {
        let titles = browser.titles(&server.url("/"));
        let paused = titles.iter().filter(|(_, title)| title.ends_with(" BTC/USD (paused)"));
        let mut live = titles.iter().filter(|(_, title)| title.ends_with(" BTC/USD"));
        (live.next().cloned(), paused.count())
    };
    let streams_alone = |count| {
        eventually("one tab has a live title", || live().0.is_some() && live().1 == count);
        let (tab, title) = live().0.unwrap();
        eventually("its title changes", || live().0.is_some_and(|(_, now)| now != title));
        eventually("it alone streams", || server.metric("btc_ticker_clients") == 1.0);
        tab
    };
    let last = streams_alone(11);
    browser.devtools("Target.closeTarget", json!({"targetId": last}));
    streams_alone(10);
}

#[test]
fn firefox_shows_the_price_in_any_number_of_tabs() {
    let Some(mut firefox) = Firefox::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &["--interval", "500ms"]);
    let tabs: Vec<String> = (0..8)
        .map(|_| {
            let tab = firefox.new_tab();
            firefox.switch_to(&tab, true);
            firefox.command("Navigate", json!({"url": server.url("/")}));
            firefox.until("ticker.state === 'live'");
            tab
        })
        .collect();
    for tab in &tabs[..7] {
        firefox.switch_to(tab, false);
        firefox.until("document.hidden && document.title.endsWith('BTC/USD (paused)')");
    }
    for tab in &tabs {
        firefox.switch_to(tab, true);
        let price = source.last_price();
        firefox.until(&format!("ticker.state === 'live' && ticker.points.at(-1).price >= {price}"));
    }
    firefox
        .until("/^Live, [$]\\d+[.]00$/.test(document.querySelector('#announcement').textContent)");
    firefox.until("document.documentElement.scrollHeight <= innerHeight");
}

#[test]
fn a_backlog_on_a_slow_line_is_not_taken_for_the_present() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    let server = Server::start(&source, &["--interval", "60s"]);
    eventually("there is a price", || server.get("/price").status == 200);
    let newest = server.get("/price").json()["timestamp"].as_u64().unwrap();
    let gate = Gate::before(&server, Way::Scripted);
    browser.open(&gate.url());
    let stream = gate.stream();
    let updates: Vec<(u64, f64)> =
        (0..60).map(|i| (newest - 7_000 - (60 - i) * 60_000, 500.0)).collect();
    stream.open();
    stream.status(Some(newest), newest + 7_000);
    stream.updates(&updates[..30]);
    browser.until("ticker.points.length === 30");
    browser.until_says("#state-word", "Loading");
    browser.until("/^Price of .*; newer ones are loading$/.test(document.querySelector('#updated').textContent)");
    // The price is current, although the chart is not.
    browser.until_says("#price-shown", "$97,123.45");
    browser.screenshot("catching-up");
    browser.until("/^Price of .*; the chart is loading$/.test(document.querySelector('#updated').textContent)");
    assert_eq!(browser.eval("document.querySelector('#holes').hidden"), true);
    stream.updates(&updates[30..]);
    browser.until("ticker.points.length === 60");
    assert_eq!(browser.eval("ticker.state"), "catching-up");
    stream.updates(&[(newest, 97123.45)]);
    browser.until("ticker.state === 'live'");
    // As old as the server says, and a few seconds more.
    browser.until("/, (7|8|9|1\\d) s ago$/.test(document.querySelector('#updated').textContent)");
    browser.assert_no_complaints();
}

#[test]
fn the_clock_of_the_device_changes_nothing() {
    const HOUR: i64 = 3_600_000;
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, gate) = scripted();
    let updates = minutes(60);
    for wrong in [HOUR, -HOUR] {
        browser.open("about:blank");
        let script = browser
            .devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": set_clock(wrong)}));
        browser.open(&gate.url());
        let stream = gate.stream();
        stream.live(&updates);
        browser.until("ticker.state === 'live' && ticker.points.length === 61");
        browser.until("/, \\d s ago$/.test(document.querySelector('#updated').textContent)");
        browser.until("document.querySelector('#announcement').textContent.startsWith('Live, ')");
        assert_eq!(browser.eval("document.querySelector('#holes').hidden"), true);
        // The clock is set: the page opens a new stream, in case the device slept, and changes no word.
        browser.eval("void (window.said = [], new MutationObserver(() => {
            said.push(document.querySelector('#state').textContent, document.querySelector('#announcement').textContent);
        }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true }))");
        browser.eval(&format!("void {}", set_clock(-wrong)));
        let stream = gate.stream();
        assert_eq!(stream.since(), updates[60].0.to_string());
        stream.open();
        stream.status(Some(updates[60].0), updates[60].0 + 20_000);
        browser.until("/, 2\\d s ago$/.test(document.querySelector('#updated').textContent)");
        assert_eq!(browser.eval("[...new Set(said)].length"), 2, "{}", browser.eval("said"));
        assert_eq!(browser.points().len(), 61);
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", script);
    }
    browser.assert_no_complaints();
}

/// Returns a script that sets the clock of the page wrong by so many milliseconds.
fn set_clock(wrong: i64) -> String {
    format!(
        "(globalThis.RealDate ??= Date, globalThis.Date = class extends RealDate {{
            constructor(...parts) {{ super(...(parts.length ? parts : [RealDate.now() + {wrong}])); }}
            static now() {{ return RealDate.now() + {wrong}; }}
        }})"
    )
}

#[test]
fn a_connection_that_died_silently_is_opened_anew() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    let gate = Gate::before(&server, Way::Scripted);
    browser.open(&gate.url());
    let dead = gate.stream();
    let updates = [(1_000_000, 1.0), (1_000_100, 2.0)];
    dead.live(&updates);
    browser.until("ticker.state === 'live'");
    let stream = gate.stream();
    assert_eq!(stream.since(), "1000100");
    browser.until("ticker.state === 'reconnecting'");
    stream.open();
    stream.status(Some(1_000_200), 1_000_200);
    stream.updates(&[(1_000_200, 3.0)]);
    browser.until("ticker.state === 'live' && ticker.points.length === 3");
    browser.assert_no_complaints();
}

#[test]
fn a_stream_that_a_proxy_holds_back_is_replaced_by_the_price() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    let server = Server::start(&source, &[]);
    let gate = Gate::before(&server, Way::Scripted);
    browser.open(&gate.url());
    // The first attempt receives nothing at all, the second one only a head.
    let _silent = gate.stream();
    let headed = gate.stream();
    headed.open();
    browser.until("ticker.state === 'held-back'");
    browser.until_says("#price-shown", "$97,123.45");
    browser.until("document.title === '$97,123.45 BTC/USD (not live)'");
    browser.until("/^Blocked by a proxy or virus scanner\\? Price of \\d.*M$/.test(document.querySelector('#updated').textContent)");
    source.say(Say::Body(r#"{"price":98000}"#.into()));
    browser.until_says("#price-shown", "$98,000.00");
    for (screen, width, height, density) in [("phone", 320, 568, 2), ("landscape", 740, 375, 2)] {
        browser.resize(width, height, density);
        // The sentence is visible in full.
        let cut = browser.eval("(({ scrollHeight, clientHeight }) => scrollHeight - clientHeight)(document.querySelector('#updated'))");
        assert_eq!(cut, 0, "{screen}");
        browser.screenshot(&format!("held-back-{screen}"));
    }
    // Without an answer from /price it is not the proxy.
    gate.turn(Way::Shut);
    browser.until("ticker.state === 'reconnecting'");
    gate.turn(Way::Open);
    browser.until("ticker.state === 'live'");
    browser.until_says("#price-shown", "$98,000.00");
}

#[test]
fn a_server_with_another_history_starts_the_page_over() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, gate) = scripted();
    browser.open(&gate.url());
    browser.eval("window.sameDocument = true");
    let held = minutes(10);
    let newest = held[10].0;
    let ago = |minutes: u64| newest - minutes * 60_000;
    let expect = |updates: &[(u64, f64)]| {
        let expected: Vec<u64> = updates.iter().map(|update| update.0).collect();
        browser.until(&format!(
            "ticker.state === 'live' && ticker.points.length === {}",
            expected.len()
        ));
        assert_eq!(timestamps(&browser), expected);
    };
    let stream = gate.stream();
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
    let after = [(ago(2) + 30_000, 600.0), (ago(1) + 30_000, 601.0)];
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
    let after = [(ago(5000), 700.0), (ago(4999), 701.0)];
    stream.status(Some(after[1].0), after[1].0);
    let stream = gate.stream();
    assert_eq!(stream.since(), "0");
    stream.live(&after);
    expect(&after);

    // A gap before what is newer is a break and nothing else.
    drop(stream);
    let stream = gate.stream();
    let more = (ago(4998), 702.0);
    stream.open();
    stream.status(Some(more.0), more.0);
    stream.gap(after[1].0, Some(more.0));
    stream.updates(&[more]);
    expect(&[after[0], after[1], more]);
    assert!(browser.points()[2].broken);
    // What the page holds already changes nothing.
    stream.updates(&[after[1], more, (ago(4997), 703.0)]);
    browser.until("ticker.points.length === 4");
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_no_complaints();
}

#[test]
fn arabic_times_and_numbers_do_not_reorder_the_words() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, gate) = scripted();
    browser.speak("ar-EG");
    browser.open(&gate.url());
    let stream = gate.stream();
    stream.live(&minutes(20));
    browser.until("ticker.state === 'live'");
    browser.until("document.querySelector('#change-since').textContent.includes('ص') || document.querySelector('#change-since').textContent.includes('م')");
    // Each part begins where the one before it ends.
    for line in ["#change-amount", "#change-since", "#updated"] {
        let lefts = browser.eval(&format!(
            "[...document.querySelector('{line}').childNodes].filter((node) => node.textContent).map((node) => {{
                const range = new Range();
                range.selectNodeContents(node);
                return range.getBoundingClientRect().left;
            }})"
        ));
        let lefts: Vec<f64> = serde_json::from_value(lefts).unwrap();
        assert!(lefts.len() > 1 && lefts.is_sorted(), "{line}: {lefts:?}");
    }
    for (screen, width, height, density) in [("desktop", 1280, 800, 1), ("phone", 375, 667, 2)] {
        browser.resize(width, height, density);
        assert_axis_is_clear(&browser);
        browser.screenshot(&format!("arabic-{screen}"));
    }
    browser.assert_no_complaints();
}

#[test]
fn the_chart_is_printed_for_the_paper() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, gate) = scripted();
    browser.resize(1280, 800, 1);
    browser.dress("dark", false);
    browser.open(&gate.url());
    let stream = gate.stream();
    stream.live(&minutes(20));
    browser.until("ticker.state === 'live'");
    browser.eval(
        "void addEventListener('beforeprint', () => {
        const canvas = document.querySelector('canvas');
        const { width, height } = canvas.getBoundingClientRect();
        window.printed = {
            stretched: canvas.width / canvas.height / (width / height),
            paper: getComputedStyle(canvas).getPropertyValue('--paper'),
            line: getComputedStyle(canvas).getPropertyValue('--line'),
        };
    })",
    );
    let pdf = browser.post("/print", json!({}));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page.pdf");
    std::fs::write(path, from_base64(pdf.as_str().unwrap())).unwrap();
    let stretched = browser.eval("printed.stretched").as_f64().unwrap();
    assert!((stretched - 1.0).abs() < 0.01, "{stretched}");
    assert_eq!(browser.eval("printed.paper"), "#ffffff");
    assert_eq!(browser.eval("printed.line"), "#a8500a");
    // Afterwards the screen is as before.
    browser.until(
        "document.querySelector('canvas').width === document.querySelector('#chart').clientWidth",
    );
    assert_eq!(
        browser.eval("getComputedStyle(document.body).getPropertyValue('--paper')"),
        "#151412"
    );
    browser.assert_no_complaints();
}

#[test]
fn a_screen_reader_reads_the_price_in_one_piece() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Body(r#"{"price":97077.68}"#.into()));
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until_says("#price-shown", "$97,077.68");
    let section = browser
        .devtools("Runtime.evaluate", json!({"expression": "document.querySelector('#price')"}));
    let nodes = browser.devtools(
        "Accessibility.queryAXTree",
        json!({"objectId": section["result"]["objectId"], "role": "StaticText"}),
    );
    let texts: Vec<&str> = nodes["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["ignored"] == false)
        .map(|node| node["name"]["value"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["$97,077.68"]);
}

#[test]
fn without_javascript_the_page_says_so_and_nothing_else() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &[]);
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(&server.url("/"));
    browser.screenshot("no-script");
    let value = |expression: &str| {
        let result = browser
            .devtools("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        result["result"]["value"].clone()
    };
    assert_eq!(value("document.querySelector('noscript p').checkVisibility()"), true);
    let seen = value("document.body.innerText");
    let seen = seen.as_str().unwrap();
    assert!(seen.starts_with("This page needs JavaScript."), "{seen}");
    for word in ["Connecting", "price yet", "chart begins"] {
        assert!(!seen.contains(word), "{seen}");
    }
}

#[test]
fn keys_walk_through_the_chart() {
    const TAB: &str = "\u{e004}";
    const ENTER: &str = "\u{e007}";
    const LEFT: &str = "\u{e012}";
    const ESCAPE: &str = "\u{e00c}";
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, gate) = scripted();
    browser.open(&gate.url());
    let stream = gate.stream();
    stream.live(&minutes(20));
    browser.until("ticker.state === 'live'");

    assert_eq!(offered(&browser), ["5 min", "15 min", "All"]);
    assert_axis_is_clear(&browser);
    browser.press(&[TAB, ENTER]);
    browser.until("document.querySelector('[data-minutes=\"5\"]').ariaPressed === 'true'");
    browser.until("document.querySelectorAll('[aria-pressed=true]').length === 1");
    browser.press(&[TAB, TAB, TAB]);
    assert_eq!(browser.eval("document.activeElement.id"), "chart");
    browser.press(&[LEFT, LEFT]);
    browser.until("!document.querySelector('#reading').hidden");
    browser.until("document.querySelector('#reading-price').textContent === `$${ticker.points.at(-3).price.toFixed(2)}`");
    browser.until("document.activeElement.ariaValueText.startsWith(`$${ticker.points.at(-3).price.toFixed(2)}, `)");
    browser.press(&[ESCAPE]);
    browser.until("document.querySelector('#reading').hidden");
    browser.assert_no_complaints();
}

#[test]
fn simulated_prices_say_so_on_every_screen() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let mut command = Server::command();
    let server = Server::run(command.args([
        "--listen",
        "127.0.0.1:0",
        "--source",
        "demo",
        "--interval",
        "50ms",
    ]));
    browser.open(&server.url("/"));
    browser.until("ticker.points.length > 100");
    browser.until("document.title.startsWith('Simulated: $')");

    // A low chart has room for one label beside the tag of the latest price.
    for (screen, width, height, density, least) in
        [("desktop", 1280, 800, 1, 2), ("phone", 375, 667, 2, 2), ("landscape", 740, 375, 2, 1)]
    {
        browser.resize(width, height, density);
        for theme in ["light", "dark"] {
            browser.dress(theme, false);
            browser.until(&format!("document.querySelector('canvas').width === {density} * document.querySelector('#chart').clientWidth"));
            // Nothing extends beyond the edge.
            assert_eq!(browser.eval("document.documentElement.scrollWidth"), width);
            assert!(browser.has_banner());
            // The next frame has the colours of the theme.
            eventually(&format!("{screen}, {theme}"), || is_drawn(&browser));
            let labels = browser.eval("ticker.axis.prices.length");
            assert!(labels.as_u64().unwrap() >= least, "{screen}: {labels}");
            assert_axis_is_clear(&browser);
            browser.screenshot(&format!("{screen}-{theme}"));
        }
        let bottom =
            browser.eval("document.querySelector('#chart').getBoundingClientRect().bottom");
        assert!(bottom.as_f64().unwrap() < height.into(), "{screen}: {bottom} is below the fold");
    }
    browser.assert_no_complaints();
}

#[test]
fn the_page_breaks_no_rule_of_accessibility() {
    let axe = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/clients/node/node_modules/axe-core/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(axe) else {
        return common::skipped(
            "accessibility was not tested: npm install --prefix target/clients/node axe-core",
        );
    };
    let Some(browser) = Browser::start() else {
        return;
    };
    let (_server, real) = scripted();
    let mut command = Server::command();
    command.args(["--listen", "127.0.0.1:0", "--source", "demo", "--interval", "100ms"]);
    let demo = Server::run(&mut command);
    for url in [real.url(), demo.url("/")] {
        browser.open(&url);
        let stream = (url == real.url()).then(|| real.stream());
        if let Some(stream) = &stream {
            stream.live(&minutes(20)); // some time to choose from
        }
        browser.until("ticker.state === 'live' && ticker.points.length > 5");
        browser.post("/execute/sync", json!({"script": axe, "args": []}));
        for (theme, forced) in [("light", false), ("dark", false), ("light", true), ("dark", true)]
        {
            browser.dress(theme, forced);
            let script = "const done = arguments[0];
                const nodes = ({ id, impact, nodes }) => nodes.map(({ html }) => [id, impact, html]);
                axe.run().then(({ violations }) => done(violations.flatMap(nodes)), (error) => done(`${error}`));";
            let found = browser.post("/execute/async", json!({"script": script, "args": []}));
            assert_eq!(found, json!([]), "{theme}, forced colours: {forced}");
            // The fill of the dot is visible.
            let dot =
                "getComputedStyle(document.querySelector('#state'), '::before').backgroundColor";
            assert_ne!(
                browser.eval(dot),
                browser.eval("getComputedStyle(document.body).backgroundColor")
            );
            // So is the choice of the time.
            let zoom = |pressed| {
                format!(
                    "getComputedStyle(document.querySelector('[aria-pressed={pressed}]')).backgroundColor"
                )
            };
            assert_ne!(browser.eval(&zoom(true)), browser.eval(&zoom(false)));
            let theme = "[...document.querySelectorAll('[name=theme-color]')].find(({ media }) => matchMedia(media).matches).content";
            if !forced {
                let paper = "getComputedStyle(document.body).getPropertyValue('--paper')";
                assert_eq!(browser.eval(theme), browser.eval(paper));
            }
        }
    }
    browser.eval("void Object.assign(window.icon = new Image(), { src: document.querySelector('[rel=apple-touch-icon]').href })");
    browser.until("icon.naturalWidth === 180 && icon.naturalHeight === 180");
    browser.assert_no_complaints();
}

/// `UPDATE_PICTURE=1 cargo test --test page picture` takes it, and fails because of its size until
/// `pngquant --force --ext .png 64 static/page.png` has reduced it.
#[test]
fn the_readme_has_a_picture_of_the_page() {
    const PRICE: f64 = 97_000.0; // where the demo begins
    let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("static/page.png");
    if std::env::var_os("UPDATE_PICTURE").is_some()
        && let Some(browser) = Browser::start()
    {
        // An hour of simulated prices, from the last back to the first.
        let now = unix_millis();
        let mut price = PRICE;
        let mut updates: Vec<(u64, f64)> = (0..715_u64)
            .map(|step| {
                let wave = (step as f64 / 90.0).sin() * 9.0 + (step as f64 / 7.0).sin() * 4.0;
                price += wave + (step * 7919 % 31) as f64 - 15.0;
                (now - 5_000 * step, (price * 100.0).round() / 100.0)
            })
            .collect();
        updates.reverse();
        let mut command = Server::command();
        let server = Server::run(command.args(["--listen", "127.0.0.1:0", "--source", "demo"]));
        let gate = Gate::before(&server, Way::Scripted);
        browser.resize(960, 600, 1);
        browser.open(&gate.url());
        let mut stream = gate.stream();
        stream.simulated = true;
        stream.live(&updates);
        browser.until("ticker.state === 'live'");
        browser.until("document.querySelector('canvas').width === document.querySelector('#chart').clientWidth");
        browser.screenshot("picture");
        let made = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page-picture.png");
        std::fs::copy(made, &picture).unwrap();
    }
    let bytes = std::fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    assert!(bytes.len() < 60_000, "{} bytes", bytes.len());
}

#[test]
fn the_snippet_of_the_readme_works_on_a_page_of_another_origin() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let server = Server::start(&source, &["--max-clients", "1"]);
    let address = server.address.to_string();
    // The service is full when the page is opened; later there is room.
    let somebody = server.stream("/stream");
    let readme = include_str!("../README.md").split("```html\n").nth(1).unwrap();
    let snippet = readme.split("```").next().unwrap().replace("localhost:8080", &address);
    let page = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("snippet.html");
    std::fs::write(&page, snippet).unwrap();
    browser.open(&format!("file://{}", page.display()));
    let shows = |price: u64| {
        let at_least = "Number(document.querySelector('#price').textContent.split('$')[1])";
        browser.until(&format!("{at_least} >= {price}"));
    };
    let refused = || server.metric("btc_ticker_clients_refused_total");
    eventually("the page is turned away", || refused() >= 2.0);
    assert_eq!(browser.eval("document.querySelector('#price').textContent"), "");
    drop(somebody);
    shows(5);
    let two_digits = "/^\\$\\d+\\.\\d\\d$/.test(document.querySelector('#price').textContent)";
    assert_eq!(browser.eval(two_digits), true);
    server.stop(Signal::SIGKILL);
    let server = Server::start_at(&address, &source, &[]);
    shows(source.last_price() + 1);
    // A page that streams with `fetch` sends a preflight request first.
    let options = "{ headers: { 'Last-Event-ID': '5', 'Cache-Control': 'no-store' } }";
    let url = server.url("/stream");
    browser.eval(&format!(
        "void fetch('{url}', {options}).then((answer) => window.status = answer.status)"
    ));
    browser.until("window.status == 200");
}
