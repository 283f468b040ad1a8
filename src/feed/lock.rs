//! The lock of the feed: parking_lot's, and in the test `seam` that of a scheduler which tries every
//! order in which threads may take it. That one works only inside of its own runs, so nothing else
//! is to be built with the feature `shuttle`.

#[cfg(not(feature = "shuttle"))]
pub use parking_lot::Mutex;
#[cfg(feature = "shuttle")]
use shuttle::sync::MutexGuard;

#[cfg(feature = "shuttle")]
#[derive(Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

#[cfg(feature = "shuttle")]
impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        // It is poisoned only where the run has failed already.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
