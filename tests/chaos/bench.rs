//! Everything fails at random while clients move between the processes:
//! `cargo bench --bench chaos -- --help`.
//!
//! Real processes share a real Redis, which acknowledges an update only once it is on the disk. What
//! each client has received is compared with what Redis has in the end.

#[path = "../common/mod.rs"]
mod common;
mod market;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use btc_ticker::system::{parse_duration, unix_millis};
use clap::Parser;
use common::redis::{Faults, Redis, Roamers, Seen, Updates, below};
use common::{Server, eventually};
use market::Market;
use nix::sys::signal::Signal;

const EMPTIED: &str = "Redis emptied";
const RESTARTED_EMPTY: &str = "Redis restarted empty";

#[derive(Parser)]
#[command(about = "Breaks processes, Redis and the source, and counts what clients lose")]
#[command(bin_name = "cargo bench --bench chaos --")]
struct Arguments {
    /// How long things break, after a tenth of that without faults
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,

    /// Empty Redis at random moments, too: with FLUSHALL, and by a restart without its files
    #[arg(long)]
    empty: bool,

    #[arg(long, default_value_t = 3)]
    processes: usize,

    #[arg(long, default_value_t = 50)]
    clients: usize,

    #[arg(long, default_value = "200ms", value_parser = interval)]
    interval: Duration,

    /// A source that takes 1.3 intervals to answer
    #[arg(long)]
    slow_source: bool,

    /// What cargo passes if benchmarks are to run, not just to build.
    #[arg(long, hide = true)]
    bench: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).and_then(|interval| Duration::try_from(interval).ok());
    interval.ok_or_else(|| "write a duration such as 200ms or 5s".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing broken: this is for cargo bench --bench chaos");
        return ExitCode::SUCCESS;
    }
    let Some(redis) = Redis::start("chaos", &[]) else { return ExitCode::FAILURE };
    run(&arguments, redis).report(&arguments)
}

/// Something that does not work for some time, in Unix milliseconds.
struct Outage {
    fault: &'static str,
    victim: Victim,
    from: u64,
    to: u64,
    /// Whether the victim was the process that polls.
    was_polling: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Process(usize),
    Redis,
}

/// A moment, and the number of polls so far.
#[derive(Clone, Copy)]
struct Mark {
    at: u64,
    polls: u64,
}

/// What the threads share that break things.
struct Run<'a> {
    arguments: &'a Arguments,
    market: &'a Market,
    is_over: AtomicBool,
    outages: Mutex<Vec<Outage>>,
    /// What Redis had when it was emptied.
    before: Mutex<Updates>,
}

struct Outcome {
    outages: Vec<Outage>,
    /// The begin, the first fault and the last.
    marks: [Mark; 3],
    received: Vec<Vec<Seen>>,
    all: Updates,
}

fn run(arguments: &Arguments, mut redis: Redis) -> Outcome {
    let delay = arguments.interval.mul_f64(if arguments.slow_source { 1.3 } else { 0.0 });
    let market = Market::open(arguments.processes, delay);
    let run = Run {
        arguments,
        market: &market,
        is_over: AtomicBool::new(false),
        outages: Mutex::default(),
        before: Mutex::default(),
    };
    let store = redis.url();
    let start = |n| run.start("127.0.0.1:0", n, &store);
    let mut processes: Vec<_> = (0..arguments.processes).map(start).collect();
    let addresses: Vec<_> = processes.iter().map(|process| process.address).collect();
    eventually("the first update", || !redis.updates().is_empty());
    let clients = Roamers::start(arguments.clients, &addresses, 5 * arguments.interval);

    let minutes = |minutes: f64| Duration::from_secs_f64(60.0 * minutes);
    let begin = market.mark();
    thread::sleep(minutes(arguments.minutes / 10.0));
    let first_fault = market.mark();
    thread::scope(|scope| {
        for (n, process) in processes.iter_mut().enumerate() {
            let (run, store) = (&run, &store);
            scope.spawn(move || run.break_process(n, process, store));
        }
        scope.spawn(|| run.break_redis(&mut redis));
        thread::sleep(minutes(arguments.minutes));
        run.is_over.store(true, Ordering::Relaxed);
    });
    let last_fault = market.mark();

    // Everything works again. Then prices end, and clients receive what they have missed.
    let newest = || redis.updates().last_key_value().map(|(&id, _)| id);
    eventually("updates again", || newest() > Some(last_fault.at));
    market.close();
    thread::sleep(5 * arguments.interval);
    clients.wait_for(newest().unwrap());
    let (received, mut all) = (clients.leave(), redis.updates());
    all.append(&mut run.before.into_inner().unwrap());
    if arguments.empty {
        // An update may have come between the last look at Redis and its end.
        let update = |seen: &Seen| match *seen {
            Seen::Update { id, price } => Some((id, price)),
            Seen::Gap => None,
        };
        let missing = received.iter().flatten().filter_map(update);
        all = missing.chain(all).collect();
    }
    let outages = run.outages.into_inner().unwrap();
    Outcome { outages, marks: [begin, first_fault, last_fault], received, all }
}

