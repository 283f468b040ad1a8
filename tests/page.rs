//! The page in a real Chromium, driven over WebDriver, which is plain JSON over HTTP.
//! Where there is no Chromium these tests say so and pass, except in CI, where they must run.
//! The driver comes first, then the tests.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use btc_ticker::system::unix_millis;
use common::{PATIENCE, Say, Server, Source, eventually, folder};

/// One browser at a time: they are heavy, and a starved one tells nothing about the page.
static TURN: Mutex<()> = Mutex::new(());

/// A Chromium without a window, and the chromedriver that it hangs on.
struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    // Held open, because the driver writes to it.
    _output: BufReader<ChildStdout>,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// `None` where there is no Chromium and none is demanded.
    fn start() -> Option<Browser> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn();
        let mut driver = match driver {
            Ok(driver) => driver,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return skip("there is no chromedriver");
            }
            Err(error) => panic!("chromedriver does not start: {error}"),
        };
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let port = announced_port(&mut output);
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
                Some(browser)
            }
            Err(problem) if problem.contains("cannot find") => skip(&problem),
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

    /// The value of a JavaScript expression.
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

    /// Presses keys, one after the other, wherever the focus is.
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

    fn screenshot(&self, name: &str) {
        let shot = self.devtools("Page.captureScreenshot", json!({"format": "png"}));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
        std::fs::write(&path, from_base64(shot["data"].as_str().unwrap())).unwrap();
    }

    /// Takes what the browser has complained of since the last call, policy violations included.
    fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    fn assert_no_complaints(&self) {
        assert_eq!(self.complaints(), Vec::<String>::new());
    }

    /// For when the server was away: complaints about that are the browser's own and all right.
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

fn skip(reason: &str) -> Option<Browser> {
    let line = format!(
        "the page was not tested in a browser: {reason} (on Debian: chromium chromium-driver)"
    );
    common::skipped(&line);
    None
}

fn announced_port(output: &mut impl BufRead) -> u16 {
    let mut lines = output.lines().map(Result::unwrap);
    let line = lines
        .find(|line| line.contains("started successfully on port"))
        .expect("a driver that starts");
    line.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap()
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

/// What a page should hold that was there all the time: every update of a server that has gone
/// quiet, with a break where there was none for longer than `hole` milliseconds.
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

/// Stands between browser and server, as a network does, and can be shut.
struct Gate {
    address: SocketAddr,
    state: Arc<Mutex<GateState>>,
}

#[derive(Default)]
struct GateState {
    shut: bool,
    refused: usize,
    connections: Vec<TcpStream>,
}

impl Gate {
    fn before(server: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate { address: listener.local_addr().unwrap(), state: Arc::default() };
        let state = gate.state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                pass(client, server, &mut state.lock().unwrap());
            }
        });
        gate
    }

    /// Cuts every connection. Who comes now gets a 503, after which a browser gives up by itself.
    fn shut(&self) {
        let mut state = self.state.lock().unwrap();
        state.shut = true;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn open(&self) {
        self.state.lock().unwrap().shut = false;
    }

    fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }
}

