//! The demo source: simulated prices for a machine without internet. A random walk behind a small HTTP
//! endpoint in CoinDesk's shape, so fetching and parsing are the real ones. Runs on the thread `demo`;
//! shares the server with `main`, which unblocks it at shutdown.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tiny_http::{Response, Server};

use super::{Endpoint, Source};
use crate::system::{Shutdown, Threads, random};

const FIRST_PRICE: f64 = 97_000.0;
/// The largest change of the price in one step, as a fraction of it.
const LARGEST_STEP: f64 = 0.0005;

/// Starts the endpoint on a free port of this machine. Called by `main`.
pub fn start(threads: &mut Threads) -> Result<Endpoint, Box<dyn Error>> {
    let server = match Server::http((Ipv4Addr::LOCALHOST, 0)) {
        Ok(server) => Arc::new(server),
        Err(error) => return Err(format!("cannot start the demo source: {error}").into()),
    };
    let url = format!("http://{}/", server.server_addr());
    let serving = server.clone();
    threads.spawn("demo", move |shutdown| serve(&serving, shutdown))?;
    threads.on_shutdown(move || server.unblock());
    Ok(Endpoint { url, ..Source::Demo.endpoint() })
}

fn serve(server: &Server, shutdown: &Shutdown) {
    let mut price = FIRST_PRICE;
    while !shutdown.is_set() {
        // An error means that the shutdown has unblocked us, or that tiny_http could not accept a
        // connection. In that case it accepts no more: this thread waits here for the shutdown, and the
        // poller sees a source that fails.
        let Ok(request) = server.recv() else { continue };
        price *= 1.0 + (random() * 2.0 - 1.0) * LARGEST_STEP;
        let shown = (price * 100.0).round() / 100.0;
        let body = json!({"Data": {"BTC-USD": {"VALUE": shown}}, "Err": {}});
        // The client is the poller, which notices a failure itself.
        let _ = request.respond(Response::from_string(body.to_string()));
    }
}
