//! Several processes that share a Redis stream: each has the same updates with the same ids, any of
//! them may die, and a client may continue at any other. Real processes, and a real `redis-server`.

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::redis::{Faults, KEY, Redis, Roamers, Updates};
use crate::common::{
    Event, Say, Server, Source, assert_in_order, eventually, folder, free_address,
    make_certificate, skipped,
};
use btc_ticker::system::unix_millis;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A process that shares the store. It polls ten times a second, unless `arguments` say otherwise.
fn process(redis: &Redis, source: &Source, arguments: &[&str]) -> Server {
    process_at("127.0.0.1:0", redis, source, arguments)
}

fn process_at(address: &str, redis: &Redis, source: &Source, arguments: &[&str]) -> Server {
    let store = redis.url();
    Server::start_at(address, source, &[&["--store", &store], arguments].concat())
}

fn health(process: &Server) -> Value {
    process.get("/healthz").json()
}

/// Waits for this many updates more in the store.
fn wait_for_updates(redis: &Redis, number: usize) {
    let before = redis.newest();
    eventually("new updates", || redis.updates().range(before + 1..).count() >= number);
}

/// Checks that a client has received everything from its first update to its last.
fn assert_complete(seen: &[Event], all: &Updates) {
    let received = seen.iter().map(|update| (update.id.unwrap(), update.price()));
    let (first, last) = (seen[0].id.unwrap(), seen.last().unwrap().id.unwrap());
    let stored = all.range(first..=last).map(|(&id, &price)| (id, price));
    assert!(stored.eq(received), "{seen:?}\n{all:?}");
}

// ---------------------------------------------------------------------------------- failures

/// Three processes, each with a source of its own, and clients that move between them.
struct Cluster {
    redis: Redis,
    sources: Vec<Source>,
    processes: Vec<Server>,
    clients: Roamers,
}

impl Cluster {
    /// Has the processes do what `fault` does to them. Afterwards every client must have every update
    /// once, in order and without a `gap`.
    fn survives(name: &str, interval: &str, fault: impl FnOnce(&mut Cluster)) {
        let Some(redis) = Redis::start(name, &[]) else { return };
        let sources: Vec<_> = (0..3).map(|_| Source::start()).collect();
        let start = |source| process(&redis, source, &["--interval", interval]);
        let processes: Vec<_> = sources.iter().map(start).collect();
        let addresses: Vec<_> = processes.iter().map(|process| process.address).collect();
        wait_for_updates(&redis, 1);
        let clients = Roamers::start(8, &addresses, Duration::from_secs(2));
        let mut cluster = Cluster { redis, sources, processes, clients };
        cluster.clients.wait_for(cluster.redis.newest());
        fault(&mut cluster);
        let Cluster { redis, clients, .. } = cluster;
        wait_for_updates(&redis, 3);
        clients.wait_for(redis.newest());
        let (received, all) = (clients.leave(), redis.updates());
        for seen in received {
            assert_eq!(Faults::of(&seen, &all), Faults::default(), "{seen:?}\n{all:?}");
        }
    }

    /// Waits until a process other than `not` polls, and returns its index.
    fn polling(&self, not: Option<usize>) -> usize {
        let mut found = None;
        eventually("another process polls", || {
            let polls =
                |&n: &usize| Some(n) != not && health(&self.processes[n])["polling"] == true;
            found = (0..3).find(polls);
            found.is_some()
        });
        found.unwrap()
    }
}

#[test]
fn a_polling_process_that_is_killed_is_replaced() {
    Cluster::survives("killed", "100ms", |cluster| {
        let first = cluster.polling(None);
        let address = cluster.processes[first].address.to_string();
        cluster.processes[first].child.kill().unwrap();
        cluster.processes[first].child.wait().unwrap();
        let others = [(first + 1) % 3, (first + 2) % 3];
        let logs = |&n: &usize| cluster.processes[n].log().contains("this process polls now");
        eventually("another one says that it polls", || others.iter().any(logs));
        wait_for_updates(&cluster.redis, 3);
        let (redis, source) = (&cluster.redis, &cluster.sources[first]);
        cluster.processes[first] = process_at(&address, redis, source, &[]);
    });
}

