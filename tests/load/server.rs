//! The measured server, a child process, and its usage as Linux reports it.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::Result;

const OURS: &str = env!("CARGO_BIN_EXE_btc-ticker");

/// The number of last lines of stderr to report if the server dies.
const REMEMBERED_LINES: usize = 3;

/// The process id of the running server, for the signal handler; 0 if there is none.
static RUNNING: AtomicI32 = AtomicI32::new(0);

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Kind {
    #[value(skip)]
    BtcTicker,
    Axum,
    /// The example `minimal`.
    Naive,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::BtcTicker => "btc-ticker",
            Kind::Axum => "axum",
            Kind::Naive => "naive",
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Kind::BtcTicker => PathBuf::from(OURS),
            Kind::Axum => peers_target().join("release/peer-axum"),
            Kind::Naive => peers_target().join("release/examples/minimal"),
        }
    }

    /// Builds a peer. Cargo has already built btc-ticker.
    pub fn build(self) -> Result<()> {
        let what: &[&str] = match self {
            Kind::BtcTicker => return Ok(()),
            Kind::Axum => &["--manifest-path", "tests/peers/axum/Cargo.toml"],
            Kind::Naive => &["--example", "minimal"],
        };
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked"])
            .args(what)
            .env("CARGO_TARGET_DIR", peers_target())
            .status()?;
        if status.success() { Ok(()) } else { Err(format!("{} did not build", self.name()).into()) }
    }
}

fn peers_target() -> PathBuf {
    let target = Path::new(OURS).ancestors().nth(2);
    target.expect("target/release/btc-ticker").join("peers")
}

pub struct Server {
    pub address: SocketAddr,
    process: Process,
}

struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Server {
    pub fn start(kind: Kind, source: SocketAddr, interval: Duration) -> Result<Self> {
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let arguments = [
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--source-url", format!("http://{source}/")),
            ("--price-at", "/price".to_owned()),
            ("--interval", milliseconds(interval)),
        ];
        let mut command = Command::new(kind.program());
        for (flag, value) in &arguments {
            command.args([flag, value.as_str()]);
        }
        let mut process = Process::start(&mut command)?;
        let mut line = String::new();
        process.stdout.read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on http://");
        Ok(Server { address: address.ok_or_else(|| process.death())?.parse()?, process })
    }

    pub fn usage(&self) -> Result<Usage> {
        let usage = Usage::read(self.process.child.id());
        usage.ok_or_else(|| self.process.death().into())
    }

    /// Sums over the current threads, so it is meaningful only while no thread ends.
    pub fn context_switches(&self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(self.process.directory().join("task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            sum += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
            sum += field(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Process {
    fn start(command: &mut Command) -> Result<Process> {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A backtrace would push the cause out of the last lines.
        let mut child = piped.env("RUST_BACKTRACE", "0").spawn()?;
        RUNNING.store(child.id() as i32, Ordering::Relaxed);
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let lines = Arc::clone(&last_lines);
        thread::spawn(move || {
            for line in stderr.lines().map_while(std::io::Result::ok) {
                let mut lines = lines.lock().unwrap();
                lines.push_back(line);
                if lines.len() > REMEMBERED_LINES {
                    lines.pop_front();
                }
            }
        });
        Ok(Process {
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            child,
            last_lines,
        })
    }

    fn directory(&self) -> PathBuf {
        directory_of(self.child.id())
    }

    fn death(&self) -> String {
        let mut last_lines = self.last_lines.lock().unwrap();
        format!("died: {}", last_lines.make_contiguous().join(" / "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        RUNNING.store(0, Ordering::Relaxed);
        // Fails if the server has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Installs a handler that kills the server on a signal, which does not run `Drop`.
pub fn kill_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        let pid = RUNNING.load(Ordering::Relaxed);
        if pid != 0 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::process::exit(130);
    })?;
    Ok(())
}

#[derive(Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    /// In KB.
    pub resident: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl Usage {
    /// Returns `None` if the process has exited, even if it is not yet reaped.
    fn read(process: u32) -> Option<Usage> {
        let directory = directory_of(process);
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let clock = clock_getcpuclockid(Pid::from_raw(process as i32)).ok()?;
        Some(Usage {
            cpu: clock.now().ok()?.into(),
            resident: field(&status, "VmRSS")?,
            threads: field(&status, "Threads")?,
            descriptors: fs::read_dir(directory.join("fd")).ok()?.count() as u64,
        })
    }

    pub fn of_this_process() -> Result<Usage> {
        Usage::read(std::process::id()).ok_or_else(|| "/proc is needed".into())
    }
}

fn directory_of(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}"))
}

/// Returns the available memory of the machine, in KB.
pub fn machine_available() -> Result<u64> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    field(&memory, "MemAvailable").ok_or_else(|| "/proc/meminfo is needed".into())
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| {
        line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok()
    };
    text.lines().find_map(value)
}
