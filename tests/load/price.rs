//! The scenario price: requests for /price in a closed loop on a few connections.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::report::Figures;
use crate::trial::Trial;

const MEASURED: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /price HTTP/1.1\r\nHost: localhost\r\n\r\n";

pub fn run(trial: &Trial) -> Result<Figures> {
    trial.first_update()?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(trial.clients);
    let mut connections = Vec::new();
    for index in 0..trial.clients {
        let mut stream = TcpStream::connect(trial.server.address)?;
        poll.registry().register(
            &mut stream,
            Token(index),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        connections.push(Connection { stream, answer: Vec::new(), is_waiting: false });
    }
    let (mut answers, mut errors) = (0, 0);
    let (cpu, start) = (trial.server.usage()?.cpu, Instant::now());
    while start.elapsed() < MEASURED {
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            let Token(index) = event.token();
            match connections[index].advance() {
                Ok(done) => answers += done,
                Err(_) => errors += 1,
            }
        }
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), trial.server.usage()?.cpu - cpu);
    Ok(vec![
        ("answers/s", (f64::from(answers) / seconds).round()),
        ("CPU µs/answer", cpu.as_secs_f64() * 1e6 / f64::from(answers.max(1))),
        ("errors", f64::from(errors)),
    ])
}

struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
    is_waiting: bool,
}

impl Connection {
    /// Reads what has arrived and sends the next request after each response. Returns the number of responses.
    fn advance(&mut self) -> Result<u32> {
        let mut done = 0;
        loop {
            if !self.is_waiting {
                match self.stream.write(REQUEST) {
                    Ok(length) if length == REQUEST.len() => self.is_waiting = true,
                    Ok(_) => return Err("a partial write of a request".into()),
                    Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(done),
                    Err(error) => return Err(error.into()),
                }
            }
            let mut bytes = [0; 2048];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(length) => self.answer.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(done),
                Err(error) => return Err(error.into()),
            }
            if is_whole(&self.answer)? {
                self.answer.clear();
                self.is_waiting = false;
                done += 1;
            }
        }
    }
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = str::from_utf8(&answer[..end])?.to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err("a status other than 200".into());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.ok_or("no Content-Length")?.parse()?;
    Ok(answer.len() >= end + 4 + length)
}
