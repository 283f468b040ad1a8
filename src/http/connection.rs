//! A connection: its requests are answered in their order, until one side ends it or a stream begins.
//! Runs on the connection's own thread, `connection`; shares the routes with all others.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::time::{Duration, Instant};

use tiny_http::Method;

use super::request::{self, PATIENCE, Refusal};
use super::response::Response;
use super::routes::{Answer, Routes};
use crate::feed::Cursor;
use crate::system::{METRICS, Taken};

/// A connection whose buffers are full and that takes nothing for so long is closed.
const STUCK: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, the client may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 2 * 1024 * 1024;

/// Serves a client until its connection ends. Called on the thread of the connection.
pub fn serve(socket: &TcpStream, routes: &Routes) {
    match answer_all(socket, routes) {
        Ok(Some((from, place))) => routes.stream(socket, from, place),
        Ok(None) => linger(socket),
        Err(_) => {} // Nobody is there any more.
    }
}

/// Answers requests up to the last one, or to one for a stream: from where, and its place.
/// Not inlined: what it has on the stack and on the heap is not a part of a stream's memory.
#[inline(never)]
fn answer_all(mut socket: &TcpStream, routes: &Routes) -> io::Result<Option<(Cursor, Taken)>> {
    socket.set_write_timeout(Some(STUCK))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // More than 1 KiB each, or the allocator would keep them for this thread.
    let (mut read, mut written) = (Vec::new(), Vec::with_capacity(1280));
    loop {
        let (response, with_body, keep_alive) = match request::next(socket, &mut read) {
            Ok(None) => return Err(ErrorKind::NotConnected.into()),
            Err(Refusal(reason, status, message)) => {
                METRICS.heads_refused.inc(&[&reason]);
                (Response::error(status, message), true, false)
            }
            Ok(Some(request)) => match routes.answer(&request) {
                Answer::Stream(from, place) => return Ok(Some((from, place))),
                Answer::Response(response) => {
                    (response, request.method != Method::Head, request.keep_alive)
                }
            },
        };
        written.clear();
        response.append_to(&mut written, with_body, keep_alive);
        socket.write_all(&written)?;
        if !keep_alive {
            return Ok(None);
        }
    }
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
            Ok(read @ 1..) => left = left.saturating_sub(read),
            _ => return,
        }
    }
}
