//! The server: a listener, and the loop that gives each connection a thread of its own. Runs on the thread
//! `accept`, which never waits for a client. Shares the places and the routes with the connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::connection;
use super::places::Places;
use super::request::MAX_HEAD;
use super::response::Response;
use super::routes::Routes;
use crate::system::{LogLimit, METRICS, Permit, Semaphore, Shutdown};

/// When to probe a peer that is silent, and how often: its connection fails after some ten probes.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The listen queue; the kernel lowers it to `net.core.somaxconn`. std asks for 128, and a burst of clients
/// then waits for SYN retransmission.
const LISTEN_QUEUE: i32 = 16_384;
/// The kernel's buffers per connection; Linux doubles the numbers. The send buffer holds the backlog of an
/// hour. The receive buffer is small because a stream reads nothing.
const SEND_BUFFER: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 16 * 1024;
/// The stack of a connection's thread. Only the pages that it touches cost memory.
const STACK: usize = 128 * 1024;
/// The most displaced connections whose threads are still running. They come out of the descriptors and
/// mappings that `Limits` leaves free.
const MAX_DISPLACED: u64 = 8;
/// The pause after `accept` failed, usually because of descriptor exhaustion. Connections wait in the queue meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Server {
    listener: TcpListener,
    /// One permit for each connection's thread.
    threads: Arc<Semaphore>,
    places: Arc<Places>,
    routes: Arc<Routes>,
    accept_errors: LogLimit,
    thread_errors: LogLimit,
}

/// Binds the address. On Linux, connections inherit the options. Called by `main`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let alive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_INTERVAL);
    socket.set_tcp_keepalive(&alive)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_QUEUE)?;
    Ok(socket.into())
}

impl Server {
    /// Serves at most as many connections as there are permits.
    pub fn new(listener: TcpListener, connections: Arc<Semaphore>, routes: Routes) -> Arc<Server> {
        let threads = Semaphore::new(connections.limit() + MAX_DISPLACED);
        let places = Places::new(connections);
        Arc::new(Server {
            listener,
            threads,
            places,
            routes: Arc::new(routes),
            accept_errors: LogLimit::default(),
            thread_errors: LogLimit::default(),
        })
    }

    /// Accepts connections until the service stops. Retries after errors.
    pub fn accept(&self, shutdown: &Shutdown) {
        while !shutdown.is_set() {
            let Some(permit) = self.threads.try_acquire() else {
                // Displaced connections are about to end. New ones wait in the queue meanwhile.
                shutdown.wait_deadline(Instant::now() + PAUSE);
                continue;
            };
            match self.listener.accept() {
                Ok((socket, _)) => self.serve(socket, permit),
                // `stop` has shut the listener down.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                Err(error) => {
                    METRICS.accept_errors.inc();
                    if self.accept_errors.allows() {
                        log::warn!("cannot accept connections: {error}");
                    }
                    shutdown.wait_deadline(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Ends `accept`, which may be waiting for a connection. Called by `main` at shutdown. If the system
    /// refuses it (macOS), the process exits without that thread.
    pub fn stop(&self) {
        let _ = SockRef::from(&self.listener).shutdown(Half::Both);
    }

    /// Starts the thread of a connection, or refuses the connection.
    fn serve(&self, socket: TcpStream, permit: Permit) {
        let socket = Arc::new(socket);
        let Some(place) = self.places.admit(&socket) else {
            METRICS.connections_refused.inc();
            refuse(&socket);
            return;
        };
        let (served, routes) = (socket.clone(), self.routes.clone());
        let serve = move || {
            connection::serve(served, place, &routes);
            drop(permit);
        };
        let thread = Builder::new().name("connection".to_owned()).stack_size(STACK);
        if let Err(error) = thread.spawn(serve) {
            METRICS.threads_refused.inc();
            if self.thread_errors.allows() {
                log::warn!("no thread for a connection: {error}");
            }
            refuse(&socket);
        }
    }
}

/// Answers 503 without waiting for the client. What it has sent so far is read first: closing a socket with
/// unread bytes resets the connection, and the answer could be lost.
fn refuse(mut socket: &TcpStream) {
    let (mut read, mut written) = ([0; MAX_HEAD], Vec::new());
    let response = Response::unavailable("too many connections; retry later");
    // Any of these may fail if the client has disconnected, which needs no handling.
    let _ = response.write_to(&mut written, false);
    let _ = socket.set_nonblocking(true);
    let _ = socket.read(&mut read);
    let _ = socket.write_all(&written);
    let _ = socket.shutdown(Half::Write);
    let _ = socket.read(&mut read);
}
