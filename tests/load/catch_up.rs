//! The scenario catch-up: all clients request the whole backlog at once.

use std::time::{Duration, Instant};

use crate::Result;
use crate::crowd::Crowd;
use crate::report::{Figures, percentile};
use crate::trial::{LIMIT, Trial, own_cpu};

/// An hour at the default interval of 5 s.
pub const BACKLOG: usize = 720;

/// An upper bound of an encoded update, in bytes, for any server.
const UPDATE_LENGTH: usize = 100;

const PATH: &str = "/stream?since=0";

pub fn run(trial: &Trial) -> Result<Figures> {
    let last = build_backlog(trial)?;

    let mut crowd = Crowd::new(trial.server.address, PATH, trial.clients)?;
    crowd.keep_bodies_until(last, BACKLOG * UPDATE_LENGTH);
    let (cpu, load_cpu, start) = (trial.server.usage()?.cpu, own_cpu()?, Instant::now());
    crowd.open(0..trial.clients)?;
    crowd.pump_until(LIMIT, |crowd| crowd.tally.complete == trial.clients)?;
    let cpu = (trial.server.usage()?.cpu - cpu).as_secs_f64();
    let load_cpu = (own_cpu()? - load_cpu).as_secs_f64();

    let complete = crowd.clients.iter().filter_map(|client| client.complete_since);
    let times: Vec<f64> = complete.map(|since| (since - start).as_secs_f64()).collect();
    let mut missed = 0;
    for client in &mut crowd.clients {
        client.read_body();
        missed += BACKLOG.saturating_sub(client.seen.count);
    }
    Ok(vec![
        ("median s", percentile(&times, 50)),
        ("p99 s", percentile(&times, 99)),
        ("last s", percentile(&times, 100)),
        ("CPU s", cpu),
        ("CPU µs/event", cpu * 1e6 / (trial.clients * BACKLOG) as f64),
        ("load CPU s", load_cpu),
        ("missed", missed as f64),
        ("repeated", crowd.repeated() as f64),
        ("lost", crowd.lost as f64),
        ("retries", crowd.retries as f64),
    ])
}

/// Blocks until the server has the backlog, after which the source stops. Returns the last update's number.
fn build_backlog(trial: &Trial) -> Result<usize> {
    let mut probe = Crowd::new(trial.server.address, PATH, 1)?;
    probe.open([0])?;
    let deadline = Instant::now() + LIMIT;
    let count = |probe: &Crowd| probe.clients[0].seen.count;
    while count(&probe) < BACKLOG {
        if Instant::now() > deadline {
            return Err(format!("the backlog has only {} updates", count(&probe)).into());
        }
        let answered = trial.source.answered();
        let quiet = !probe.pump_until(Duration::from_secs(1), |probe| {
            count(probe) == BACKLOG || trial.source.answered() > answered
        })?;
        if quiet {
            // The server timed out on a response, so the source sends another.
            trial.source.allow(answered + BACKLOG - count(&probe));
        }
    }
    Ok(probe.tally.reached.len() - 1)
}
