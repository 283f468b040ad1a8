//! Room for threads: who adds some asks here first, because a process that has too many aborts.
//! Shared by the warden, which starts accept loops, and their threads, which start conversations.
//!
//! The HTTP library does not ask. It adds a thread for every two descriptors that are free, and one
//! that has become idle stays for 5 s, of use only to the accept loop that started it. So there must
//! be room left for all that it may add.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::crew::Shutdown;
use crate::limits::{Limits, descriptors_now, threads_now};
use crate::metrics::METRICS;

/// After this an accept loop that has ended has left no idle threads.
const THREADS_LINGER: Duration = Duration::from_secs(7);
/// How soon to look again when there is none.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub struct Room {
    limits: Limits,
    /// Held while threads are counted, and while one waits for others to end: there is no room then.
    state: Mutex<State>,
}

struct State {
    /// How many threads may be added before they are counted again.
    left: u64,
    /// Until then idle threads may be of no use to the accept loop that is there now.
    alone_from: Instant,
}

impl Room {
    pub fn new(limits: Limits) -> Room {
        let state = State { left: 0, alone_from: Instant::now() };
        Room { limits, state: Mutex::new(state) }
    }

    /// Waits until a conversation's thread may be added, or the service ends.
    pub fn wait_for_thread(&self, shutdown: &Shutdown) {
        let mut state = self.state.lock();
        while state.left == 0 {
            let taken = match Instant::now() < state.alone_from {
                true => METRICS.conversations.get(),
                false => descriptors_now(),
            };
            state.left = self.count(taken) / 4;
            if state.left == 0 && shutdown.wait_until(Instant::now() + LOOK_AGAIN) {
                return;
            }
        }
        state.left -= 1;
    }

    /// Waits until another accept loop can be afforded: until it would find descriptors, and its
    /// predecessor's threads have ended, or those that go on have had the time to.
    pub fn wait_for_generation(&self, shutdown: &Shutdown) {
        let patience = Instant::now() + THREADS_LINGER;
        let few = self.limits.descriptors / 16;
        let must_wait = || {
            // One that fails at once may leave a thread behind, which the library forgets to wake.
            descriptors_now() + few > self.limits.descriptors
                || self.count(METRICS.conversations.get()) == 0 && Instant::now() < patience
        };
        while must_wait() {
            if shutdown.wait_until(Instant::now() + LOOK_AGAIN) {
                return;
            }
        }
        *self.state.lock() = State { left: 0, alone_from: Instant::now() + THREADS_LINGER };
    }

    /// How many threads fit if all descriptors but the `taken` ones became new connections.
    fn count(&self, taken: u64) -> u64 {
        let free = self.limits.descriptors.saturating_sub(taken);
        self.limits.threads.saturating_sub(threads_now() + free / 2)
    }
}
