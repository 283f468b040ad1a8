//! A real `redis-server`, and clients that move between the processes that share it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use btc_ticker::system::{random, unix_millis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Stream, eventually, folder, free_address, skipped};

/// The stream of real prices.
pub const KEY: &str = "btc-ticker:BTC-USD";

/// Updates by timestamp.
pub type Updates = BTreeMap<u64, f64>;

/// Acknowledges an update only once it is on the disk. Killed when it is dropped.
pub struct Redis {
    pub port: u16,
    folder: PathBuf,
    options: Vec<String>,
    child: Child,
}

impl Redis {
    /// `None` if `redis-server` is not installed, which is reported as skipped.
    pub fn start(name: &str, options: &[&str]) -> Option<Redis> {
        let is_installed = |program| Command::new(program).arg("--version").output().is_ok();
        if !is_installed("redis-server") || !is_installed("redis-cli") {
            skipped("the store was not tested: apt-get install redis-server");
            return None;
        }
        let folder = folder(&format!("redis-{name}"));
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let mut started = None;
        // Another program may take the port first; then the server exits, and another port is tried.
        eventually("redis-server listens", || {
            let port = free_address().port();
            let child = spawn(port, &folder, &options);
            let mut redis = Redis { port, folder: folder.clone(), options: options.clone(), child };
            started = redis.is_ready().then_some(redis);
            started.is_some()
        });
        started
    }

    /// For `--store`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one command, and returns the reply as `redis-cli` prints it: one value on each line.
    pub fn run(&self, command: &[&str]) -> String {
        let output = self.cli().args(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs commands over one connection, one on each line.
    pub fn run_all(&self, commands: &str) -> String {
        let mut cli = self.cli().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, commands) = (cli.stdin.take().unwrap(), commands.to_owned());
        let writer = thread::spawn(move || stdin.write_all(commands.as_bytes()));
        let output = cli.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Appends updates in one step, a millisecond apart and newer than all updates in the stream. The price is
    /// the timestamp.
    pub fn fill(&self, updates: u64) {
        let first = 1 + self.newest().max(unix_millis() - updates);
        let add = "for id = ARGV[1], ARGV[1] + ARGV[2] - 1 do
                       id = string.format('%d', id)
                       redis.call('XADD', KEYS[1], id .. '-0', 'price', id)
                   end";
        self.run(&["EVAL", add, "1", KEY, &first.to_string(), &updates.to_string()]);
    }

    /// The timestamp of the newest real price, 0 without one.
    pub fn newest(&self) -> u64 {
        self.updates().last_key_value().map_or(0, |(&id, _)| id)
    }

    fn cli(&self) -> Command {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]);
        cli
    }

    /// Everything in the stream of real prices.
    pub fn updates(&self) -> Updates {
        updates(&self.run(&["XRANGE", KEY, "-", "+"]))
    }

    /// Empties it, and returns what it had, in one step.
    pub fn empty(&self) -> Updates {
        updates(&self.run_all(&format!("MULTI\nXRANGE {KEY} - +\nFLUSHALL\nEXEC\n")))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, after `kill`, with what is on its disk.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, &self.folder, &self.options);
        assert!(self.is_ready(), "redis-server starts again");
    }

    /// Kills it and starts it again without its past.
    pub fn restart_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.folder.join("appendonlydir")).unwrap();
        self.restart();
    }

    /// Waits until it answers; `false` if it exits instead.
    fn is_ready(&mut self) -> bool {
        // By its process id, because another server may have the port.
        let pid = format!("process_id:{}\r", self.child.id());
        let mut is_ready = false;
        eventually("redis-server answers or exits", || {
            let info = self.run(&["INFO"]);
            is_ready = info.contains(&pid) && info.contains("loading:0\r");
            is_ready || self.child.try_wait().unwrap().is_some()
        });
        is_ready
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, folder: &PathBuf, options: &[String]) -> Child {
    let mut server = Command::new("redis-server");
    server.current_dir(folder).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    server.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    server.args(["--logfile", "redis.log"]).args(options);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The entries `<timestamp>-0 price <price>` in a reply.
fn updates(reply: &str) -> Updates {
    let lines: Vec<&str> = reply.lines().collect();
    let update = |entry: &[&str]| {
        let &[id, "price", price] = entry else { return None };
        Some((id.strip_suffix("-0")?.parse().ok()?, price.parse().ok()?))
    };
    lines.windows(3).filter_map(update).collect()
}

// ---------------------------------------------------------------------------------- the clients

/// Clients that read a few updates from one process, and continue at another by `Last-Event-ID`.
pub struct Roamers {
    leave: Arc<AtomicBool>,
    newest: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Vec<Seen>>>,
}

/// What a client receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen {
    Update { id: u64, price: f64 },
    Gap,
}

