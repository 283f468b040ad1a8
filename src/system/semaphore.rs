//! A counting semaphore: so many permits, and whoever finds none is turned away at once.
//! Shared by the thread `accept` and those of all connections. None of them waits for a permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub struct Semaphore {
    limit: u64,
    taken: AtomicU64,
}

/// Given back when it is dropped.
pub struct Permit(Arc<Semaphore>);

impl Semaphore {
    pub fn new(limit: u64) -> Arc<Semaphore> {
        Arc::new(Semaphore { limit, taken: AtomicU64::new(0) })
    }

    /// A permit, or `None` where all are taken.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let one_more = |taken| if taken < self.limit { Some(taken + 1) } else { None };
        // Relaxed, because only this number has to be right: no other memory is handed over with it.
        match self.taken.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => Some(Permit(self.clone())),
            Err(_) => None,
        }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many permits are taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}
