//! Owns: requests about tasks: whose task it is, and the answers taken apart where ids stand.
//! Never: what becomes of a task.
//! Next: `complete`.
//!
//! MCP 2025-11-25, Basic, Utilities, Tasks. A task belongs to the session in which it was created: at
//! a backend that sessions share, others neither see nor reach it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::call::send;
use super::complete::only;
use super::relay::{Relay, whole};
use crate::backend::{Call, CallHandle, Replies, Reply};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Raw, Span, walk};
use crate::limits;
use crate::mcp::method::Method;
use crate::mcp::session::SessionRecord;
use crate::mcp::tasks::{self, Shape};
use crate::middleware::custom::{self, Hooks, Target, Turn};
use crate::plan::BackendId;
use crate::rt;
use crate::telemetry::metrics::Reason;
use crate::world::World;

/// `tasks/get`, `tasks/result` and `tasks/cancel`: sent to the backend that has the task.
pub(super) async fn about(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    method: Method,
    message: Vec<u8>,
    envelope: Envelope,
    id: &[u8],
) -> Result<(Relay, Shape)> {
    let (span, task) = named(&message, &envelope)?;
    let (backend, prefix) = tasks::owner(&world.plan, &task).ok_or_else(|| unknown(&task))?;
    let own = &task[prefix..];
    if let Some(known) = world.backends.tasks_of(record, backend, None).await?
        && !known.iter().any(|known| known == own)
    {
        return Err(unknown(&task));
    }
    let watch = match (&world.custom, method) {
        (Some(hooks), Method::TasksResult) => {
            match shown(world, ask, hooks, backend, &task, own)? {
                Turn::Pass(watch) => watch,
                Turn::Answer(held, _) => {
                    let in_flight = world.enter_call(record.id, id, Rc::new(CallHandle::new()));
                    let replies = Replies::ready(held.to(id), backend);
                    let relay = Relay { replies, id: Raw::new(id), _in_flight: in_flight };
                    return Ok((relay, Shape::Related));
                }
            }
        }
        _ => None,
    };
    let mut quoted = Vec::with_capacity(own.len() + 2);
    jsonrpc::quote(own, &mut quoted);
    let message = jsonrpc::splice(&message, &[(span, &quoted)]);
    let message = tasks::own(message, &tasks::prefix(&world.plan, backend));
    let envelope = jsonrpc::scan(&message)
        .map_err(|fault| Error::new(fault.kind()).cause("after renaming"))?;
    let plan = &world.plan.backends[backend];
    // A result is waited for as long as the call itself would be.
    let (shape, timeout) = match method {
        Method::TasksResult => (Shape::Related, plan.call_timeout),
        _ => (Shape::State, plan.request_timeout),
    };
    let relay = match send(world, ask, record, backend, message, envelope, id, timeout).await {
        Ok(relay) => Relay { replies: relay.replies.watched(watch), ..relay },
        Err(error) => {
            if let Some(watch) = watch {
                watch.failed(&error);
            }
            return Err(error);
        }
    };
    Ok((relay, shape))
}

/// The task that a request names, and where.
pub(super) fn named<'m>(message: &'m [u8], envelope: &Envelope) -> Result<(Span, Cow<'m, str>)> {
    let invalid = |text: &'static str| Error::new(Kind::InvalidParams).context(text);
    let params = envelope.params.ok_or_else(|| invalid("taskId is required"))?;
    let span = only(message, params, "taskId")?.ok_or_else(|| invalid("taskId is required"))?;
    Ok((span, span.text(message).ok_or_else(|| invalid("taskId is a string"))?))
}

/// The same for a task that never was, and for one of somebody else.
pub(super) fn unknown(task: &str) -> Error {
    let shown: String = task.chars().take(256).collect();
    Error::new(Kind::InvalidParams).context(format!("Unknown task: {shown}"))
}

/// Shows a program's own middleware that the result of a call that became a task is asked for: what
/// it does to answers it must be able to do to this one.
pub(super) fn shown(
    world: &World,
    ask: &Ask,
    hooks: &Rc<dyn Hooks>,
    backend: BackendId,
    task: &str,
    own: &str,
) -> Result<Turn> {
    let turn = hooks.request(&mut custom::Call {
        target: Target::TaskResult,
        called: task,
        own_name: own,
        backend: &world.plan.backends[backend].name,
        principal: ask.principal.as_deref(),
        arguments: None,
        replaced: None,
    })?;
    if let Turn::Answer(_, true) = turn {
        ask.facts.ruled_out(Reason::Filter);
    }
    Ok(turn)
}

