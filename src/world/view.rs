//! Owns: the catalogues of sessions that see other lists than the proxy does.
//! Never: fetching (`backend`), what most sessions see (`World::catalog`).
//! Next: `mcp`, what all of that means.
//!
//! What each backend shows to a session is the backend's affair; here it is merged, once for each
//! combination, and kept: sessions of one kind share a catalogue, and most of them that of the proxy.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::World;
use crate::backend::Seen;
use crate::limits;
use crate::mcp::catalog::{Catalog, ListKind, Slice};
use crate::mcp::session::SessionRecord;
use crate::plan::BackendId;

/// What backends show to somebody, where it is not what they show to the proxy.
type Others = Vec<(BackendId, Arc<Slice>)>;

/// The catalogues of one worker beside the common one.
#[derive(Default)]
pub(super) struct Views {
    /// Counts changes of the common one.
    version: Cell<u64>,
    /// Newest last; of the current version.
    merged: RefCell<VecDeque<(Others, Rc<Catalog>)>>,
    /// What a kind of client sees, newest last; `None` = the common one.
    kinds: RefCell<VecDeque<Kind>>,
}

struct Kind {
    class: Arc<str>,
    /// Of the backends' views, and of the common catalogue.
    versions: (u64, u64),
    catalog: Option<Rc<Catalog>>,
}

impl World {
    /// The common catalogue has changed.
    pub fn catalog_changed(&self) {
        self.views.version.set(self.views.version.get() + 1);
        self.views.merged.borrow_mut().clear();
    }

    /// The ready result of a list request of a session.
    pub async fn list(&self, record: &Arc<SessionRecord>, kind: ListKind) -> Rc<[u8]> {
        let own = match record.may_see_other_lists() {
            false => None,
            true => self.view(record).await,
        };
        own.map_or_else(|| self.catalog.borrow().list(kind), |catalog| catalog.list(kind))
    }

    /// The catalogue of a session that may see other lists than the proxy; `None` = the common one.
    /// A backend of which it cannot be told shows what it shows to the proxy.
    pub async fn view(&self, record: &Arc<SessionRecord>) -> Option<Rc<Catalog>> {
        let versions = || (self.backends.views_version(), self.views.version.get());
        if record.sees_as_its_kind()
            && let Some(catalog) = self.views.of_kind(&record.class, versions())
        {
            return catalog;
        }
        let all = self.plan.backends.iter().map(|backend| backend.id);
        let missing = |backend: &BackendId| self.backends.view_at_hand(*backend, record).is_none();
        let mut fetched: Vec<(BackendId, Option<Seen>)> = Vec::new();
        // A server may change its lists when it meets a client, and that while they are fetched: what is
        // outdated by then is fetched once more.
        for _ in 0..2 {
            let wanted: Vec<BackendId> = all.clone().filter(missing).collect();
            // All at once: each may take its time.
            wanted.iter().for_each(|backend| self.backends.want_view(*backend, record));
            for backend in wanted {
                let seen = self.backends.view(backend, record).await;
                fetched.retain(|(other, _)| *other != backend);
                fetched.push((backend, seen));
            }
        }
        // From here on nothing waits, so that all is of one moment.
        let mut others = Others::new();
        let mut whole = true;
        for backend in all {
            let seen = self.backends.view_at_hand(backend, record).or_else(|| {
                whole = false;
                // What it was a moment ago is nearer to the truth than what others see.
                fetched.iter_mut().find(|(other, _)| *other == backend)?.1.take()
            });
            if let Some(Seen::Other(slice)) = seen {
                others.push((backend, slice));
            }
        }
        let catalog = (!others.is_empty()).then(|| self.merged(others));
        if whole && record.sees_as_its_kind() {
            let kind = Kind {
                class: record.class.clone(),
                versions: versions(),
                catalog: catalog.clone(),
            };
            self.views.keep_kind(kind);
        }
        catalog
    }

    fn merged(&self, others: Others) -> Rc<Catalog> {
        let mut merged = self.views.merged.borrow_mut();
        let same = |kept: &Others| {
            kept.len() == others.len()
                && kept.iter().zip(&others).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(&a.1, &b.1))
        };
        if let Some(at) = merged.iter().position(|(kept, _)| same(kept))
            && let Some(found) = merged.remove(at)
        {
            let catalog = found.1.clone();
            merged.push_back(found);
            return catalog;
        }
        let catalog = Rc::new(self.catalog.borrow().seen_with(&others));
        if merged.len() >= limits::VIEW_LISTS_MAX {
            merged.pop_front();
        }
        merged.push_back((others, catalog.clone()));
        catalog
    }
}

impl Views {
    fn of_kind(&self, class: &Arc<str>, versions: (u64, u64)) -> Option<Option<Rc<Catalog>>> {
        let kinds = self.kinds.borrow();
        let found = kinds.iter().find(|kind| kind.class == *class && kind.versions == versions)?;
        Some(found.catalog.clone())
    }

    fn keep_kind(&self, kind: Kind) {
        let mut kinds = self.kinds.borrow_mut();
        kinds.retain(|kept| kept.class != kind.class && kept.versions == kind.versions);
        if kinds.len() >= limits::VIEW_CLASSES_MAX {
            kinds.pop_front();
        }
        kinds.push_back(kind);
    }
}
