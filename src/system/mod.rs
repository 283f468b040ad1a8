//! The machine: threads and shutdown, limits, the clock, output and metrics. Independent of prices, except for
//! the table of metrics. (The health check is a client of the service, and the one part that speaks HTTP.)

mod clock;
pub mod health;
pub mod kernel;
mod limits;
pub mod logging;
mod metrics;
mod printer;
mod semaphore;
mod threads;

pub use clock::{format_duration, latest_plausible, parse_duration, random, unix_millis};
pub use limits::Limits;
pub use logging::{EpisodeLog, LogLimit};
pub use metrics::METRICS;
pub use printer::Printer;
pub use semaphore::{Permit, Semaphore};
pub use threads::{Shutdown, Threads};
