//! The price source, a thread of this process. Each response has a new price, which identifies it: the age of
//! an update is the time since that response.

use std::io::{BufRead, BufReader, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

const FIRST_PRICE_IN_CENTS: usize = 9_000_000;

pub struct Source {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// When each response was sent.
    answers: Vec<Instant>,
    /// The number of responses allowed; further requests block.
    allowed: usize,
    closed: bool,
}

impl Source {
    pub fn start(allowed: usize) -> Result<Source> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = State { answers: Vec::new(), allowed, closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if accepting.state.lock().unwrap().closed {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // An error means that the server has exited.
                thread::spawn(move || shared.serve(connection));
            }
        });
        Ok(Source { address, shared })
    }

    /// Returns the number of responses so far. The first is number 0.
    pub fn answered(&self) -> usize {
        self.shared.state.lock().unwrap().answers.len()
    }

    pub fn answers(&self) -> Vec<Instant> {
        self.shared.state.lock().unwrap().answers.clone()
    }

    pub fn allow(&self, allowed: usize) {
        self.shared.state.lock().unwrap().allowed = allowed;
        self.shared.changed.notify_all();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().closed = true;
        self.shared.changed.notify_all();
        // Wakes `accept`. If it fails, that thread blocks until the process exits.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, connection: TcpStream) -> Result<()> {
        connection.set_nodelay(true)?;
        let mut lines = BufReader::new(&connection).lines();
        while let Some(line) = lines.next().transpose()? {
            if !line.is_empty() {
                continue;
            }
            let Some(number) = self.next_number() else {
                return Ok(());
            };
            let cents = FIRST_PRICE_IN_CENTS + number;
            let body = format!("{{\"price\":{}.{:02}}}", cents / 100, cents % 100);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            (&connection).write_all(answer.as_bytes())?;
        }
        Ok(())
    }

    fn next_number(&self) -> Option<usize> {
        let state = self.state.lock().unwrap();
        let mut state =
            self.changed.wait_while(state, |s| !s.closed && s.answers.len() >= s.allowed).unwrap();
        state.answers.push(Instant::now());
        (!state.closed).then_some(state.answers.len() - 1)
    }
}

/// Returns the number of the response with this price.
pub fn number_of(price: f64) -> Option<usize> {
    ((price * 100.0).round() as usize).checked_sub(FIRST_PRICE_IN_CENTS)
}
