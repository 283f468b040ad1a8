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

impl Limits {
    /// Raises the limit of descriptors and divides what there is. `wanted` streams are granted where
    /// they fit; where not, the log says which limit to raise, and to what.
    pub fn claim(wanted: Option<u64>) -> Limits {
        let lowest = bounds().into_iter().flatten().min();
        let (connections, name, value, own, each) = lowest.unwrap_or((2, "no limit", 0, 0, 1));
        let connections = connections.max(2);
        let spare = (connections / SPARE_SHARE).max(LEAST_SPARE).min(connections / 2);
        let possible = connections - spare;
        let streams = wanted.unwrap_or(possible).min(possible);
        log::info!("limits: {streams} streams, {connections} connections ({name} {value})");
        if let Some(wanted) = wanted.filter(|wanted| *wanted > possible) {
            let needed = wanted + (wanted / (SPARE_SHARE - 1) + 1).max(LEAST_SPARE);
            let enough = needed * each + own;
            log::warn!(
                "--max-clients {wanted}: this machine allows {possible}; raise {name} to {enough}"
            );
        }
        Limits { connections, streams }
    }
}

/// How many connections a limit allows; its name and value; how much of it the program itself needs,
/// and how much each connection.
type Bound = (u64, &'static str, u64, u64, u64);

/// Those that are known here. Descriptors are raised as far as this process may.
fn bounds() -> [Option<Bound>; 5] {
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
    let bound = |name, value: Option<u64>, own, each| {
        value.map(|value| (value.saturating_sub(own) / each, name, value, own, each))
    };
    [
        // Of its own: standard streams, listener, source, journal, name look-ups, log.
        bound("ulimit -Hn", Some(descriptors), 32, 1),
        // A thread has a stack and its guard.
        bound("vm.max_map_count", file("/proc/sys/vm/max_map_count"), 2_048, 2),
        bound("kernel.pid_max", file("/proc/sys/kernel/pid_max"), 64, 1),
        bound("pids.max of the control group", file(&pids_max), 64, 1),
        bound("ulimit -u", threads, 64, 1),
    ]
}