#[test]
fn a_polling_process_that_was_frozen_leaves_the_turn_to_its_successor() {
    Cluster::survives("frozen-poller", "1s", |cluster| {
        let first = cluster.polling(None);
        cluster.processes[first].signal(Signal::SIGSTOP);
        wait_for_updates(&cluster.redis, 2);
        let asked = cluster.sources[first].requests().len();
        cluster.processes[first].signal(Signal::SIGCONT);
        wait_for_updates(&cluster.redis, 3);
        // It may have been frozen in the middle of a fetch.
        assert!(cluster.sources[first].requests().len() <= asked + 1, "it took the turn back");
        assert_ne!(cluster.polling(None), first);
    });
}

#[test]
fn a_polling_process_without_its_source_is_replaced() {
    Cluster::survives("one-source", "100ms", |cluster| {
        let first = cluster.polling(None);
        cluster.sources[first].say(Say::status(500));
        cluster.polling(Some(first));
        wait_for_updates(&cluster.redis, 3);
        assert_eq!(health(&cluster.processes[first])["polling"], false);
        assert_eq!(health(&cluster.processes[first])["status"], "ok", "it has the others' prices");
        cluster.sources[first].say(Say::Prices);
    });
}

#[test]
fn a_process_that_does_not_poll_may_die() {
    Cluster::survives("other", "100ms", |cluster| {
        let other = (cluster.polling(None) + 1) % 3;
        cluster.processes[other].child.kill().unwrap();
        wait_for_updates(&cluster.redis, 5);
    });
}

#[test]
fn redis_may_be_killed_and_it_may_hang() {
    Cluster::survives("hangs", "100ms", |cluster| {
        cluster.redis.kill();
        await_failure(&cluster.processes);
        cluster.redis.restart();
        await_recovery(&cluster.processes);
        cluster.redis.signal(Signal::SIGSTOP);
        await_failure(&cluster.processes);
        cluster.redis.signal(Signal::SIGCONT);
        await_recovery(&cluster.processes);
    });
}

