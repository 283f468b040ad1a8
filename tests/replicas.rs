//! Several replicas: a client may come back to any of them, because its cursor is a time.
//! Real replicas behind a real nginx that runs `deploy/nginx.conf`; clients reconnect as browsers do.

mod common;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use btc_ticker::system::unix_millis;
use common::{PATIENCE, Say, Server, Source, eventually, folder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::TlsConfig;

const CLIENTS: u64 = 6;
/// How much the price rises while some of the clients stay away.
const AWAY: u64 = 2;

/// What a replica is told that polls the origin, or a source that says when its prices were made.
const DATED: [&str; 2] = ["--timestamp-at", "/timestamp"];
/// Without heartbeats, so that a stream that has nothing more to say is given up.
const QUIET: [&str; 2] = ["--heartbeat", "1h"];

#[test]
fn replicas_of_one_source_cover_each_other() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let replica =
        |address: &str| Server::start_at(address, &market.source, &["--interval", "50ms"]);
    let clients = failovers(nginx, "one-source", &market, replica);
    for connections in clients {
        // The price of the source may stand still for several polls.
        let runs = connections.into_iter().map(|updates| {
            let mut prices: Vec<u64> = updates.iter().map(|update| update.price).collect();
            prices.dedup();
            prices
        });
        let seen = runs.reduce(|mut seen, prices| {
            // What was seen last, and only that, may be seen once more.
            let again = seen.last() == prices.first();
            seen.extend(&prices[usize::from(again)..]);
            seen
        });
        let seen = seen.unwrap();
        let expected: Vec<u64> = (seen[0]..).take(seen.len()).collect();
        assert_eq!(seen, expected, "lost, or doubled beyond the one that was seen last");
    }
}

#[test]
fn replicas_of_one_origin_are_as_one() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let origin = Server::start(&market.source, &DATED);
    let replica = |address: &str| Server::run(&mut polling(address, &origin));
    let clients = failovers(nginx, "one-origin", &market, replica);
    let mut published: Vec<Update> = Vec::new();
    let mut stream = origin.stream("/stream?since=0");
    while published.last().is_none_or(|last| last.price < market.price()) {
        published.push(Update::of(&stream.update().json()));
    }
    for connections in clients {
        let seen = connections.concat();
        let joined = published.iter().position(|update| *update == seen[0]).unwrap();
        assert_eq!(seen, published[joined..], "lost or doubled");
    }
}

/// A replica that polls `origin` at least as often as that publishes.
fn polling(address: &str, origin: &Server) -> Command {
    let mut command = Server::command();
    command.args(["--listen", address, "--interval", "50ms", "--price-at", "/price"]);
    command.args(["--source-url", &origin.url("/price")]).args(DATED);
    command
}

/// Has clients follow two replicas, kills one of those, has it back, and kills the other. Returns
/// what each client has seen on each of its connections.
fn failovers(
    nginx: &str,
    name: &str,
    market: &Market,
    replica: impl Fn(&str) -> Server,
) -> Vec<Vec<Vec<Update>>> {
    let (left, right) = (replica("127.0.0.1:0"), replica("127.0.0.1:0"));
    market.move_on(1, &[&left, &right]);
    let proxy = Proxy::start(nginx, name, &[left.address, right.address]);
    let clients: Vec<_> =
        (0..CLIENTS).map(|i| Client::join(&proxy, market, i % 2 * AWAY)).collect();
    let all_are_here = || {
        let here = |client: &Client| client.seen.load(Ordering::Relaxed) >= market.price();
        eventually("every client has the price", || clients.iter().all(here));
    };
    all_are_here();
    for replica in [&left, &right] {
        let clients = replica.get("/healthz").json()["clients"].as_u64().unwrap();
        assert!((1..CLIENTS).contains(&clients), "the proxy divides the clients");
    }
    market.move_on(3, &[&left, &right]);

    let address = left.address.to_string();
    left.stop(Signal::SIGKILL);
    market.move_on(AWAY + 2, &[&right]);
    all_are_here();

    let left = replica(&address);
    market.move_on(1, &[&left, &right]);
    // What is older, only the other one has.
    all_are_here();
    market.move_on(1, &[&left, &right]);
    right.stop(Signal::SIGKILL);
    market.move_on(AWAY + 2, &[&left]);
    all_are_here();

    clients.iter().for_each(|client| client.leave.store(true, Ordering::Relaxed));
    market.move_on(1, &[&left]);
    clients
        .into_iter()
        .map(|client| client.thread.join().expect("a client that fared well"))
        .collect()
}

