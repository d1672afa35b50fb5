//! Owns: the worker threads: starting them on one address, noticing that one has fallen, draining.
//! Never: what a worker does.
//! Next: `entrance`, another way in.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::entrance::Entrance;
use super::resources::{bind_fault, is_free};
use crate::backend::health::Board;
use crate::limits;
use crate::middleware::custom::Maker;
use crate::plan::{Plan, WorkerId};
use crate::rt::{Driver, mailbox};
use crate::telemetry::desk::Reply;
use crate::telemetry::{Kit, Switch};
use crate::worker::Seat;
use crate::worker::moves::Loads;
use crate::worker::orders::{Change, Mail};
use crate::world::Counts;

/// How often it is looked whether workers have done what they were told.
const LOOK: Duration = Duration::from_micros(500);

/// A worker's whole life, on its thread.
pub(super) type Work = fn(Seat) -> io::Result<()>;

/// What all workers do alike.
pub(super) struct Job {
    /// See [`Work`].
    pub(super) work: Work,
    /// Whether to listen.
    pub(super) listens: bool,
    /// For each worker what makes its copy of the middleware of the program that embeds the proxy.
    pub(super) custom: Box<dyn Fn() -> Option<Maker> + Send>,
}

/// All workers.
pub(super) struct Crew {
    /// `None` once joined.
    threads: Vec<Option<JoinHandle<io::Result<()>>>>,
    orders: mailbox::Outbox<Mail>,
    /// The way in for the program that embeds the proxy.
    entrance: Arc<Entrance>,
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
        board: &Arc<Board>,
        counts: &Arc<Counts>,
        kits: Vec<Kit>,
        job: &Job,
    ) -> Result<(Crew, SocketAddr), String> {
        let mut listen = plan.listen.addr;
        if job.listens && listen.port() != 0 {
            is_free(listen).map_err(|error| bind_fault(listen, &error))?;
        }
        let (seats, mut orders) = mailbox::mesh(plan.workers, 2, limits::MAILBOX_LEN)
            .map_err(|error| format!("cannot make mailboxes: {error}"))?;
        let mut crew = Crew {
            threads: Vec::new(),
            orders: orders.pop().expect("two outsiders were asked for"),
            entrance: Arc::new(Entrance::new(orders.pop().expect("two outsiders were asked for"))),
            told: vec![false; plan.workers],
            fallen: None,
        };
        debug_assert_eq!(kits.len(), plan.workers);
        let loads = Loads::new(plan.workers);
        let mut starting = Vec::new();
        for ((id, mail), kit) in seats.into_iter().enumerate().zip(kits) {
            let (plan, board, counts) = (plan.clone(), board.clone(), counts.clone());
            let loads = loads.clone();
            let (told, is_ready) = sync_channel(1);
            let ready = Box::new(move |addr| {
                let _ = told.send(addr);
            });
            let seat = Seat {
                id,
                plan,
                driver,
                listen,
                listens: job.listens,
                mail,
                board,
                counts,
                loads,
                kit,
                connections_max,
                custom: (job.custom)(),
                ready,
            };
            crew.threads.push(Some(start_worker(seat, job.work)?));
            if id == 0 {
                listen = crew.wait_ready(&is_ready, listen)?;
            } else {
                starting.push(is_ready);
            }
        }
        for is_ready in starting {
            crew.wait_ready(&is_ready, listen)?;
        }
        Ok((crew, listen))
    }

    /// The way in for the program that embeds the proxy.
    pub(super) fn entrance(&self) -> Arc<Entrance> {
        self.entrance.clone()
    }

    /// Of nobody.
    #[cfg(test)]
    pub(super) fn none() -> Crew {
        let (_, mut orders) = mailbox::mesh(0, 2, 1).unwrap();
        Crew {
            threads: Vec::new(),
            orders: orders.remove(0),
            entrance: Arc::new(Entrance::new(orders.remove(0))),
            told: Vec::new(),
            fallen: None,
        }
    }

    /// Waits until a worker listens; where it does.
    fn wait_ready(
        &mut self,
        is_ready: &Receiver<SocketAddr>,
        wanted: SocketAddr,
    ) -> Result<SocketAddr, String> {
        if let Ok(addr) = is_ready.recv() {
            return Ok(addr);
        }
        // The worker has let go of its end: its thread is about to end, or has.
        self.drain();
        loop {
            return Err(match self.take_ended().map(|(_, outcome)| outcome) {
                Some(Ok(Err(error))) => bind_fault(wanted, &error),
                Some(Ok(Ok(()))) => "a worker ended while it started".to_owned(),
                Some(Err(panic)) => format!("a worker panicked: {}", text(&*panic)),
                None => {
                    std::thread::yield_now();
                    continue;
                }
            });
        }
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

    /// Has every worker make ready for a change.
    ///
    /// # Errors
    /// Some worker did not within [`limits::PREPARE_PATIENCE`]: none of them goes over.
    pub(super) fn prepare(
        &mut self,
        change: &Arc<Change>,
        outlets: Vec<Switch>,
    ) -> Result<(), String> {
        debug_assert_eq!(outlets.len(), self.threads.len());
        let by = Instant::now() + limits::PREPARE_PATIENCE;
        let mails = outlets.into_iter().map(|own| Mail::Prepare(change.clone(), Box::new(own)));
        let mut fault = self.to_all(by, mails).err();
        while fault.is_none() && change.ready() < self.threads.len() {
            if Instant::now() >= by {
                fault = Some("not all workers were ready in time".to_owned());
            } else if let Some(fallen) = self.fallen() {
                fault = Some(fallen);
            } else {
                std::thread::sleep(LOOK);
            }
        }
        let Some(fault) = fault else { return Ok(()) };
        let by = Instant::now() + limits::PREPARE_PATIENCE;
        if self.to_all(by, self.told.iter().map(|_| Mail::Abandon)).is_err() {
            // What is next prepared takes its place.
            tracing::warn!("a worker was not told that a reload does not come");
        }
        Err(fault)
    }

    /// Has every worker go over to a change for which all are ready; returns when they have, or one
    /// has fallen.
    pub(super) fn commit(&mut self, change: &Arc<Change>) {
        let mut told = vec![false; self.threads.len()];
        let mut late = Some(Instant::now() + limits::PREPARE_PATIENCE);
        while change.done() < self.threads.len() {
            for (id, told) in told.iter_mut().enumerate() {
                *told = *told || self.orders.send(id, Mail::Commit).is_ok();
            }
            if self.fallen().is_some() {
                return;
            }
            if late.is_some_and(|late| Instant::now() >= late) {
                tracing::warn!("a worker is late to go over to the new configuration");
                late = None;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sends every worker its mail; a full mailbox is tried again until then.
    fn to_all(&self, by: Instant, mails: impl Iterator<Item = Mail>) -> Result<(), String> {
        for (id, mut mail) in mails.enumerate() {
            while let Err(back) = self.orders.send(id, mail) {
                if Instant::now() >= by {
                    return Err(format!("the mailbox of worker {id} is full"));
                }
                mail = back;
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Sends a worker the answer to its question; one that is too busy goes without.
    pub(super) fn tell(&self, worker: WorkerId, token: u64, reply: Reply) {
        let _ = self.orders.send(worker, Mail::Told(token, reply));
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
        .spawn(move || {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            seat.kit.meter.metrics().set_thread(id, thread as u32);
            work(seat)
        })
        .map_err(|error| format!("cannot start worker {id}: {error}"))
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
