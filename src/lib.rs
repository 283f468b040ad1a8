//! btc-ticker streams the live bitcoin price and replays what a client missed.
//!
//! ```text
//!  price source              janitor      heartbeat
//!       | HTTP                  | expires     | status, comments
//!       v                       v             v
//!    poller ----------------> history ====> connection ----> client
//!       |        publishes      ^    channel   ^     SSE
//!       v  with a store:        |              | starts
//!  Redis stream ------------> reader        accept
//! ```
//!
//! `poller`, `reader`, `janitor`, `heartbeat`, `accept` and `log` each run on a thread of their own; every
//! client has a `connection` thread. A client takes the last page of its backlog and a channel for what
//! follows in one critical section. The channel is bounded: a client that falls behind loses it, and
//! subscribes again from its last update. Threads end when the shutdown channel closes; `main` wakes those that wait for a socket. Streams
//! end when the feed closes.
//!
//! The modules, in the order in which an update travels through them. Dependencies run `http`, `source`,
//! `feed`, `system`: no module uses one to its left.
//!
//! 1. [`source`]: where updates come from. `poller` fetches at every tick, `fetch` reads an answer, `outage`
//!    backs off, `error` says what failed, `demo` simulates. With a store (a Redis stream shared by several
//!    processes), `turns` decides which process polls, `reader` publishes what the stream brings, and `store`
//!    knows the commands.
//! 2. [`feed`]: publish/subscribe. `history` keeps updates for clients that were away; `event` is the wire
//!    form, `cursor` a client's position; `freshness` decides when prices are stale; `janitor` and
//!    `heartbeat` are threads.
//! 3. [`http`]: how updates reach a client. `server` accepts, `places` limits the connections, `connection`
//!    is the thread of each client, `request`, `routes`, `response` and `pages` answer, `stream` streams.
//! 4. [`system`]: threads, limits, clock, log and metrics.
//!
//! [`config`] is the command line. Begin with `main.rs`.
//!
//! ```
//! use btc_ticker::feed::{self, Cursor, History, Update};
//! use std::time::Duration;
//!
//! let hour = Duration::from_secs(3600);
//! let (mut publisher, feed) = feed::new(History::new(Some(1_000), hour, 100), false);
//! publisher.publish(&[Update { timestamp: 2_000, price: 97_123.45 }]);
//! let client = feed.subscribe(Cursor::After(1_000)).expect("the feed is open");
//! assert_eq!(client.page.updates, 1);
//! publisher.publish(&[Update { timestamp: 3_000, price: 97_124.5 }]);
//! assert!(client.channel.expect("this was the last page").live.recv().is_ok());
//! ```

pub mod config;
pub mod feed;
pub mod http;
pub mod source;
pub mod system;
