//! Owns: what a child's channel tells the rest of the worker: lists, questions, notes.
//! Never: the channel (`link`).
//! Next: `own`, what the proxy itself asks.
//!
//! What the child of one session says is for that session's client: on the newest call in flight,
//! else on the client's own stream. What a shared child says without naming a call is for nobody.

use std::rc::Rc;
use std::sync::Arc;

use super::asks::{self, Back, Caller};
use super::entry::Entry;
use super::handle::Item;
use super::link::Outside;
use super::relay;
use super::{BackendMail, Backends, wishes};
use crate::jsonrpc::Envelope;
use crate::mcp::session::SessionRecord;
use crate::plan::WorkerId;

pub(super) struct Hearing {
    pub(super) backends: Rc<Backends>,
    pub(super) entry: Rc<Entry>,
    /// Whose child it is, if it is not shared.
    pub(super) session: Option<Arc<SessionRecord>>,
}

impl Hearing {
    /// Gives the session's client a notification.
    fn pass_on(&self, session: &SessionRecord, message: Vec<u8>, caller: Option<Caller>) {
        match caller {
            Some(caller) => caller.deliver(&self.backends, Item::Notification(message)),
            None => wishes::shape_and_tell(&self.backends, &self.entry, session, &message),
        }
    }
}

impl Outside for Hearing {
    fn carry(&self, to: WorkerId, id: u64, item: Item) {
        let droppable = matches!(item, Item::Notification(_));
        let mail = BackendMail::Carry { id, item };
        if droppable {
            let _ = self.backends.try_send(to, mail);
        } else {
            self.backends.send(to, mail);
        }
    }

    fn changed(&self, flags: u32) {
        self.backends.changed_in(&self.entry, self.session.as_deref(), flags);
    }

    fn updated(&self) {
        self.backends.board.outdate(self.entry.id, false, true);
    }

    fn answered(&self) {
        self.backends.succeeded(&self.entry);
    }

    fn said(&self, message: &[u8]) {
        match &self.session {
            None => wishes::said_to_all(&self.backends, &self.entry, message),
            Some(session) => wishes::said_to(&self.backends, &self.entry, session, message),
        }
    }

    fn logged(&self, message: &[u8], caller: Option<Caller>) {
        if let Some(session) = &self.session {
            // Of a call or not, a client that listens hears it where it fits in any case.
            let listens = self.backends.attended.borrow().contains(&session.id);
            self.pass_on(session, message.to_vec(), caller.filter(|_| !listens));
        }
    }

    fn is_modern(&self) -> bool {
        self.entry.era.get().is_modern()
    }

    fn asked(
        &self,
        message: &[u8],
        envelope: &Envelope,
        caller: Option<Caller>,
    ) -> Option<Vec<u8>> {
        self.backends.board.asked(self.entry.id);
        let Some(session) = &self.session else { return relay::reply(envelope, message) };
        let (backends, entry) = (&self.backends, &self.entry);
        let method = envelope.method_name(message).unwrap_or_default();
        let listens = backends.attended.borrow().contains(&session.id);
        // Where a call may end before it is answered, the client's own stream is the better place.
        let aside = listens && asks::is_of_session(backends, session, &method);
        let caller = caller.filter(|_| !aside);
        let to = caller.clone();
        match asks::open(backends, entry, session, Back::Child, caller, message, envelope) {
            Err(refusal) => return Some(refusal),
            Ok(opened) => match to {
                Some(to) => to.deliver(backends, Item::Ask(opened.message)),
                None if backends.ask_client(session.id, opened.message) => {}
                None => asks::decline(backends, opened.number),
            },
        }
        None
    }

    fn withdrawn(&self, message: &[u8], envelope: &Envelope) {
        let Some(session) = &self.session else { return };
        let found = asks::withdrawn(&self.backends, &self.entry, session, None, message, envelope);
        if let Some((message, caller)) = found {
            self.pass_on(session, message, caller);
        }
    }

    fn noted(&self, message: &[u8], caller: Option<Caller>) {
        if let Some(session) = &self.session {
            self.pass_on(session, message.to_vec(), caller);
        }
    }

    fn over(&self, id: u64) {
        asks::number_over(&self.backends, id);
    }

    fn closed(&self) {
        if let Some(session) = &self.session {
            asks::child_over(&self.backends, &self.entry, session.id);
        }
    }
}
