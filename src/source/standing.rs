//! The standing of this process: whether its store answers, and whether it polls. Written by the reader and the poller, read by health and metrics.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Independent flags, so relaxed ordering suffices.
pub struct Standing {
    /// Whether there is a store at all.
    pub has_store: bool,
    store_answers: AtomicBool,
    polls: AtomicBool,
}

impl Standing {
    /// Without a store, this process always polls.
    pub fn new(has_store: bool) -> Standing {
        Standing {
            has_store,
            store_answers: AtomicBool::new(false),
            polls: AtomicBool::new(!has_store),
        }
    }

    pub fn store_answers(&self) -> bool {
        self.store_answers.load(Relaxed)
    }

    pub fn polls(&self) -> bool {
        self.polls.load(Relaxed)
    }

    /// Called by the reader.
    pub fn set_store_answers(&self, answers: bool) {
        self.store_answers.store(answers, Relaxed);
    }

    /// Called by the poller. Returns whether the value changed.
    pub fn set_polls(&self, polls: bool) -> bool {
        self.polls.swap(polls, Relaxed) != polls
    }
}
