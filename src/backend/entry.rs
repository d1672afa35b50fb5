//! Owns: what one worker holds of one backend.
//! Never: decisions.
//! Next: `attempt`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;

use super::address::Addresses;
use super::around::Waiter;
use super::bell::Bell;
use super::leg::Slot;
use super::link::Link;
use super::listen::Listening;
use super::pool::Pool;
use super::stdio::Stdio;
use super::views::Views;
use crate::http::ClientConnection;
use crate::mcp::catalog::Slice;
use crate::mcp::revision::Era;
use crate::mcp::session::SessionId;
use crate::plan::{BackendId, BackendPlan, HttpPlan, TransportPlan, WorkerId};
use crate::rt::local::Event;

/// A backend on one worker.
pub(super) struct Entry {
    pub(super) id: BackendId,
    pub(super) plan: Arc<BackendPlan>,
    /// The worker whose supervisor keeps it up.
    pub(super) owner: WorkerId,
    /// Calls of this worker.
    pub(super) in_flight: Cell<usize>,
    /// Its first start has ended, well or not.
    pub(super) settled: Event,
    /// Calls of this worker that wait for a place (`concurrency`), first come first.
    pub(super) waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// What it speaks, as its supervisor found out.
    pub(super) era: Cell<Era>,
    /// What it offers, as last published.
    pub(super) slice: RefCell<Option<Arc<Slice>>>,
    /// Its supervisor lives; of use on the owner alone.
    pub(super) supervised: Cell<bool>,
    /// Its supervisor's, of use on the owner alone.
    pub(super) bell: Bell,
    /// What it shows to others.
    pub(super) views: Views,
    pub(super) wire: Wire,
}

/// What depends on how it is reached.
pub(super) enum Wire {
    Http(Http),
    Stdio(Stdio),
}

/// A backend over HTTP.
pub(super) struct Http {
    pub(super) pool: Pool<ClientConnection>,
    pub(super) addresses: Rc<Addresses>,
    /// Sessions with it, by client session; `None` = the proxy's own.
    pub(super) legs: RefCell<AHashMap<Option<SessionId>, Slot>>,
    /// Streams of sessions that this worker owns and whose clients listen.
    pub(super) streams: RefCell<AHashMap<SessionId, Listening>>,
}

impl Entry {
    pub(super) fn new(plan: &Arc<BackendPlan>, workers: usize) -> Entry {
        Entry {
            id: plan.id,
            plan: plan.clone(),
            owner: plan.id % workers.max(1),
            in_flight: Cell::new(0),
            settled: Event::new(),
            waiters: RefCell::default(),
            era: Cell::default(),
            supervised: Cell::new(false),
            bell: Bell::new(),
            slice: RefCell::default(),
            views: Views::default(),
            wire: match &plan.transport {
                TransportPlan::Http(http) => Wire::Http(Http {
                    pool: Pool::new(http.connections_max),
                    addresses: Addresses::new(&http.host, http.port),
                    legs: RefCell::new(AHashMap::new()),
                    streams: RefCell::new(AHashMap::new()),
                }),
                TransportPlan::Stdio(_) => Wire::Stdio(Stdio::new()),
            },
        }
    }

    /// Its name in the configuration.
    pub(super) fn name(&self) -> &str {
        &self.plan.name
    }

    /// What belongs to HTTP.
    ///
    /// # Panics
    /// For a child: callers have looked at `wire`.
    pub(super) fn http(&self) -> (&HttpPlan, &Http) {
        match (&self.plan.transport, &self.wire) {
            (TransportPlan::Http(plan), Wire::Http(http)) => (plan, http),
            _ => unreachable!("asked a child for HTTP"),
        }
    }

    /// The open channel to its child, shared or of one session.
    pub(super) fn link(&self, session: Option<SessionId>) -> Option<Rc<Link>> {
        match &self.wire {
            Wire::Stdio(stdio) => stdio.link(session),
            Wire::Http(_) => None,
        }
    }
}
