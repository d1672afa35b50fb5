//! Owns: the one accept loop of a worker, and its task per client connection.
//! Never: races the accept, as a dropped one leaks the accepted socket.
//! Next: `moves`, when they go elsewhere.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use crate::exchange::{Known, exchange};
use crate::http::{Connection, Moving, RequestHead};
use crate::limits;
use crate::mcp::header;
use crate::plan::WorkerId;
use crate::rt;
use crate::rt::local::Event;
use crate::rt::mailbox::Outbox;
use crate::rt::net::{Listener, Stream};

use super::Stage;
use super::moves::{Moved, Moves, Pull};
use super::orders::Mail;

/// The door of a worker: counts who is in.
pub(super) struct Door {
    stage: Rc<Stage>,
    /// `None`: connections come by mail only.
    listener: Option<Rc<Listener>>,
    /// The listener was told to stop.
    stopped: Cell<bool>,
    /// Connections of this worker.
    open: Cell<usize>,
    /// Connections of each address that is not loopback, as they were accepted here: some may be at
    /// other workers meanwhile.
    addresses: RefCell<AHashMap<IpAddr, usize>>,
    /// Tries to accept that failed and were not told yet, and when some were told last.
    failed: Cell<u32>,
    failed_logged: Cell<Option<Instant>>,
    /// Of all workers together; no descriptor of a connection is numbered higher.
    connections_max: usize,
    /// Set [`DRAIN_GRACE`](limits::DRAIN_GRACE) after a drain began. One timer for all: one in each
    /// task would make an idle connection larger by 2.7 KiB.
    grace_over: Rc<Event>,
    moves: Moves,
    outbox: Rc<Outbox<Mail>>,
}

/// Out of file descriptors: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