#[test]
fn a_replica_does_not_repeat_what_another_was_first_to_tell() {
    let market = Market::open();
    let ahead = Server::start(&market.source, &DATED);
    let behind = Source::start();
    behind.say(market.word());
    let others = Server::start(&behind, &[DATED, QUIET].concat());
    eventually("the first update", || price_of(&others) == Some(1));
    market.move_on(1, &[&ahead]);
    let seen = ahead.stream("/stream").update();

    let header = format!("Last-Event-ID: {}\r\n", seen.id.unwrap());
    let mut stream = others.stream_with("/stream", &header);
    behind.say(market.word());
    eventually("the replica has caught up", || price_of(&others) == Some(2));
    market.rise();
    behind.say(market.word());
    assert_eq!(stream.update().price(), 3.0);
}

#[test]
fn a_replica_without_a_price_yet_does_not_repeat_either() {
    let market = Market::open();
    let ahead = Server::start(&market.source, &DATED);
    let seen = ahead.stream("/stream").update();

    let silent = Source::start();
    silent.say(Say::Nothing);
    let fresh = Server::start(&silent, &[DATED, QUIET].concat());
    let header = format!("Last-Event-ID: {}\r\n", seen.id.unwrap());
    let mut stream = fresh.stream_with("/stream", &header);
    // It cannot know yet that nothing was lost.
    stream.named("gap");
    silent.say(market.word());
    eventually("the replica has caught up", || price_of(&fresh) == Some(1));
    market.rise();
    silent.say(market.word());
    assert_eq!(stream.update().price(), 2.0);
}

#[test]
fn a_replica_with_a_journal_comes_back_and_knows_what_it_cannot_know() {
    let journal = folder("replica").join("journal");
    let market = Market::open();
    let journal = ["--journal", journal.to_str().unwrap()];
    let arguments = [&DATED[..], &QUIET, &journal].concat();
    let start = || {
        let replica = Server::start(&market.source, &arguments);
        let fetched = || replica.metric("btc_ticker_fetches_total{outcome=\"ok\"}") > 0.0;
        eventually("it has asked the origin", fetched);
        replica
    };
    let after = |replica: &Server, update: &common::Event| {
        let header = format!("Last-Event-ID: {}\r\n", update.id.unwrap());
        replica.stream_with("/stream", &header)
    };
    let replica = start();
    let mut stream = replica.stream("/stream?since=0");
    let first = stream.update();
    market.move_on(3, &[&replica]);
    let mut seen = [vec![first], stream.updates(3)].concat();
    // Twice nothing is missing: the origin still has the update that is last in the journal.
    for _ in 0..2 {
        replica.signal(Signal::SIGKILL);
        let replica = start();
        let mut stream = after(&replica, &seen[1]);
        market.move_on(1, &[&replica]);
        let again = stream.updates(seen.len() - 1);
        assert_eq!(again[..seen.len() - 2], seen[2..], "no gap, nothing twice");
        seen.extend(again.last().cloned());
    }

    // It cannot know while the origin is down, and does not say.
    market.source.say(Say::Nothing);
    let replica = Server::start(&market.source, &arguments);
    let mut stream = after(&replica, seen.last().unwrap());
    let mut late = after(&replica, &seen[3]);
    market.rise();
    for update in &seen[4..] {
        assert_eq!(late.update(), *update);
    }
    for stream in [&mut stream, &mut late] {
        let gap = stream.beyond_status();
        assert_eq!(gap.name.as_deref(), Some("gap"));
        assert_eq!(gap.json()["since"].as_u64(), seen.last().unwrap().id);
        assert_eq!(stream.update().price() as u64, market.price());
    }
    replica.stop(Signal::SIGKILL);

    // While it is down the origin publishes three updates, of which another replica tells one.
    let replica = start();
    replica.stop(Signal::SIGKILL);
    let mut told = None;
    for rise in 0..3 {
        market.rise();
        told = told.or_else(|| (rise == 1).then(|| market.timestamp.load(Ordering::Relaxed)));
    }
    for _ in 0..2 {
        let replica = start();
        eventually("it has the price", || price_of(&replica) == Some(10));
        for since in [seen[1].id, seen[5].id, told] {
            let mut stream = replica.stream(&format!("/stream?since={}", since.unwrap()));
            assert_eq!(stream.named("gap")["since"].as_u64(), since);
        }
        assert_eq!(after(&replica, &seen[4]).named("gap")["oldest"].as_u64(), seen[5].id);
        let latest = replica.stream("/stream").update();
        let mut stream = after(&replica, &latest);
        replica.stop(Signal::SIGKILL);
        assert!(stream.try_next().is_none_or(|event| event.name.is_none()), "no gap");
    }
}

