//! Owns: what becomes of the backends of a worker when a reload brings another plan.
//! Never: what a plan says; when it comes into force (`worker`).
//! Next: `telemetry`, what is seen of it.
//!
//! A backend that is reached as before goes on with all that is open to it, under its new rules. One
//! that comes takes mail from the moment at which the plan is prepared, since another worker may
//! bring it up first. One that leaves gets no new calls; when the last one under way has ended, on
//! whichever worker, or the time for that is over, its children are stopped and its connections
//! closed, and its place is given back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Wire};
use super::health::State;
use super::relay::changed;
use super::{Backends, around, left, leg, stand_in, supervise, views, wishes};
use crate::error::Result;
use crate::limits;
use crate::plan::{BackendId, Isolation, Plan, slot};
use crate::rt;

/// The backends of a worker, by place and in order.
pub(super) struct Table {
    /// Those of the plan in the order of the file, then those that leave.
    all: RefCell<Rc<[Rc<Entry>]>>,
    /// By place, those that are to come too.
    at: RefCell<Vec<Option<Rc<Entry>>>>,
}

impl Table {
    pub(super) fn new(plan: &Plan) -> Table {
        let table = Table { all: RefCell::default(), at: RefCell::default() };
        let all: Vec<Rc<Entry>> = plan
            .backends
            .iter()
            .map(|plan_of| Rc::new(Entry::new(plan_of, plan.workers)))
            .collect();
        for entry in &all {
            entry.is_in_force.set(true);
            entry.is_awaited.set(true);
            table.put(entry);
        }
        *table.all.borrow_mut() = all.into();
        table
    }

    fn put(&self, entry: &Rc<Entry>) {
        let mut at = self.at.borrow_mut();
        let slot = slot(entry.id);
        if at.len() <= slot {
            at.resize(slot + 1, None);
        }
        at[slot] = Some(entry.clone());
    }

    /// Forgets an entry, unless its place has been given to another one.
    fn remove(&self, id: BackendId) {
        let mut at = self.at.borrow_mut();
        if let Some(place) = at.get_mut(slot(id))
            && place.as_ref().is_some_and(|entry| entry.id == id)
        {
            *place = None;
        }
    }
}

/// A plan's backends that are not in force yet.
pub struct Staged {
    plan: Arc<Plan>,
    /// That this worker has never heard of before.
    new: Vec<Rc<Entry>>,
}

/// How often one that leaves is looked at.
const LOOK: Duration = Duration::from_millis(20);

impl Backends {
    /// The backend of that number, one that comes or leaves too.
    pub(super) fn entry(&self, id: BackendId) -> Option<Rc<Entry>> {
        let at = self.table.at.borrow();
        at.get(slot(id))?.as_ref().filter(|entry| entry.id == id).cloned()
    }

    /// As [`Backends::entry`], for a call of it.
    pub(super) fn entry_of(&self, id: BackendId) -> Result<Rc<Entry>> {
        self.entry(id).ok_or_else(left)
    }

    /// Those in force in the order of the file, then those that leave.
    pub(super) fn entries(&self) -> Rc<[Rc<Entry>]> {
        self.table.all.borrow().clone()
    }

    /// All that are known, those that are to come too.
    pub(super) fn known(&self) -> Vec<Rc<Entry>> {
        self.table.at.borrow().iter().flatten().cloned().collect()
    }

    /// Prepares the backends of a plan: from now on those that come take mail.
    pub fn stage(&self, plan: &Arc<Plan>) -> Staged {
        let new = plan.backends.iter().filter(|backend| self.entry(backend.id).is_none());
        let new: Vec<Rc<Entry>> =
            new.map(|backend| Rc::new(Entry::new(backend, self.workers))).collect();
        new.iter().for_each(|entry| self.table.put(entry));
        Staged { plan: plan.clone(), new }
    }

    /// The plan that was prepared does not come.
    pub fn abandon(&self, staged: &Staged) {
        staged.new.iter().for_each(|entry| self.table.remove(entry.id));
    }

