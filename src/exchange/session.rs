//! Owns: what a message of a session asks for, up to the point where a backend has it.
//! Never: writing to the client.
//! Next: `call`, requests that a backend answers.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::answer::{JSON, error_answer, refuse, with};
use super::call::call;
use super::relay::Relay;
use super::{Ask, admit, complete, logging, own, private, subscribe, tasks};
use crate::backend::{Viewer, Word};
use crate::error::{Error, Kind, Result};
use crate::http::Connection;
use crate::jsonrpc::{self, Envelope, Kind as MessageKind, Raw};
use crate::mcp::catalog::{Catalog, ListKind};
use crate::mcp::header;
use crate::mcp::method::Method;
use crate::mcp::revision::Revision;
use crate::mcp::session::SessionRecord;
use crate::mcp::tasks::Shape;
use crate::rt;
use crate::world::World;

/// `initialize`: a session begins on the worker that received it.
pub(super) async fn initialize(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    body: &[u8],
    envelope: &Envelope,
) -> io::Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        protocol_version: Cow<'a, str>,
        #[serde(borrow)]
        capabilities: &'a serde_json::value::RawValue,
        #[serde(borrow)]
        client_info: &'a serde_json::value::RawValue,
    }
    let id = envelope.id.map_or(&b"null"[..], |id| id.of(body));
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(body));
    let params: Params<'_> = match serde_json::from_slice(params) {
        Ok(params) => params,
        Err(fault) => {
            let error = Error::new(Kind::InvalidParams).context(format!("initialize: {fault}"));
            ask.facts.failed(&error);
            let answer = error_answer(&error, id);
            return connection.answer(200, &with(JSON, &ask.cors), &answer).await;
        }
    };
    let revision = Revision::negotiate(params.protocol_version.as_bytes());
    let record = world.open_session(ask.principal.as_ref(), |id| {
        SessionRecord::new(
            id,
            revision,
            ask.principal.clone(),
            params.capabilities.get().into(),
            params.client_info.get().into(),
        )
        .among(world.plan.backends.room())
    });
    let record = match record {
        Ok(record) => record,
        Err(error) => return refuse(connection, ask, &error, id).await,
    };
    if world.forwards {
        record.show(ask.who.authorization.as_ref());
    }
    ask.facts.session(&record);
    let mut result = Vec::with_capacity(512);
    {
        let catalog = world.catalog.borrow();
        result.extend_from_slice(b"{\"protocolVersion\":\"");
        result.extend_from_slice(revision.as_str().as_bytes());
        result.extend_from_slice(b"\",\"capabilities\":");
        let capabilities = own::capabilities(world, ask, catalog.capabilities());
        result.extend_from_slice(capabilities.as_bytes());
        result.extend_from_slice(b",\"serverInfo\":{\"name\":");
        jsonrpc::quote(&world.plan.name, &mut result);
        result.extend_from_slice(b",\"version\":");
        jsonrpc::quote(&world.plan.version, &mut result);
        result.push(b'}');
        instructions(world, ask, &catalog, &mut result);
        result.push(b'}');
    }
    let mut answer = Vec::with_capacity(result.len() + 64);
    jsonrpc::result(&mut answer, id, &result);
    let lines = format!("{JSON}{}: {}\r\n{}", header::SESSION, record.id, ask.cors);
    ask.facts.well();
    connection.answer(200, &lines, &answer).await
}

/// Appends the instructions that this caller is given, with a comma before them: those of the
/// configuration, else of the backends in which there is something for him.
pub(super) fn instructions(world: &World, ask: &Ask, catalog: &Catalog, out: &mut Vec<u8>) {
    let joined = match (&world.plan.instructions, ask.who.rights()) {
        (Some(own), _) => Some(Cow::Borrowed(own.as_str())),
        (None, None) => catalog.instructions().map(Cow::Owned),
        (None, Some(rights)) => {
            catalog.instructions_where(|what, name| rights.shows(what, name)).map(Cow::Owned)
        }
    };
    if let Some(instructions) = joined {
        out.extend_from_slice(b",\"instructions\":");
        jsonrpc::quote(&instructions, out);
    }
}

/// What becomes of one message.
pub(super) enum Outcome {
    /// It needs no answer.
    Accepted,
    /// The proxy answers by itself: a whole JSON-RPC response.
    Answer(Vec<u8>),
    /// The proxy answers that it will not, or cannot.
    Refused {
        /// Why.
        error: Error,
        /// The client's id, as it was sent.
        id: Raw,
    },
    /// A backend answers.
    Relay(Relay),
    /// A backend answers something about a task.
    Task(Box<(Relay, Shape)>),
}

