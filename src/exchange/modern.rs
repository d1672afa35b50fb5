//! Owns: one request of the request era, from its checks to the part that answers it.
//! Never: sessions; anything kept from one request to the next.
//! Next: `check`, what each request must say.
//!
//! MCP 2026-07-28, Basic and Streamable HTTP: each POST is one message that says itself who sends it
//! and what for. To close its answer's stream is to cancel it.

mod check;
mod complete;
mod forward;
mod listen;
mod offer;
mod relay;
mod tasks;

use std::io;
use std::rc::Rc;

use super::answer::{JSON, after, error_answer, with};
use super::{Ask, admit, method_of, own};
use crate::backend::Caller;
use crate::error::{Error, Kind};
use crate::http::{Connection, RequestHead};
use crate::jsonrpc::{self, Envelope, Kind as MessageKind};
use crate::mcp::catalog::ListKind;
use crate::mcp::envelope::{CARRIED_MODERN, carried, extensions, has_tasks, key, rebuilt};
use crate::mcp::logging::Level;
use crate::mcp::method::Method;
use crate::mcp::revision::modern_status;
use crate::world::World;

/// A request that passed all checks.
struct Asked {
    caller: Caller,
    /// The least level of log messages that the caller wants; `None` = none at all.
    log_level: Option<Level>,
    method: Method,
    message: Vec<u8>,
    envelope: Envelope,
    /// As it was sent.
    id: Vec<u8>,
}

/// Serves one message that is no part of a session. A drop leaves the connection without an answer:
/// drop it too.
///
/// # Errors
/// The client's connection failed; it is of no use any more.
pub(super) async fn post(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
    message: Vec<u8>,
    envelope: Envelope,
) -> io::Result<()> {
    ask.facts.modern();
    let id = envelope.id.map_or(&b"null"[..], |id| id.of(&message)).to_vec();
    match envelope.kind {
        MessageKind::Request => {}
        MessageKind::Notification => {
            return match check::version(head, &message, &envelope) {
                // There is none that means anything here: a request is cancelled by closing its
                // stream, and who names one by an id of its own choice may mean another's.
                Ok(()) => {
                    ask.facts.well();
                    connection.answer(202, &ask.cors, b"").await
                }
                Err(error) => fail(connection, ask, &error, b"null").await,
            };
        }
        MessageKind::Response | MessageKind::ErrorResponse => {
            let error = Error::new(Kind::InvalidRequest).context("clients send no responses");
            return fail(connection, ask, &error, b"null").await;
        }
    }
    let method = method_of(&message, &envelope);
    let checked = check::request(head, &message, &envelope, method);
    let (mut caller, log_level) =
        match checked.and_then(|checked| admit(world, ask).map(|()| checked)) {
            Ok(checked) => checked,
            Err(error) => return fail(connection, ask, &error, &id).await,
        };
    caller.principal.clone_from(&ask.principal);
    caller.authorization.clone_from(&ask.who.authorization);
    let (mut message, mut envelope) = (message, envelope);
    let extensions = extensions(caller.capabilities.as_bytes());
    caller.tasks = extensions.is_some_and(has_tasks);
    if extensions.is_some()
        && let Some(carried) = carried(caller.capabilities.as_bytes(), &CARRIED_MODERN)
    {
        // Head and body of what goes on say the same of the caller.
        caller.capabilities = String::from_utf8_lossy(&carried).into();
        if let Some(meta) = envelope.meta {
            let with: [(&str, &[u8]); 1] = [(key::CAPABILITIES, &carried)];
            let whole = rebuilt(meta.of(&message), &[key::CAPABILITIES], &with);
            message = jsonrpc::splice(&message, &[(meta, &whole)]);
            envelope = match jsonrpc::scan(&message) {
                Ok(envelope) => envelope,
                Err(fault) => return fail(connection, ask, &fault.into(), &id).await,
            };
        }
    }
    let asked = Asked { caller, log_level, method, message, envelope, id };
    let list = match method {
        Method::ToolsList => ListKind::Tools,
        Method::ResourcesList => ListKind::Resources,
        Method::TemplatesList => ListKind::Templates,
        Method::PromptsList => ListKind::Prompts,
        Method::Discover => {
            world.settled().await;
            let answer = offer::discover(&world.latest(), ask, &asked.id);
            ask.facts.well();
            return connection.answer(200, &with(JSON, &ask.cors), &answer).await;
        }
        Method::TasksGet | Method::TasksUpdate | Method::TasksCancel => {
            return Box::pin(tasks::serve(world, connection, ask, asked)).await;
        }
        Method::Listen => return listen::listen(world, connection, ask, asked).await,
        Method::ToolsCall | Method::ResourcesRead | Method::PromptsGet | Method::Complete => {
            if let Some(own) = own::called(world, ask, method, &asked.message, &asked.envelope) {
                let outcome = Box::pin(own::call(world, ask, own, &asked.id)).await;
                return relay::own(connection, ask, outcome).await;
            }
            return forward::forward(world, connection, ask, head, asked).await;
        }
        _ => {
            let name = asked.envelope.method_name(&asked.message).unwrap_or_default();
            let name: String = name.chars().take(128).collect();
            let error = Error::new(Kind::UnknownMethod).context(name);
            return fail(connection, ask, &error, &asked.id).await;
        }
    };
    if let Err(error) = super::session::cursor(&asked.message, &asked.envelope) {
        return fail(connection, ask, &error, &asked.id).await;
    }
    world.settled().await;
    // What is told now must not be older than what was announced meanwhile.
    let answer = offer::list(&world.latest(), &asked.caller, ask, list, &asked.id).await;
    ask.facts.well();
    connection.answer(200, &with(JSON, &ask.cors), &answer).await
}

/// Answers with an error.
async fn fail(connection: &mut Connection, ask: &Ask, error: &Error, id: &[u8]) -> io::Result<()> {
    tracing::debug!(%error, peer = %connection.peer(), "refused");
    let (status, lines, answer) = failed(ask, error, id);
    connection.answer(status, &lines, &answer).await
}

/// Status, lines and body of an error.
fn failed(ask: &Ask, error: &Error, id: &[u8]) -> (u16, String, Vec<u8>) {
    ask.facts.failed(error);
    let mut lines = format!("{JSON}{}", ask.cors);
    if let Some(wait) = error.wait() {
        lines.push_str(&after(wait));
    }
    (modern_status(error.kind().code().into()), lines, error_answer(error, id))
}

/// An error in the words of the request era.
fn reworded(error: Error) -> Error {
    if error.kind() != Kind::ResourceNotFound {
        return error;
    }
    Error::new(Kind::UnknownResource).context(error.public_context().to_owned())
}
