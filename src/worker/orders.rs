//! Owns: what may be said to a worker.
//! Never: the mailboxes themselves (`rt::mailbox`).
//! Next: `accept`, where its connections begin.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::moves::Moved;
use crate::backend::BackendMail;
use crate::plan::Plan;
use crate::telemetry::Switch;
use crate::telemetry::desk::Reply;
use crate::telemetry::metrics::Table;
use crate::world::SessionMail;

/// A plan that is to take the place of the one in force.
pub struct Change {
    /// The plan; with the numbers that backends have in the one in force, as far as they go on.
    pub plan: Arc<Plan>,
    /// Which backend counts where.
    pub table: Arc<Table>,
    /// Who may call, or what, is another matter than before.
    pub is_other_access: bool,
    /// Workers that are ready, and those that have gone over to it.
    ready: AtomicUsize,
    done: AtomicUsize,
}

impl Change {
    /// To that plan.
    pub fn new(plan: Arc<Plan>, table: Arc<Table>, is_other_access: bool) -> Change {
        Change {
            plan,
            table,
            is_other_access,
            ready: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    /// One worker more is ready.
    pub(super) fn is_ready(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// One worker more has gone over to it.
    pub(super) fn is_done(&self) {
        self.done.fetch_add(1, Ordering::AcqRel);
    }

    /// How many workers are ready.
    pub fn ready(&self) -> usize {
        self.ready.load(Ordering::Acquire)
    }

    /// How many have gone over to it.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Acquire)
    }
}

/// Mail for a worker.
pub enum Mail {
    /// From another worker, about backends.
    Backend(BackendMail),
    /// From another worker, about client sessions.
    Session(SessionMail),
    /// From the control thread: the answer to a question.
    Told(u64, Reply),
    /// From the control thread: make ready for another plan, and say so in the change.
    Prepare(Arc<Change>, Box<Switch>),
    /// From the control thread: all workers are ready; the plan is in force from now on.
    Commit,
    /// From the control thread: the plan does not come.
    Abandon,
    /// From another worker: a connection whose calls go to children of the receiver.
    Moved(Box<Moved>),
    /// To the worker that accepted a connection of this address: it has ended at another one.
    Left(IpAddr),
    /// From the program that embeds the proxy: a connection that it has made, one end of a pair of
    /// stream sockets.
    Inside(OwnedFd),
    /// From the same: take no connections but those.
    StopListening,
    /// From the control thread: finish what is in flight, then end.
    Drain,
}
