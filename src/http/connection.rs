//! A connection: its requests are answered in their order, until one side ends it or a stream begins.
//! Runs on the connection's own thread, `connection`; shares the routes with all others.

use std::io::{self, BufWriter, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::time::{Duration, Instant};

use tiny_http::Method;

use super::request::{self, HEAD_TIMEOUT};
use super::response::Response;
use super::routes::{Answer, Routes, StreamStart, UNKNOWN_PATH};
use crate::system::METRICS;

/// A connection whose buffers are full and that takes nothing for so long is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most responses fit, and leave in one piece. It is more than 1 KiB for another reason, too: a smaller
/// block would stay with its thread after it was freed, in a cache of glibc, and a stream's thread stays
/// for hours.
const WRITE_BUFFER: usize = 4 * 1024;
/// How long, and for how many bytes, the client may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 2 * 1024 * 1024;

/// Serves a client until its connection ends. Called on the thread of the connection. A `&TcpStream` can
/// read and write: std has both for it, because the system does the locking.
pub fn serve(socket: &TcpStream, routes: &Routes) {
    match answer_all(socket, routes) {
        Ok(Some(start)) => routes.stream(socket, start),
        Ok(None) => linger(socket),
        Err(_) => {} // The client has gone.
    }
}

/// Answers requests, until there are no more or one is for a stream, which it returns.
// It has returned, and freed what it read, before a stream begins. Not inlined, so that its stack frame
// is gone then, too.
#[inline(never)]
fn answer_all(socket: &TcpStream, routes: &Routes) -> io::Result<Option<StreamStart>> {
    socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
    socket.set_read_timeout(Some(HEAD_TIMEOUT))?;
    // What was read and not yet answered.
    let mut read = Vec::new();
    loop {
        let request = match request::next(socket, &mut read) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(refusal) => {
                METRICS.http_requests.inc(&[&UNKNOWN_PATH, &refusal.status]);
                send(socket, &Response::error(refusal.status, refusal.message), false)?;
                return Ok(None);
            }
        };
        let mut response = match routes.answer(&request) {
            Answer::Response(response) => response,
            Answer::Stream(start) => return Ok(Some(start)),
        };
        if request.method == Method::Head {
            // Only the head, with the length that the body would have.
            response = response.body(Vec::new());
        }
        send(socket, &response, request.keep_alive)?;
        if !request.keep_alive {
            return Ok(None);
        }
    }
}

fn send(socket: &TcpStream, response: &Response, keep_alive: bool) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER, socket);
    let sent = match response.write_to(&mut writer, keep_alive) {
        Ok(()) => writer.flush(),
        Err(error) => Err(error),
    };
    // Taken apart: a writer that is dropped after an error would try, and wait, once more.
    let _ = writer.into_parts();
    sent
}

/// Reads what the client still sends, until it has seen the end of the answer. A socket that is closed
/// with unread bytes in it resets the connection, and then the answer may never be read.
fn linger(mut socket: &TcpStream) {
    let _ = socket.shutdown(Half::Write);
    let deadline = Instant::now() + LINGER;
    let (mut bytes, mut left) = (vec![0; 16 * 1024], LINGER_BYTES);
    while left > 0 {
        let time = deadline.saturating_duration_since(Instant::now());
        if time.is_zero() || socket.set_read_timeout(Some(time)).is_err() {
            return;
        }
        match socket.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}