impl Roamers {
    /// `patience`: how long they stay at a process that sends nothing.
    pub fn start(number: usize, addresses: &[SocketAddr], patience: Duration) -> Roamers {
        let leave = Arc::new(AtomicBool::new(false));
        let newest: Vec<Arc<AtomicU64>> = (0..number).map(|_| Arc::default()).collect();
        let thread = |newest: &Arc<AtomicU64>| {
            let (addresses, newest, leave) = (addresses.to_vec(), newest.clone(), leave.clone());
            thread::spawn(move || roam(&addresses, patience, &newest, &leave))
        };
        let threads = newest.iter().map(thread).collect();
        Roamers { leave, newest, threads }
    }

    /// Waits until every client has received this update or a newer one.
    pub fn wait_for(&self, id: u64) {
        let have_it = || self.newest.iter().all(|newest| newest.load(Ordering::Relaxed) >= id);
        eventually("every client has the update", have_it);
    }

    /// What each of them has received.
    pub fn leave(self) -> Vec<Vec<Seen>> {
        self.leave.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|client| client.join().unwrap()).collect()
    }
}

fn roam(
    addresses: &[SocketAddr],
    patience: Duration,
    newest: &AtomicU64,
    leave: &AtomicBool,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut header = String::new();
    while !leave.load(Ordering::Relaxed) {
        let address = addresses[below(addresses.len())];
        let Some(mut stream) = Stream::try_open(address, &header, patience) else {
            // A browser waits for seconds.
            thread::sleep(patience / 10);
            continue;
        };
        for _ in 0..=below(10) {
            let Some(event) = stream.try_next() else { break };
            match (event.name.as_deref(), event.id) {
                (Some("gap"), None) => seen.push(Seen::Gap),
                (None, Some(id)) => {
                    seen.push(Seen::Update { id, price: event.price() });
                    header = format!("Last-Event-ID: {id}\r\n");
                    newest.fetch_max(id, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
    seen
}

/// A random number from 0 to `limit` - 1.
pub fn below(limit: usize) -> usize {
    (random() * limit as f64) as usize
}

/// How what one client received differs from what there was.
#[derive(Debug, Default, PartialEq)]
pub struct Faults {
    /// Updates that it missed without a `gap`.
    pub lost: usize,
    /// Updates that it missed and a `gap` reported.
    pub reported: usize,
    pub doubled: usize,
    pub out_of_order: usize,
    /// Updates that are not in the store, or have another price there.
    pub invented: usize,
    /// The first update after each `gap` that reports nothing missed.
    pub false_gaps: Vec<u64>,
}

impl Faults {
    pub fn of(seen: &[Seen], all: &Updates) -> Faults {
        let mut faults = Faults::default();
        let mut received = Updates::new();
        let mut is_gap = false;
        for event in seen {
            let &Seen::Update { id, price } = event else {
                is_gap = true;
                continue;
            };
            faults.invented += usize::from(all.get(&id) != Some(&price));
            if let Some((&newest, _)) = received.last_key_value() {
                if received.contains_key(&id) {
                    faults.doubled += 1;
                } else if id < newest {
                    faults.out_of_order += 1;
                } else {
                    let missed = all.range(newest + 1..id).count();
                    match (is_gap, missed) {
                        (false, _) => faults.lost += missed,
                        (true, 0) => faults.false_gaps.push(id),
                        (true, _) => faults.reported += missed,
                    }
                }
            }
            received.insert(id, price);
            is_gap = false;
        }
        faults
    }
}
