//! What the operating system is told about this process. `main` calls all of it, before anything is
//! served. The only file with `unsafe` calls: each is one that std and `nix` do not have.

use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;

use nix::sys::signal::{SigSet, Signal};

/// Opens /dev/null in place of standard streams that were closed, as std's own start does. Otherwise a
/// file or a socket would get their number, and the log would go there.
pub fn open_standard_streams() {
    // The system gives the lowest number that is free.
    while let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            return;
        }
        mem::forget(null);
    }
}

/// Makes writing to a pipe that nobody reads an error rather than the end, as std's own start does, and
/// writing beyond the limit of a file's size (`ulimit -f`) too. The threads inherit it.
pub fn survive_broken_pipes() {
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // It fails only for an unknown argument.
        let _ = SigSet::from(signal).thread_block();
    }
}

/// Makes a thread that was woken wait for its turn, rather than interrupt the one that woke it: an update
/// wakes thousands, and each would otherwise run at once and give way again. Spares about a seventh
/// of the CPU time of a delivery. The threads inherit it.
#[allow(unsafe_code)]
pub fn wake_in_batches() {
    // SAFETY: it reads `priority` while it runs and touches no other memory of ours. 0 is this thread.
    // Where it is refused everything works, only slower. (In musl a `sched_param` is another struct.)
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        let priority = nix::libc::sched_param { sched_priority: 0 };
        nix::libc::sched_setscheduler(0, nix::libc::SCHED_BATCH, &priority)
    };
}

/// Gives this process a wide table for its sleeping threads. Linux 6.17 and later size it by the
/// number of processors, so that on two of them thousands of threads share 16 chains, and waking one
/// searches through a chain of hundreds. Spares a third of the CPU time of a delivery.
#[allow(unsafe_code)]
pub fn widen_futex_table() {
    const PR_FUTEX_HASH: i32 = 78;
    const SET_SLOTS: u64 = 1;
    const SLOTS: u64 = 16_384;
    // SAFETY: it takes three numbers and touches no memory of ours. Older kernels refuse, harmlessly.
    #[cfg(target_os = "linux")]
    unsafe {
        nix::libc::prctl(PR_FUTEX_HASH, SET_SLOTS, SLOTS, 0u64, 0u64)
    };
}
