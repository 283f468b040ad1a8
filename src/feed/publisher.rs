//! The publisher: the one way from a source to everybody. An update is written to the journal, unless
//! the disk fails, before anybody can see it. Owned by the thread that has the updates: the poller, or
//! in a replica the follower.

use std::sync::Arc;

use super::{Feed, Journal, Update};

pub struct Publisher {
    pub feed: Arc<Feed>,
    journal: Option<Journal>,
}

impl Publisher {
    pub fn new(feed: Arc<Feed>, journal: Option<Journal>) -> Publisher {
        Publisher { feed, journal }
    }

    /// Publishes an update, whose timestamp is above that of the last. Waits for the disk, where there is
    /// a journal, and for the locks of the feed; never for a client.
    pub fn publish(&mut self, update: Update) {
        if let Some(journal) = &mut self.journal {
            journal.append(update, &self.feed);
        }
        self.feed.publish(update);
    }

    /// Publishes an update before which others are missing.
    pub fn publish_after_gap(&mut self, update: Update) {
        if let Some(journal) = &mut self.journal {
            journal.start_anew(update);
        }
        self.feed.publish_after_gap(update);
    }

    /// Lets the journal do what takes longer: to be called when no other update is waiting. What is written
    /// survives the end of this process at once; a power cut only when it is synced here.
    pub fn settle(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.settle(&self.feed);
        }
    }
}
