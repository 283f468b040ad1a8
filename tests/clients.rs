//! Clients that others wrote: the snippets of the README as they stand there, and more libraries.
//! Each reads the backlog, continues live, and after the server was killed and started again it is live
//! again with everything, once and in order. What is not installed is skipped aloud, except in CI.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Server, Source, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Where `.ci/run` installs the libraries.
fn installed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(path)
}

/// The code of the README that is fenced as this language.
fn snippet(language: &str) -> String {
    let readme = include_str!("../README.md").split("## From your program").nth(1).unwrap();
    let (_, code) = readme.split_once(&format!("```{language}\n")).expect(language);
    code.split_once("```").unwrap().0.to_owned()
}

/// A program that prints every update that it gets.
struct Client {
    name: &'static str,
    /// The file that it is, and what is in it but for the address.
    file: &'static str,
    code: String,
    /// What runs it, the first of those that are here: a program and its first arguments.
    runners: Vec<Vec<String>>,
    /// Arguments with which that says that it is here, and the library too.
    check: Vec<&'static str>,
    install: &'static str,
}

fn clients() -> Vec<Client> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let path = |path: &str| installed(path).to_str().unwrap().to_owned();
    let python = || vec![vec![path("python/bin/python")], words("python3")];
    vec![
        Client {
            name: "httpx-sse",
            file: "follow_httpx.py",
            code: snippet("python"),
            runners: python(),
            check: vec!["-c", "import httpx_sse"],
            install: "pip install httpx httpx-sse",
        },
        Client {
            name: "sseclient-py",
            file: "follow_sseclient.py",
            code: include_str!("clients/follow_sseclient.py").to_owned(),
            runners: python(),
            check: vec!["-c", "import requests, sseclient"],
            install: "pip install requests sseclient-py",
        },
        Client {
            name: "aiohttp-sse-client2",
            file: "follow_aiohttp.py",
            code: include_str!("clients/follow_aiohttp.py").to_owned(),
            runners: python(),
            check: vec!["-c", "import aiohttp_sse_client2"],
            install: "pip install aiohttp-sse-client2",
        },
        Client {
            name: "eventsource",
            file: "node.mjs",
            code: snippet("js"),
            runners: vec![words("node")],
            check: vec!["-e", "require(process.cwd() + '/node_modules/eventsource')"],
            install: "npm install --prefix target/clients/node eventsource",
        },
        Client {
            name: "Go",
            file: "main.go",
            code: snippet("go"),
            runners: vec![words("go run"), words("/usr/lib/go/bin/go run")],
            check: vec!["version"],
            install: "apt-get install golang-go",
        },
        Client {
            name: "bash and curl",
            file: "curl.bash",
            code: snippet("bash"),
            runners: vec![words("bash")],
            check: vec!["-c", "curl --version"],
            install: "apt-get install curl",
        },
    ]
}

/// A client that runs, and what it has printed.
struct Running {
    name: &'static str,
    child: Child,
    seen: Arc<Mutex<Vec<(u64, f64)>>>,
}

impl Client {
    /// `None` where it is not installed.
    fn start(&self, server: &Server) -> Option<Running> {
        let folder = installed("node");
        let folder =
            if folder.is_dir() { folder } else { PathBuf::from(env!("CARGO_TARGET_TMPDIR")) };
        let is_here = |runner: &&Vec<String>| {
            let mut check = Command::new(&runner[0]);
            check.args(&self.check).current_dir(&folder);
            check.output().is_ok_and(|output| output.status.success())
        };
        let Some(runner) = self.runners.iter().find(is_here) else {
            let line =
                format!("{} was not tested: it is not installed ({})", self.name, self.install);
            common::skipped(&line);
            return None;
        };
        let file = folder.join(self.file);
        fs::write(&file, self.code.replace("localhost:8080", &server.address.to_string())).unwrap();
        let mut command = Command::new(&runner[0]);
        command.args(&runner[1..]).arg(&file).current_dir(&folder);
        command.env("NO_PROXY", "*").env("GOFLAGS", "-mod=mod");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let seen: Arc<Mutex<Vec<(u64, f64)>>> = Arc::default();
        let kept = seen.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(update(&line));
            }
        });
        Some(Running { name: self.name, child, seen })
    }
}

/// An update as it was printed: JSON, or the two numbers.
fn update(line: &str) -> (u64, f64) {
    let numbers = line.split_once(' ').map(|(timestamp, price)| (timestamp.parse(), price.parse()));
    if let Some((Ok(timestamp), Ok(price))) = numbers {
        return (timestamp, price);
    }
    let json: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("printed {line:?}"));
    (json["timestamp"].as_u64().unwrap(), json["price"].as_f64().unwrap())
}

impl Drop for Running {
    fn drop(&mut self) {
        // With all that it has started.
        let _ = Command::new("pkill").args(["-P", &self.child.id().to_string()]).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every update of a process, up to the latest one.
fn updates_of(server: &Server) -> Vec<(u64, f64)> {
    let latest = server.get("/price").json()["timestamp"].as_u64();
    let mut replay = server.stream("/stream?since=0");
    let mut updates = Vec::new();
    while updates.last().map(|update: &(u64, f64)| update.0) < latest {
        let update = replay.update();
        updates.push((update.id.unwrap(), update.price()));
    }
    updates
}

#[test]
fn they_miss_nothing_and_continue_when_the_server_is_killed_and_comes_back() {
    let source = Source::start();
    let arguments = ["--interval", "50ms"];
    // Its clock is ahead at first, so after the restart their ids are unknown.
    let ahead = Server::start_with_clock("+3d", "127.0.0.1:0", &source, &arguments);
    let mut server = ahead.unwrap_or_else(|| Server::start(&source, &arguments));
    let address = server.address.to_string();
    server.stream("/stream").updates(5);
    let running: Vec<Running> =
        clients().iter().filter_map(|client| client.start(&server)).collect();
    let receive = |updates: &[(u64, f64)]| {
        let (_, last) = updates.last().unwrap();
        for client in &running {
            let what = format!("{} has received all updates", client.name);
            // Prices rise, whatever the clock does.
            let newest = || client.seen.lock().unwrap().last().map(|(_, price)| *price);
            eventually(&what, || newest() >= Some(*last));
        }
    };
    let mut lives = Vec::new();
    for _ in 0..3 {
        receive(&updates_of(&server));
        // They are live: they receive what comes now, too.
        server.stream("/stream").updates(5);
        let life = updates_of(&server);
        receive(&life);
        lives.push(life);
        server.stop(Signal::SIGKILL);
        server = Server::start_at(&address, &source, &arguments);
        server.stream("/stream").updates(5);
    }
    for client in &running {
        let name = client.name;
        let seen = client.seen.lock().unwrap();
        for (number, life) in lives.iter().enumerate() {
            let first = seen.iter().position(|update| life.contains(update));
            let rest = &seen[first.unwrap_or_else(|| panic!("{name}: is not live again"))..];
            let begin = life.iter().position(|update| *update == rest[0]).unwrap();
            // After an unknown id it continues with the latest update.
            assert!(begin == 0 || number == 1, "{name}: lost the first update");
            assert!(rest.starts_with(&life[begin..]), "{name}: lost, doubled or out of order");
        }
    }
}
