//! The server: the listener, and the loop that gives each connection a thread of its own.
//! Runs on the thread `accept`, which never waits for a client. Shares the routes with the threads
//! of the connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::connection;
use super::request::MAX_HEAD;
use super::response::Response;
use super::routes::Routes;
use crate::system::{METRICS, RateLimitedLog, Shutdown};

/// A peer that acknowledges nothing for so long is gone, and its connection fails. (The write timeout alone
/// would notice that only when the buffers are full.)
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that may wait to be accepted; the system lowers it to its own limit. std asks for 128,
/// and a burst then waits for the second or third SYN of each client.
const LISTEN_QUEUE: i32 = 16_384;
/// In the kernel, per connection, at most (it doubles the number). The backlog of an hour fits, and a stuck
/// client costs no more.
const SEND_BUFFER: usize = 64 * 1024;
/// The same for what comes in. Streams do not read, so it fills where a client goes on sending.
const RECEIVE_BUFFER: usize = 16 * 1024;
/// The stack of a connection's thread. Only the pages that it touches cost memory.
const STACK: usize = 128 * 1024;
/// After `accept` failed, mostly because the system has run out of descriptors. What waits in the queue
/// is not lost.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Server {
    listener: TcpListener,
    routes: Arc<Routes>,
    errors: RateLimitedLog,
}

/// Binds the address. Connections inherit the options on Linux. Called by `main`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let alive = TcpKeepalive::new().with_time(PEER_TIMEOUT / 2).with_interval(PEER_TIMEOUT / 4);
    socket.set_tcp_keepalive(&alive)?;
    // Where it is missing (macOS), a peer whose network is gone is noticed by the write timeout.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_QUEUE)?;
    Ok(socket.into())
}

impl Server {
    pub fn new(listener: TcpListener, routes: Routes) -> Arc<Server> {
        Arc::new(Server { listener, routes: Arc::new(routes), errors: RateLimitedLog::default() })
    }

    /// Accepts until the service ends, whatever happens.
    pub fn accept(&self, shutdown: &Shutdown) {
        while !shutdown.is_set() {
            match self.listener.accept() {
                Ok((socket, _)) => self.admit(socket),
                // `stop` has shut the listener down.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                Err(error) => {
                    METRICS.accept_errors.inc();
                    self.errors.warn(format_args!("cannot accept connections: {error}"));
                    shutdown.wait_deadline(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Ends `accept`, which may be waiting for a connection. Called by `main`, at the shutdown. Where the
    /// system refuses it (macOS), the process ends without that thread.
    pub fn stop(&self) {
        let _ = SockRef::from(&self.listener).shutdown(Half::Both);
    }

    /// Starts the thread of a connection, or says that there is no room.
    fn admit(&self, socket: TcpStream) {
        let Some(permit) = self.routes.connections.try_acquire() else {
            METRICS.connections_refused.inc();
            refuse(&socket);
            return;
        };
        // Shared, because it is still needed here where no thread can be had.
        let socket = Arc::new(socket);
        let (served, routes) = (socket.clone(), self.routes.clone());
        let serve = move || {
            connection::serve(&served, &routes);
            // The descriptor goes first, so that no more are open than permits are taken (but for one
            // that ends before `admit` has returned, which still holds its socket).
            drop(served);
            drop(permit);
        };
        let thread = Builder::new().name("connection".to_owned()).stack_size(STACK);
        if let Err(error) = thread.spawn(serve) {
            METRICS.threads_refused.inc();
            self.errors.warn(format_args!("no thread for a connection: {error}"));
            refuse(&socket);
        }
    }
}

/// Says that there is no room, without waiting for the client. What it has sent by now is read:
/// closing would otherwise reset the connection, and the answer could be lost.
fn refuse(mut socket: &TcpStream) {
    let (mut read, mut written) = ([0; MAX_HEAD], Vec::new());
    let response = Response::unavailable("there are too many connections; come back later");
    // Each of these may fail where the client has gone, which is then of no interest.
    let _ = response.write_to(&mut written, false);
    let _ = socket.set_nonblocking(true);
    let _ = socket.read(&mut read);
    let _ = socket.write_all(&written);
    let _ = socket.shutdown(Half::Write);
    let _ = socket.read(&mut read);
}
