//! Owns: clients of the request era that listen for changed lists.
//! Never: their streams (`exchange`).
//! Next: `view`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::World;
use crate::mcp::catalog::Changes;
use crate::rt::local::Notify;

/// Gathers changes until they are taken.
#[derive(Default)]
pub(super) struct Ear {
    changes: Cell<Changes>,
    news: Notify,
}

/// An ear that is open; dropped, it is closed.
pub struct OpenEar {
    world: Rc<World>,
    token: u64,
    ear: Rc<Ear>,
    /// Its client has a stream.
    streams: Cell<bool>,
}

impl World {
    /// Hears of every change of lists from now on.
    pub fn open_ear(self: &Rc<World>) -> OpenEar {
        let (token, ear) = (self.token(), Rc::<Ear>::default());
        self.ears.borrow_mut().insert(token, ear.clone());
        OpenEar { world: self.clone(), token, ear, streams: Cell::new(false) }
    }

    /// Tells all who listen.
    pub(super) fn tell_ears(&self, changes: Changes) {
        for ear in self.ears.borrow().values() {
            let mut all = ear.changes.get();
            all.add(changes);
            ear.changes.set(all);
            ear.news.notify_all();
        }
    }
}

impl OpenEar {
    /// Its client has an event stream from now on.
    pub fn streams(&self) {
        if !self.streams.replace(true) {
            self.world.counts.streams.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What changed since it was last asked; waits until something has. A drop loses nothing.
    pub async fn changed(&self) -> Changes {
        loop {
            let news = self.ear.news.notified();
            let changes = self.ear.changes.take();
            if changes != Changes::default() {
                return changes;
            }
            news.await;
        }
    }
}

impl Drop for OpenEar {
    fn drop(&mut self) {
        self.world.ears.borrow_mut().remove(&self.token);
        if self.streams.get() {
            self.world.counts.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
