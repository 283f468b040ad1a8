//! The scenarios burst and idle, during which hardly any update is published.

use std::time::{Duration, Instant};

use crate::Result;
use crate::crowd::Crowd;
use crate::report::{Figures, percentile};
use crate::trial::{LIMIT, Trial};

const IDLE: Duration = Duration::from_secs(20);

pub fn burst(trial: &Trial) -> Result<Figures> {
    trial.first_update()?;
    let mut crowd = Crowd::new(trial.server.address, "/stream", trial.clients)?;
    let (cpu, start) = (trial.server.usage()?.cpu, Instant::now());
    crowd.open(0..trial.clients)?;
    crowd.pump_until(LIMIT, |crowd| crowd.tally.streaming == trial.clients)?;
    let cpu = trial.server.usage()?.cpu - cpu;

    let streaming = crowd.clients.iter().filter_map(|client| client.streaming_since);
    let times: Vec<f64> = streaming.map(|since| (since - start).as_secs_f64()).collect();
    Ok(vec![
        ("median s", percentile(&times, 50)),
        ("p99 s", percentile(&times, 99)),
        ("last s", percentile(&times, 100)),
        ("CPU s", cpu.as_secs_f64()),
        ("retries", crowd.retries as f64),
        ("lost", crowd.lost as f64),
        ("never", (trial.clients - times.len()) as f64),
    ])
}

pub fn idle(trial: &Trial) -> Result<Figures> {
    trial.first_update()?;
    let mut no_clients = Crowd::new(trial.server.address, "/stream", 0)?;
    trial.settle(&mut no_clients)?;
    let (before, switches) = (trial.server.usage()?, trial.server.context_switches()?);
    no_clients.pump_until(IDLE, |_| false)?;
    let (after, switches) =
        (trial.server.usage()?, trial.server.context_switches()? as f64 - switches as f64);
    Ok(vec![
        ("CPU ms/s", (after.cpu - before.cpu).as_secs_f64() * 1e3 / IDLE.as_secs_f64()),
        ("switches/s", switches / IDLE.as_secs_f64()),
        ("threads", after.threads as f64),
        ("fds", after.descriptors as f64),
        ("resident MB", after.resident as f64 / 1024.0),
    ])
}
