//! The heartbeat: a thread that keeps idle streams open and announces when prices become stale or fresh.
//! Owns the freshness; shares the feed. It waits for no other thread, so staleness is announced even
//! if the poller hangs.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, select_biased};

use super::Feed;
use super::freshness::{Change, Freshness, Report};
use crate::system::{EpisodeLog, Shutdown};

/// Runs until shutdown. A stream idle for `idle` gets a keep-alive comment: proxies keep the connection
/// open, and a disconnected client is noticed. One timer for all streams, because one for each would cost as
/// many wake-ups as there are clients. `reports` ends when the threads that report have ended.
pub fn run(
    feed: &Feed,
    mut freshness: Freshness,
    reports: &Receiver<Report>,
    idle: Duration,
    shutdown: &Shutdown,
) {
    let mut last_sent = Instant::now();
    let mut log = EpisodeLog::default();
    // Why prices are stale.
    let mut stale: Option<String> = None;
    loop {
        if let Some(reason) = &stale
            && log.begin()
        {
            log::warn!("prices are stale: {reason}");
        }
        let comment_at = last_sent + idle;
        let next = freshness.deadline().map_or(comment_at, |stale_at| stale_at.min(comment_at));
        // Reports first: a deadline that has passed meanwhile may no longer hold.
        select_biased! {
            recv(shutdown.closed) -> _ => return,
            recv(reports) -> report => match report {
                Ok(report) => {
                    if matches!(report, Report::Updated) {
                        last_sent = Instant::now();
                    }
                    freshness.report(report, Instant::now());
                }
                // All reporting threads have ended: the service is stopping.
                Err(_) => return,
            },
            recv(at(next)) -> _ => {}
        }
        let now = Instant::now();
        match freshness.change(now) {
            Some(Change::Fresh) => {
                stale = None;
                if log.end() {
                    log::info!("prices are fresh again");
                }
                feed.announce(None);
            }
            Some(Change::Stale(reason)) => {
                stale = Some(reason.clone());
                feed.announce(Some(reason));
            }
            None if now < last_sent + idle => continue,
            None => feed.keep_alive(),
        }
        last_sent = now;
    }
}