/// Waits until the processes say that the store fails, everywhere that an operator may look.
fn await_failure(processes: &[Server]) {
    for process in processes {
        eventually("stale", || health(process)["status"] == "stale");
        eventually("failing", || health(process)["store"] == "failing");
        assert_eq!(process.get("/healthz").status, 200, "it serves what it has");
        assert_eq!(process.metric("btc_ticker_store_up"), 0.0);
        assert!(process.metric("btc_ticker_store_errors_total{operation=\"read\"}") > 0.0);
        eventually("the log has it", || process.log().contains("store: cannot read"));
        let mut stream = process.stream("/stream");
        let status = stream.named("status");
        assert_eq!(status["stale"], true);
        assert!(status["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{status}");
        stream.update();
    }
}

fn await_recovery(processes: &[Server]) {
    for process in processes {
        eventually("ok", || health(process)["status"] == "ok");
        eventually("the store answers", || health(process)["store"] == "ok");
        eventually("up", || process.metric("btc_ticker_store_up") == 1.0);
    }
}

#[test]
fn clients_that_are_connected_receive_one_gap_and_miss_nothing_when_redis_is_emptied() {
    let Some(redis) = Redis::start("emptied", &[]) else { return };
    let source = Source::start();
    let processes = [process(&redis, &source, &[]), process(&redis, &source, &[])];
    let mut stream = processes[0].stream("/stream");
    let mut seen = stream.updates(3);
    let before = redis.empty();
    let mut gaps = 0;
    while seen.len() < 20 {
        let event = stream.beyond_status();
        if event.id.is_some() {
            seen.push(event);
        } else {
            gaps += 1;
        }
    }
    assert_eq!(gaps, 1, "entries may have been lost before they were read");
    let all = before.into_iter().chain(redis.updates()).collect();
    assert_complete(&seen, &all);
}

#[test]
fn a_client_with_a_known_id_receives_no_gap_from_a_process_that_started_before_redis() {
    let Some(mut redis) = Redis::start("late", &[]) else { return };
    let source = Source::start();
    let retention = ["--retention", "1s"];
    let first = process(&redis, &source, &retention);
    // Longer than the retention, so that an entry precedes it.
    let last = first.stream("/stream").updates(15)[14].id.unwrap();
    drop(first);
    redis.kill();
    let late = process(&redis, &source, &retention);
    let mut stream = late.resume(last);
    // Longer than a client may be ahead of a process.
    let errors = "btc_ticker_store_errors_total{operation=\"read\"}";
    eventually("several attempts", || late.metric(errors) >= 4.0);
    redis.restart();
    assert!(stream.updates(5)[0].id > Some(last));
}

#[test]
fn a_turn_that_is_held_for_too_long_is_logged() {
    let Some(redis) = Redis::start("held", &[]) else { return };
    let source = Source::start();
    let turn = format!("{KEY}:turn");
    let line = format!("delete its key, {turn}");
    // For a day, forever, and by a key of another type.
    for held in
        [&["SET", &turn, "x", "PX", "86400000"][..], &["SET", &turn, "x"], &["LPUSH", &turn, "x"]]
    {
        let process = process(&redis, &source, &[]);
        wait_for_updates(&redis, 3);
        eventually("it is in the log", || {
            // A polling process deletes the key at the end of its turn, so it is set again.
            redis.run(held);
            process.log().contains(&line)
        });
        redis.run(&["DEL", &turn]);
        wait_for_updates(&redis, 3);
    }
}

#[test]
fn a_deleted_stream_starts_over() {
    let Some(redis) = Redis::start("deleted", &[]) else { return };
    let source = Source::start();
    let process = process(&redis, &source, &[]);
    let future = unix_millis() + 2 * 86_400_000;
    redis.run(&["XADD", KEY, &format!("{future}-0"), "price", "5"]);
    eventually("it is in the log", || process.log().contains("more than a day ahead"));
    wait_for_updates(&redis, 1);
    eventually("its clock again", || {
        // A fetch in progress may append one more update above the deleted ones.
        if redis.newest() >= future {
            redis.run(&["DEL", KEY]);
        }
        (1..future).contains(&redis.newest())
    });
}

#[test]
fn every_client_receives_a_gap_when_redis_has_lost_updates() {
    let Some(mut redis) = Redis::start("lost", &[]) else { return };
    let source = Source::start();
    let processes = [process(&redis, &source, &[]), process(&redis, &source, &[])];
    let mut streams: Vec<_> = processes.iter().map(|process| process.stream("/stream")).collect();
    let last = streams[1].updates(3)[2].id.unwrap();
    streams[0].updates(3);
    redis.restart_empty();
    for (process, stream) in processes.iter().zip(&mut streams) {
        let mut before = last;
        let gap = loop {
            let event = stream.beyond_status();
            match event.id {
                Some(id) => before = before.max(id),
                None => break event,
            }
        };
        assert_eq!(gap.name.as_deref(), Some("gap"));
        let oldest = stream.update().id;
        assert!(gap.json()["since"].as_u64() >= Some(last));
        assert_eq!(gap.json()["oldest"].as_u64(), oldest);
        // So does a client that was away meanwhile, but only once.
        let mut late = process.resume(before);
        assert_eq!(late.named("gap")["oldest"].as_u64(), oldest);
        assert_eq!(late.update().id, oldest);
        process.resume(oldest.unwrap()).update();
    }
}

#[test]
fn prices_are_stale_while_no_process_has_a_source() {
    Cluster::survives("no-source", "100ms", |cluster| {
        let say = |what: Say| cluster.sources.iter().for_each(|source| source.say(what.clone()));
        say(Say::status(500));
        for process in &cluster.processes {
            eventually("stale", || health(process)["status"] == "stale");
            assert_eq!(health(process)["store"], "ok", "that is not the store's fault");
        }
        say(Say::Prices);
        await_recovery(&cluster.processes);
    });
}

// ---------------------------------------------------------------------------------- one history

#[test]
fn processes_that_start_at_once_poll_in_turn_and_have_the_same_history() {
    let Some(redis) = Redis::start("at-once", &[]) else { return };
    let source = Source::start();
    let start = || process(&redis, &source, &["--interval", "500ms"]);
    let processes = thread::scope(|scope| {
        let starting = [scope.spawn(start), scope.spawn(start)];
        starting.map(|process| process.join().unwrap())
    });
    wait_for_updates(&redis, 8);
    let (polls, updates) = (source.requests().len(), redis.updates().len());
    assert!(polls <= updates + 2, "{polls} polls for {updates} updates");
    let since = redis.updates().first_key_value().map_or(0, |(&id, _)| id);
    let seen = processes.map(|process| process.resume(since).updates(7));
    assert_in_order(&seen[0]);
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn a_client_that_is_ahead_of_a_process_that_was_frozen_receives_nothing_twice() {
    let Some(redis) = Redis::start("ahead", &[]) else { return };
    let source = Source::start();
    let processes = [process(&redis, &source, &[]), process(&redis, &source, &[])];
    let mut seen = processes[1].stream("/stream").updates(1);
    for _ in 0..10 {
        processes[0].signal(Signal::SIGSTOP);
        let last = seen.last().unwrap().id.unwrap();
        seen.extend(processes[1].resume(last).updates(5));
        processes[0].signal(Signal::SIGCONT);
        let last = seen.last().unwrap().id.unwrap();
        seen.extend(processes[0].resume(last).updates(1));
    }
    assert_complete(&seen, &redis.updates());
}

#[test]
fn an_id_from_a_wrong_clock_receives_a_gap_and_then_live_updates() {
    let Some(redis) = Redis::start("wrong-clock", &[]) else { return };
    let source = Source::start();
    let process = process(&redis, &source, &["--interval", "500ms"]);
    let first = process.stream("/stream").update().id.unwrap();
    // The next update is due after 500 ms: this client is just ahead.
    let next = process.resume(first + 250).update();
    assert!(next.id > Some(first + 250));
    let hour = 3_600_000;
    let mut stream = process.resume(first + hour);
    assert_eq!(stream.named("gap")["since"].as_u64(), Some(first + hour));
    assert_in_order(&stream.updates(3));
}

#[test]
fn the_history_survives_a_restart_of_everything() {
    let Some(mut redis) = Redis::start("everything", &[]) else { return };
    let source = Source::start();
    let mut seen: Vec<Event> = Vec::new();
    for _ in 0..3 {
        let process = process(&redis, &source, &[]);
        let mut stream = match seen.last() {
            Some(last) => process.resume(last.id.unwrap()),
            None => process.stream("/stream?since=0"),
        };
        seen.extend(stream.updates(5));
        process.stop(Signal::SIGKILL);
        redis.kill();
        redis.restart();
    }
    assert_complete(&seen, &redis.updates());
    let process = process(&redis, &source, &[]);
    assert_eq!(process.stream("/stream?since=0").updates(15), seen);
}

#[test]
fn a_hundred_thousand_updates_are_served_from_the_store() {
    const NUMBER: u64 = 100_000;
    let Some(redis) = Redis::start("many", &[]) else { return };
    redis.fill(NUMBER);
    let all = redis.updates();
    assert_eq!(all.len() as u64, NUMBER);
    let oldest = unix_millis() - NUMBER / 2;
    let source = Source::start();
    let process = process(&redis, &source, &[]);
    let mut stream = process.resume(oldest);
    for (&id, &price) in all.range(oldest + 1..) {
        let update = stream.update();
        assert_eq!((update.id, update.price()), (Some(id), price));
    }
    // The next one is live.
    assert_eq!(stream.update().price(), 1.0);
}

#[test]
fn foreign_entries_are_skipped_and_logged() {
    let Some(redis) = Redis::start("foreign", &[]) else { return };
    let source = Source::start();
    let process = process(&redis, &source, &[]);
    let mut stream = process.stream("/stream");
    let mut seen = stream.updates(1);
    let mut ids = Vec::new();
    for entry in
        ["colour red", "price cheap", "price -1", "price NaN", "price inf", "colour red price 5"]
    {
        let fields: Vec<_> = entry.split(' ').collect();
        let id = redis.run(&[&["XADD", KEY, "*"], &fields[..]].concat());
        ids.push(id.trim().to_owned());
        seen.extend(stream.updates(2));
    }
    // An id that is no timestamp, in the future so that it is certainly a new one.
    let id = format!("{}-3", unix_millis() + 500);
    redis.run(&["XADD", KEY, &id, "price", "5"]);
    seen.extend(stream.updates(3));
    assert_in_order(&seen);
    // The first one stands for all in ten seconds.
    eventually("it is logged", || process.log().contains(&ids[0]));
    assert!(process.log().matches("unrecognized entry").count() <= 2, "{}", process.log());
    // A process that starts afterwards skips them, too.
    let since = seen[0].id.unwrap();
    let other = self::process(&redis, &source, &[]);
    assert_eq!(other.resume(since).updates(seen.len() - 1), seen[1..]);
}

#[test]
fn simulated_prices_and_real_ones_do_not_mix() {
    let Some(redis) = Redis::start("simulated", &[]) else { return };
    let source = Source::start();
    let real = process(&redis, &source, &[]);
    let demo = Server::demo(&["--store", &redis.url()]);
    for (process, is_simulated) in [(&real, false), (&demo, true)] {
        let mut stream = process.stream("/stream");
        assert_eq!(stream.named("status")["simulated"], is_simulated);
        let is_real = |update: &Event| update.price() <= source.last_price() as f64;
        assert!(stream.updates(5).iter().all(|update| is_real(update) != is_simulated));
    }
    assert!(redis.run(&["XLEN", "btc-ticker:demo"]).trim().parse::<u64>().unwrap() >= 5);
}

// ---------------------------------------------------------------------------------- the store

#[test]
fn a_store_that_is_away_at_the_start_is_waited_for() {
    let Some(mut redis) = Redis::start("away", &[]) else { return };
    redis.kill();
    let source = Source::start();
    let process = process(&redis, &source, &[]);
    let answer = process.get("/healthz");
    assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("starting")));
    assert_eq!(answer.json()["store"], "failing");
    eventually("the log has it", || process.log().contains("store: cannot read"));
    redis.restart();
    await_recovery(&[process]);
}

