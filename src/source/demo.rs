//! The demo source: made-up prices for a machine without internet, a random walk behind a small
//! HTTP endpoint in CoinDesk's shape, so that fetching and parsing are the real ones.
//! Runs on the thread `demo`; shares nothing with the service.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tiny_http::{Response, Server};

use crate::system::{Failure, Threads, random};

const FIRST_PRICE: f64 = 97_000.0;
/// The price changes by at most so much of itself at a step, up or down.
const LARGEST_STEP: f64 = 0.0005;

pub struct Demo {
    /// To be unblocked by `main` when the service stops, which ends the thread.
    pub server: Arc<Server>,
    pub url: String,
}

impl Demo {
    /// Starts the endpoint on a free port of this machine.
    pub fn start(threads: &Threads) -> Result<Demo, Failure> {
        let server = Server::http((Ipv4Addr::LOCALHOST, 0));
        let server = Arc::new(server.map_err(|error| format!("no demo source: {error}"))?);
        let url = format!("http://{}/", server.server_addr());
        let serving = server.clone();
        threads.spawn("demo", move |_| serve(&serving))?;
        Ok(Demo { server, url })
    }
}

fn serve(server: &Server) {
    let mut price = FIRST_PRICE;
    for request in server.incoming_requests() {
        price *= 1.0 + (random() * 2.0 - 1.0) * LARGEST_STEP;
        let shown = (price * 100.0).round() / 100.0;
        let body = json!({"Data": {"BTC-USD": {"VALUE": shown}}, "Err": {}});
        // Whoever asks is the poller, which will notice.
        let _ = request.respond(Response::from_string(body.to_string()));
    }
}
