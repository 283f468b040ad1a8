//! What this machine allows: descriptors, threads, and from both the number of connections.
//! Read and set once, at the start, by `main`.
//!
//! A connection is one descriptor and one thread, from its first byte to its last.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// One connection in so many is kept free of streams, so that a price, health and metrics are
/// answered while streams are full; where there are few, these.
const SPARE_SHARE: u64 = 32;
const LEAST_SPARE: u64 = 4;

/// How many connections the service takes, and how many of them may be streams.
#[derive(Clone, Copy)]
pub struct Limits {
    pub connections: u64,
    pub streams: u64,
}

/// An upper bound that this system has on what every connection takes.
struct Bound {
    name: &'static str,
    value: u64,
    /// How much of it the program itself needs.
    own: u64,
    /// How much of it a connection takes.
    each: u64,
}

impl Bound {
    fn connections(&self) -> u64 {
        self.value.saturating_sub(self.own) / self.each
    }
}

impl Limits {
    /// Raises the limit of descriptors and divides what there is. `wanted` streams are granted where
    /// they fit; where not, the log says which limit to raise, and to what.
    pub fn claim(wanted: Option<u64>) -> Limits {
        let mut bounds = bounds();
        bounds.sort_by_key(Bound::connections);
        let Bound { name, value, .. } = bounds[0];
        let connections = bounds[0].connections().max(2);
        let possible =
            connections - (connections / SPARE_SHARE).max(LEAST_SPARE).min(connections / 2);
        let streams = wanted.unwrap_or(possible).min(possible);
        log::info!("limits: {streams} streams, {connections} connections ({name} {value})");
        if let Some(wanted) = wanted.filter(|wanted| *wanted > possible) {
            let needed = wanted + (wanted / (SPARE_SHARE - 1) + 1).max(LEAST_SPARE);
            let low = bounds.iter().filter(|bound| bound.connections() < needed);
            let raise =
                |bound: &Bound| format!("{} to {}", bound.name, needed * bound.each + bound.own);
            log::warn!(
                "--max-clients {wanted} is more than this machine allows: going on with {possible}; \
                 raise {}",
                low.map(raise).collect::<Vec<_>>().join(" and ")
            );
        }
        Limits { connections, streams }
    }
}

/// Those that are known here. Descriptors are raised as far as this process may.
fn bounds() -> Vec<Bound> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((256, 256));
    let descriptors = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard);
    let file = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let pids_max = format!("/sys/fs/cgroup{}/pids.max", cgroup.unwrap_or_default());
    #[cfg(target_os = "linux")]
    let threads = getrlimit(Resource::RLIMIT_NPROC).ok().map(|(soft, _)| soft);
    #[cfg(not(target_os = "linux"))]
    let threads = None;
    let known = [
        // Of its own: standard streams, listener, source, name look-ups, log.
        ("ulimit -Hn", Some(descriptors), 32, 1),
        // A thread has a stack and its guard.
        ("vm.max_map_count", file("/proc/sys/vm/max_map_count"), 2_048, 2),
        ("kernel.pid_max", file("/proc/sys/kernel/pid_max"), 64, 1),
        ("pids.max of the control group", file(&pids_max), 64, 1),
        ("ulimit -u", threads, 64, 1),
    ];
    let bound = |(name, value, own, each): (_, Option<u64>, _, _)| {
        Some(Bound { name, value: value?, own, each })
    };
    known.into_iter().filter_map(bound).collect()
}
