//! Owns: what backends have to say to clients by themselves.
//! Never: the streams (`world`).
//! Next: `view`.

use std::rc::{Rc, Weak};

use super::World;
use crate::backend::Clients;
use crate::mcp::catalog::Changes;
use crate::mcp::session::SessionId;

/// The clients of a world, for its backends.
pub(super) struct Hearers(Weak<World>);

impl World {
    /// From now on backends can reach the clients of this worker's sessions.
    pub fn listen_to_backends(self: &Rc<World>) {
        self.backends.hear(Box::new(Hearers(Rc::downgrade(self))));
    }
}

impl Clients for Hearers {
    fn push(&self, session: SessionId, message: Vec<u8>) -> bool {
        let Some(world) = self.0.upgrade() else { return false };
        let newest = world.owned.borrow().get(&session).and_then(|o| o.streams.last().copied());
        newest.is_some_and(|(worker, stream)| world.push(worker, stream, Some(message.into())))
    }

    fn lists_changed(&self, session: SessionId, changes: Changes) {
        if let Some(world) = self.0.upgrade() {
            world.announce_to(session, changes);
        }
    }

    fn views_changed(&self, changes: Changes) {
        if let Some(world) = self.0.upgrade() {
            world.announce_where(changes, |record| record.may_see_other_lists());
        }
    }
}
