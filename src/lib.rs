//! btc-ticker: what a bitcoin costs, now, and what you missed while you were away.
//!
//! ```text
//!  price source                      janitor         heartbeat
//!       | HTTP                          | expires       | comments, status
//!       v      first, a line            v               v
//!    poller ----> journal (a file)   history ====> connection ----> client
//!       |                               ^    channel   ^    SSE
//!       +------ then, publishes --------+              | starts
//!                                                    accept
//! ```
//!
//! `poller`, `janitor`, `heartbeat` and `accept` are one thread each, `connection` is one for each
//! client. A client takes its backlog and a channel for what follows in one step, during which nothing
//! is published. The channel is bounded: it ends when it is full, when its client leaves, or when the
//! service stops. A client whose channel was full subscribes again, from its last update. The lasting
//! threads end when the shutdown channel closes; `main` wakes those that wait for a socket. Streams end
//! when the feed does, and for other connections nobody waits.
//!
//! The machine, in the order in which a price travels through it:
//!
//! 1. [`source`]: where it comes from. `poller` is the thread that asks at every tick, `fetch` reads an
//!    answer. In a replica (a btc-ticker that has its prices from another one, its origin) `follow` is
//!    the thread instead, and `origin` the stream that it reads. Both use the HTTP `client`. `outage`
//!    decides when to try again, `error` says what was wrong, `demo` makes prices up.
//! 2. [`feed`]: what becomes of it. `publisher` writes it to the `journal`, which is a file, and hands
//!    it to the feed. `history` keeps it for those who are away, subscribers get it at once; `event` is
//!    its form, `cursor` says from where a client wants to go on; `janitor` and `heartbeat` are threads.
//! 3. [`http`]: how it reaches a client. `server` accepts, `connection` is the thread of each client;
//!    `request`, `routes`, `response` and `pages` are what it asks and gets; `stream` is where it
//!    stays.
//! 4. [`system`]: what all of them stand on.
//!
//! Each room knows only those after it in this row: `http`, `source`, `feed`, `system`. [`config`] is
//! the command line, and the entrance is `main.rs`.
//!
//! ```
//! use btc_ticker::feed::{Cursor, Feed, History, Update};
//! use std::time::Duration;
//!
//! let hour = Duration::from_secs(3600);
//! let feed = Feed::new(History::new(Some(1_000), hour, 100), false, hour);
//! feed.publish(Update { timestamp: 2_000, price: 97_123.45 });
//! let client = feed.subscribe(Cursor::After(1_000)).expect("the feed is open");
//! assert_eq!(client.backlog.updates, 1);
//! feed.publish(Update { timestamp: 3_000, price: 97_124.5 });
//! assert!(client.channel.live.recv().is_ok());
//! ```

pub mod config;
pub mod feed;
pub mod http;
pub mod source;
pub mod system;
