//! Owns: requests about tasks: which backend has the task, and whether it is the caller's.
//! Never: what becomes of a task; how an id says whose it is (`mcp::task_ids`).
//! Next: `relay`.
//!
//! MCP extension io.modelcontextprotocol/tasks (SEP-2663). The answer of a call that became a task
//! names it as its caller is to; every later request is led by that name, and goes on under the
//! backend's own.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use super::{Asked, relay};
use crate::backend::{Call, CallHandle, Replies, TaskName, Wanted};
use crate::error::{Error, Kind, Result};
use crate::exchange::call::seen;
use crate::exchange::{Ask, tasks};
use crate::http::Connection;
use crate::jsonrpc;
use crate::mcp::method::Method;
use crate::mcp::task_ids;
use crate::middleware::custom::Turn;
use crate::plan::BackendId;
use crate::world::World;

/// Serves `tasks/get`, `tasks/update` and `tasks/cancel`.
pub(super) async fn serve(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    asked: Asked,
) -> io::Result<()> {
    let handle = Rc::new(CallHandle::deaf());
    let way = relay::Way {
        id: asked.id.clone(),
        method: asked.method,
        level: asked.log_level,
        backend: None,
        private: false,
        token: None,
        seal: None,
        tasks: true,
    };
    let begin = begin(world, ask, asked, &handle);
    relay::answer(world, connection, ask, way, begin, &handle).await
}

/// What a caller without the extension is told who asks for what only the extension has.
pub(super) fn missing() -> Error {
    Error::new(Kind::MissingCapability)
}

/// Sends such a request to the backend that has the task.
async fn begin(
    world: &Rc<World>,
    ask: &Ask,
    asked: Asked,
    handle: &Rc<CallHandle>,
) -> Result<Replies> {
    let Asked { caller, method, message, envelope, id, .. } = asked;
    if world.backends.lack_tasks() {
        return Err(Error::new(Kind::UnknownMethod).context(method.as_str()));
    }
    if !caller.tasks {
        return Err(missing());
    }
    let (span, task) = tasks::named(&message, &envelope)?;
    let unknown = || tasks::unknown(&task);
    let principal = caller.principal.as_deref();
    let (backend, own) =
        world.backends.task_ids().own(&world.plan, principal, &task).ok_or_else(unknown)?;
    world.backends.settled_one(backend).await;
    if world.backends.offers_tasks(backend) == Some(false) {
        return Err(unknown());
    }
    let watch = match (&world.custom, method) {
        (Some(hooks), Method::TasksGet) => {
            match tasks::shown(world, ask, hooks, backend, &task, own)? {
                Turn::Pass(watch) => watch,
                Turn::Answer(held, _) => return Ok(Replies::ready(held.to(&id), backend)),
            }
        }
        _ => None,
    };
    let mut message = task_ids::renamed(&message, span, own);
    let mut envelope = jsonrpc::scan(&message)
        .map_err(|fault| Error::new(fault.kind()).cause("after renaming"))?;
    ask.facts.aimed(world, backend, &message, &envelope);
    ask.facts.called(handle);
    if let Some(tracing) = ask.facts.detail.get().and_then(|detail| detail.tracing.as_ref()) {
        tracing.pass_on(&mut message, &mut envelope, handle)?;
    }
    let plan = &world.plan.backends[backend];
    if let Some(authorization) = caller.authorization.as_ref().filter(|_| plan.forwards()) {
        handle.forward(authorization.clone());
    }
    let call = Call {
        backend,
        session: None,
        modern: Some(Rc::new(caller)),
        tool_call: false,
        // An answer that is given twice counts once, and a task is cancelled once.
        safe: true,
        tool: None,
        again: false,
        id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
        progress_token: envelope.progress_token,
        body: message,
        timeout: plan.request_timeout,
        handle: handle.clone(),
    };
    let mut calling = Box::pin(world.backends.call(call));
    // After the future, so that it is dropped first.
    let mut cancel = relay::Cancel(Some(handle));
    let replies = calling.as_mut().await;
    cancel.0 = None;
    seen(replies, watch)
}

/// Adds to what is listened for the tasks that are the caller's, where they are. What else `ids` names
/// is left out.
pub(super) fn split(
    world: &World,
    ask: &Ask,
    ids: Vec<String>,
    wanted: &mut BTreeMap<BackendId, Wanted>,
) {
    // A program's own middleware sees answers, and a notification has the same in it.
    if world.custom.is_some() {
        return;
    }
    let principal = ask.principal.as_deref();
    for shown in ids {
        let found = world.backends.task_ids().own(&world.plan, principal, &shown);
        let Some((backend, own)) = found else { continue };
        if world.backends.offers_tasks(backend) != Some(true) {
            continue;
        }
        let (own, list) = (own.to_owned(), &mut wanted.entry(backend).or_default().tasks);
        if !list.iter().any(|task| task.own == own) {
            list.push(TaskName { own, shown });
        }
    }
}

/// An answer with the id of its task, if it names one, as the caller is to know it.
pub(super) fn shown(
    world: &World,
    ask: &Ask,
    backend: BackendId,
    method: Method,
    answer: Vec<u8>,
) -> Vec<u8> {
    let principal = ask.principal.as_deref();
    let named = task_ids::answered(&answer, method == Method::ToolsCall);
    let Some(own) = named.and_then(|at| Some((at, at.text(&answer)?))) else { return answer };
    let (at, own) =
        (own.0, world.backends.task_ids().shown(&world.plan, principal, backend, &own.1));
    task_ids::renamed(&answer, at, &own)
}