/// Does what one message of a session asks for, up to the point where a backend has it.
pub(super) async fn perform(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    message: Vec<u8>,
    mut envelope: Envelope,
) -> Outcome {
    let method = ask.facts.method();
    match envelope.kind {
        MessageKind::Request => {}
        MessageKind::Notification => {
            match method {
                Method::Cancelled => cancelled(world, record, &message, &envelope),
                Method::RootsChanged => world.backends.spread(record, message),
                Method::Progress => {
                    if let Some(token) = envelope.progress_token {
                        world.backends.said(record.id, Word::Progress, message, token);
                    }
                }
                _ => {}
            }
            return Outcome::Accepted;
        }
        MessageKind::Response | MessageKind::ErrorResponse => {
            if let Some(id) = envelope.id {
                world.backends.said(record.id, Word::Answer, message, id);
            }
            return Outcome::Accepted;
        }
    }
    let id = Raw::new(envelope.id.map_or(&b"null"[..], |id| id.of(&message)));
    if let Err(error) = admit(world, ask) {
        return Outcome::Refused { error, id };
    }
    let list = match method {
        Method::ToolsList => ListKind::Tools,
        Method::ResourcesList => ListKind::Resources,
        Method::TemplatesList => ListKind::Templates,
        Method::PromptsList => ListKind::Prompts,
        Method::Ping => {
            let mut answer = rt::spare::buffer(id.len() + 48);
            jsonrpc::result(&mut answer, &id, b"{}");
            rt::spare::give(message);
            return Outcome::Answer(answer);
        }
        Method::ToolsCall | Method::ResourcesRead | Method::PromptsGet => {
            if let Some(own) = own::called(world, ask, method, &message, &envelope) {
                return Box::pin(own::call(world, ask, own, &id)).await;
            }
            let task = envelope.task && method == Method::ToolsCall;
            return match call(world, ask, record, method, message, &mut envelope, &id).await {
                Ok(relay) if task => Outcome::Task(Box::new((relay, Shape::Created))),
                Ok(relay) => Outcome::Relay(relay),
                Err(error) => {
                    tracing::debug!(%error, "a call failed");
                    Outcome::Refused { error, id }
                }
            };
        }
        Method::Complete => {
            let sent =
                Box::pin(complete::complete(world, ask, record, message, envelope, &id)).await;
            return sent.map_or_else(|error| Outcome::Refused { error, id }, Outcome::Relay);
        }
        Method::TasksGet | Method::TasksResult | Method::TasksCancel => {
            let sent = tasks::about(world, ask, record, method, message, envelope, &id);
            return match Box::pin(sent).await {
                Ok(task) => Outcome::Task(Box::new(task)),
                Err(error) => Outcome::Refused { error, id },
            };
        }
        Method::TasksList => {
            return match cursor(&message, &envelope) {
                Ok(()) => Outcome::Answer(Box::pin(tasks::list(world, record, &id)).await),
                Err(error) => Outcome::Answer(error_answer(&error, &id)),
            };
        }
        Method::SetLevel => {
            let set = Box::pin(logging::set_level(world, record, &message, &envelope, &id)).await;
            return set.map_or_else(|error| Outcome::Refused { error, id }, Outcome::Answer);
        }
        Method::Subscribe | Method::Unsubscribe => {
            let asked = subscribe::subscribe(world, ask, record, method, message, envelope, &id);
            let asked = Box::pin(asked).await;
            return asked.map_or_else(|error| Outcome::Refused { error, id }, Outcome::Answer);
        }
        _ => {
            let method = envelope.method_name(&message).unwrap_or_default();
            let error = Error::new(Kind::MethodNotFound)
                .context(method.chars().take(128).collect::<String>());
            return Outcome::Answer(error_answer(&error, &id));
        }
    };
    match cursor(&message, &envelope) {
        Ok(()) => {
            world.settled().await;
            // What is told now must not be older than what was announced meanwhile.
            let world = &world.latest();
            let mut result = Box::pin(world.list(record, list)).await;
            if world.forwards {
                let viewer = Viewer::Session(record);
                result = Box::pin(private::with_private(world, viewer, list, result)).await;
            }
            if let Some(rights) = ask.who.rights() {
                result = world.desk.list(rights, list, result);
            }
            let mut answer = Vec::with_capacity(result.len() + id.len() + 48);
            jsonrpc::result(&mut answer, &id, &result);
            if list == ListKind::Tools {
                own::list(world, ask, b"]}}", &mut answer);
            }
            Outcome::Answer(answer)
        }
        Err(error) => Outcome::Answer(error_answer(&error, &id)),
    }
}

/// A list has one page, so no cursor was ever given out.
pub(super) fn cursor(message: &[u8], envelope: &Envelope) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow, default)]
        cursor: Option<&'a serde_json::value::RawValue>,
    }
    let Some(params) = envelope.params else { return Ok(()) };
    match serde_json::from_slice(params.of(message)) {
        Ok(Params { cursor: None }) => Ok(()),
        Ok(Params { cursor: Some(_) }) => {
            Err(Error::new(Kind::InvalidParams).context("unknown cursor: lists have one page"))
        }
        Err(_) => Err(Error::new(Kind::InvalidParams).context("params must be an object")),
    }
}

/// `notifications/cancelled`, wherever the request is being served.
fn cancelled(world: &World, record: &SessionRecord, message: &[u8], envelope: &Envelope) {
    #[derive(serde::Deserialize)]
    struct Params<'a> {
        #[serde(borrow, rename = "requestId")]
        request_id: &'a serde_json::value::RawValue,
        #[serde(default)]
        reason: Option<String>,
    }
    let params = envelope.params.map_or(&b"null"[..], |params| params.of(message));
    match serde_json::from_slice::<Params<'_>>(params) {
        Ok(params) => {
            world.cancel(record.id, params.request_id.get().as_bytes(), params.reason);
        }
        Err(fault) => tracing::debug!(%fault, "a cancellation that names no request"),
    }
}
