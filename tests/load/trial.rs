//! A server with its source: the fixture of all scenarios.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::resource::{UsageWho, getrusage};

use crate::crowd::Crowd;
use crate::report::Figures;
use crate::server::{Kind, Server, Usage};
use crate::source::Source;
use crate::{Result, calm, catch_up, churn, fan_out, price};

/// The timeout of each step of a scenario.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long usage must be unchanged. Longer than thread pools keep idle threads.
const SETTLED: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Scenario {
    FanOut,
    CatchUp,
    Burst,
    Churn,
    Price,
    Idle,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Scenario::FanOut => "fan-out",
            Scenario::CatchUp => "catch-up",
            Scenario::Burst => "burst",
            Scenario::Churn => "churn",
            Scenario::Price => "price",
            Scenario::Idle => "idle",
        }
    }

    /// Returns the default numbers of clients, capped at `most`.
    pub fn sizes(self, most: usize) -> Vec<usize> {
        let sizes: &[usize] = match self {
            Scenario::FanOut => &[100, 1000, 4000, 9900, most],
            Scenario::CatchUp => &[2000],
            Scenario::Burst => &[50, 1000, 9900],
            Scenario::Churn => &[1000],
            Scenario::Price => &[64],
            Scenario::Idle => &[0],
        };
        let mut sizes: Vec<usize> = sizes.iter().map(|&size| size.min(most)).collect();
        sizes.dedup();
        sizes
    }

    fn interval(self) -> Duration {
        match self {
            Scenario::FanOut => Duration::from_secs(1),
            Scenario::CatchUp => Duration::from_millis(15),
            Scenario::Churn => Duration::from_millis(500),
            Scenario::Burst | Scenario::Price | Scenario::Idle => Duration::from_secs(5),
        }
    }
}

#[derive(Clone, Copy)]
pub struct Settings {
    /// The number of updates in a fan-out.
    pub updates: usize,
    pub churn_for: Duration,
}

pub struct Trial {
    pub server: Server,
    pub source: Source,
    pub interval: Duration,
    pub clients: usize,
    pub settings: Settings,
}

impl Trial {
    pub fn run(
        scenario: Scenario,
        kind: Kind,
        clients: usize,
        settings: Settings,
    ) -> Result<Figures> {
        let allowed = match scenario {
            Scenario::CatchUp => catch_up::BACKLOG,
            _ => usize::MAX,
        };
        let source = Source::start(allowed)?;
        let interval = scenario.interval();
        let trial = Trial {
            server: Server::start(kind, source.address, interval)?,
            source,
            interval,
            clients,
            settings,
        };
        let outcome = match scenario {
            Scenario::FanOut => fan_out::run(&trial),
            Scenario::CatchUp => catch_up::run(&trial),
            Scenario::Burst => calm::burst(&trial),
            Scenario::Churn => churn::run(&trial),
            Scenario::Price => price::run(&trial),
            Scenario::Idle => calm::idle(&trial),
        };
        // If the server has died, its last log lines explain more than the outcome.
        trial.server.usage().and(outcome)
    }

    pub fn first_update(&self) -> Result<()> {
        let mut probe = Crowd::new(self.server.address, "/stream", 1)?;
        probe.open([0])?;
        if probe.pump_until(LIMIT, |probe| !probe.tally.reached.is_empty())? {
            Ok(())
        } else {
            Err("no update".into())
        }
    }

    /// Blocks until a future update has reached this many clients. Returns its number.
    pub fn next_update(&self, crowd: &mut Crowd, clients: usize) -> Result<usize> {
        let next = self.source.answered();
        let reached = |crowd: &Crowd| {
            let later = crowd.tally.reached.iter().skip(next);
            later.clone().position(|&count| count >= clients)
        };
        crowd.pump_until(LIMIT, |crowd| reached(crowd).is_some())?;
        let nth = reached(crowd).ok_or("no update has reached all clients")?;
        Ok(next + nth)
    }

    /// Blocks until the numbers of threads and descriptors are stable, up to the fluctuation of a thread pool.
    /// Returns the usage.
    pub fn settle(&self, crowd: &mut Crowd) -> Result<Usage> {
        let about = |a: u64, b: u64| a.abs_diff(b) <= 8.max(b / 100);
        let deadline = Instant::now() + LIMIT;
        let (mut before, mut since) = (self.server.usage()?, Instant::now());
        loop {
            crowd.pump_until(Duration::from_millis(250), |_| false)?;
            let now = self.server.usage()?;
            if !about(now.threads, before.threads) || !about(now.descriptors, before.descriptors) {
                (before, since) = (now, Instant::now());
            }
            if since.elapsed() > SETTLED {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err("threads and descriptors do not settle".into());
            }
        }
    }
}

/// Returns the CPU time of this thread, which runs all clients.
pub fn own_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let times = [usage.user_time(), usage.system_time()];
    let micros: i64 = times.iter().map(|t| t.tv_sec() * 1_000_000 + t.tv_usec()).sum();
    Ok(Duration::from_micros(micros as u64))
}
