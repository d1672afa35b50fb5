//! Owns: what backends say by themselves, on its way to clients.
//! Never: the streams (`streams`).
//! Next: `tape`.

use std::rc::{Rc, Weak};

use super::World;
use crate::backend::Clients;
use crate::mcp::session::SessionId;

/// The clients of a world, for its backends.
struct Hearers(Weak<World>);

impl World {
    /// From now on backends can reach clients.
    pub fn listen_to_backends(self: &Rc<World>) {
        self.backends.hear(Box::new(Hearers(Rc::downgrade(self))));
    }
}

impl Clients for Hearers {
    fn tell(&self, session: SessionId, message: Vec<u8>) {
        if let Some(world) = self.0.upgrade() {
            world.tell(session, message.into());
        }
    }
}
