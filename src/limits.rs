//! What this machine allows: descriptors, threads, and from both the number of clients.
//! Read and set once, at the start, by `main`.
//!
//! A connection costs one descriptor for each thread that works on it. So descriptors are limited
//! to the threads that can be had, and where all are in use it is `accept` that fails, rather than
//! the start of a thread for a client who has been accepted.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

/// Descriptors that no client may have: standard streams, listener, source, name look-ups, log.
pub const OWN_DESCRIPTORS: u64 = 32;
/// Mappings for the program itself, its own threads, and those that restarts of the accept loop add.
const OWN_MAPPINGS: u64 = 2_048;
const MAPPINGS_PER_THREAD: u64 = 2;
/// Threads for the same, where threads are what is counted.
const OWN_THREADS: u64 = 64;

/// What the service can take. Made once; the descriptor limit of the process is set to match.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub clients: usize,
    pub descriptors: u64,
}

impl Limits {
    /// Raises the descriptor limit as far as is safe and divides what there is. `wanted` clients
    /// are granted where they fit; where not, the log says which limit to raise, and to what.
    pub fn claim(wanted: Option<usize>) -> Limits {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((256, 256));
        let (threads, limit) =
            thread_limits().into_iter().min().unwrap_or((u64::MAX, String::new()));
        let goal = hard.min(threads).max(OWN_DESCRIPTORS);
        let descriptors = setrlimit(Resource::RLIMIT_NOFILE, goal, hard).map_or(soft, |()| goal);
        let possible = clients_within(descriptors);
        let clients = wanted.unwrap_or(possible).min(possible);
        log::info!(
            "limits: {clients} clients, {descriptors} descriptors (ulimit -Hn {hard}), {threads} threads ({limit})"
        );
        if let Some(wanted) = wanted.filter(|wanted| *wanted > possible) {
            let needed = descriptors_for(wanted);
            let mut raise = Vec::new();
            if needed > hard {
                raise.push(format!("ulimit -Hn to {needed}"));
            }
            if needed > threads {
                let mappings = needed * MAPPINGS_PER_THREAD + OWN_MAPPINGS;
                raise.push(format!("the limit of threads, {limit}, for {needed} of them (vm.max_map_count to {mappings})"));
            }
            log::warn!(
                "--max-clients {wanted} is more than this machine allows: going on with {possible}; raise {}",
                raise.join(" and ")
            );
        }
        Limits { clients, descriptors }
    }
}

/// Gives this process a wide table for its sleeping threads. Linux 6.16 and later size it by the
/// number of processors, so that on two of them thousands of threads share 16 chains, and waking one
/// searches through a chain of hundreds.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn widen_futex_table() {
    const PR_FUTEX_HASH: i32 = 78;
    const SET_SLOTS: u64 = 1;
    const SLOTS: u64 = 16_384;
    // SAFETY: it takes three numbers and touches no memory of ours. Older kernels refuse, harmlessly.
    unsafe { nix::libc::prctl(PR_FUTEX_HASH, SET_SLOTS, SLOTS, 0u64, 0u64) };
}

/// Lets a thread that wakes wait for its turn, rather than interrupt the one that woke it: an update
/// wakes thousands, and each would otherwise run at once and give way again. Inherited by all threads.
#[cfg(target_os = "linux")]
pub fn wake_in_batches() {
    // Where it is refused everything works, only slower.
    let _ = scheduler::set_self_policy(scheduler::Policy::Batch, 0);
}

#[cfg(not(target_os = "linux"))]
pub fn widen_futex_table() {}

#[cfg(not(target_os = "linux"))]
pub fn wake_in_batches() {}

/// Makes writing to a pipe that nobody reads an error rather than the end, as std's own start does.
/// Called first by `main`: the threads inherit it.
pub fn survive_broken_pipes() {
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    // It fails only for an unknown argument.
    let _ = pipe.thread_block();
}

/// Two thirds of the descriptors are for clients that have settled (one each), the rest for those
/// that arrive or are turned away (two each).
fn clients_within(descriptors: u64) -> usize {
    (descriptors.saturating_sub(OWN_DESCRIPTORS) * 2 / 3).max(1) as usize
}

fn descriptors_for(clients: usize) -> u64 {
    clients as u64 * 3 / 2 + OWN_DESCRIPTORS + 1
}

/// The upper bounds on threads that this system has, each with its name and value.
#[cfg(target_os = "linux")]
fn thread_limits() -> Vec<(u64, String)> {
    let file = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let pids_max = format!("/sys/fs/cgroup{}/pids.max", cgroup.unwrap_or_default());
    let user = getrlimit(Resource::RLIMIT_NPROC).ok().map(|(soft, _)| soft);
    let limits = [
        ("vm.max_map_count", file("/proc/sys/vm/max_map_count"), OWN_MAPPINGS, MAPPINGS_PER_THREAD),
        ("kernel.pid_max", file("/proc/sys/kernel/pid_max"), OWN_THREADS, 1),
        ("pids.max of the control group", file(&pids_max), OWN_THREADS, 1),
        ("ulimit -u", user, OWN_THREADS, 1),
    ];
    let threads = |(name, value, own, share)| {
        let value: u64 = value?;
        Some((value.saturating_sub(own) / share, format!("{name} {value}")))
    };
    limits.into_iter().filter_map(threads).collect()
}

/// Elsewhere threads are not mapped this way; what limits them is left to the descriptors.
#[cfg(not(target_os = "linux"))]
fn thread_limits() -> Vec<(u64, String)> {
    Vec::new()
}

/// How many descriptors this process has; 0 where the system does not tell.
pub fn descriptors_now() -> u64 {
    let folder = "/proc/self/fd";
    // The size of that folder is their number, since Linux 6.2; before, it takes counting.
    match fs::metadata(folder) {
        Ok(folder) if folder.len() > 0 => folder.len(),
        _ => fs::read_dir(folder).map_or(0, |entries| entries.count() as u64),
    }
}
