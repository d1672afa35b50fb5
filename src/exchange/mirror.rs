//! Owns: copies of calls for mirrors (`mirror_of`), and whether they ended as the calls did.
//! Never: which calls are copied (`middleware::mirror`).
//! Next: `relay`, the way back.
//!
//! Nobody waits for a copy, and nothing that becomes of it is anybody's answer. Compared is only how
//! both ended: with a result, one that says `isError`, or an error.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::{Who, shape};
use super::facts::outcome_of;
use crate::backend::{Call, CallHandle, Caller, Reply, Share, Viewer};
use crate::error::{Error, Kind, Result, Side};
use crate::limits;
use crate::mcp::method::Method;
use crate::mcp::session::SessionRecord;
use crate::middleware::Copy;
use crate::plan::BackendId;
use crate::rt;
use crate::telemetry::metrics::{AttemptKind, Mirrored, Outcome};
use crate::world::World;

/// How a call ended and how its copies did, as far as that is known by now.
#[derive(Default)]
pub(super) struct Twins {
    /// `Some(None)`: with nothing that could be compared.
    call: Cell<Option<Option<Outcome>>>,
    copies: RefCell<Vec<(BackendId, Outcome)>>,
}

impl Twins {
    /// The call ended; `None`: its client left, or the proxy itself refused it.
    pub(super) fn called(&self, world: &World, outcome: Option<Outcome>) {
        self.call.set(Some(outcome));
        for (backend, copied) in self.copies.take() {
            compare(world, backend, outcome, copied);
        }
    }

    /// A copy ended.
    fn copied(&self, world: &World, backend: BackendId, outcome: Outcome) {
        match self.call.get() {
            Some(called) => compare(world, backend, called, outcome),
            None => self.copies.borrow_mut().push((backend, outcome)),
        }
    }
}

fn compare(world: &World, backend: BackendId, called: Option<Outcome>, copied: Outcome) {
    count(
        world,
        backend,
        match called {
            None => Mirrored::Unknown,
            Some(called) if called == copied => Mirrored::Same,
            Some(_) => Mirrored::Different,
        },
    );
}

fn count(world: &World, backend: BackendId, what: Mirrored) {
    if world.meter.enabled() {
        world.meter.add(|m| &m.mirrored, [backend, what as usize], 1);
    }
}

/// What these copies of a call are compared by.
pub(super) fn twins(ask: &Ask, copies: &[Copy]) -> Rc<Twins> {
    let twins = Rc::<Twins>::default();
    if !copies.is_empty() {
        ask.facts.copied(&twins);
    }
    twins
}

/// Sends a copy of a request to another backend.
pub(super) fn send(
    world: &Rc<World>,
    session: Option<Arc<SessionRecord>>,
    modern: Option<Rc<Caller>>,
    method: Method,
    copy: Copy,
    twins: Rc<Twins>,
) {
    let under_way = world.copies.get();
    if under_way >= limits::COPIES_MAX {
        return count(world, copy.backend, Mirrored::Dropped);
    }
    world.copies.set(under_way + 1);
    let world = world.clone();
    rt::spawn("mirrored call", async move {
        let backend = copy.backend;
        let ended = run(&world, session, modern, method, copy).await;
        world.copies.set(world.copies.get() - 1);
        match ended {
            Ok(Some(outcome)) => twins.copied(&world, backend, outcome),
            // Its own rules keep it out.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "a mirrored call failed");
                twins.copied(&world, backend, Outcome::Error);
            }
        }
    });
}

/// One copy, up to its end; `None` = it was not sent.
async fn run(
    world: &Rc<World>,
    session: Option<Arc<SessionRecord>>,
    modern: Option<Rc<Caller>>,
    method: Method,
    copy: Copy,
) -> Result<Option<Outcome>> {
    let Copy { backend, mut message, mut envelope } = copy;
    let plan = &world.plan.backends[backend];
    let shown = match (&session, &modern) {
        (Some(session), _) => session.authorization(),
        (None, modern) => modern.as_ref().and_then(|caller| caller.authorization.clone()),
    };
    // A copy is to be heard: no answer that is kept stands in for it, and a program's own middleware
    // has seen what it is a copy of.
    let viewer = match (&session, &modern) {
        (Some(session), _) => Some(Viewer::Session(session)),
        (None, modern) => modern.as_deref().map(Viewer::Caller),
    };
    let who = Who { viewer, ..Who::fresh() };
    let shaped = shape(world, &who, plan, None, method, &mut message, &mut envelope);
    let shaped = match shaped.await {
        Ok(shaped) => shaped,
        // It could not even be asked what it has.
        Err((error, _)) if error.kind().side() == Side::Backend => return Err(error),
        Err(_) => return Ok(None),
    };
    let tool_call = method == Method::ToolsCall;
    let call = Call {
        backend,
        session,
        modern,
        tool_call,
        safe: !tool_call || shaped.hints.repeatable(),
        id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
        progress_token: envelope.progress_token,
        body: message,
        timeout: if tool_call { plan.call_timeout } else { plan.request_timeout },
        tool: Some(shaped.own).filter(|_| tool_call),
        again: false,
        handle: Rc::new(CallHandle::deaf()),
    };
    let handle = call.handle.clone();
    if let Some(authorization) = shown.filter(|_| plan.forwards()) {
        call.handle.forward(authorization);
    }
    let outcome = outcome(world, call).await;
    if world.meter.enabled() {
        for Share { backend, attempts, .. } in handle.trail().shares() {
            let kind = AttemptKind::Mirror as usize;
            world.meter.add(|m| &m.attempts, [backend, kind], attempts.into());
        }
    }
    outcome.map(Some)
}

/// How a copy ends.
async fn outcome(world: &Rc<World>, call: Call) -> Result<Outcome> {
    let mut replies = world.backends.call(call).await?;
    loop {
        match replies.next().await? {
            Reply::Notification(_) | Reply::Away { .. } => {}
            Reply::Ask(question) => world.backends.decline(&question),
            Reply::Answer(answer) => return Ok(outcome_of(&answer).0),
            Reply::Streaming { .. } => {
                while replies.chunk().await?.is_some() {}
                return Ok(Outcome::Ok);
            }
        }
    }
}
