//! Resource limits: descriptors, threads, mappings and the memory of a control group, and the number of
//! connections that they allow. A connection is one descriptor and one thread, from its first byte to its
//! last. Read and set once, at the start, by `main`.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// One connection in `SPARE_SHARE` is reserved for other requests than streams, so that a full service still
/// answers for price, health and metrics: at least `LEAST_SPARE`, at most half.
const SPARE_SHARE: u64 = 32;
const LEAST_SPARE: u64 = 4;
/// Memory of the machine for one stream, the kernel's share included, as the benchmark measures it.
const BYTES_PER_CONNECTION: u64 = 72 * 1024;
/// Memory of the process itself, with a long history.
const OWN_BYTES: u64 = 32 * 1024 * 1024;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The most connections, and the most streams among them.
pub struct Limits {
    pub connections: u64,
    pub streams: u64,
}

/// A limited resource of this machine.
struct Bound {
    name: &'static str,
    value: u64,
    /// How much of it the process itself needs, and how much each connection.
    own: u64,
    each: u64,
}

impl Bound {
    fn connections(&self) -> u64 {
        self.value.saturating_sub(self.own) / self.each
    }
}

impl Limits {
    /// Raises the limit on descriptors and budgets what there is. If `wanted` streams do not fit, the log says
    /// which limit to raise, and to what.
    pub fn claim(wanted: Option<u64>) -> Limits {
        let bounds = bounds();
        let lowest = bounds.iter().min_by_key(|bound| bound.connections());
        let lowest = lowest.expect("descriptors are always limited");
        let connections = lowest.connections().max(2);
        let spare = (connections / SPARE_SHARE).max(LEAST_SPARE).min(connections / 2);
        let possible = connections - spare;
        let streams = wanted.unwrap_or(possible).min(possible);
        let Bound { name, value, own, each } = lowest;
        log::info!("limits: {streams} streams, {connections} connections ({name} {value})");
        if let Some(wanted) = wanted
            && wanted > possible
        {
            // As many connections as leave `wanted` streams after the reserve.
            let needed = wanted + (wanted / (SPARE_SHARE - 1) + 1).max(LEAST_SPARE);
            let enough = needed * each + own;
            log::warn!(
                "--max-clients {wanted}: this machine allows {possible}; raise {name} to {enough}"
            );
        }
        Limits { connections, streams }
    }
}

/// Returns the bounds of this machine. Raises the limit on descriptors as far as this process may.
fn bounds() -> Vec<Bound> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((256, 256));
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let descriptors = if raised.is_ok() { hard } else { soft };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (mut tasks, mut memory) = (None, None);
    if let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) {
        tasks = lowest_of_group(Path::new(CGROUPS), group, "pids.max");
        memory = lowest_of_group(Path::new(CGROUPS), group, "memory.max");
    }
    let mut bounds = Vec::new();
    let mut add = |name, value: Option<u64>, own, each| {
        if let Some(value) = value {
            bounds.push(Bound { name, value, own, each });
        }
    };
    // Its own: standard streams, listener, source, store, name look-ups.
    add("ulimit -Hn", Some(descriptors), 32, 1);
    #[cfg(target_os = "linux")]
    if let Ok((processes, _)) = getrlimit(Resource::RLIMIT_NPROC) {
        add("ulimit -u", Some(processes), 64, 1);
    }
    // A thread has a stack and a signal stack, each with a guard page. Without a mapping for the signal
    // stack, std aborts the process, so this bound must hold.
    add("vm.max_map_count", number("/proc/sys/vm/max_map_count"), 2_048, 4);
    add("kernel.pid_max", number("/proc/sys/kernel/pid_max"), 64, 1);
    add("kernel.threads-max", number("/proc/sys/kernel/threads-max"), 64, 1);
    add("pids.max of the control group", tasks, 64, 1);
    add("memory.max of the control group", memory, OWN_BYTES, BYTES_PER_CONNECTION);
    bounds
}

/// Returns the number in a file; `None` if there is no file, or the word "max" in it.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok()
}

/// Returns the lowest limit of a control group and its ancestors: all of them apply.
fn lowest_of_group(root: &Path, group: &str, file: &str) -> Option<u64> {
    let own = root.join(group.trim_start_matches('/'));
    let mut lowest = None;
    for folder in own.ancestors() {
        if !folder.starts_with(root) {
            break;
        }
        if let Some(limit) = number(folder.join(file)) {
            lowest = Some(limit.min(lowest.unwrap_or(limit)));
        }
    }
    lowest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_a_group_and_its_ancestors_applies() {
        let root = std::env::temp_dir().join(format!("btc-ticker-limits-{}", std::process::id()));
        let group = root.join("system.slice/docker/service");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        fs::write(group.join("../memory.max"), "1000\n").unwrap();
        fs::write(root.join("memory.max"), "5000\n").unwrap();
        let lowest = |group: &str| lowest_of_group(&root, group, "memory.max");
        assert_eq!(lowest("/system.slice/docker/service"), Some(1000));
        assert_eq!(lowest("/system.slice"), Some(5000));
        assert_eq!(lowest("/"), Some(5000));
        assert_eq!(lowest_of_group(&root, "/system.slice", "pids.max"), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
