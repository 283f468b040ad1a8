//! A price source that may be slow, or fail for one process and not for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use btc_ticker::system::unix_millis;
use tiny_http::{Response, Server};

use super::Mark;

/// Prices count up, so that each is given out once. Process `n` asks for the path `/n`.
pub struct Market {
    address: String,
    state: Arc<State>,
}

struct State {
    server: Server,
    delay: Duration,
    fails: Vec<AtomicBool>,
    /// Those that did not fail.
    polls: AtomicU64,
}

impl Market {
    pub fn open(processes: usize, delay: Duration) -> Market {
        let server = Server::http("127.0.0.1:0").unwrap();
        let address = server.server_addr().to_string();
        let fails = (0..processes).map(|_| AtomicBool::new(false)).collect();
        let state = Arc::new(State { server, delay, fails, polls: AtomicU64::new(0) });
        // A process that was killed may leave a request behind.
        for _ in 0..4 * processes {
            let state = state.clone();
            thread::spawn(move || state.answer());
        }
        Market { address, state }
    }

    pub fn url(&self, process: usize) -> String {
        format!("http://{}/{process}", self.address)
    }

    pub fn fail(&self, process: usize, fails: bool) {
        self.state.fails[process].store(fails, Ordering::Relaxed);
    }

    /// Fails for every process.
    pub fn close(&self) {
        (0..self.state.fails.len()).for_each(|process| self.fail(process, true));
    }

    pub fn mark(&self) -> Mark {
        Mark { at: unix_millis(), polls: self.state.polls.load(Ordering::Relaxed) }
    }
}

impl State {
    fn answer(&self) {
        while let Ok(request) = self.server.recv() {
            let process: usize = request.url()[1..].parse().unwrap();
            let response = if self.fails[process].load(Ordering::Relaxed) {
                Response::from_string("").with_status_code(500)
            } else {
                let price = self.polls.fetch_add(1, Ordering::Relaxed) + 1;
                thread::sleep(self.delay);
                Response::from_string(format!("{{\"price\":{price}}}"))
            };
            // The process may have been killed meanwhile.
            let _ = request.respond(response);
        }
    }
}
