//! Owns: the one accept loop of a worker, and its task per client connection.
//! Never: races the accept, as a dropped one leaks the accepted socket.
//! Next: `exchange`.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::AHashMap;

use crate::exchange::exchange;
use crate::http::Connection;
use crate::limits;
use crate::rt;
use crate::rt::local::Event;
use crate::rt::net::{Listener, Stream};

use super::Stage;

/// The door of a worker: counts who is in.
pub(super) struct Door {
    stage: Rc<Stage>,
    /// Connections of this worker.
    open: Cell<usize>,
    /// Connections of each address that is not loopback.
    addresses: RefCell<AHashMap<IpAddr, usize>>,
    /// Of all workers together.
    connections_max: usize,
    /// Set [`DRAIN_GRACE`] after a drain began. One timer for all: one in each task would make an
    /// idle connection larger by 2.7 KiB.
    grace_over: Event,
}

/// After a drain begins, a connection may still bring one request that was under way.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// Out of file descriptors: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

impl Door {
    pub(super) fn new(stage: Rc<Stage>, connections_max: usize) -> Rc<Door> {
        Rc::new(Door {
            stage,
            open: Cell::new(0),
            addresses: RefCell::default(),
            connections_max,
            grace_over: Event::new(),
        })
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// Accepts until the listener is stopped.
    pub(super) async fn run(self: Rc<Door>, listener: Rc<Listener>) {
        let door = self.clone();
        rt::spawn("grace", async move {
            door.stage.lasting.draining.wait().await;
            rt::time::sleep(DRAIN_GRACE).await;
            door.grace_over.set();
        });
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match self.enter(peer) {
                    Some(entry) => rt::spawn("connection", serve(entry, stream, peer)),
                    // Under TLS there is no answer without a handshake, which costs too much.
                    None if self.stage.now().plan.listen.tls.is_some() => drop(stream),
                    None => rt::spawn("refusal", turn_away(stream, peer)),
                },
                Err(_) if self.stage.lasting.draining.is_set() => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying on");
                    rt::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn enter(self: &Rc<Door>, peer: SocketAddr) -> Option<Entry> {
        let counts = &self.stage.lasting.counts;
        if counts.connections.fetch_add(1, Ordering::AcqRel) >= self.connections_max {
            counts.connections.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let entry = Entry { door: self.clone(), address: peer.ip() };
        self.open.set(self.open.get() + 1);
        if !peer.ip().is_loopback() {
            let mut addresses = self.addresses.borrow_mut();
            let count = addresses.entry(peer.ip()).or_default();
            *count += 1;
            // The kernel spreads an address evenly, so each worker holds its share of the bound.
            if *count > limits::CONNECTIONS_PER_ADDRESS_MAX.div_ceil(self.stage.lasting.workers) {
                drop(addresses);
                return None;
            }
        }
        Some(entry)
    }
}

/// One connection's place; given back when dropped.
struct Entry {
    door: Rc<Door>,
    address: IpAddr,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let door = &self.door;
        door.open.set(door.open.get() - 1);
        door.stage.lasting.counts.connections.fetch_sub(1, Ordering::AcqRel);
        if !self.address.is_loopback() {
            let mut addresses = door.addresses.borrow_mut();
            if let Some(count) = addresses.get_mut(&self.address) {
                *count -= 1;
                if *count == 0 {
                    addresses.remove(&self.address);
                }
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(entry: Entry, stream: Stream, peer: SocketAddr) {
    let stage = entry.door.stage.clone();
    let mut connection = Connection::new(stream, peer);
    let tls = stage.now().plan.listen.tls.clone();
    if let Some(tls) = tls
        && let Err(fault) = Box::pin(connection.secure(tls)).await
    {
        tracing::debug!(%peer, %fault, "no TLS with a client");
        return;
    }
    loop {
        let Some(head) = connection.head_unless(entry.door.grace_over.wait()).await else { return };
        if stage.lasting.draining.is_set() {
            connection.close_after();
        }
        // The plan under which it is served to its end.
        let world = stage.now();
        // On the heap for as long as it lasts: inside this task it would make every idle connection
        // as large as the largest exchange, some 25 KiB.
        if Box::pin(exchange(&world, &mut connection, &head)).await.is_err() {
            return;
        }
    }
}

/// Too many connections: says so without reading.
async fn turn_away(mut stream: Stream, _peer: SocketAddr) {
    const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = rt::time::timeout(Duration::from_secs(1), stream.write_all(BUSY.to_vec())).await;
}