#[test]
fn an_origin_from_the_future_is_not_believed() {
    let source = Source::start();
    let body = |timestamp| Say::Body(format!("{{\"price\":5,\"timestamp\":{timestamp}}}"));
    let hour = 3_600_000;
    let now = unix_millis();
    source.say(body(now + 25 * hour));
    let replica = Server::start(&source, &DATED);
    eventually("it is told", || replica.log().contains("up to a day from now"));
    assert_eq!(price_of(&replica), None);
    // One that is a little ahead is.
    source.say(body(now + hour));
    eventually("a price", || price_of(&replica) == Some(5));
}

#[test]
fn a_clock_that_was_ahead_silences_nobody() {
    let source = Source::start();
    source.say(Say::Nothing);
    let replica = Server::start(&source, &QUIET);
    let an_hour_ahead = unix_millis() + 3_600_000;
    let mut stream = replica.stream_with("/stream", &format!("Last-Event-ID: {an_hour_ahead}\r\n"));
    source.say(Say::Prices);
    stream.updates(2);
}

#[test]
fn the_proxy_keeps_away_what_the_service_need_not_see() {
    let Some(nginx) = nginx() else { return };
    let market = Market::open();
    let replica = Server::start(&market.source, &[]);
    market.move_on(1, &[&replica]);
    let silent = Source::start();
    silent.say(Say::Nothing);
    let fresh = Server::start(&silent, &[]);
    let proxy = Proxy::start(nginx, "limits", &[replica.address, fresh.address]);
    let agent = agent();
    let status = |path: &str, header: &str| {
        let request = agent.get(proxy.url(path)).header("X-Header", header);
        request.call().unwrap().status().as_u16()
    };
    // One of the replicas has no price yet, and nobody notices.
    (0..4).for_each(|_| assert_eq!(status("/price", ""), 200));
    assert_eq!(status("/", ""), 200);
    assert_eq!(status("/metrics", ""), 404);
    assert_eq!(status("/price", &"x".repeat(20_000)), 400);
    assert_eq!(status(&format!("/price?{}", "x".repeat(20_000)), ""), 414);
    let body = agent.post(proxy.url("/price")).send("x".repeat(2_000)).unwrap();
    assert_eq!(body.status(), 413);

    let plain = agent.get(format!("http://{}/stream?since=0", proxy.plain)).call().unwrap();
    assert_eq!(plain.status(), 301);
    assert_eq!(plain.headers()["Location"], "https://127.0.0.1/stream?since=0");

    let stream = || agent.get(proxy.url("/stream")).call().unwrap();
    let streams: Vec<_> = (0..100).map(|_| stream()).collect();
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(stream().status(), 429);
    drop(streams);
    eventually("there is room again", || stream().status() == 200);

    replica.stop(Signal::SIGKILL);
    assert_eq!(status("/price", ""), 503);
    fresh.stop(Signal::SIGKILL);
    assert_eq!(status("/price", ""), 502);
    // A browser does not come back after a 502, but after a broken connection it does.
    agent.get(proxy.url("/stream")).call().expect_err("a stream from nobody");
}

