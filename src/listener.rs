//! The listener: the socket whose options every connection inherits. `tiny_http` sets none itself.
//! Made once by `main`, and duplicated for each accept loop.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// A connection that sends nothing for so long is closed. Short, because until then a streaming
/// client costs two threads and two descriptors, and because in a burst `tiny_http` makes some
/// clients wait for a thread that is busy with a silent one.
pub const SILENCE: Duration = Duration::from_secs(2);
/// A connection whose buffers are full and that takes nothing for so long is closed.
const STUCK: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for so long is gone, however empty the buffers are.
const DEAD: Duration = Duration::from_secs(20);
/// Connections that may wait to be accepted; the system lowers it to its own limit. std asks for 128,
/// and a burst then waits for the second or third SYN of each client.
const BACKLOG: i32 = 16_384;
/// Per client, in the kernel, at most (it doubles it). A backlog fits; a stuck client costs no more.
const SEND_BUFFER: usize = 64 * 1024;

/// Binds the address with all that its connections inherit. Called by `main`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(STUCK))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    let alive = TcpKeepalive::new().with_time(DEAD / 2).with_interval(DEAD / 4);
    socket.set_tcp_keepalive(&alive)?;
    // Where it is missing (macOS), a peer whose network is gone is noticed by the write timeout.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(DEAD))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where a listener can be reached from this machine: "any address" is none to connect to.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
