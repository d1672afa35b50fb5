//! Owns: what one worker holds of one backend.
//! Never: decisions.
//! Next: `shelf`, answers that need no call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::address::Addresses;
use super::around::Waiter;
use super::aside::Asides;
use super::bell::Bell;
use super::leg::Slot;
use super::link::Link;
use super::listen::Listening;
use super::pool::Pool;
use super::shelf::Shelf;
use super::stdio::Channels;
use super::subscribed::Subscribed;
use super::views::Views;
use super::wishes::Wishes;
use crate::http::ClientConnection;
use crate::mcp::catalog::Slice;
use crate::mcp::revision::Era;
use crate::mcp::session::SessionId;
use crate::plan::{BackendId, BackendPlan, HttpPlan, TransportPlan, WorkerId, slot};
use crate::rt::local::{Event, Notify};

/// A backend on one worker, under the rules of one plan. A reload that changes rules makes another
/// one, with the same [`Live`]: what was begun goes on under the rules under which it was.
pub(super) struct Entry {
    pub(super) id: BackendId,
    pub(super) plan: Arc<BackendPlan>,
    /// What it offers, shaped by the rules, as last published.
    pub(super) slice: RefCell<Option<Arc<Slice>>>,
    /// Answers that are kept (`cache`).
    pub(super) shelf: Option<Rc<Shelf>>,
    live: Rc<Live>,
}

/// What outlasts the rules.
pub(super) struct Live {
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
    /// Rung when that is another than before.
    pub(super) era_changed: Notify,
    /// Its supervisor lives; of use on the owner alone.
    pub(super) supervised: Cell<bool>,
    /// Its supervisor's, of use on the owner alone.
    pub(super) bell: Bell,
    /// What sessions want of it, as far as this worker keeps that.
    pub(super) wishes: Wishes,
    /// What sessions hear of it while it is of the request era.
    pub(super) subscribed: Subscribed,
    /// What it shows to others.
    pub(super) views: Views,
    pub(super) wire: Wire,
    /// Its end has begun, or that of the proxy.
    pub(super) closing: Event,
    /// When the proxy has to be gone, once that is known: no child has longer than that.
    pub(super) end_by: Cell<Option<Instant>>,
    /// Lists wait for its first start: it was there when the proxy began. One that comes later is
    /// announced when it is up.
    pub(super) is_awaited: Cell<bool>,
    /// Its plan is in force; before that, it only takes mail.
    pub(super) is_in_force: Cell<bool>,
}

impl Deref for Entry {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

/// What depends on how it is reached.
pub(super) enum Wire {
    Http(Box<Http>),
    Stdio(Box<Channels>),
}

/// A backend over HTTP.
pub(super) struct Http {
    pub(super) pool: Pool<Box<ClientConnection>>,
    pub(super) addresses: Rc<Addresses>,
    /// Sessions with it, by client session; `None` = the proxy's own.
    pub(super) legs: RefCell<AHashMap<Option<SessionId>, Slot>>,
    /// It is spoken to over event streams (HTTP with SSE); its owner says so.
    pub(super) is_sse: Cell<bool>,
    /// Those streams.
    pub(super) channels: Channels,
    /// Streams of sessions that this worker owns and whose clients listen.
    pub(super) streams: RefCell<AHashMap<SessionId, Listening>>,
    /// Calls of callers without sessions that may be asked something.
    pub(super) asides: Asides,
}

impl Entry {
    pub(super) fn new(plan: &Arc<BackendPlan>, workers: usize) -> Entry {
        let live = Live {
            owner: slot(plan.id) % workers.max(1),
            in_flight: Cell::new(0),
            settled: Event::new(),
            waiters: RefCell::default(),
            era: Cell::default(),
            era_changed: Notify::new(),
            subscribed: Subscribed::default(),
            supervised: Cell::new(false),
            bell: Bell::new(),
            wishes: Wishes::default(),
            views: Views::default(),
            wire: match &plan.transport {
                TransportPlan::Http(http) => Wire::Http(Box::new(Http {
                    pool: Pool::new(http.connections_max),
                    addresses: Addresses::new(&http.host, http.port),
                    legs: RefCell::new(AHashMap::new()),
                    is_sse: Cell::new(http.sse.only),
                    channels: Channels::new(),
                    streams: RefCell::new(AHashMap::new()),
                    asides: Asides::default(),
                })),
                TransportPlan::Stdio(_) => Wire::Stdio(Box::new(Channels::new())),
            },
            closing: Event::new(),
            end_by: Cell::new(None),
            is_awaited: Cell::new(false),
            is_in_force: Cell::new(false),
        };
        Entry {
            id: plan.id,
            plan: plan.clone(),
            slice: RefCell::default(),
            shelf: shelf(plan),
            live: Rc::new(live),
        }
    }

    /// It was found out what it speaks; true if that is another than before.
    pub(super) fn speaks(&self, era: Era) -> bool {
        let changed = self.era.replace(era) != era;
        if changed {
            self.era_changed.notify_all();
        }
        changed
    }

    /// The same backend under other rules; what it offers is shaped anew.
    pub(super) fn under(&self, plan: &Arc<BackendPlan>) -> Entry {
        debug_assert!(self.plan.is_reached_like(plan));
        if let (Wire::Http(http), TransportPlan::Http(plan)) = (&self.wire, &plan.transport) {
            http.pool.bound(plan.connections_max);
        }
        let keeps = self.plan.chain == plan.chain;
        let slice = self.slice.borrow().as_ref().and_then(|slice| match slice.shaped(plan) {
            Ok(slice) => Some(Arc::new(slice)),
            Err(error) => {
                tracing::warn!(backend = self.name(), %error, "lists under new rules are unusable");
                None
            }
        });
        Entry {
            id: plan.id,
            plan: plan.clone(),
            slice: RefCell::new(slice),
            shelf: if keeps { self.shelf.clone() } else { shelf(plan) },
            live: self.live.clone(),
        }
    }

    /// Whether the other one is the same backend, perhaps under other rules.
    pub(super) fn is_same(&self, other: &Entry) -> bool {
        Rc::ptr_eq(&self.live, &other.live)
    }

    /// Whether its supervisor is to live.
    pub(super) fn is_kept_up(&self) -> bool {
        self.is_in_force.get() && !self.closing.is_set()
    }

    /// So long, or a share of what is left until the proxy has to be gone.
    pub(super) fn left(&self, shares: u32, limit: Duration) -> Duration {
        let Some(by) = self.end_by.get() else { return limit };
        limit.min(by.saturating_duration_since(Instant::now()) / shares)
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

    /// Its channels, to children or over event streams.
    pub(super) fn channels(&self) -> &Channels {
        match &self.wire {
            Wire::Stdio(channels) => channels,
            Wire::Http(http) => &http.channels,
        }
    }

    /// The open channel that all share, or that of one session.
    pub(super) fn link(&self, session: Option<SessionId>) -> Option<Rc<Link>> {
        self.channels().link(session)
    }
}

fn shelf(plan: &BackendPlan) -> Option<Rc<Shelf>> {
    let reuse = plan.chain.reuse.as_ref();
    reuse.and_then(|reuse| reuse.cache.as_ref()).map(|cache| Rc::new(Shelf::new(cache)))
}
