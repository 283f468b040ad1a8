//! Signals, sockets, and Linux settings that neither std nor `nix` has: the only file with `unsafe` calls.
//! `main` calls most of them before anything is served; connections call `unacknowledged`.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::{mem, ptr};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};

/// Leaves SIGHUP and SIGINT ignored if the parent process ignores them: `nohup` does, and so does a shell
/// without job control for a command in the background. Our handler would replace that, so the signal
/// is blocked. Later threads inherit it. SIGTERM always stops the service.
#[allow(unsafe_code)]
pub fn leave_signals_ignored() {
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        // SAFETY: all zeros is a valid `sigaction`; the call changes nothing and writes only to `action`.
        let action = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            libc::sigaction(signal as i32, ptr::null(), &mut action);
            action
        };
        if action.sa_sigaction == libc::SIG_IGN {
            // It fails only for an unknown argument.
            let _ = SigSet::from(signal).thread_block();
        }
    }
}

/// Makes a woken thread run later, instead of preempting the thread that woke it: an update wakes thousands. Saves about a seventh of the CPU time of a delivery. Later threads inherit the setting.
#[allow(unsafe_code)]
pub fn wake_in_batches() {
    // SAFETY: it reads `priority` during the call and touches no other memory of ours. 0 is this thread.
    // (In musl a `sched_param` is another struct.)
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        let priority = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority)
    };
}

/// Gives this process a large futex hash. Since Linux 6.16 its size depends on the number of CPUs: on two,
/// thousands of threads share 16 buckets, and each wake-up searches one. Saves a third of the CPU time of a
/// delivery.
#[allow(unsafe_code)]
pub fn widen_futex_table() {
    const PR_FUTEX_HASH: i32 = 78;
    const SET_SLOTS: u64 = 1;
    const SLOTS: u64 = 16_384;
    // SAFETY: it takes numbers and touches no memory of ours. Older kernels refuse it.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(PR_FUTEX_HASH, SET_SLOTS, SLOTS, 0u64, 0u64)
    };
}

/// Returns how many of the bytes written to the socket its peer has not acknowledged. Never blocks. Always 0 on
/// other systems than Linux: there only a write that blocks shows that a peer has stalled.
#[allow(unsafe_code)]
#[cfg_attr(not(target_os = "linux"), allow(unused_mut, unused_variables))]
pub fn unacknowledged(socket: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the call writes only to `bytes`. It fails only for an unknown request.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes)
    };
    u64::try_from(bytes).unwrap_or_default()
}