#[test]
fn a_store_that_hangs_does_not_hold_up_the_shutdown() {
    let Some(redis) = Redis::start("shutdown", &[]) else { return };
    let source = Source::start();
    let running = process(&redis, &source, &[]);
    running.stream("/stream").update();
    redis.signal(Signal::SIGSTOP);
    eventually("failing", || health(&running)["store"] == "failing");
    let starting = process(&redis, &source, &[]);
    for process in [running, starting] {
        let begin = Instant::now();
        let (status, log) = process.stop(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}\n{log}", begin.elapsed());
    }
}

#[test]
fn a_full_store_shows_in_the_log_and_is_used_again_when_there_is_room() {
    let full = ["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"];
    let Some(redis) = Redis::start("full", &full) else { return };
    let source = Source::start();
    let process = process(&redis, &source, &[]);
    eventually("it is logged", || process.log().contains("maxmemory"));
    assert!(process.metric("btc_ticker_store_errors_total{operation=\"claim\"}") > 0.0);
    assert_eq!(health(&process)["status"], "starting");
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    process.stream("/stream").updates(2);
    await_recovery(&[process]);
}

/// The two halves of a password.
const HALVES: [&str; 2] = ["kingfisher", "bramblings"];

#[test]
fn the_password_appears_nowhere() {
    let Some(redis) = Redis::start("password", &[]) else { return };
    let [left, right] = HALVES;
    redis.run(&["ACL", "SETUSER", "ticker", "on", &format!(">{left}@{right}"), "~*", "+@all"]);
    let at = format!("127.0.0.1:{}", redis.port);
    let store = format!("redis://ticker:{left}%40{right}@{at}");
    let silent = |text: &str| {
        let text = text.to_lowercase();
        assert!(!HALVES.iter().any(|half| text.contains(half)), "{text}");
    };
    let source = Source::start();
    let mut command = Server::command();
    command.env("RUST_LOG", "trace").env("BTC_TICKER_STORE", &store);
    let process = Server::poll(command, &source, &[]);
    let mut stream = process.stream("/stream");
    stream.updates(2);
    redis.signal(Signal::SIGSTOP);
    eventually("failing", || health(&process)["store"] == "failing");
    redis.signal(Signal::SIGCONT);
    stream.updates(2);
    for path in ["/healthz", "/metrics", "/"] {
        silent(&process.get(path).body);
    }
    silent(&process.stop(Signal::SIGTERM).1);
    for argument in ["--help", "--colour"] {
        let mut command = Server::command();
        let output = command.env("BTC_TICKER_STORE", &store).arg(argument).output().unwrap();
        silent(&format!("{output:?}"));
    }
    for (code, url) in [
        (1, format!("redis://ticker:{left}{right}@{at}")),
        (1, format!("redis://ticker:{left}%4{right}@{at}")),
        (1, format!("redis://ticker:{left} {right}@{at}")),
        (2, format!("redis://ticker:{left}@{right}@{at}/x")),
        (2, format!("redis://:{left}/{right}@{at}")),
        (2, format!("redis://:{left}#{right}@{at}")),
        (2, format!("redis://ticker:1/{left}{right}@{at}")),
        (2, format!("redis://{left}:{right}")),
        (2, format!("redis//:{left}:{right}@{at}")),
        (2, format!("http://:{left}{right}@{at}")),
        (2, format!("{left}:{right}@{at}")),
    ] {
        let mut command = without_store();
        silent(&Server::fails(command.env("BTC_TICKER_STORE", &url), code));
        silent(&Server::fails(without_store().args(["--store", &url]), code));
    }
}