fn pass(mut client: TcpStream, server: SocketAddr, state: &mut GateState) {
    if state.shut {
        // The request is read first: closing on unread bytes resets, and the answer would be lost.
        let _ = client.read(&mut [0; 4096]);
        let _ = client
            .write_all(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        state.refused += 1;
        return;
    }
    let upstream = TcpStream::connect(server).unwrap();
    copy(&client, &upstream);
    copy(&upstream, &client);
    state.connections.extend([client, upstream]);
}

fn copy(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn price_and_chart_appear() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    source.say(Say::Nothing);
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'waiting'");
    browser.until("document.querySelector('#state').textContent.includes('No price yet')");

    source.say(Say::Body(r#"{"price":97123.45}"#.into()));
    browser.until("ticker.state === 'live' && ticker.points.length > 9");
    browser.until("document.querySelector('#price').textContent === '$97,123.45'");
    browser.until("document.title === '$97,123.45 BTC/USD'");
    browser.until("document.querySelector('#announcement').textContent === 'Live, $97,123.45'");
    assert!(is_drawn(&browser));
    assert_eq!(
        browser.eval("getComputedStyle(document.querySelector('.made-up')).display"),
        "none"
    );
    browser.assert_no_complaints();
}

/// Whether the canvas shows the line of the price, in its colour, from side to side. (A copy of it
/// is read: Chromium grumbles about reading the page's own.)
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
        "/^Stale no update since .*: HTTP 401$/.test(document.querySelector('#state').textContent)",
    );
    browser.until("document.title.endsWith('(stale)')");
    // Whoever comes now is told as well.
    browser.open(&server.url("/"));
    browser.until("ticker.state === 'stale' && ticker.points.length > 0");

    source.say(Say::Prices);
    browser.until("ticker.state === 'live'");
    browser.until("ticker.points.some((point) => point.broken)");
    browser.until("document.querySelector('#breaks').offsetWidth > 0");
    browser.assert_no_complaints();
}

#[test]
fn a_restarted_server_is_followed_without_a_reload() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    // An interval so long that the restart fits into three of it: only the event `gap` tells the
    // page that there is a break.
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
    let mut expected = history(&server, 3000);
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
    let mut more = history(&server, 3000);
    more[0].broken = true;
    expected.append(&mut more);
    assert_eq!(browser.points(), expected);
    assert_eq!(browser.eval("window.sameDocument"), true);
    browser.assert_only_network_complaints();
}

#[test]
fn with_a_journal_a_restart_shows_only_the_time_that_it_took() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let journal = folder("page").join("journal");
    let journal = ["--journal", journal.to_str().unwrap()];
    let server = Server::start(&source, &journal);
    let address = server.address.to_string();
    browser.open(&server.url("/"));
    browser.until("ticker.points.length > 9");
    silence(&source, &browser);
    let expected = history(&server, 300);
    server.stop(Signal::SIGKILL);
    let server = Server::start_at(&address, &source, &journal);
    // Who opens the page now has the whole chart at once.
    browser.open(&server.url("/"));
    browser
        .until(&format!("ticker.state === 'stale' && ticker.points.length === {}", expected.len()));
    assert_eq!(browser.points(), expected);
    source.say(Say::Prices);
    browser.until("ticker.state === 'live'");
    browser.until("ticker.points.filter((point) => point.broken).length === 1");
    browser.assert_no_complaints();
}

/// Lets no more updates come, and waits until the page has the last one.
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
    let gate = Gate::before(server.address);
    browser.open(&format!("http://{}/", gate.address));
    browser.until("ticker.state === 'live' && ticker.points.length > 5");
    let before = browser.points().len();

    gate.shut();
    browser.until("ticker.state === 'reconnecting'");
    // Refused twice: once when the browser came back by itself, and once when the page did.
    eventually("the page tries again after the browser has given up", || gate.refused() >= 2);
    gate.open();
    browser.until(&format!("ticker.state === 'live' && ticker.points.length > {}", before + 20));
    source.say(Say::Nothing);
    browser.until("ticker.state === 'stale'");
    assert_eq!(browser.points(), history(&server, 300));
    browser.assert_only_network_complaints();
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
    let source = Source::start();
    let server = Server::start(&source, &[]);
    browser.open(&server.url("/"));
    browser.until("ticker.points.length > 5");
    source.say(Say::Nothing);
    browser.until("ticker.state === 'stale'");

    browser.press(&[TAB, ENTER]);
    browser.until("document.querySelector('[data-minutes=\"5\"]').ariaPressed === 'true'");
    browser.until("document.querySelectorAll('[aria-pressed=true]').length === 1");
    browser.press(&[TAB, TAB, TAB, TAB]);
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
fn made_up_prices_say_so_on_every_screen() {
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
    browser.until("document.title.startsWith('Made up: $')");

    for (screen, width, height, density) in [("desktop", 1280, 800, 1), ("phone", 375, 812, 2)] {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": density, "mobile": density > 1});
        browser.devtools("Emulation.setDeviceMetricsOverride", size);
        for theme in ["light", "dark"] {
            let feature = json!({"name": "prefers-color-scheme", "value": theme});
            browser.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]}));
            browser.until(&format!("document.querySelector('canvas').width === {density} * document.querySelector('#chart').clientWidth"));
            // Nothing of the page hides beyond the edge.
            assert_eq!(browser.eval("document.documentElement.scrollWidth"), width);
            assert!(
                browser
                    .eval("document.querySelector('.made-up').innerText")
                    .as_str()
                    .unwrap()
                    .contains("Made-up")
            );
            // The colours of a theme come with the next frame.
            eventually(&format!("{screen}, {theme}"), || is_drawn(&browser));
            let labels = browser.eval("ticker.priceLabels");
            assert!(labels.as_array().unwrap().len() >= 3, "{screen}: {labels}");
            browser.screenshot(&format!("{screen}-{theme}"));
        }
    }
    browser.assert_no_complaints();
}

