//! The first thing that comes to mind, for comparison: `tiny_http` as its examples show it, a thread
//! for each request, a channel for each client. Whatever btc-ticker does beyond this should show in
//! the figures. It knows only as much of the interface as the load benchmark asks for.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use tiny_http::{Header, Request, Response, Server};

const RETENTION: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy)]
struct Update {
    timestamp: u64,
    price: f64,
}

impl Update {
    fn json(&self) -> String {
        json!({"timestamp": self.timestamp, "price": self.price}).to_string()
    }
}

#[derive(Default)]
struct Ticker {
    history: VecDeque<Update>,
    clients: Vec<Sender<Update>>,
}

impl Ticker {
    fn publish(&mut self, price: f64) {
        let last = self.history.back().map_or(0, |update| update.timestamp);
        let timestamp = now().max(last + 1);
        let update = Update { timestamp, price };

        let oldest = timestamp.saturating_sub(RETENTION.as_millis() as u64);
        let expired = self.history.partition_point(|update| update.timestamp < oldest);
        self.history.drain(..expired);
        self.history.push_back(update);
        self.clients.retain(|client| client.send(update).is_ok());
    }

    fn subscribe(&mut self, since: Option<u64>) -> (Vec<Update>, Receiver<Update>) {
        let (sender, receiver) = unbounded();
        self.clients.push(sender);
        let backlog = match since {
            Some(since) => {
                let first = self.history.partition_point(|update| update.timestamp <= since);
                self.history.range(first..).copied().collect()
            }
            None => self.history.back().copied().into_iter().collect(),
        };
        (backlog, receiver)
    }
}

fn handle(request: Request, ticker: &Mutex<Ticker>) -> io::Result<()> {
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    match path {
        "/stream" => {
            let since =
                last_event_id(&request).or_else(|| query.strip_prefix("since=")?.parse().ok());
            let (backlog, live) = ticker.lock().unwrap().subscribe(since);
            stream(request.into_writer(), backlog, live)
        }
        "/price" => {
            let latest = ticker.lock().unwrap().history.back().copied();
            let Some(update) = latest else {
                return request.respond(Response::empty(503));
            };
            let header = Header::from_bytes("Content-Type", "application/json").unwrap();
            request.respond(Response::from_string(update.json()).with_header(header))
        }
        _ => request.respond(Response::empty(404)),
    }
}

fn last_event_id(request: &Request) -> Option<u64> {
    let mut headers = request.headers().iter();
    let header = headers.find(|header| header.field.equiv("Last-Event-ID"))?;
    header.value.as_str().parse().ok()
}

fn stream(mut writer: impl Write, backlog: Vec<Update>, live: Receiver<Update>) -> io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n"
    )?;
    for update in backlog {
        send(&mut writer, update)?;
    }
    writer.flush()?;
    while let Ok(update) = live.recv() {
        send(&mut writer, update)?;
        writer.flush()?;
    }
    Ok(())
}

fn send(writer: &mut impl Write, update: Update) -> io::Result<()> {
    write!(writer, "id: {}\ndata: {}\n\n", update.timestamp, update.json())
}

fn poll(ticker: &Mutex<Ticker>, url: &str, pointer: &str, interval: Duration) {
    let agent = ureq::agent();
    loop {
        match fetch(&agent, url, pointer) {
            Ok(price) => ticker.lock().unwrap().publish(price),
            Err(error) => eprintln!("{error}"),
        }
        thread::sleep(interval);
    }
}

fn fetch(agent: &ureq::Agent, url: &str, pointer: &str) -> Result<f64, Box<dyn Error>> {
    let body = agent.get(url).call()?.body_mut().read_to_string()?;
    let answer: Value = serde_json::from_str(&body)?;
    let price = answer.pointer(pointer).and_then(Value::as_f64);
    Ok(price.ok_or("no price in the answer")?)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flags: HashMap<_, _> =
        arguments.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    let flag = |name: &str| flags.get(name).unwrap_or_else(|| panic!("{name} is needed")).clone();

    let ticker = Arc::new(Mutex::new(Ticker::default()));
    let (url, pointer, interval) = (flag("--source-url"), flag("--price-at"), flag("--interval"));
    let polled = Arc::clone(&ticker);
    thread::spawn(move || poll(&polled, &url, &pointer, duration(&interval)));

    let server = Server::http(flag("--listen")).unwrap();
    println!("listening on http://{}", server.server_addr());
    for request in server.incoming_requests() {
        let ticker = Arc::clone(&ticker);
        // An error here is a client that went away.
        thread::spawn(move || handle(request, &ticker));
    }
}

/// `10ms` or `5s`.
fn duration(text: &str) -> Duration {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis(1)),
        None => (text.trim_end_matches('s'), Duration::from_secs(1)),
    };
    unit * number.parse().expect("a whole number of s or ms")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock after 1970").as_millis() as u64
}
