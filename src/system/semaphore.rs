//! A counting semaphore that never blocks: permits are taken at once or not at all. Shared by the thread
//! `accept`, all connections, and `main`, which waits for the permits at shutdown.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

pub struct Semaphore {
    limit: u64,
    taken: AtomicU64,
    /// Cloned into each permit; `None` once the semaphore has closed. Held to clone it.
    open: Mutex<Option<Sender<Infallible>>>,
    /// Disconnected when the semaphore has closed and the last permit is returned.
    all_returned: Receiver<Infallible>,
}

/// Returned when it is dropped.
pub struct Permit {
    semaphore: Arc<Semaphore>,
    _open: Sender<Infallible>,
}

impl Semaphore {
    pub fn new(limit: u64) -> Arc<Semaphore> {
        let (open, all_returned) = bounded(0);
        Arc::new(Semaphore {
            limit,
            taken: AtomicU64::new(0),
            open: Mutex::new(Some(open)),
            all_returned,
        })
    }

    /// Returns a permit, or `None` if all are taken or the semaphore has closed.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let open = self.open.lock().clone()?;
        let one_more = |taken| if taken < self.limit { Some(taken + 1) } else { None };
        // Relaxed, because only this number has to be right: no other memory is handed over with it.
        match self.taken.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => Some(Permit { semaphore: self.clone(), _open: open }),
            Err(_) => None,
        }
    }

    /// Grants no more permits. Returns a channel that disconnects when the last one is returned.
    pub fn close(&self) -> Receiver<Infallible> {
        *self.open.lock() = None;
        self.all_returned.clone()
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.taken.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;

    #[test]
    fn closing_waits_for_the_last_permit_and_grants_no_other() {
        let semaphore = Semaphore::new(2);
        let [first, second] = [(); 2].map(|()| semaphore.try_acquire().unwrap());
        assert!(semaphore.try_acquire().is_none(), "two are taken");
        drop(first);
        let all_returned = semaphore.close();
        assert!(semaphore.try_acquire().is_none(), "closed");
        assert_eq!(all_returned.try_recv(), Err(TryRecvError::Empty));
        drop(second);
        assert_eq!(all_returned.try_recv(), Err(TryRecvError::Disconnected));
    }
}