// ---------------------------------------------------------------------------------- the source

/// A source whose price is 1, 2, 3 and so on, and rises when the test says so.
struct Market {
    source: Source,
    price: Arc<AtomicU64>,
    timestamp: AtomicU64,
}

impl Market {
    fn open() -> Market {
        let market = Market { source: Source::start(), price: Arc::default(), timestamp: 0.into() };
        market.rise();
        market
    }

    /// Lets the price rise `times` times, each time only when all `replicas` have it.
    fn move_on(&self, times: u64, replicas: &[&Server]) {
        for _ in 0..times {
            self.rise();
            for replica in replicas {
                eventually("the replica has the price", || price_of(replica) == Some(self.price()));
            }
        }
    }

    fn rise(&self) {
        self.price.fetch_add(1, Ordering::Relaxed);
        let after_the_last = self.timestamp.load(Ordering::Relaxed) + 1;
        self.timestamp.store(unix_millis().max(after_the_last), Ordering::Relaxed);
        self.source.say(self.word());
    }

    fn word(&self) -> Say {
        let timestamp = self.timestamp.load(Ordering::Relaxed);
        Say::Body(json!({"price": self.price(), "timestamp": timestamp}).to_string())
    }

    fn price(&self) -> u64 {
        self.price.load(Ordering::Relaxed)
    }
}

fn price_of(server: &Server) -> Option<u64> {
    server.get("/price").json()["price"].as_f64().map(|price| price as u64)
}

// ---------------------------------------------------------------------------------- the clients

#[derive(Clone, Copy, Debug, PartialEq)]
struct Update {
    timestamp: u64,
    price: u64,
}

impl Update {
    fn of(json: &Value) -> Update {
        let price = json["price"].as_f64().unwrap() as u64;
        Update { timestamp: json["timestamp"].as_u64().unwrap(), price }
    }
}

/// Follows the stream through the proxy, on a thread of its own, until it is told to leave.
struct Client {
    seen: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<Update>>>,
}

impl Client {
    /// `away`: how much the price has to rise before the client comes back from a stream that ended.
    fn join(proxy: &Proxy, market: &Market, away: u64) -> Client {
        let (seen, leave) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut follower = Follower {
            agent: agent(),
            url: proxy.url("/stream"),
            last: None,
            seen: seen.clone(),
            leave: leave.clone(),
        };
        let price = market.price.clone();
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !follower.leave.load(Ordering::Relaxed) {
                let updates = follower.follow();
                if !updates.is_empty() {
                    connections.push(updates);
                }
                if !follower.leave.load(Ordering::Relaxed) {
                    let back = price.load(Ordering::Relaxed) + away;
                    eventually("the price rises", || price.load(Ordering::Relaxed) >= back);
                }
            }
            connections
        });
        Client { seen, leave, thread }
    }
}

struct Follower {
    agent: Agent,
    url: String,
    last: Option<Update>,
    seen: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
}

impl Follower {
    /// Reads one stream from the last update on, until it ends or the client is to leave.
    fn follow(&mut self) -> Vec<Update> {
        let mut stream = None;
        eventually("the proxy opens a stream", || {
            stream = self.open();
            stream.is_some()
        });
        let body = stream.unwrap().into_body().into_reader();
        let mut updates = Vec::new();
        // Whether a stream ends well or breaks is the same to a browser.
        for line in BufReader::new(body).lines().map_while(Result::ok) {
            assert_ne!(line, "event: gap", "after {:?}", self.last);
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let json: Value = serde_json::from_str(data).unwrap();
            if json["price"].is_null() {
                continue; // A status.
            }
            let update = Update::of(&json);
            updates.push(update);
            self.last = Some(update);
            self.seen.store(update.price, Ordering::Relaxed);
            if self.leave.load(Ordering::Relaxed) {
                break;
            }
        }
        updates
    }

