//! Owns: the one accept loop of a worker, and its task per client connection.
//! Never: races the accept, as a dropped one leaks the accepted socket.
//! Next: `exchange`.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::AHashMap;

use crate::exchange::{Known, exchange};
use crate::http::{Connection, RequestHead};
use crate::limits;
use crate::mcp::header;
use crate::rt;
use crate::rt::local::Event;
use crate::rt::net::{Listener, Stream};

use super::Stage;

/// The door of a worker: counts who is in.
pub(super) struct Door {
    stage: Rc<Stage>,
    /// `None`: connections come by mail only.
    listener: Option<Rc<Listener>>,
    /// The listener was told to stop.
    stopped: Cell<bool>,
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
    pub(super) fn new(
        stage: Rc<Stage>,
        connections_max: usize,
        listener: Option<Rc<Listener>>,
    ) -> Rc<Door> {
        Rc::new(Door {
            stage,
            listener,
            stopped: Cell::new(false),
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

    /// Takes no more connections from outside; those that are open stay.
    pub(super) fn stop_listening(&self) {
        if let Some(listener) = &self.listener
            && !self.stopped.replace(true)
        {
            listener.stop();
        }
    }

    /// Serves a connection that the program that embeds the proxy has made. One too many is closed:
    /// whoever holds the other end knows what to say of it.
    pub(super) fn take_in(self: &Rc<Door>, socket: OwnedFd) {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        if self.stage.lasting.draining.is_set() {
            return;
        }
        let Some(entry) = self.enter(peer) else { return };
        match Stream::adopt(socket, peer) {
            Ok(stream) => rt::spawn("connection", serve(entry, stream, peer, true)),
            Err(error) => tracing::warn!(%error, "cannot take over a connection"),
        }
    }

    /// Accepts until the listener is stopped.
    pub(super) async fn run(self: Rc<Door>) {
        let door = self.clone();
        rt::spawn("grace", async move {
            door.stage.lasting.draining.wait().await;
            rt::time::sleep(DRAIN_GRACE).await;
            door.grace_over.set();
        });
        let Some(listener) = self.listener.clone() else { return };
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match self.enter(peer) {
                    Some(entry) => rt::spawn("connection", serve(entry, stream, peer, false)),
                    // Under TLS there is no answer without a handshake, which costs too much.
                    None if self.stage.now().plan.listen.tls.is_some() => drop(stream),
                    None => rt::spawn("refusal", turn_away(stream, peer)),
                },
                Err(_) if self.stopped.get() => return,
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

/// Serves one connection to its end. `inside`: the program that embeds the proxy has made it.
fn serve(entry: Entry, stream: Stream, peer: SocketAddr, inside: bool) -> impl Future<Output = ()> {
    let stage = entry.door.stage.clone();
    // Moved into the task as it is: a function that is async itself would keep room for the stream
    // beside it.
    let mut connection = Connection::new(stream, peer);
    async move {
        let tls = stage.now().plan.listen.tls.clone();
        if inside {
            connection.come_from_inside();
        } else if let Some(tls) = tls
            && let Err(fault) = Box::pin(connection.secure(tls)).await
        {
            tracing::debug!(%peer, %fault, "no TLS with a client");
            return;
        }
        // One wait for all requests: each would take a place among those of all connections.
        let mut over = pin!(entry.door.grace_over.wait());
        let mut known = Known::default();
        loop {
            let Some(head) = connection.head_unless(over.as_mut()).await else { return };
            if stage.lasting.draining.is_set() {
                connection.close_after();
            }
            if inside {
                connection.speaks_for(client_of(&head).unwrap_or(peer));
            }
            // The plan under which it is served to its end.
            let world = stage.now();
            // In a place of its own for as long as it lasts: inside this task it would make every
            // idle connection as large as the largest exchange.
            let exchange =
                rt::Place::pinned(|| exchange(&world, &mut connection, &head, &mut known));
            if exchange.await.is_err() {
                return;
            }
        }
    }
}

/// For whom the program that embeds the proxy speaks.
fn client_of(head: &RequestHead) -> Option<SocketAddr> {
    std::str::from_utf8(head.field(header::CLIENT)?).ok()?.parse().ok()
}

/// Too many connections: says so without reading.
async fn turn_away(mut stream: Stream, _peer: SocketAddr) {
    const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = rt::time::timeout(Duration::from_secs(1), stream.write_all(BUSY.to_vec())).await;
}