#[test]
fn a_store_that_is_misconfigured_is_reported_at_the_start() {
    let Some(redis) = Redis::start("misconfigured", &[]) else { return };
    let (at, source) = (format!("127.0.0.1:{}", redis.port), Source::start());
    let web_server = Server::start(&source, &[]);
    redis.run_all(&format!(
        "ACL SETUSER reader on >secret ~* +@read +@connection\n\
         ACL SETUSER stranger on >secret ~other:* +@all\n\
         SELECT 1\nSET {KEY} 5\n"
    ));
    for (url, code, hint) in [
        (at.clone(), 2, "redis://"),
        (format!("http://{at}"), 2, "redis://"),
        (format!("redis://{at}/x"), 2, "redis://"),
        (format!("redis://:{}", redis.port), 2, "redis://"),
        (format!("redis://reader:wrong@{at}"), 1, "password"),
        (format!("redis://reader:secret@{at}"), 1, "permission"),
        (format!("redis://stranger:secret@{at}"), 1, "permission"),
        (format!("redis://{at}/1"), 1, KEY),
        (format!("redis://{at}/99"), 1, "database"),
        (format!("redis://{}", web_server.address), 1, "Redis"),
    ] {
        let error = Server::fails(without_store().args(["--store", &url]), code);
        assert!(error.contains(hint), "{url}: {error}");
        let lines = error.lines().filter(|line| !line.contains("INFO"));
        assert!(code == 2 || lines.count() == 1, "{url}: {error}");
    }
    redis.run(&["CONFIG", "SET", "requirepass", "secret"]);
    let error = Server::fails(without_store().args(["--store", &redis.url()]), 1);
    assert!(error.contains("password"), "{error}");
}

