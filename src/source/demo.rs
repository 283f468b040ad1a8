//! The demo source: made-up prices for a machine without internet, a random walk behind a small HTTP
//! endpoint in CoinDesk's shape, so that fetching and parsing are the real ones. Runs on the thread
//! `demo`; shares the server with `main`, which unblocks it at the shutdown.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tiny_http::{Response, Server};

use crate::system::{Shutdown, Threads, random};

const FIRST_PRICE: f64 = 97_000.0;
/// The price changes by at most so much of itself at a step, up or down.
const LARGEST_STEP: f64 = 0.0005;

/// Starts the endpoint on a free port of this machine, and returns its URL. Called by `main`.
pub fn start(threads: &mut Threads) -> Result<String, Box<dyn Error>> {
    let server = match Server::http((Ipv4Addr::LOCALHOST, 0)) {
        Ok(server) => Arc::new(server),
        Err(error) => return Err(format!("no demo source: {error}").into()),
    };
    let url = format!("http://{}/", server.server_addr());
    let serving = server.clone();
    threads.spawn("demo", move |shutdown| serve(&serving, shutdown))?;
    threads.on_shutdown(move || server.unblock());
    Ok(url)
}

fn serve(server: &Server, shutdown: &Shutdown) {
    let mut price = FIRST_PRICE;
    while !shutdown.is_set() {
        let Ok(request) = server.recv() else {
            // The shutdown has unblocked it, and the loop ends. Or tiny_http could not accept a
            // connection: it says so once, and accepts no more. Then the demo is a source that fails, and
            // this thread waits here until the shutdown.
            continue;
        };
        price *= 1.0 + (random() * 2.0 - 1.0) * LARGEST_STEP;
        let shown = (price * 100.0).round() / 100.0;
        let body = json!({"Data": {"BTC-USD": {"VALUE": shown}}, "Err": {}});
        // Whoever asks is the poller, which will notice.
        let _ = request.respond(Response::from_string(body.to_string()));
    }
}