impl Door {
    pub(super) fn new(
        stage: Rc<Stage>,
        connections_max: usize,
        listener: Option<Rc<Listener>>,
        moves: Moves,
        outbox: Rc<Outbox<Mail>>,
    ) -> Rc<Door> {
        Rc::new(Door {
            stage,
            listener,
            stopped: Cell::new(false),
            open: Cell::new(0),
            addresses: RefCell::default(),
            failed: Cell::new(0),
            failed_logged: Cell::new(None),
            connections_max,
            grace_over: Rc::default(),
            moves,
            outbox,
        })
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// No request comes in any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.grace_over.is_set()
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
            Ok(stream) => {
                let connection = Connection::new(stream, peer);
                rt::spawn("connection", serve(entry, connection, Origin::Inside));
            }
            Err(error) => tracing::warn!(%error, "cannot take over a connection"),
        }
    }

    /// Serves a connection that another worker has served so far. It counts already.
    pub(super) fn take_over(self: &Rc<Door>, moved: Moved) {
        let Moved { connection, address, home } = moved;
        self.moves.came(rt::time::now());
        self.open.set(self.open.get() + 1);
        let entry = Entry { door: self.clone(), address, home, gone: Cell::new(false) };
        match connection.unpack() {
            Ok(connection) => {
                rt::spawn("connection", serve(entry, connection, Origin::Worker));
            }
            Err(error) => tracing::warn!(%error, "cannot take over a connection"),
        }
    }

    /// The descriptor with which a connection goes to worker `to`, if it goes.
    fn lets_go(&self, connection: &Connection, to: WorkerId) -> Option<OwnedFd> {
        let may = connection.may_move()
            && !self.stage.lasting.draining.is_set()
            && self.outbox.has_room(to)
            && self.moves.may_send(to, rt::time::now());
        // Without descriptors to spare it stays.
        may.then(|| connection.socket().ok()).flatten()
    }

    /// Sends it there. What it counts for goes with it.
    fn hand_over(&self, entry: &Entry, connection: Moving, to: WorkerId) {
        entry.gone.set(true);
        tracing::debug!(peer = %entry.address, to, "a connection goes where its calls go");
        let moved = Moved { connection, address: entry.address, home: entry.home };
        if self.outbox.send(to, Mail::Moved(Box::new(moved))).is_err() {
            crate::bug!("a mailbox that had room is full");
        }
    }

    /// A connection that was accepted here has ended.
    pub(super) fn left(&self, address: IpAddr) {
        if address.is_loopback() {
            return;
        }
        let mut addresses = self.addresses.borrow_mut();
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }

    /// The same, to the worker that accepted it.
    fn tell_left(&self, home: WorkerId, address: IpAddr) {
        // Then nobody new comes in, and the other worker may be gone already.
        if self.stage.lasting.draining.is_set() {
            return;
        }
        let Err(mut mail) = self.outbox.send(home, Mail::Left(address)) else { return };
        let outbox = self.outbox.clone();
        rt::spawn("left", async move {
            for _ in 0..limits::ORDER_TRIES {
                rt::time::sleep(limits::ORDER_PAUSE).await;
                match outbox.send(home, mail) {
                    Ok(()) => return,
                    Err(back) => mail = back,
                }
            }
            tracing::warn!(%address, home, "a worker did not hear of the end of a connection");
        });
    }

    /// Accepts until the listener is stopped.
    pub(super) async fn run(self: Rc<Door>) {
        let door = self.clone();
        rt::spawn("grace", async move {
            door.stage.lasting.draining.wait().await;
            rt::time::sleep(limits::DRAIN_GRACE).await;
            door.grace_over.set();
        });
        let Some(listener) = self.listener.clone() else { return };
        // Without any descriptor, clients would hang at the door: this one is given up to turn them
        // away.
        let mut reserve: Option<OwnedFd> = rt::net::reserve().ok();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    reserve = reserve.or_else(|| rt::net::reserve().ok());
                    match self.place_for(&stream, peer) {
                        Some(entry) if reserve.is_some() => {
                            let connection = Connection::new(stream, peer);
                            rt::spawn("connection", serve(entry, connection, Origin::Outside));
                        }
                        // Under TLS there is no answer without a handshake, which costs too much.
                        _ if self.stage.now().plan.listen.tls.is_some() => drop(stream),
                        None if reserve.is_some() => {
                            rt::spawn("refusal", turn_away(stream));
                        }
                        // Its descriptor is wanted for the next one.
                        _ => turn_away(stream).await,
                    }
                }
                Err(_) if self.stopped.get() => return,
                // Until somebody has come in by it.
                Err(error) if rt::net::is_out_of_files(&error) && reserve.is_some() => {
                    self.cannot_accept(&error);
                    reserve = None;
                }
                Err(error) => {
                    self.cannot_accept(&error);
                    rt::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Says so, now and then: out of descriptors, every try fails for as long as that lasts.
    fn cannot_accept(&self, error: &io::Error) {
        self.failed.set(self.failed.get() + 1);
        let now = rt::time::now();
        if self.failed_logged.get().is_some_and(|last| now.duration_since(last) < limits::LOG_QUIET)
        {
            return;
        }
        self.failed_logged.set(Some(now));
        let tries = self.failed.replace(0);
        tracing::warn!(%error, tries, "cannot accept connections; trying on");
    }

    /// A place for who was accepted, while there are descriptors for what it will ask for. The kernel
    /// gives the lowest number that is free, so this one says how many are taken: by connections, and
    /// by the calls and children behind them.
    fn place_for(self: &Rc<Door>, stream: &Stream, peer: SocketAddr) -> Option<Entry> {
        (stream.number() < self.connections_max).then(|| self.enter(peer)).flatten()
    }

    fn enter(self: &Rc<Door>, peer: SocketAddr) -> Option<Entry> {
        let counts = &self.stage.lasting.counts;
        if counts.connections.fetch_add(1, Ordering::AcqRel) >= self.connections_max {
            counts.connections.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let home = self.stage.lasting.me;
        let gone = Cell::new(false);
        let entry = Entry { door: self.clone(), address: peer.ip(), home, gone };
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
    /// The worker that accepted it, which counts its address.
    home: WorkerId,
    /// It went on to another worker, with all that it counts for.
    gone: Cell<bool>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let door = &self.door;
        door.open.set(door.open.get() - 1);
        if self.gone.get() {
            return;
        }
        let lasting = &door.stage.lasting;
        lasting.counts.connections.fetch_sub(1, Ordering::AcqRel);
        if self.home == lasting.me {
            door.left(self.address);
        } else if !self.address.is_loopback() {
            door.tell_left(self.home, self.address);
        }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The listener.
    Outside,
    /// The program that embeds the proxy has made it.
    Inside,
    /// Another worker, in the midst of it.
    Worker,
}

/// Serves one connection to its end, or until it goes to another worker.
fn serve(entry: Entry, mut connection: Connection, origin: Origin) -> impl Future<Output = ()> {
    // Moved into the task as it is: a function that is async itself would keep room for the
    // connection beside it.
    let stage = entry.door.stage.clone();
    let peer = connection.peer();
    let inside = origin == Origin::Inside;
    async move {
        let tls = stage.now().plan.listen.tls.clone();
        connection.hurry_when(entry.door.grace_over.clone());
        if inside {
            connection.come_from_inside();
        } else if let Some(tls) = tls
            && origin == Origin::Outside
            && let Err(fault) = Box::pin(connection.secure(tls)).await
        {
            tracing::debug!(%peer, %fault, "no TLS with a client");
            return;
        }
        // One wait for all requests: each would take a place among those of all connections.
        let mut over = pin!(entry.door.grace_over.wait());
        let mut known = Known::default();
        let mut pull = Pull::default();
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
            let Ok(asked) = exchange.await else { return };
            if let Some(to) = asked
                && pull.call(stage.lasting.me, to)
                && let Some(socket) = entry.door.lets_go(&connection, to)
            {
                return entry.door.hand_over(&entry, connection.pack(socket), to);
            }
        }
    }
}

/// For whom the program that embeds the proxy speaks.
fn client_of(head: &RequestHead) -> Option<SocketAddr> {
    std::str::from_utf8(head.field(header::CLIENT)?).ok()?.parse().ok()
}

/// Too many connections: says so without reading.
async fn turn_away(mut stream: Stream) {
    const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = rt::time::timeout(limits::TURN_AWAY_WAIT, stream.write_all(BUSY.to_vec())).await;
}