    /// The prepared plan is in force from now on. What each backend offers, as far as it is known, is
    /// in [`Backends::offers`] then. Whether a backend came that sessions share: it has to hear of
    /// their levels.
    pub fn commit(self: &Rc<Self>, staged: Staged) -> bool {
        let shared = |entry: &Rc<Entry>| entry.plan.isolation == Isolation::Shared;
        let is_shared = staged.new.iter().any(shared);
        let plan = staged.plan;
        let before = self.entries();
        let mut all = Vec::with_capacity(plan.backends.len());
        let mut rules = Vec::new();
        for backend in &plan.backends {
            // It was staged, so it is there.
            let Some(entry) = self.entry(backend.id) else { continue };
            let entry = match Arc::ptr_eq(&entry.plan, backend) {
                true => entry,
                false => {
                    let new = Rc::new(entry.under(backend));
                    self.table.put(&new);
                    rules.push((entry, new.clone()));
                    new
                }
            };
            all.push(entry);
        }
        let leaves: Vec<Rc<Entry>> =
            before.iter().filter(|old| !all.iter().any(|new| new.is_same(old))).cloned().collect();
        *self.plan.borrow_mut() = plan.clone();
        *self.table.all.borrow_mut() = all.iter().chain(&leaves).cloned().collect();
        for (old, new) in &rules {
            self.follow_rules(old, new);
        }
        for entry in &all {
            if !entry.is_in_force.replace(true) && entry.owner == self.me {
                supervise::start(self, entry);
            }
        }
        for entry in leaves {
            // It may be leaving already.
            if entry.is_in_force.replace(false) {
                wishes::bequeath(self, &entry);
                let patience = plan.shutdown_timeout;
                rt::spawn("backend that leaves", self.clone().see_off(entry, patience));
            }
        }
        is_shared
    }

    /// What each backend of the plan offers, as far as it is known.
    pub fn offers(&self) -> impl Iterator<Item = (BackendId, Arc<crate::mcp::catalog::Slice>)> {
        let entries = self.entries();
        let offers: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_in_force.get())
            .filter_map(|entry| {
                let own = entry.slice.borrow().clone();
                Some((entry.id, own.or_else(|| stand_in::offered(self, entry))?))
            })
            .collect();
        offers.into_iter()
    }

    /// A backend has other rules.
    fn follow_rules(self: &Rc<Self>, old: &Rc<Entry>, new: &Rc<Entry>) {
        if old.plan.chain != new.plan.chain || old.plan.prefix != new.plan.prefix {
            // What clients of some kind see was shaped by the old ones.
            views::drop_all(self, new, changed::ANY);
        }
        around::follow_rules(self, old, new);
        if new.owner == self.me {
            let tools = new.slice.borrow().as_ref().map_or(0, |slice| slice.tools.len());
            self.board.set_tools(new.id, tools);
            new.bell.ring(supervise::RULES);
        }
    }

    /// Lets a backend go when nobody needs it any more.
    async fn see_off(self: Rc<Self>, entry: Rc<Entry>, patience: Duration) {
        let began = Instant::now();
        loop {
            rt::time::sleep(LOOK).await;
            let busy = self.board.in_flight(entry.id) > 0 || !entry.waiters.borrow().is_empty();
            let over = began.elapsed() >= patience.max(limits::LEAVE_GRACE);
            if over || self.stopping.is_set() || (!busy && began.elapsed() >= limits::LEAVE_GRACE) {
                if over && busy {
                    tracing::warn!(backend = entry.name(), "its last calls are cut");
                }
                break;
            }
        }
        if !self.stopping.is_set() {
            self.close(&entry).await;
        }
        self.table.remove(entry.id);
        let all = self.entries();
        *self.table.all.borrow_mut() =
            all.iter().filter(|other| !other.is_same(&entry)).cloned().collect();
        self.board.leave(entry.id);
    }

    /// Ends all that is open to a backend.
    async fn close(self: &Rc<Self>, entry: &Rc<Entry>) {
        entry.subscribed.forget(|_| true);
        self.let_go(entry);
        self.clock.end_calls_of(entry.id);
        leg::end_all(self, std::slice::from_ref(entry), limits::SESSION_ENDS_WAIT).await;
        // Each has a limit of its own. The place is not given back before: what still writes there
        // would write over another one.
        let open = || entry.supervised.get() || entry.channels().alive() > 0;
        while open() || entry.in_flight.get() > 0 {
            rt::time::sleep(LOOK).await;
        }
        if let Wire::Http(http) = &entry.wire {
            http.pool.clear();
        }
        if entry.owner == self.me {
            self.board.set(entry.id, State::Stopped, None);
            tracing::info!(backend = entry.name(), "backend has left");
        }
    }
}