/// Returns a command that starts a server. The test adds the store.
fn without_store() -> Command {
    let mut command = Server::command();
    command.args(["--source-url", "http://127.0.0.1:9/", "--listen", "127.0.0.1:0"]);
    command
}

#[test]
fn a_store_behind_tls_needs_a_certificate_that_the_system_trusts() {
    let output = |tool: &str, argument| Command::new(tool).arg(argument).output();
    let text = |output: Output| String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let has_tls = output("redis-cli", "--help").is_ok_and(|help| text(help).contains("--tls"));
    if !has_tls || output("openssl", "version").is_err() {
        return skipped("rediss:// was not tested: apt-get install redis-server openssl");
    }
    let certificates = folder("store-tls");
    let names = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 \
                 -addext basicConstraints=critical,CA:FALSE";
    make_certificate(&certificates, "key.pem", "certificate.pem", names);
    let file = |name: &str| certificates.join(name).to_str().unwrap().to_owned();
    let (port, certificate, key) =
        (free_address().port().to_string(), file("certificate.pem"), file("key.pem"));
    let options = [
        &["--tls-port", &port, "--tls-auth-clients", "no"][..],
        &["--tls-cert-file", &certificate, "--tls-key-file", &key],
    ];
    let Some(redis) = Redis::start("tls", &options.concat()) else { return };
    let source = Source::start();
    let secure = ["--store", &format!("rediss://127.0.0.1:{port}")];
    let stranger = Server::start(&source, &secure);
    assert_eq!(stranger.get("/healthz").status, 503);
    eventually("the log has it", || stranger.log().contains("certificate"));
    let mut command = Server::command();
    command.env("SSL_CERT_FILE", &certificate);
    let process = Server::poll(command, &source, &secure);
    let update = process.stream("/stream").update();
    assert_eq!(redis.updates()[&update.id.unwrap()], update.price());
}