impl Run<'_> {
    fn start(&self, address: &str, n: usize, store: &str) -> Server {
        let interval = format!("{}ms", self.arguments.interval.as_millis());
        let mut command = Server::command();
        command.args(["--listen", address, "--interval", &interval, "--store", store]);
        command.args(["--source-url", &self.market.url(n), "--price-at", "/price"]);
        Server::run(&mut command)
    }

    /// Breaks one process again and again.
    fn break_process(&self, n: usize, process: &mut Server, store: &str) {
        while self.wait(10, 40) {
            let was_polling = process.get("/healthz").json()["polling"] == true;
            let from = unix_millis();
            let fault = match below(3) {
                0 => {
                    process.child.kill().unwrap();
                    process.child.wait().unwrap();
                    self.wait(0, 15);
                    *process = self.start(&process.address.to_string(), n, store);
                    "process killed"
                }
                1 => {
                    process.signal(Signal::SIGSTOP);
                    self.wait(0, 15);
                    process.signal(Signal::SIGCONT);
                    "process frozen"
                }
                _ => {
                    self.market.fail(n, true);
                    self.wait(0, 15);
                    self.market.fail(n, false);
                    "source of one process failed"
                }
            };
            self.note(fault, Victim::Process(n), from, was_polling);
        }
    }

    fn break_redis(&self, redis: &mut Redis) {
        while self.wait(20, 60) {
            let from = unix_millis();
            let fault = match below(if self.arguments.empty { 4 } else { 2 }) {
                0 => {
                    redis.kill();
                    self.wait(0, 15);
                    redis.restart();
                    "Redis killed"
                }
                1 => {
                    redis.signal(Signal::SIGSTOP);
                    self.wait(0, 15);
                    redis.signal(Signal::SIGCONT);
                    "Redis frozen"
                }
                2 => {
                    self.before.lock().unwrap().extend(redis.empty());
                    EMPTIED
                }
                _ => {
                    self.before.lock().unwrap().extend(redis.updates());
                    redis.restart_empty();
                    RESTARTED_EMPTY
                }
            };
            self.note(fault, Victim::Redis, from, false);
        }
    }

    /// Waits for a random number of intervals. Returns `false` if the run is over.
    fn wait(&self, least: u32, most: u32) -> bool {
        let most = self.arguments.interval * most;
        let least = self.arguments.interval * least;
        let deadline = Instant::now() + least + (most - least).mul_f64(below(1000) as f64 / 1e3);
        while Instant::now() < deadline {
            if self.is_over.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn note(&self, fault: &'static str, victim: Victim, from: u64, was_polling: bool) {
        let outage = Outage { fault, victim, from, to: unix_millis(), was_polling };
        self.outages.lock().unwrap().push(outage);
    }
}

impl Outcome {
    fn report(self, arguments: &Arguments) -> ExitCode {
        let faults: Vec<_> = self.received.iter().map(|seen| Faults::of(seen, &self.all)).collect();
        let sum = |count: fn(&Faults) -> usize| faults.iter().map(count).sum::<usize>();
        let is_update = |seen: &&Seen| matches!(seen, Seen::Update { .. });
        let received = self.received.iter().flatten().filter(is_update).count();
        let gaps: usize = self.received.iter().flatten().count() - received;
        let row = |name: &str, value: String| println!("{name:<42}{value:>12}");

        let mut counts = BTreeMap::new();
        self.outages.iter().for_each(|outage| *counts.entry(outage.fault).or_insert(0) += 1);
        counts.iter().for_each(|(fault, count)| row(fault, i32::to_string(count)));
        println!();
        row("clients", self.received.len().to_string());
        row("updates in the store", self.all.len().to_string());
        row("updates received", received.to_string());
        let failures = [
            ("lost", sum(|faults| faults.lost)),
            ("doubled", sum(|faults| faults.doubled)),
            ("out of order", sum(|faults| faults.out_of_order)),
            ("not in the store", sum(|faults| faults.invented)),
            ("excess gaps", faults.iter().map(|faults| self.excess_gaps(faults)).sum()),
        ];
        for (name, count) in failures {
            row(name, count.to_string());
        }
        row("updates missed and reported by a gap", sum(|faults| faults.reported).to_string());
        row("gaps, in all", gaps.to_string());
        row("of these, nothing was missed", sum(|faults| faults.false_gaps.len()).to_string());
        println!();
        for (name, marks) in
            [("without faults", &self.marks[..2]), ("with faults", &self.marks[1..])]
        {
            let updates = self.all.range(marks[0].at..marks[1].at).count() as f64;
            let polls = (marks[1].polls - marks[0].polls) as f64;
            let intervals = self.intervals(arguments, marks[0].at, marks[1].at);
            row(&format!("polls per update, {name}"), format!("{:.2}", polls / updates));
            row(&format!("updates per interval, {name}"), format!("{:.2}", updates / intervals));
        }
        println!();
        let mut takeovers = self.takeovers(arguments);
        takeovers.sort_by(f64::total_cmp);
        row("takeovers", takeovers.len().to_string());
        if let [.., worst] = takeovers[..] {
            let median = takeovers[takeovers.len() / 2];
            let slow = takeovers.iter().filter(|&&intervals| intervals > 1.5).count();
            row("intervals to the next update, median", format!("{median:.2}"));
            row("worst", format!("{worst:.2}"));
            row("longer than 1.5", slow.to_string());
        }
        ExitCode::from(u8::from(failures.iter().any(|&(_, count)| count > 0)))
    }

    /// The gaps of one client that missed nothing, beyond one for each time that Redis was emptied.
    fn excess_gaps(&self, faults: &Faults) -> usize {
        // Redis is emptied a moment after it is noted, and an update may be appended in between.
        const MOMENT: u64 = 50;
        let is_empty = |outage: &&Outage| [EMPTIED, RESTARTED_EMPTY].contains(&outage.fault);
        let emptied: Vec<u64> = self.outages.iter().filter(is_empty).map(|it| it.from).collect();
        let mut excess = 0;
        let mut before = 0;
        for &id in &faults.false_gaps {
            let since = before.max(MOMENT) - MOMENT;
            excess += usize::from(!emptied.iter().any(|&time| since < time && time < id));
            before = id;
        }
        excess
    }

    /// The time between the update before a polling process failed and the one after it, in
    /// intervals. Only if Redis and another process worked all the time.
    fn takeovers(&self, arguments: &Arguments) -> Vec<f64> {
        let takeover = |outage: &&Outage| {
            let (&before, _) = self.all.range(..outage.from).next_back()?;
            let (&after, _) = self.all.range(outage.from..).next()?;
            let margin = 5 * arguments.interval.as_millis() as u64;
            let fails = |victim: Victim| {
                let overlaps = |other: &Outage| other.from < after && other.to + margin > before;
                self.outages.iter().any(|other| other.victim == victim && overlaps(other))
            };
            let another_works = (0..arguments.processes).any(|n| !fails(Victim::Process(n)));
            // It may have recovered before it was due.
            let was_replaced = outage.was_polling && outage.to > after;
            (was_replaced && another_works && !fails(Victim::Redis))
                .then(|| self.intervals(arguments, before, after))
        };
        self.outages.iter().filter_map(|outage| takeover(&outage)).collect()
    }

    fn intervals(&self, arguments: &Arguments, from: u64, to: u64) -> f64 {
        (to - from) as f64 / arguments.interval.as_millis() as f64
    }
}
