//! Browsers: Chromium, driven over WebDriver (JSON over HTTP), and Firefox. If one is not installed, its tests
//! are skipped, except in CI.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::{PATIENCE, eventually, folder, skipped};

/// One browser at a time: a browser that lacks CPU time says nothing about the page.
static TURN: Mutex<()> = Mutex::new(());

/// Lets scripts find an element, and all elements, by a selector.
const FIND: &str = "const $ = (selector) => document.querySelector(selector);
    const $$ = (selector) => [...document.querySelectorAll(selector)];";

#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// In CSS pixels.
    pub width: u32,
    height: u32,
    /// How many device pixels wide a CSS pixel is; 2 makes it a phone.
    density: u32,
}

pub const fn screen(width: u32, height: u32, density: u32) -> Screen {
    Screen { width, height, density }
}

pub const DESKTOP: Screen = screen(1280, 800, 1);
pub const PHONE: Screen = screen(375, 667, 2);
pub const LANDSCAPE: Screen = screen(740, 375, 2);

/// A headless Chromium and its chromedriver.
pub struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Returns `None` if Chromium is not installed and `CI` is not set.
    pub fn start() -> Option<Browser> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (driver, port) = match start_driver() {
            Err(error) if error.kind() == ErrorKind::NotFound => return skip(),
            driver => driver.expect("chromedriver starts"),
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(2 * PATIENCE))
            .build()
            .new_agent();
        let session = format!("http://127.0.0.1:{port}/session");
        let mut browser = Browser { driver, session, agent, _turn: turn };
        // Root cannot have a sandbox, and the only page is our own.
        let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-component-update"];
        let wishes = json!({
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": flags, "browserStartupTimeout": PATIENCE.as_millis()},
            "timeouts": {"script": PATIENCE.as_millis()},
        });
        let session = match browser.ask("", json!({"capabilities": {"alwaysMatch": wishes}})) {
            Err(problem) if problem.contains("cannot find") => return skip(),
            session => session.expect("Chromium starts"),
        };
        let id = session["sessionId"].as_str().expect("a session has an id");
        browser.session = format!("{}/{id}", browser.session);
        browser.speak("en-US"); // rather than the language of the machine
        Some(browser)
    }

    pub fn post(&self, path: &str, body: Value) -> Value {
        self.ask(path, body).unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn ask(&self, path: &str, body: Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{path}", self.session));
        let response = request.header("Content-Type", "application/json").send(body.to_string());
        let text = response.and_then(|mut response| response.body_mut().read_to_string());
        let mut answer: Value = serde_json::from_str(&text.expect("chromedriver answers")).unwrap();
        let value = answer["value"].take();
        match value.get("error") {
            Some(_) => Err(format!("{path}: {} ({body})", value["message"])),
            None => Ok(value),
        }
    }

    pub fn open(&self, url: &str) {
        self.post("/url", json!({"url": url}));
    }

    fn execute(&self, how: &str, script: &str) -> Value {
        let script = json!({"script": format!("{FIND} {script}"), "args": []});
        self.post(&format!("/execute/{how}"), script)
    }

    /// Returns the value of a JavaScript expression, which may use `$` and `$$`.
    pub fn eval(&self, expression: &str) -> Value {
        self.execute("sync", &format!("return {expression}"))
    }

    /// Runs a script that passes its result to the function `done`.
    pub fn run(&self, script: &str) -> Value {
        self.execute("async", &format!("const done = arguments[0]; {script}"))
    }

    /// Waits until a JavaScript expression holds.
    pub fn until(&self, condition: &str) {
        self.run(&format!(
            "const look = () => ({condition}) ? done() : setTimeout(look, 20); look();"
        ));
    }

    /// Waits until an element has this text.
    pub fn until_says(&self, selector: &str, text: &str) {
        self.until(&format!("$('{selector}').textContent === '{text}'"));
    }

    /// Waits until the text of an element matches a regular expression.
    pub fn until_matches(&self, selector: &str, text: &str) {
        self.until(&format!("/{text}/.test($('{selector}').textContent)"));
    }

    /// Returns a property of the computed style of an element.
    pub fn style(&self, selector: &str, property: &str) -> Value {
        self.eval(&format!("getComputedStyle($('{selector}')).getPropertyValue('{property}')"))
    }

    pub fn is_visible(&self, selector: &str) -> bool {
        self.eval(&format!("$('{selector}').checkVisibility()")) == true
    }

    /// Presses keys one after the other, in the element that has the focus.
    pub fn press(&self, keys: &[&str]) {
        let press = |key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key}));
        let actions: Vec<_> = keys.iter().flat_map(press).collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({"actions": [keyboard]}));
    }

    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters}))
    }

    /// Opens a tab, shows it, and sends commands to it from now on.
    pub fn new_tab(&self) -> String {
        let tab = self.post("/window/new", json!({"type": "tab"}));
        let tab = tab["handle"].as_str().unwrap().to_owned();
        self.show(&tab);
        tab
    }

    /// Sends commands to a tab from now on, and shows it.
    pub fn show(&self, tab: &str) {
        self.post("/window", json!({"handle": tab}));
        self.until("!document.hidden");
    }

    /// Describes the tabs with this address. (WebDriver shows a tab before it reads from it.)
    pub fn tabs(&self, url: &str) -> Vec<Value> {
        let targets = self.devtools("Target.getTargets", json!({}))["targetInfos"].take();
        let mut tabs: Vec<Value> = serde_json::from_value(targets).unwrap();
        tabs.retain(|tab| tab["url"] == url);
        tabs
    }

    /// Sets the language of numbers and times for pages that are opened from now on.
    pub fn speak(&self, locale: &str) {
        self.devtools("Emulation.setLocaleOverride", json!({"locale": locale}));
    }

    /// Runs a script at the start of every page that is opened from now on.
    pub fn prepare(&self, script: &str) {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": script}));
    }

    /// Makes timeouts expire immediately in pages that are opened from now on, so that a test need not wait.
    pub fn hasten(&self) {
        self.prepare(
            "{
                const start = setTimeout;
                globalThis.setTimeout = (callback) => start(callback);
            }",
        );
    }

    /// Stops the clock of pages that are opened from now on: a deadline passes only when the test advances the
    /// clock, however slow the machine is. The global variable `wrong` is the error of the device's clock, in
    /// milliseconds.
    pub fn stop_clock(&self) {
        self.prepare(
            "{
                const started = performance.timeOrigin;
                const intervals = [];
                let elapsed = 0;
                globalThis.wrong ??= 0;
                globalThis.pass = (milliseconds) => {
                    elapsed += milliseconds;
                    for (const callback of intervals) callback();
                };
                globalThis.setInterval = (callback) => intervals.push(callback);
                performance.now = () => elapsed;
                AbortSignal.timeout = () => null;
                Date = class extends Date {
                    constructor(...parts) { super(...(parts.length ? parts : [Date.now()])); }
                    static now() { return started + elapsed + wrong; }
                };
            }",
        );
    }

    /// Advances a stopped clock by so many milliseconds.
    pub fn pass(&self, milliseconds: u64) {
        self.eval(&format!("void pass({milliseconds})"));
    }

    pub fn resize(&self, Screen { width, height, density }: Screen) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": density, "mobile": density > 1});
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        self.until(&format!("innerWidth === {width} && innerHeight === {height}"));
    }

    /// Waits until the chart has been drawn for the size of the window.
    pub fn until_fitted(&self) {
        self.until("$('canvas').width === devicePixelRatio * $('#chart').clientWidth");
    }

    /// Sets the colour scheme, `light` or `dark`, and forced colours.
    pub fn dress(&self, theme: &str, forced: bool) {
        let forced = if forced { "active" } else { "none" };
        let features = json!([
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "forced-colors", "value": forced},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Returns a picture of the page, a PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let shot = self.devtools("Page.captureScreenshot", json!({"format": "png"}));
        // The browser decodes its base64.
        let bytes =
            self.eval(&format!("[...atob({})].map((byte) => byte.charCodeAt())", shot["data"]));
        serde_json::from_value(bytes).unwrap()
    }

    /// Returns the console messages since the last call, policy violations included.
    fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    pub fn assert_no_complaints(&self) {
        assert_eq!(self.complaints(), Vec::<String>::new());
    }

    /// For tests in which the server is unreachable: the browser logs that, too.
    pub fn assert_only_network_complaints(&self) {
        let is_network = |text: &str| text.contains("net::ERR_") || text.contains("503");
        let mut complaints = self.complaints();
        complaints.retain(|text| !(text.contains("/stream?since=") && is_network(text)));
        assert_eq!(complaints, Vec::<String>::new());
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
    skipped("the page was not tested: apt-get install chromium chromium-driver");
    None
}

/// Starts chromedriver and returns the port on which it listens. The port that it picks for IPv4 may be taken
/// for IPv6: then it exits, and the next attempt picks another one.
fn start_driver() -> io::Result<(Child, u16)> {
    for _ in 0..10 {
        let mut command = Command::new("chromedriver");
        let mut driver = command.arg("--port=0").stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let mut lines = output.by_ref().lines().map(Result::unwrap);
        let line = lines.find(|line| line.contains("started successfully on port"));
        driver.stdout = Some(output.into_inner()); // stays open, because the driver writes to it
        if let Some((_, port)) = line.as_deref().and_then(|line| line.rsplit_once(' ')) {
            return Ok((driver, port.trim_end_matches('.').parse().unwrap()));
        }
        driver.wait()?;
    }
    Err(io::Error::other("it exited ten times"))
}

/// A headless Firefox, driven over Marionette, the protocol beneath its WebDriver: JSON messages over TCP, each
/// prefixed with its length.
pub struct Firefox {
    process: Child,
    connection: BufReader<TcpStream>,
    _turn: MutexGuard<'static, ()>,
}

impl Firefox {
    /// Returns `None` if Firefox is not installed and `CI` is not set.
    pub fn start() -> Option<Firefox> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let profile = folder("firefox");
        std::fs::write(profile.join("user.js"), "user_pref('marionette.port', 0);").unwrap();
        let mut command = Command::new("firefox");
        command.args(["--marionette", "--headless", "--no-remote", "--profile"]).arg(&profile);
        command.env("HOME", &profile).stdout(Stdio::null()).stderr(Stdio::null());
        let process = match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skipped("Firefox was not tested: apt-get install firefox-esr");
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

    pub fn command(&mut self, name: &str, parameters: Value) -> Value {
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

    /// Sends commands to a tab from now on. Shows it first if `show` is set.
    pub fn switch_to(&mut self, tab: &Value, show: bool) {
        self.command("SwitchToWindow", json!({"handle": tab, "focus": show}));
    }

    /// Waits until a JavaScript expression holds.
    pub fn until(&mut self, condition: &str) {
        let script = json!({"script": format!("{FIND} return {condition}"), "args": []});
        eventually(condition, || self.command("ExecuteScript", script.clone())["value"] == true);
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