    fn open(&self) -> Option<Response<ureq::Body>> {
        let mut request = self.agent.get(&self.url);
        if let Some(last) = self.last {
            request = request.header("Last-Event-ID", last.timestamp.to_string());
        }
        request.call().ok().filter(|response| response.status() == 200)
    }
}

/// A client that trusts every certificate, the one that the test has just made too.
fn agent() -> Agent {
    let config = Agent::config_builder()
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_per_read(Some(PATIENCE))
        .proxy(None);
    config.build().into()
}

// ---------------------------------------------------------------------------------- the proxy

/// nginx with the configuration of `deploy/`. Ended when it is dropped.
struct Proxy {
    child: Child,
    folder: PathBuf,
    plain: SocketAddr,
    secure: SocketAddr,
}

/// How nginx is called here. Where there is none nothing can be tested behind it: said aloud, and
/// a failure where tests are what the machine is for.
fn nginx() -> Option<&'static str> {
    let answers = |tool: &&str| {
        let argument = if *tool == "openssl" { "version" } else { "-v" };
        Command::new(tool).arg(argument).output().is_ok()
    };
    let found = ["nginx", "/usr/sbin/nginx"].into_iter().find(answers);
    if let Some(nginx) = found.filter(|_| answers(&"openssl")) {
        return Some(nginx);
    }
    common::skipped(
        "replicas were not tested behind nginx: it or openssl is missing \
         (on Debian: nginx-light openssl)",
    );
    None
}

impl Proxy {
    fn start(nginx: &str, name: &str, replicas: &[SocketAddr]) -> Proxy {
        let folder = folder(&format!("nginx-{name}"));
        std::fs::create_dir(folder.join("tls")).unwrap();
        make_certificate(&folder);
        let one = include_str!("../deploy/replicas.conf");
        let all = replicas.iter().map(|at| one.replace("127.0.0.1:8080", &at.to_string()));
        std::fs::write(folder.join("replicas.conf"), all.collect::<String>()).unwrap();
        // Another program may take a port before nginx does; then nginx ends, and others are tried.
        let mut started = None;
        eventually("nginx listens", || {
            started = Proxy::try_start(nginx, &folder);
            started.is_some()
        });
        started.unwrap()
    }

    fn try_start(nginx: &str, folder: &PathBuf) -> Option<Proxy> {
        let (plain, secure) = (free_address(), free_address());
        let mut config = include_str!("../deploy/nginx.conf").to_owned();
        for (deployed, tested) in [
            ("listen 80;", format!("listen {plain};")),
            ("listen 443 ssl", format!("listen {secure} ssl")),
            ("http {", format!("http {{\n{OWN_FILES}")),
        ] {
            assert_eq!(config.matches(deployed).count(), 1, "{deployed}");
            config = config.replace(deployed, &tested);
        }
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(nginx);
        command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
        command.args(["-e", "error.log", "-g", "daemon off; pid nginx.pid;"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut proxy = Proxy { child, folder: folder.clone(), plain, secure };
        let mut listens = false;
        eventually("nginx listens or ends", || {
            // Written when the ports are its own.
            listens = folder.join("nginx.pid").exists();
            listens || proxy.child.try_wait().unwrap().is_some()
        });
        listens.then_some(proxy)
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.secure)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Not by SIGKILL, which its workers would survive.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("error.log")).unwrap_or_default();
            eprintln!("nginx logged:\n{log}");
        }
    }
}

/// In place of the folders of the system.
const OWN_FILES: &str = "access_log off; client_body_temp_path body; proxy_temp_path proxy; \
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;";

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn make_certificate(folder: &PathBuf) {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder).args(["req", "-x509", "-newkey", "ec", "-nodes"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]);
    openssl.args(["-keyout", "tls/key.pem", "-out", "tls/certificate.pem"]);
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
