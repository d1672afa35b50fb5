//! Owns: one thread of the data plane: a ring, a listener, a world.
//! Never: a lock, file I/O, a name look-up; anything mutable that another thread sees, but single
//! atomics that say so (`Board`, `Counts`, `Loads`).
//! Next: `orders`, what may be said to it.

mod accept;
pub mod moves;
pub mod orders;

use std::cell::{OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backend::health::Board;
use crate::backend::{Backends, Staged};
use crate::limits;
use crate::middleware::custom::Maker;
use crate::plan::{Plan, WorkerId};
use crate::rt;
use crate::rt::mailbox::{self, Inbox, Outbox};
use crate::rt::net::Listener;
use crate::telemetry::{Kit, Switch};
use crate::world::{Counts, Lasting, World};
use accept::Door;
use moves::{Loads, Moves};
use orders::{Change, Mail};

/// What a worker is given at its start.
pub struct Seat {
    /// Which worker it is.
    pub id: WorkerId,
    /// The settings in force.
    pub plan: Arc<Plan>,
    /// How its ring is driven.
    pub driver: rt::Driver,
    /// Where to listen; every worker binds the same address.
    pub listen: SocketAddr,
    /// Whether to listen at all.
    pub listens: bool,
    /// Its mailbox, and the way to the others'.
    pub mail: mailbox::Seat<Mail>,
    /// The state of backends, readable from every thread.
    pub board: Arc<Board>,
    /// Counts that are exact over all workers.
    pub counts: Arc<Counts>,
    /// How busy the workers are.
    pub loads: Arc<Loads>,
    /// What it tells to the outside.
    pub kit: Kit,
    /// Client connections at most, over all workers.
    pub connections_max: usize,
    /// Makes its copy of the middleware of the program that embeds the proxy.
    pub custom: Option<Maker>,
    /// Told the address once connections are accepted; dropped untold if it comes to nothing.
    pub ready: Box<dyn FnOnce(SocketAddr) + Send>,
}

/// Runs a worker on this thread until it is drained.
///
/// # Errors
/// The address cannot be bound, or the ring cannot be made.
pub fn run(seat: Seat) -> io::Result<()> {
    seat.driver.run(work(seat))?
}

async fn work(seat: Seat) -> io::Result<()> {
    let Seat {
        id,
        plan,
        listen,
        listens,
        mail,
        board,
        counts,
        loads,
        kit,
        connections_max,
        custom,
        ready,
        ..
    } = seat;
    let listener = match listens {
        true => Some(Rc::new(Listener::bind(listen)?)),
        false => None,
    };
    let addr = listener.as_ref().map_or(Ok(listen), |listener| listener.local_addr())?;
    let mailbox::Seat { outbox, inbox } = mail;
    let outbox = Rc::new(outbox);
    let _looker = rt::busy_poll::start(plan.busy_poll);
    rt::spawn("bells", Outbox::deliver(Rc::downgrade(&outbox)));

    let post_backend = {
        let outbox = outbox.clone();
        move |to, mail| match outbox.send(to, Mail::Backend(mail)) {
            Err(Mail::Backend(mail)) => Err(mail),
            _ => Ok(()),
        }
    };
    let post_session = {
        let outbox = outbox.clone();
        move |to, mail| match outbox.send(to, Mail::Session(mail)) {
            Err(Mail::Session(mail)) => Err(mail),
            _ => Ok(()),
        }
    };
    // The world needs its backends, and a backend that changes needs the world.
    let lasting: Rc<OnceCell<Weak<Lasting>>> = Rc::default();
    let on_slice = {
        let lasting = lasting.clone();
        Box::new(move |backend, slice| {
            let lasting = lasting.get().and_then(Weak::upgrade);
            let Some(world) = lasting.and_then(|lasting| lasting.current()) else { return };
            let changes = world.catalog.borrow_mut().set(backend, slice);
            world.catalog_changed();
            tell_conflicts(&world);
            world.announce(changes);
        })
    };
    let backends = Backends::new(id, &plan, Rc::new(post_backend), board, on_slice);
    let Kit { meter, desk, outlets } = kit;
    let post = Rc::new(post_session);
    let custom = custom.map(|make| make());
    let this = Lasting::new(id, plan.workers, backends.clone(), counts, post, meter, desk, custom);
    let _ = lasting.set(Rc::downgrade(&this));
    this.listen_to_backends();
    let stage = Stage::new(this.clone(), plan, outlets);

    let moves = Moves::new(id, loads, rt::time::exact());
    let door = Door::new(stage.clone(), connections_max, listener, moves, outbox.clone());
    rt::spawn("mail", hear(inbox, stage.clone(), door.clone()));
    rt::spawn("sweep", sweep(Rc::downgrade(&this)));
    backends.start();
    rt::spawn("accept", door.clone().run());
    ready(addr);

    this.draining.wait().await;
    leave(&stage, &door, &backends).await;
    Ok(())
}

/// What the other workers and the control thread say, for as long as there are any.
async fn hear(inbox: Inbox<Mail>, stage: Rc<Stage>, door: Rc<Door>) {
    let end = stage.lasting.draining.clone();
    let served = inbox.serve(move |from, mail| match mail {
        Mail::Backend(mail) => stage.lasting.backends.on_mail(from, mail),
        Mail::Session(mail) => stage.now().receive(from, mail),
        Mail::Told(token, reply) => stage.now().told(token, reply),
        Mail::Prepare(change, outlets) => stage.prepare(change, *outlets),
        Mail::Commit => stage.commit(),
        Mail::Abandon => stage.abandon(),
        Mail::Moved(moved) => door.take_over(*moved),
        Mail::Left(address) => door.left(address),
        Mail::Inside(socket) => door.take_in(socket),
        Mail::StopListening => door.stop_listening(),
        Mail::Drain => stage.lasting.draining.set(),
    });
    if let Err(error) = served.await {
        // A worker that hears nothing is as good as dead, and the process ends with it.
        tracing::error!(%error, "a worker cannot hear its mail");
    }
    end.set();
}

/// Ends sessions that nobody uses any more.
async fn sweep(lasting: Weak<Lasting>) {
    loop {
        rt::time::sleep(limits::SESSION_SWEEP_INTERVAL).await;
        let Some(world) = lasting.upgrade().and_then(|lasting| lasting.current()) else { return };
        world.sweep(rt::time::now());
    }
}

/// The end of a worker: nobody new comes in, who is in may finish, then the backends go.
async fn leave(stage: &Stage, door: &Door, backends: &Rc<Backends>) {
    let patience = stage.now().plan.shutdown_timeout;
    backends.end_by(rt::time::exact() + patience);
    door.stop_listening();
    stage.now().end_streams();
    // A call of another worker may be under way at a child of ours: all leave before any backend
    // is stopped that may still be called.
    let counts = &stage.lasting.counts;
    let connections = async {
        while counts.connections.load(Ordering::Acquire) > 0 {
            rt::time::sleep(Duration::from_millis(10)).await;
            if door.is_quiet() {
                backends.part();
            }
        }
    };
    let reserve = limits::SHUTDOWN_RESERVE.min(patience / 10);
    if rt::time::timeout(patience - reserve, connections).await.is_err() {
        tracing::warn!(open = door.open(), "connections are cut: the time to shut down is over");
    }
    backends.stop().await;
}

/// All workers see the same; one says it.
fn tell_conflicts(world: &World) {
    if world.me == 0 {
        let count = world.catalog.borrow().conflict_count();
        world.counts.conflicts.store(count, Ordering::Relaxed);
        for conflict in world.catalog.borrow().new_conflicts() {
            tracing::warn!(%conflict, remedy = conflict.remedy(), "two backends have the same");
        }
    }
}

/// The world in force, and the one that is to come.
struct Stage {
    lasting: Rc<Lasting>,
    now: RefCell<Rc<World>>,
    next: RefCell<Option<(Arc<Change>, Staged, Switch)>>,
}

impl Stage {
    fn new(lasting: Rc<Lasting>, plan: Arc<Plan>, outlets: Switch) -> Rc<Stage> {
        let now = RefCell::new(World::enter(&lasting, plan, outlets, None));
        Rc::new(Stage { lasting, now, next: RefCell::default() })
    }

    /// What an exchange that begins now is served by.
    fn now(&self) -> Rc<World> {
        self.now.borrow().clone()
    }

    fn prepare(&self, change: Arc<Change>, outlets: Switch) {
        self.abandon();
        let staged = self.lasting.backends.stage(&change.plan);
        change.is_ready();
        *self.next.borrow_mut() = Some((change, staged, outlets));
    }

    fn abandon(&self) {
        if let Some((_, staged, _)) = self.next.borrow_mut().take() {
            self.lasting.backends.abandon(&staged);
        }
    }

    /// Exchanges under way keep their world; those that begin from here on have the new one.
    fn commit(&self) {
        let Some((change, staged, outlets)) = self.next.borrow_mut().take() else { return };
        rt::busy_poll::set(change.plan.busy_poll);
        self.lasting.meter.switch(change.table.clone());
        let comes_shared = self.lasting.backends.commit(staged);
        let before = self.now();
        let world = World::enter(&self.lasting, change.plan.clone(), outlets, Some(&before));
        *self.now.borrow_mut() = world.clone();
        let mut changes = world.catalog.borrow().changes_from(&before.catalog.borrow());
        // The proxy's own tools stand behind those of the catalogue.
        changes.tools |= world.plan.watch.admin_tools != before.plan.watch.admin_tools;
        if change.is_other_access {
            before.dismissed.set();
        }
        drop(before);
        if comes_shared {
            world.repeat_levels();
        }
        tell_conflicts(&world);
        world.announce(changes);
        change.is_done();
    }
}
