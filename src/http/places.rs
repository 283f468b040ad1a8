//! Places: admission of connections. Every connection holds a permit. When all are taken, a new connection
//! displaces the one that was accepted or answered longest ago; streams are never displaced. So
//! incomplete requests, idle connections and stalled readers cannot starve health checks. Shared by the thread
//! `accept` and all connections.

use std::collections::BTreeMap;
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::system::{METRICS, Permit, Semaphore};

/// A place is moved at most this often, so that busy connections do not contend for the list.
const RENEW_AFTER: Duration = Duration::from_secs(1);

pub struct Places {
    connections: Arc<Semaphore>,
    /// Guards the list of connections that do not stream. Held to add, move or remove one of them.
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    last_number: u64,
    /// By number, so in the order in which they were accepted or, after that, answered.
    occupied: BTreeMap<u64, Occupied>,
}

struct Occupied {
    socket: Arc<TcpStream>,
    permit: Permit,
}

/// A connection's place, until it streams or ends. The place may have been given to another connection; its
/// socket is then shut down.
pub struct Place {
    number: u64,
    renewed: Instant,
    places: Arc<Places>,
}

impl Places {
    pub fn new(connections: Arc<Semaphore>) -> Arc<Places> {
        Arc::new(Places { connections, list: Mutex::default() })
    }

    /// Returns a place for a new connection: a free one, or that of the connection which was accepted or
    /// answered longest ago. Returns `None` if all connections stream. Never blocks for long; called by the
    /// thread `accept`.
    pub fn admit(self: &Arc<Self>, socket: &Arc<TcpStream>) -> Option<Place> {
        let mut list = self.list.lock();
        let permit = match self.connections.try_acquire() {
            Some(permit) => permit,
            None => {
                let (_, oldest) = list.occupied.pop_first()?;
                METRICS.connections_displaced.inc();
                // Its thread notices, and ends. An error means that the peer has closed it already.
                let _ = oldest.socket.shutdown(Half::Both);
                oldest.permit
            }
        };
        let number = list.add(Occupied { socket: socket.clone(), permit });
        Some(Place { number, renewed: Instant::now(), places: self.clone() })
    }
}

impl List {
    fn add(&mut self, occupied: Occupied) -> u64 {
        self.last_number += 1;
        self.occupied.insert(self.last_number, occupied);
        self.last_number
    }
}

impl Place {
    /// Notes that a request has been answered.
    pub fn renew(&mut self) {
        if self.renewed.elapsed() < RENEW_AFTER {
            return;
        }
        self.renewed = Instant::now();
        let mut list = self.places.list.lock();
        if let Some(occupied) = list.occupied.remove(&self.number) {
            self.number = list.add(occupied);
        }
    }

    /// Turns the place into the permit of a stream, which cannot be displaced. Returns `None` if the place has
    /// been displaced already.
    pub fn into_permit(self) -> Option<Permit> {
        let occupied = self.places.list.lock().occupied.remove(&self.number)?;
        Some(occupied.permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.list.lock().occupied.remove(&self.number);
    }
}
