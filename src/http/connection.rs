//! A connection: answers its requests in order, until one side ends it or a stream begins. Runs on the
//! connection's own thread, `connection`; shares the routes with all others.

use std::io::{self, BufWriter, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{Method, StatusCode};

use super::places::Place;
use super::request::{self, HEAD_TIMEOUT};
use super::response::Response;
use super::routes::{Answer, Routes, UNKNOWN_PATH};
use super::stream::Stream;
use super::writer::Writer;
use crate::system::METRICS;

/// A connection is closed if the client makes no progress for this long: its machine acknowledges nothing,
/// because it is unreachable or because the client reads nothing and the buffers are full.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most responses fit, and are sent in one write. More than 1 KiB, because glibc keeps smaller blocks in a
/// cache of the thread, and the thread of a stream lives for hours.
const WRITE_BUFFER: usize = 4 * 1024;
/// How long, and for how many bytes, a client may keep sending after its last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 2 * 1024 * 1024;

/// Serves a client until its connection ends. Called on the thread of the connection.
pub fn serve(socket: Arc<TcpStream>, mut place: Place, routes: &Routes) {
    let Ok(mut writer) = Writer::new(&socket, STALL_TIMEOUT) else { return };
    match answer_all(&socket, &mut writer, &mut place, routes) {
        Ok(Some(stream)) => {
            let Some(permit) = place.into_permit() else { return };
            stream.run(&mut writer);
            // The descriptor goes first, so that no more are open than permits are taken.
            drop(socket);
            drop(permit);
            return;
        }
        Ok(None) => linger(&socket),
        Err(_) => {} // The client has disconnected.
    }
    // The descriptor first, as above.
    drop(socket);
    drop(place);
}

/// Answers requests, until there are no more or one asks for a stream, which it returns.
// Not inlined, so that its stack frame is released before a stream begins.
#[inline(never)]
fn answer_all(
    socket: &TcpStream,
    writer: &mut Writer,
    place: &mut Place,
    routes: &Routes,
) -> io::Result<Option<Box<Stream>>> {
    socket.set_read_timeout(Some(HEAD_TIMEOUT))?;
    // What was read and not yet answered.
    let mut read = Vec::new();
    loop {
        let request = match request::next(socket, &mut read) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(refusal) => {
                METRICS.http_requests.inc(&[&UNKNOWN_PATH, &refusal.status.as_u16()]);
                send(writer, &Response::error(refusal.status, refusal.message), false)?;
                return Ok(None);
            }
        };
        let mut response = match routes.answer(&request) {
            Answer::Response(response) => response,
            Answer::Stream(stream) => return Ok(Some(stream)),
        };
        // A client that is refused must not hold a connection that others need.
        let is_busy = response.status == StatusCode::SERVICE_UNAVAILABLE;
        let keep_alive = request.keep_alive && !is_busy;
        if request.method == Method::HEAD {
            // Only the head, with the length that the body would have.
            response = response.body(Vec::new());
        }
        send(writer, &response, keep_alive)?;
        if !keep_alive {
            return Ok(None);
        }
        place.renew();
    }
}

fn send(writer: &mut Writer, response: &Response, keep_alive: bool) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(WRITE_BUFFER, writer);
    let sent = match response.write_to(&mut buffered, keep_alive) {
        Ok(()) => buffered.flush(),
        Err(error) => Err(error),
    };
    // Taken apart, because dropping it would flush, and block, once more.
    let _ = buffered.into_parts();
    sent
}

/// Reads what the client still sends, until it has seen the end of the answer. Closing a socket with unread
/// bytes resets the connection, and the client may then never read the answer.
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
