//! The HTTP client that asks a source or an origin. Runs on the thread of the poller or the follower;
//! shared with `main`, which shuts it down.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ureq::config::ConfigBuilder;
use ureq::http::Response;
use ureq::typestate::{AgentScope, WithoutBody};
use ureq::{Agent, Body, RequestBuilder};

use super::error::{FetchError, NO_CONNECTION};

/// How each client is configured. Who needs it adds the timeouts, and builds it.
pub fn client_config() -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(3)
        .user_agent(concat!("btc-ticker/", env!("CARGO_PKG_VERSION")))
}

/// Sends a request and waits for the head of the answer.
pub fn call(request: RequestBuilder<WithoutBody>) -> Result<Response<Body>, FetchError> {
    // ureq looks a name up on a thread of its own, and panics where the system has no thread for it. That
    // is a failure like any other, and no reason to end. Nothing is half done by then.
    match catch_unwind(AssertUnwindSafe(|| request.call())) {
        Ok(result) => Ok(result?),
        Err(_) => {
            let detail = "the HTTP client failed; is there no thread for it?";
            Err(FetchError::new(NO_CONNECTION, detail))
        }
    }
}