/// An answer about a task as its client shall see it; a new task is noted as the session's own.
pub(super) async fn answered(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    backend: BackendId,
    shape: Shape,
    answer: Vec<u8>,
) -> Vec<u8> {
    if shape == Shape::Created
        && let Some(task) = tasks::named(&answer)
        && let Err(error) = world.backends.tasks_of(record, backend, Some(task)).await
    {
        tracing::debug!(%error, "a task that its client cannot reach");
    }
    tasks::shown(answer, shape, &tasks::prefix(&world.plan, backend))
}

/// `tasks/list`: the session's tasks at all backends that list theirs, on one page.
pub(super) async fn list(world: &Rc<World>, record: &Arc<SessionRecord>, id: &[u8]) -> Vec<u8> {
    let mut waits = Vec::new();
    for plan in &world.plan.backends {
        let slice = world.catalog.borrow().slice(plan.id).cloned();
        if plan.unlisted || !slice.is_some_and(|slice| slice.can_list_tasks()) {
            continue;
        }
        let (sender, receiver) = rt::local::oneshot();
        let (world, record, id, backend) = (world.clone(), record.clone(), id.to_vec(), plan.id);
        rt::spawn("tasks of a backend", async move {
            sender.send(list_one(&world, &record, backend, &id).await);
        });
        waits.push((plan, receiver));
    }
    let mut result = b"{\"tasks\":[".to_vec();
    let empty = result.len();
    for (plan, wait) in waits {
        match wait.await.unwrap_or_else(|| Err(Error::new(Kind::Internal))) {
            Ok(tasks) => {
                for task in tasks {
                    if result.len() > empty {
                        result.push(b',');
                    }
                    result.extend_from_slice(&task);
                }
            }
            Err(error) => {
                tracing::warn!(backend = &*plan.name, %error, "its tasks are missing in a list");
            }
        }
    }
    result.extend_from_slice(b"]}");
    let mut answer = Vec::with_capacity(result.len() + id.len() + 48);
    jsonrpc::result(&mut answer, id, &result);
    answer
}

/// All pages of one backend's list, as far as the tasks are the session's own.
async fn list_one(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    backend: BackendId,
    id: &[u8],
) -> Result<Vec<Vec<u8>>> {
    let prefix = tasks::prefix(&world.plan, backend);
    let known = world.backends.tasks_of(record, backend, None).await?;
    let known: Option<HashSet<String>> = known.map(|known| known.into_iter().collect());
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut cursors: HashSet<Vec<u8>> = HashSet::new();
    let mut params = b"{}".to_vec();
    loop {
        let mut body = Vec::with_capacity(128);
        jsonrpc::request(&mut body, id, "tasks/list", Some(&params));
        let envelope = jsonrpc::scan(&body)
            .map_err(|fault| Error::new(fault.kind()).cause("a request of our own"))?;
        let call = Call {
            backend,
            session: Some(record.clone()),
            modern: None,
            tool_call: false,
            safe: true,
            tool: None,
            // The client's own id is used for its first request in each session only.
            again: !cursors.is_empty(),
            id: envelope.id.ok_or_else(|| Error::new(Kind::InvalidRequest))?,
            progress_token: None,
            body,
            timeout: world.plan.backends[backend].request_timeout,
            handle: Rc::new(CallHandle::deaf()),
        };
        let mut replies = world.backends.call(call).await?;
        let answer = loop {
            match replies.next().await? {
                Reply::Notification(_) | Reply::Away { .. } => {}
                Reply::Ask(question) => world.backends.decline(&question),
                Reply::Answer(answer) => break answer,
                Reply::Streaming { .. } => break whole(&mut replies, id).await,
            }
        };
        if walk::member(&answer, "result").is_none() {
            return Err(Error::new(Kind::BadAnswer).cause("tasks/list: an error"));
        }
        let (entries, cursor) = tasks::entries(&answer, &prefix);
        for (own, entry) in entries {
            if known.as_ref().is_none_or(|known| known.contains(&own)) {
                bytes += entry.len();
                found.push(entry);
            }
        }
        let Some(cursor) = cursor else { return Ok(found) };
        let many = cursors.len() >= limits::LIST_PAGES_MAX || bytes > limits::MESSAGE_BYTES_MAX;
        if many || !cursors.insert(cursor.clone()) {
            tracing::warn!(backend, "list of tasks cut: too long, or its cursors repeat");
            return Ok(found);
        }
        params = [&b"{\"cursor\":"[..], &cursor, b"}"].concat();
    }
}
