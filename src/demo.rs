//! The demo source: made-up prices for a machine without internet, a random walk behind a small
//! HTTP endpoint in CoinDesk's shape, so that fetching and parsing are the real ones.
//! Has its own server and conversations; shares nothing with the service but the crew.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use parking_lot::Mutex;
use serde_json::json;

use crate::conversation::{After, Conversations};
use crate::crew::Crew;
use crate::limits::Limits;
use crate::listener::listen;
use crate::reply::Reply;
use crate::server::Warden;
use crate::stream::random;

const FIRST_PRICE: f64 = 97_000.0;
/// The price changes by at most so much of itself at a step, up or down.
const LARGEST_STEP: f64 = 0.0005;

/// Starts the endpoint and returns its URL.
pub fn start(crew: &Crew, limits: Limits) -> io::Result<String> {
    let listener: TcpListener = listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let url = format!("http://{}/", listener.local_addr()?);
    // The walk; held for one step of it.
    let price = Mutex::new(FIRST_PRICE);
    let conversations = Conversations::new(crew.clone(), move |request, _| {
        let price = step(&mut price.lock());
        let reply = Reply::json(&json!({"Data": {"BTC-USD": {"VALUE": price}}, "Err": {}}));
        // Whoever asks is the poller, which will notice.
        let _ = reply.write(&mut request.into_writer(), false);
        After::KeepOpen
    });
    let warden = Warden::new(listener, conversations, limits, crew.clone());
    crew.spawn("demo", move || warden.run())?;
    Ok(url)
}

fn step(price: &mut f64) -> f64 {
    let direction = random() as f64 / u64::MAX as f64 * 2.0 - 1.0;
    *price *= 1.0 + direction * LARGEST_STEP;
    (*price * 100.0).round() / 100.0
}
