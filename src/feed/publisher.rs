//! The publisher: the one way from a source to everybody. An update is written to the journal, unless
//! the disk fails, before anybody can see it. Owned by the thread that has the updates: the poller, or
//! in a replica the follower.

use std::sync::Arc;

use super::{Feed, Journal, Update};

pub struct Publisher {
    feed: Arc<Feed>,
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

    /// Lets the journal do what takes longer: to be called when no other update is waiting. What is written
    /// survives the end of this process at once; a power cut only when it is synced here.
    pub fn settle(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.settle(&self.feed);
        }
    }

    /// Updates are missing between the last and the one at `oldest`, which comes next.
    pub fn mark_gap(&mut self, oldest: u64) {
        self.feed.mark_gap(oldest);
        // The first line of the file has to say `oldest` now. So the file is emptied here, and the next
        // `append` writes it anew from the history. (That has the updates from before the gap until the
        // `push` after it. So the new file has them, too; a restart reads them through `push`, which drops
        // them.)
        if let Some(journal) = &mut self.journal {
            journal.discard();
        }
    }
}
