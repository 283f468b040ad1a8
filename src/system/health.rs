//! The health check: `btc-ticker --check-health` probes a running service, for containers without `curl`.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ureq::Agent;

use super::Printer;

/// Probes the service at `address` and prints its answer. Fails unless the status is 200. Connecting to the
/// unspecified address (0.0.0.0) reaches this machine.
pub fn check(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let config = Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(3)))
        .http_status_as_error(false)
        .proxy(None);
    let agent: Agent = config.build().into();
    let url = format!("http://{address}/healthz");
    let no_answer = |error| format!("no answer from {url}: {error}");
    let mut response = agent.get(&url).call().map_err(no_answer)?;
    let answer = response.body_mut().read_to_string().map_err(no_answer)?;
    Printer::start("stdout", io::stdout())?.print(answer);
    if response.status().is_success() { Ok(()) } else { Err("the service is not healthy".into()) }
}
