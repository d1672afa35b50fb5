//! Owns: calls of children, from whichever worker they come.
//! Never: the channel itself (`link`).
//! Next: `link`, the channel to one.

use std::rc::Rc;
use std::sync::Arc;

use super::attempt::Ended;
use super::entry::Entry;
use super::failure::Failure;
use super::handle::{CallHandle, Item, Stop};
use super::link::{Behind, Link, Outgoing, Route, Waiter};
use super::names::Own;
use super::{BackendMail, Backends, Call, Reply, stdio};
use crate::error::Kind;
use crate::jsonrpc::Span;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::{BackendId, Isolation, WorkerId};
use crate::rt;

/// The replies of a child to one call.
pub(super) struct LineReplies {
    backends: Rc<Backends>,
    handle: Rc<CallHandle>,
    backend: BackendId,
    id: u64,
    place: Place,
    done: bool,
}

/// Where the child is.
enum Place {
    Here(Rc<Link>),
    Away(WorkerId, Option<SessionId>),
}

/// Sends a call to its child; waits only while the child is starting.
pub(super) async fn call(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    call: Call,
) -> Result<LineReplies, Ended> {
    let session = call.session.filter(|_| entry.plan.isolation == Isolation::Session);
    let owner = session.as_ref().map_or(entry.owner, |session| session.id.owner());
    call.handle.trail().goes_to(owner);
    let id = backends.number();
    // In a child that all share nobody can tell which of the callers without sessions is asked; one of
    // their own era asks nothing.
    let nobodys = call.modern.is_some() && session.is_none() && !entry.era.get().is_modern();
    let deaf = call.handle.is_deaf() || nobodys;
    let behind = Behind::call(deaf);
    let place = if owner == backends.me {
        let key = session.as_ref().map(|session| session.id);
        let link = match entry.link(key) {
            Some(link) => link,
            None => {
                let link = Box::pin(stdio::wait_for(backends, entry, session.as_ref()));
                call.handle.watch(link).await??
            }
        };
        let own = Own::of(&call.body, call.id, call.progress_token);
        let waiter =
            Waiter::new(Route::Here(call.handle.clone()), own, behind).alone(call.modern.is_some());
        let message =
            Outgoing::Rename { body: &call.body, id: call.id, token: call.progress_token };
        link.send(id, waiter, &message, rt::time::now())?;
        rt::spare::give(call.body);
        Place::Here(link)
    } else {
        let key = session.as_ref().map(|session| session.id);
        let mail = BackendMail::Send {
            backend: entry.id,
            session,
            id,
            body: call.body,
            span: call.id,
            token: call.progress_token,
            behind,
        };
        backends.try_send(owner, mail).map_err(|_| {
            Failure::new(Kind::Capacity, "the mailbox of the child's owner is full")
        })?;
        backends.away.borrow_mut().insert(id, call.handle.clone());
        Place::Away(owner, key)
    };
    Ok(LineReplies {
        backends: backends.clone(),
        handle: call.handle,
        backend: entry.id,
        id,
        place,
        done: false,
    })
}

/// Sends a call of another worker to a child of this one.
#[expect(clippy::too_many_arguments, reason = "the parts of one mail")]
pub(super) fn send_for(
    backends: &Rc<Backends>,
    from: WorkerId,
    backend: BackendId,
    session: Option<Arc<SessionRecord>>,
    id: u64,
    body: Vec<u8>,
    span: Span,
    token: Option<Span>,
    behind: Behind,
) {
    let Some(entry) = backends.entry(backend) else {
        let item = Item::Failed(Failure::left());
        return backends.send(from, BackendMail::Carry { id, item });
    };
    let own = Own::of(&body, span, token);
    let send = move |link: &Link| {
        let waiter = Waiter::new(Route::Worker(from), own, behind);
        link.send(id, waiter, &Outgoing::Rename { body: &body, id: span, token }, rt::time::now())
    };
    let refuse = move |backends: &Backends, failure| {
        backends.send(from, BackendMail::Carry { id, item: Item::Failed(failure) });
    };
    if let Some(link) = entry.link(session.as_ref().map(|session| session.id)) {
        if let Err(failure) = send(&link) {
            refuse(backends, failure);
        }
        return;
    }
    // As many as calls are in flight on all workers.
    backends.parked.borrow_mut().insert(id);
    let backends = backends.clone();
    rt::spawn("parked call", async move {
        let link = stdio::wait_for(&backends, &entry, session.as_ref()).await;
        if !backends.parked.borrow_mut().remove(&id) {
            return;
        }
        if let Err(failure) = link.and_then(|link| send(&link)) {
            refuse(&backends, failure);
        }
    });
}

impl LineReplies {
    /// See [`super::Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply, Ended> {
        loop {
            match self.handle.arrived().await {
                Ok(Item::Notification(message)) => return Ok(Reply::Notification(message)),
                Ok(Item::Ask(message)) => return Ok(Reply::Ask(message)),
                Ok(Item::Settled) => {}
                Ok(Item::Answer(message)) => {
                    self.done = true;
                    // The child's owner notes the success.
                    return Ok(Reply::Answer(message));
                }
                Ok(Item::Failed(failure)) => {
                    self.done = true;
                    return Err(failure.into());
                }
                Err(Stop::Cancelled) => {
                    self.cancel();
                    self.handle.acknowledge(rt::time::now());
                }
                Err(Stop::Expired) => {
                    if !self.handle.is_cancelled() {
                        self.cancel();
                    }
                    return Err(Stop::Expired.into());
                }
            }
        }
    }

    /// Tells the child that the answer is not wanted any more.
    fn cancel(&self) {
        let reason = self.handle.reason();
        match &self.place {
            Place::Here(link) => link.cancel(self.id, reason.as_deref()),
            Place::Away(owner, session) => self.backends.send(
                *owner,
                BackendMail::Cancel {
                    backend: self.backend,
                    session: *session,
                    id: self.id,
                    reason,
                },
            ),
        }
    }
}

impl Drop for LineReplies {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if self.handle.is_untold() {
            self.cancel();
        }
        match &self.place {
            Place::Here(link) => link.forget(self.id),
            Place::Away(owner, session) => {
                if self.backends.away.borrow_mut().remove(&self.id).is_some() {
                    self.backends.send(
                        *owner,
                        BackendMail::Forget {
                            backend: self.backend,
                            session: *session,
                            id: self.id,
                        },
                    );
                }
            }
        }
    }
}