/// `UPDATE_PICTURE=1 cargo test --test page picture` makes it anew.
#[test]
fn the_readme_has_a_picture_of_the_page() {
    const PRICE: f64 = 97_000.0; // where the demo begins
    let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("static/page.png");
    if std::env::var_os("UPDATE_PICTURE").is_some()
        && let Some(browser) = Browser::start()
    {
        // An hour of made-up prices, from the last back to the first.
        let now = unix_millis();
        let mut price = PRICE;
        let mut lines: Vec<String> = (0..715_u64)
            .map(|step| {
                let wave = (step as f64 / 90.0).sin() * 9.0 + (step as f64 / 7.0).sin() * 4.0;
                price += wave + (step * 7919 % 31) as f64 - 15.0;
                let timestamp = now - 5_000 * (step + 1);
                format!("{{\"timestamp\":{timestamp},\"price\":{price:.2}}}\n")
            })
            .collect();
        lines.reverse();
        let journal = folder("picture").join("journal");
        std::fs::write(&journal, lines.concat()).unwrap();
        let mut command = Server::command();
        command.args(["--listen", "127.0.0.1:0", "--source", "demo", "--journal"]);
        let server = Server::run(command.arg(&journal));
        let size = json!({"width": 960, "height": 600, "deviceScaleFactor": 1, "mobile": false});
        browser.devtools("Emulation.setDeviceMetricsOverride", size);
        browser.open(&server.url("/"));
        browser.until("ticker.state === 'live' && ticker.points.length > 715");
        browser.until("document.querySelector('canvas').width === document.querySelector('#chart').clientWidth");
        browser.screenshot("picture");
        let made = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page-picture.png");
        std::fs::copy(made, &picture).unwrap();
    }
    let bytes = std::fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
}

#[test]
fn the_snippet_of_the_readme_works_on_a_page_of_another_origin() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let source = Source::start();
    let journal = folder("snippet").join("journal");
    let journal = ["--journal", journal.to_str().unwrap()];
    let server = Server::start(&source, &journal);
    let address = server.address.to_string();
    let readme = include_str!("../README.md").split("```html\n").nth(1).unwrap();
    let snippet = readme.split("```").next().unwrap().replace("localhost:8080", &address);
    let page = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("snippet.html");
    std::fs::write(&page, snippet).unwrap();
    browser.open(&format!("file://{}", page.display()));
    let shows = |price: u64| {
        let at_least = "Number(document.querySelector('#price').textContent.split('$')[1])";
        browser.until(&format!("{at_least} >= {price}"));
    };
    shows(5);
    server.stop(Signal::SIGKILL);
    let server = Server::start_at(&address, &source, &journal);
    shows(source.last_price() + 1);
    // Who streams by `fetch` is asked for a preflight by the browser.
    let options = "{ headers: { 'Last-Event-ID': '5', 'Cache-Control': 'no-store' } }";
    let url = server.url("/stream");
    browser.eval(&format!(
        "void fetch('{url}', {options}).then((answer) => window.status = answer.status)"
    ));
    browser.until("window.status == 200");
}
