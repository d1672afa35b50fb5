//! Owns: the worker threads: starting them on one address, noticing that one has fallen, draining.
//! Never: what a worker does.
//! Next: `banner`, what people read.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;

use super::{bind_fault, is_free};
use crate::backend::health::{self, Board};
use crate::limits;
use crate::plan::{Plan, WorkerId};
use crate::rt::{Driver, mailbox};
use crate::worker::{self, orders::Mail};
use crate::world::Counts;

/// What a worker is given at its start.
pub(super) struct Seat {
    /// Which worker it is.
    pub(super) id: WorkerId,
    /// The settings in force.
    pub(super) plan: Arc<Plan>,
    /// How its ring is driven.
    pub(super) driver: Driver,
    /// Where to listen; every worker binds the same address.
    pub(super) listen: SocketAddr,
    /// Its mailbox, and the way to the others'.
    pub(super) mail: mailbox::Seat<Mail>,
    /// The state of backends, readable from every thread.
    pub(super) board: Arc<Board>,
    /// Counts that are exact over all workers.
    pub(super) counts: Arc<Counts>,
    /// Client connections at most, over all workers.
    pub(super) connections_max: usize,
    /// To the control thread.
    pub(super) notes: SyncSender<Note>,
}

/// Said to the control thread; lost when its queue is full, as nothing depends on it.
#[derive(Debug)]
pub(super) enum Note {
    /// The worker accepts connections at this address.
    Listening {
        /// Which worker.
        worker: WorkerId,
        /// With the port that the kernel chose.
        addr: SocketAddr,
    },
    /// Something about a backend changed.
    Backend(health::Note),
}

/// A worker's whole life, on its thread.
pub(super) type Work = fn(Seat) -> io::Result<()>;

/// What workers do.
pub(super) const WORK: Work = |seat| {
    let Seat { id, plan, driver, listen, mail, board, counts, connections_max, notes } = seat;
    let ready = Box::new(move |addr| drop(notes.send(Note::Listening { worker: id, addr })));
    worker::run(worker::Seat {
        id,
        plan,
        driver,
        listen,
        mail,
        board,
        counts,
        connections_max,
        ready,
    })
};

/// All workers.
pub(super) struct Crew {
    /// `None` once joined.
    threads: Vec<Option<JoinHandle<io::Result<()>>>>,
    orders: mailbox::Outbox<Mail>,
    /// Workers that have been told to drain.
    told: Vec<bool>,
    /// The first that ended before it was told, or not well.
    fallen: Option<String>,
}

impl Crew {
    /// Starts all workers, and waits until all of them listen; where they do.
    ///
    /// The first one binds alone: with port 0 the others must follow it, and what stands in the
    /// way of one stands in the way of all.
    ///
    /// # Errors
    /// What to tell the user.
    pub(super) fn start(
        plan: &Arc<Plan>,
        driver: Driver,
        connections_max: usize,
        notes: &SyncSender<Note>,
        inbox: &Receiver<Note>,
        work: Work,
    ) -> Result<(Crew, SocketAddr), String> {
        let mut listen = plan.listen.addr;
        if listen.port() != 0 {
            is_free(listen).map_err(|error| bind_fault(listen, &error))?;
        }
        let (seats, mut orders) = mailbox::mesh(plan.workers, 1, limits::MAILBOX_LEN)
            .map_err(|error| format!("cannot make mailboxes: {error}"))?;
        let mut crew = Crew {
            threads: Vec::new(),
            orders: orders.pop().expect("one outsider was asked for"),
            told: vec![false; plan.workers],
            fallen: None,
        };
        let news = notes.clone();
        let tell = Box::new(move |note| drop(news.try_send(Note::Backend(note))));
        let board = Board::new(plan.workers, plan.backends.len(), tell);
        let counts = Arc::new(Counts::default());
        for (id, mail) in seats.into_iter().enumerate() {
            let (plan, notes) = (plan.clone(), notes.clone());
            let (board, counts) = (board.clone(), counts.clone());
            let seat =
                Seat { id, plan, driver, listen, mail, board, counts, connections_max, notes };
            crew.threads.push(Some(start_worker(seat, work)?));
            if id == 0 {
                listen = crew.wait_listening(1, inbox, listen)?;
            }
        }
        crew.wait_listening(plan.workers - 1, inbox, listen)?;
        Ok((crew, listen))
    }

    /// Waits for `count` workers; the address of the last one.
    fn wait_listening(
        &mut self,
        count: usize,
        inbox: &Receiver<Note>,
        wanted: SocketAddr,
    ) -> Result<SocketAddr, String> {
        let mut bound = wanted;
        let mut missing = count;
        while missing > 0 {
            match inbox.recv_timeout(limits::CONTROL_TICK) {
                Ok(Note::Listening { worker, addr }) => {
                    tracing::debug!(worker, "listens on {addr}");
                    bound = addr;
                    missing -= 1;
                }
                // What backends did meanwhile is told again by their next change.
                Ok(Note::Backend(_)) => {}
                Err(_) => {
                    if let Some(outcome) = self.take_ended().map(|(_, outcome)| outcome) {
                        self.drain();
                        return Err(match outcome {
                            Ok(Err(error)) => bind_fault(wanted, &error),
                            Ok(Ok(())) => "a worker ended while it started".to_owned(),
                            Err(panic) => format!("a worker panicked: {}", text(&*panic)),
                        });
                    }
                }
            }
        }
        Ok(bound)
    }

    /// A thread that has ended and was not joined yet, joined.
    fn take_ended(&mut self) -> Option<(WorkerId, std::thread::Result<io::Result<()>>)> {
        let ended = |slot: &Option<JoinHandle<_>>| slot.as_ref().is_some_and(|t| t.is_finished());
        let id = self.threads.iter().position(ended)?;
        let thread = self.threads[id].take()?;
        Some((id, thread.join()))
    }

    /// What to say of a worker that ended unasked, or with an error or a panic.
    pub(super) fn fallen(&mut self) -> Option<String> {
        while let Some((id, outcome)) = self.take_ended() {
            let message = match outcome {
                Ok(Ok(())) if self.told[id] => continue,
                Ok(Ok(())) => format!("worker {id} ended unasked"),
                Ok(Err(error)) => format!("worker {id} failed: {error}"),
                Err(panic) => format!("worker {id} panicked: {}", text(&*panic)),
            };
            self.fallen.get_or_insert(message);
        }
        self.fallen.clone()
    }

    /// Tells every worker that was not told yet; a full mailbox is tried again next time.
    pub(super) fn drain(&mut self) {
        for (id, told) in self.told.iter_mut().enumerate() {
            *told = *told || self.orders.send(id, Mail::Drain).is_ok();
        }
    }

    /// Whether every thread has ended.
    pub(super) fn is_done(&self) -> bool {
        self.threads.iter().flatten().all(JoinHandle::is_finished)
    }
}

/// Starts one worker on a thread of its own.
fn start_worker(seat: Seat, work: Work) -> Result<JoinHandle<io::Result<()>>, String> {
    let id = seat.id;
    std::thread::Builder::new()
        .name(format!("worker-{id}"))
        .spawn(move || work(seat))
        .map_err(|error| format!("cannot start worker {id}: {error}"))
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
