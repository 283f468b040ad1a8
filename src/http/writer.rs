//! Writes to one client, and detects that it makes no progress. Used by the thread of the connection; shares
//! nothing.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::system::kernel::unacknowledged;

/// How often a blocked write looks for progress.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The sending half of a connection. A write blocks while the buffers are full, and fails with `TimedOut` once the
/// peer has acknowledged no byte for the stall timeout. A slow reader makes progress: a byte is enough.
///
/// The kernel's own timeout, TCP_USER_TIMEOUT, does not fit: it counts from the first time that the peer's
/// window is too small for the next segment, so it ends connections that make progress.
pub struct Writer<'a> {
    socket: &'a TcpStream,
    stall_timeout: Duration,
    /// Bytes written.
    written: u64,
    /// Bytes that the peer had acknowledged at the last check.
    acknowledged: u64,
    /// When the peer last made progress, or had nothing to acknowledge.
    progressed: Instant,
}

impl<'a> Writer<'a> {
    /// Sets the write timeout of the socket.
    pub fn new(socket: &'a TcpStream, stall_timeout: Duration) -> io::Result<Writer<'a>> {
        socket.set_write_timeout(Some(CHECK_INTERVAL))?;
        let progressed = Instant::now();
        Ok(Writer { socket, stall_timeout, written: 0, acknowledged: 0, progressed })
    }

    /// `count` is the size of the write that has just returned; 0 if the buffers stayed full.
    fn check_progress(&mut self, count: usize) -> io::Result<()> {
        self.written += count as u64;
        let outstanding = unacknowledged(self.socket);
        let acknowledged = self.written.saturating_sub(outstanding);
        let is_only_this_write = count > 0 && outstanding <= count as u64;
        if acknowledged > self.acknowledged || is_only_this_write {
            self.acknowledged = acknowledged;
            self.progressed = Instant::now();
            return Ok(());
        }
        if self.progressed.elapsed() < self.stall_timeout {
            return Ok(());
        }
        // Closing the socket then resets the connection, and the kernel frees its buffers at once.
        let _ = SockRef::from(self.socket).set_linger(Some(Duration::ZERO));
        Err(ErrorKind::TimedOut.into())
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let count = match self.socket.write(bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            self.check_progress(count)?;
            if count > 0 || bytes.is_empty() {
                return Ok(count);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(1);

    /// A client with a tiny receive buffer, and its connection at the server.
    fn connect() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_send_buffer_size(4 * 1024).unwrap();
        let address = listener.local_addr().unwrap();
        let client =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(2 * 1024).unwrap();
        client.connect(&address.into()).unwrap();
        (client.into(), listener.accept().unwrap().0)
    }

    #[test]
    fn a_slow_reader_with_a_tiny_buffer_makes_progress() {
        let (mut client, served) = connect();
        let reader = thread::spawn(move || {
            let mut bytes = [0; 500];
            while client.read_exact(&mut bytes).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let mut writer = Writer::new(&served, STALL_TIMEOUT).unwrap();
        writer.write_all(&vec![b' '; 75_000]).unwrap();
        drop(served);
        reader.join().unwrap();
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_times_out() {
        let (client, served) = connect();
        let mut writer = Writer::new(&served, STALL_TIMEOUT).unwrap();
        let error = writer.write_all(&vec![b' '; 4_000_000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(client);
    }

    #[test]
    fn small_writes_that_never_block_time_out_as_well() {
        let (client, served) = connect();
        let mut writer = Writer::new(&served, STALL_TIMEOUT).unwrap();
        let error = loop {
            match writer.write_all(&[b' '; 100]) {
                Ok(()) => thread::sleep(Duration::from_millis(50)),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(client);
    }

    #[test]
    fn an_idle_connection_is_not_stalled() {
        let (mut client, served) = connect();
        let mut writer = Writer::new(&served, Duration::ZERO).unwrap();
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            // Read, so acknowledged, before the next write.
            while unacknowledged(&served) > 0 {
                thread::yield_now();
            }
        }
    }
}
