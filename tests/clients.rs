//! Clients written by others: the snippets of the README, verbatim, and more libraries. Each receives the
//! backlog and live updates, and after the server is killed and restarted, everything since, once and in order.
//! A client that is not installed is skipped; with `CI` set, that is a failure.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::common::{Server, Source, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Returns the README's code in this language.
fn snippet(language: &str) -> String {
    let readme = include_str!("../README.md").split("## From your program").nth(1).unwrap();
    let (_, code) = readme.split_once(&format!("```{language}\n")).expect(language);
    code.split_once("```").unwrap().0.to_owned()
}

/// A program that prints every update it receives.
struct Client {
    file: &'static str,
    code: String,
    /// The command that runs the file.
    run: &'static [&'static str],
    /// A command that succeeds if the client is installed.
    check: &'static [&'static str],
}

fn clients() -> Vec<Client> {
    vec![
        Client {
            file: "follow_httpx.py",
            code: snippet("python"),
            run: &["python3"],
            check: &["python3", "-c", "import httpx_sse"],
        },
        Client {
            file: "follow_sseclient.py",
            code: include_str!("clients/follow_sseclient.py").to_owned(),
            run: &["python3"],
            check: &["python3", "-c", "import requests, sseclient"],
        },
        Client {
            file: "follow_aiohttp.py",
            code: include_str!("clients/follow_aiohttp.py").to_owned(),
            run: &["python3"],
            check: &["python3", "-c", "import aiohttp_sse_client2"],
        },
        Client {
            file: "follow.mjs",
            code: snippet("js"),
            run: &["node"],
            check: &["node", "-e", "require(process.cwd() + '/node_modules/eventsource')"],
        },
        Client {
            file: "follow.go",
            code: snippet("go"),
            run: &["go", "run"],
            check: &["go", "version"],
        },
        Client {
            file: "follow.bash",
            code: snippet("bash"),
            run: &["bash"],
            check: &["curl", "--version"],
        },
    ]
}

/// A client process, and the updates that it has printed.
struct Running {
    file: &'static str,
    child: Child,
    seen: Arc<Mutex<Vec<(u64, f64)>>>,
}

impl Client {
    /// Returns `None` if the client is not installed.
    fn start(&self, server: &Server) -> Option<Running> {
        // `.ci/run` installs the libraries here.
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients");
        let folder = clients.join("node");
        fs::create_dir_all(&folder).unwrap();
        let python = clients.join("python/bin");
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}:/usr/lib/go/bin", python.display());
        let command = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).current_dir(&folder).env("PATH", &path);
            command
        };
        if !command(self.check).output().is_ok_and(|output| output.status.success()) {
            let file = self.file;
            crate::common::skipped(&format!(
                "{file} was not tested: .ci/run shows what to install"
            ));
            return None;
        }
        let file = folder.join(self.file);
        fs::write(&file, self.code.replace("localhost:8080", &server.address.to_string())).unwrap();
        let mut command = command(self.run);
        command.arg(&file).env("NO_PROXY", "*").env("GOFLAGS", "-mod=mod");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let seen: Arc<Mutex<Vec<(u64, f64)>>> = Arc::default();
        let printed = seen.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                printed.lock().unwrap().push(update(&line));
            }
        });
        Some(Running { file: self.file, child, seen })
    }
}

/// Parses a printed update: JSON, or the two numbers.
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
        // First the processes that it started.
        let _ = Command::new("pkill").args(["-P", &self.child.id().to_string()]).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns every update of a server up to its latest.
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
fn every_client_resumes_after_the_server_is_killed_and_restarted() {
    let source = Source::start();
    let arguments = ["--interval", "50ms"];
    // The first server's clock is ahead, so its ids are unknown to the second.
    let ahead = Server::start_with_clock("+3d", "127.0.0.1:0", &source, &arguments);
    let mut server = ahead.unwrap_or_else(|| Server::start(&source, &arguments));
    let address = server.address.to_string();
    server.stream("/stream").updates(5);
    let running: Vec<Running> =
        clients().iter().filter_map(|client| client.start(&server)).collect();
    let receive = |updates: &[(u64, f64)]| {
        let (_, last) = updates.last().unwrap();
        for client in &running {
            let what = format!("{} has received all updates", client.file);
            // Prices increase even if the clock steps back.
            let newest = || client.seen.lock().unwrap().last().map(|(_, price)| *price);
            eventually(&what, || newest() >= Some(*last));
        }
    };
    let mut lives = Vec::new();
    for _ in 0..3 {
        receive(&updates_of(&server));
        // Live updates, too.
        server.stream("/stream").updates(5);
        let life = updates_of(&server);
        receive(&life);
        lives.push(life);
        server.stop(Signal::SIGKILL);
        server = Server::start_at(&address, &source, &arguments);
        server.stream("/stream").updates(5);
    }
    for client in &running {
        let file = client.file;
        let seen = client.seen.lock().unwrap();
        for (number, life) in lives.iter().enumerate() {
            let first = seen.iter().position(|update| life.contains(update));
            let rest =
                &seen[first.unwrap_or_else(|| panic!("{file}: no updates after a restart"))..];
            let begin = life.iter().position(|update| *update == rest[0]).unwrap();
            // After an unknown id, the latest update comes first.
            assert!(begin == 0 || number == 1, "{file}: lost the first update");
            assert!(rest.starts_with(&life[begin..]), "{file}: lost, repeated or out of order");
        }
    }
}
