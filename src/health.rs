//! The service asks itself how it is: `btc-ticker --check-health`, for a container without `curl`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use ureq::Agent;

use crate::listener::reachable;

/// Asks the service at `address`; prints its answer. Success only where that is "ok".
pub fn check(address: SocketAddr) -> ExitCode {
    let config = Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(3)))
        .http_status_as_error(false)
        .proxy(None);
    let agent: Agent = config.build().into();
    let url = format!("http://{}/healthz", reachable(address));
    let answer = agent.get(&url).call().and_then(|mut response| {
        let text = response.body_mut().read_to_string()?;
        Ok((response.status().is_success(), text))
    });
    match answer {
        Ok((is_well, text)) => {
            println!("{text}");
            if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("no answer from {url}: {error}");
            ExitCode::FAILURE
        }
    }
}
