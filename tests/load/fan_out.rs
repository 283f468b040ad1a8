//! The scenario fan-out: the age of an update when each client receives it, and what a client costs.

use std::ops::Range;

use crate::Result;
use crate::crowd::Crowd;
use crate::report::{Figures, percentile};
use crate::server::{Usage, machine_available};
use crate::trial::{LIMIT, Trial, own_cpu};

pub fn run(trial: &Trial) -> Result<Figures> {
    trial.first_update()?;
    let mut crowd = Crowd::new(trial.server.address, "/stream", trial.clients)?;
    let before = Memory::read(trial)?;
    crowd.open(0..trial.clients)?;
    let all = |crowd: &Crowd| crowd.tally.streaming == trial.clients;
    if !crowd.pump_until(LIMIT, all)? {
        return Err(format!("only {} clients are streaming", crowd.tally.streaming).into());
    }
    trial.settle(&mut crowd)?;
    // Failures of the burst are reported apart.
    let (retries, lost) = (crowd.retries, crowd.lost);

    let start = trial.next_update(&mut crowd, trial.clients)? + 1;
    let (cpu, load_cpu) = (trial.server.usage()?.cpu, own_cpu()?);
    let window = start..start + trial.settings.updates;
    let last = window.end - 1;
    let limit = trial.interval * window.len() as u32 + LIMIT;
    crowd.pump_until(limit, |crowd| crowd.tally.received_by(last) == trial.clients)?;
    let cpu = (trial.server.usage()?.cpu - cpu).as_secs_f64();
    let load_cpu = (own_cpu()? - load_cpu).as_secs_f64();
    let after = Memory::read(trial)?;

    let (ages, last_ages) = ages(trial, &crowd, &window);
    let deliveries = ages.len() as f64;
    let per_client = |after: u64, before: u64| {
        let growth = after as f64 - before as f64;
        growth / trial.clients as f64
    };
    // Both ends of each connection are on this machine. The growth of this process is not the server's.
    let own_growth = after.own.resident.saturating_sub(before.own.resident);
    let machine = per_client(before.available, after.available + own_growth);
    Ok(vec![
        ("median ms", percentile(&ages, 50)),
        ("p99 ms", percentile(&ages, 99)),
        ("last client ms", percentile(&last_ages, 50)),
        ("worst ms", percentile(&last_ages, 100)),
        ("CPU µs/delivery", cpu * 1e6 / deliveries),
        ("load µs/delivery", load_cpu * 1e6 / deliveries),
        ("KB/client", per_client(after.server.resident, before.server.resident)),
        ("machine KB/client", machine),
        ("threads/client", per_client(after.server.threads, before.server.threads)),
        ("fds/client", per_client(after.server.descriptors, before.server.descriptors)),
        ("missed", crowd.missed(0..trial.clients, Some(last)) as f64),
        ("repeated", crowd.repeated() as f64),
        ("lost", (crowd.lost - lost) as f64),
        ("set-up retries", (retries + lost) as f64),
    ])
}

struct Memory {
    server: Usage,
    own: Usage,
    available: u64,
}

impl Memory {
    fn read(trial: &Trial) -> Result<Memory> {
        Ok(Memory {
            server: trial.server.usage()?,
            own: Usage::of_this_process()?,
            available: machine_available()?,
        })
    }
}

/// Returns the ages of the updates at each client, and at the last client, in ms.
fn ages(trial: &Trial, crowd: &Crowd, window: &Range<usize>) -> (Vec<f64>, Vec<f64>) {
    let answers = trial.source.answers();
    let mut ages = Vec::new();
    let mut last_ages = vec![0_f64; window.len()];
    for &(number, at) in &crowd.tally.deliveries {
        if window.contains(&number) {
            let age = (at - answers[number]).as_secs_f64() * 1e3;
            let last = &mut last_ages[number - window.start];
            *last = last.max(age);
            ages.push(age);
        }
    }
    (ages, last_ages)
}
