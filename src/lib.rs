//! btc-ticker: what a bitcoin costs, now, and what you missed while you were away.
//!
//! The machine, in the order in which a price passes through it:
//!
//! - [`source`] and [`poller`]: a thread fetches the price at every tick ([`trouble`] when it cannot)
//! - [`feed`]: hands it to those who wait; [`history`] keeps it for the others; [`janitor`] expires it; [`heart`] beats
//! - [`stream`]: one client's thread, which writes what was missed and then what comes
//! - [`routes`], [`reply`], [`pages`], [`cursor`], [`event`]: what is asked, and the forms of answers
//! - [`listener`], [`server`], [`conversation`]: what keeps the HTTP library alive under real traffic
//! - [`crew`], [`limits`], [`metrics`], [`config`], [`health`], [`demo`]: what all of them stand on
//!
//! ```
//! use btc_ticker::{cursor::Cursor, feed::Feed, history::{History, Stamp}};
//! use std::time::Duration;
//!
//! let feed = Feed::new(History::new(1_000, Duration::from_secs(3600), 100));
//! feed.publish(Stamp::Retrieved(2_000), 97_123.45);
//! let client = feed.subscribe(Cursor::After(1_000)).expect("the feed is open");
//! assert_eq!(client.backlog.updates, 1);
//! feed.publish(Stamp::Retrieved(3_000), 97_124.5);
//! assert!(client.live.recv().is_ok());
//! ```

pub mod config;
pub mod conversation;
pub mod crew;
pub mod cursor;
pub mod demo;
pub mod event;
pub mod feed;
pub mod health;
pub mod heart;
pub mod history;
pub mod janitor;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod pages;
pub mod poller;
pub mod reply;
pub mod routes;
pub mod server;
pub mod source;
pub mod stream;
pub mod trouble;
