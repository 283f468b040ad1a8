//! What is true of this machine: threads and how they end, limits, the clock, the log, and the
//! numbers that operators look at. Knows nothing of prices and nothing of HTTP.

mod clock;
pub mod health;
pub mod kernel;
mod limits;
pub mod logging;
mod metrics;
mod threads;

pub use clock::{random, unix_millis};
pub use limits::Limits;
pub use logging::Seldom;
pub use metrics::{METRICS, Taken};
pub use threads::{Shutdown, Threads};

/// What ends the program with an error.
pub type Failure = Box<dyn std::error::Error>;
