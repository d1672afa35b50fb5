//! Owns: what backends have to say to clients by themselves, on its way to them.
//! Never: the streams (`streams`).
//! Next: `tally`, how many sessions each principal has.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::{Lasting, World};
use crate::backend::Clients;
use crate::mcp::catalog::Changes;
use crate::mcp::session::SessionId;

/// The clients of a world, for its backends.
struct Hearers(Weak<Lasting>);

impl Hearers {
    fn world(&self) -> Option<Rc<World>> {
        self.0.upgrade()?.current()
    }
}

impl Lasting {
    /// From now on backends can reach clients.
    pub fn listen_to_backends(self: &Rc<Lasting>) {
        self.backends.hear(Box::new(Hearers(Rc::downgrade(self))));
    }
}

impl Clients for Hearers {
    fn tell(&self, session: SessionId, message: Vec<u8>) {
        if let Some(world) = self.world() {
            world.tell(session, message.into());
        }
    }

    fn ask(&self, session: SessionId, message: Vec<u8>) -> bool {
        let Some(world) = self.world() else { return false };
        // Where nobody reads just now, the backend would wait for who may never come back.
        world.is_listened(session) && world.say(session, message.into()) == Some(true)
    }

    fn lists_changed(&self, session: SessionId, changes: Changes, pause: Duration) {
        if let Some(world) = self.world() {
            world.announce_soon(session, changes, pause);
        }
    }

    fn views_changed(&self, changes: Changes) {
        if let Some(world) = self.world() {
            world.announce_where(changes, |record| record.may_see_other_lists());
        }
    }
}
