//! Owns: the way back: what a backend sends for a call, passed on to its client.
//! Never: what is said about it before it is sent (`backend`).
//! Next: `outlet`, once that is an event stream.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use super::Ask;
use super::answer::{JSON, after, error_answer, refused, respond, with};
use super::facts::Ends;
use super::outlet::Outlet;
use super::tasks;
use crate::backend::{Replies, Reply};
use crate::error::{Error, Kind, Result};
use crate::http::Connection;
use crate::jsonrpc::Raw;
use crate::limits;
use crate::mcp::note;
use crate::mcp::session::SessionRecord;
use crate::mcp::tasks::Shape;
use crate::rt;
use crate::world::{Answering, World};

/// A call at a backend, and what is needed to answer its caller.
pub(super) struct Relay {
    pub(super) replies: Replies,
    /// The client's id, as it was sent.
    pub(super) id: Raw,
    pub(super) _in_flight: crate::world::InFlight,
}

/// Passes a backend's messages on to the client: as JSON when the response comes first, as an
/// event stream when something precedes it.
pub(super) async fn pass_on(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    connection: &mut Connection,
    ask: &Ask,
    mut relay: Relay,
    task: Option<Shape>,
) -> io::Result<()> {
    let (reply, outlet) = if let Some(reply) = relay.replies.at_hand() {
        (reply, None)
    } else {
        let mut next = pin!(relay.replies.next());
        // Long silence: what is between us and the client must not cut the connection.
        let pause = connection.pause(limits::SSE_COMMENT_INTERVAL);
        let first = rt::race(next.as_mut(), pause).await;
        match first {
            rt::Either::Left(reply) => (reply, None),
            rt::Either::Right(()) => {
                let mut outlet = Box::new(Outlet::new(world, record, connection, ask));
                let first = Box::pin(async {
                    outlet.comment().await;
                    outlet.attend(next).await
                });
                match first.await {
                    Some(reply) => (reply, Some(outlet)),
                    None => return Ok(()),
                }
            }
        }
    };
    if let Some(outlet) = outlet {
        return Box::pin(stream_out(*outlet, relay, task, reply)).await;
    }
    match reply {
        Ok(reply @ (Reply::Answer(_) | Reply::Streaming { .. })) if task.is_some() => {
            let answer = Box::pin(taken_apart(world, record, relay, task, reply)).await;
            ask.facts.answered(&answer);
            respond(connection, &ask.cors, answer).await
        }
        Ok(Reply::Answer(answer)) => {
            match relay.replies.has_succeeded() {
                true => ask.facts.well(),
                false => {
                    ask.facts.answered(&answer);
                    if let Some(wait) = relay.replies.wait() {
                        let more = format!("{}{}", ask.cors, after(wait));
                        return respond(connection, &more, answer).await;
                    }
                }
            }
            respond(connection, &ask.cors, answer).await
        }
        Ok(Reply::Streaming { len }) => {
            ask.facts.well();
            Box::pin(stream_on(connection, ask, len, &mut relay.replies)).await
        }
        Err(error) if error.kind() != Kind::Cancelled => {
            tracing::debug!(%error, "a call failed");
            refused(connection, ask, &error, &relay.id).await
        }
        reply => {
            let outlet = Outlet::new(world, record, connection, ask);
            Box::pin(stream_out(outlet, relay, task, reply)).await
        }
    }
}

/// An answer that is about a task, as its client shall see it.
async fn taken_apart(
    world: &Rc<World>,
    record: &Arc<SessionRecord>,
    mut relay: Relay,
    task: Option<Shape>,
    reply: Reply,
) -> Vec<u8> {
    let answer = match reply {
        Reply::Answer(answer) | Reply::Notification(answer) | Reply::Ask(answer) => answer,
        Reply::Streaming { .. } => whole(&mut relay.replies, &relay.id).await,
        // No answer: never asked.
        Reply::Away { .. } => Vec::new(),
    };
    match task {
        Some(shape) => tasks::answered(world, record, relay.replies.backend(), shape, answer).await,
        None => answer,
    }
}

/// Passes the rest on as events, whatever becomes of the connection.
async fn stream_out(
    mut outlet: Outlet<'_>,
    mut relay: Relay,
    task: Option<Shape>,
    mut reply: Result<Reply>,
) -> io::Result<()> {
    let (world, record, ask) = (outlet.world, outlet.record, outlet.ask);
    loop {
        match reply {
            Ok(Reply::Notification(message)) => {
                let backend = relay.replies.backend();
                let shaped = note::shaped(message, record.level(), &world.plan, backend);
                if let Some(message) = shaped {
                    outlet.event(message).await;
                }
            }
            Ok(Reply::Ask(question)) => outlet.event(question).await,
            Ok(Reply::Away { retry }) if record.revision.primes() => {
                let peer = outlet.peer();
                let (written, stream) = outlet.pause(retry).await;
                go_on(world.clone(), record.clone(), ask.handed_on(), peer, relay, task, stream);
                return written;
            }
            // Clients of older revisions would take the end of the stream for that of the call.
            Ok(Reply::Away { .. }) => {}
            Ok(answer) => {
                let answer = taken_apart(world, record, relay, task, answer);
                return match outlet.attend(pin!(answer)).await {
                    Some(answer) => {
                        ask.facts.answered(&answer);
                        outlet.finish(Some(answer)).await
                    }
                    None => Ok(()),
                };
            }
            // The client said that it wants no answer (Utilities, Cancellation).
            Err(error) if error.kind() == Kind::Cancelled => {
                ask.facts.failed(&error);
                return outlet.cancel().await;
            }
            Err(error) => {
                ask.facts.failed(&error);
                tracing::debug!(%error, "a call failed");
                return outlet.finish(Some(error_answer(&error, &relay.id))).await;
            }
        }
        reply = match outlet.attend(pin!(relay.replies.next())).await {
            Some(reply) => reply,
            None => return Ok(()),
        };
    }
}

/// Goes on without a connection, which is free for the next request: the client comes back.
fn go_on(
    world: Rc<World>,
    record: Arc<SessionRecord>,
    ask: Ask,
    peer: SocketAddr,
    mut relay: Relay,
    task: Option<Shape>,
    stream: Answering,
) {
    rt::spawn("call without a connection", async move {
        let mut outlet = Outlet::without(&world, &record, &ask, peer, stream);
        let reply = outlet.attend(pin!(relay.replies.next())).await;
        if let Some(reply) = reply {
            let _ = stream_out(outlet, relay, task, reply).await;
        }
        // What was sent to the client meanwhile belongs to its own requests.
        let principal = ask.principal.as_deref();
        ask.facts.account(&world, &Ends { peer, principal, bytes_out: 0 });
    });
}

/// A JSON body behind an event: only a whole one can be framed as an event.
pub(super) async fn whole(replies: &mut Replies, id: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    let error = loop {
        match replies.chunk().await {
            Ok(Some(piece)) => whole.extend_from_slice(&piece),
            Ok(None) => return whole,
            Err(error) => break error,
        }
        if whole.len() > limits::MESSAGE_BYTES_MAX {
            break Error::new(Kind::BadAnswer).context("too large for an event");
        }
    };
    error_answer(&error, id)
}

/// Sends a response that is too large to hold, piece by piece; each piece waits for the client.
async fn stream_on(
    connection: &mut Connection,
    ask: &Ask,
    len: Option<u64>,
    replies: &mut Replies,
) -> io::Result<()> {
    let cors = ask.cors.as_str();
    connection.open(200, &with(JSON, cors), len)?;
    loop {
        match replies.chunk().await {
            Ok(Some(piece)) => connection.chunk(piece).await?,
            Ok(None) => return connection.finish().await,
            Err(error) => {
                // The status is gone; a body that ends early is the only way left to say it.
                tracing::debug!(%error, "a streamed answer broke off");
                ask.facts.failed(&error);
                connection.abort();
                return Ok(());
            }
        }
    }
}

/// Runs one call of a batch to its end; its answer, if its caller still wants one.
pub(super) async fn collect(
    world: &Rc<World>,
    ask: &Ask,
    record: &Arc<SessionRecord>,
    mut relay: Relay,
    task: Option<Shape>,
    out: &rt::local::Sender<(bool, Vec<u8>)>,
) -> Option<Vec<u8>> {
    let backend = relay.replies.backend();
    let answer = loop {
        match relay.replies.next().await {
            Ok(Reply::Notification(message)) => {
                let shaped = note::shaped(message, record.level(), &world.plan, backend);
                if let Some(message) = shaped {
                    drop(out.send((false, message)).await);
                }
            }
            Ok(Reply::Away { .. }) => {}
            Ok(Reply::Ask(question)) => {
                drop(out.send((false, question)).await);
            }
            Ok(answer) => break taken_apart(world, record, relay, task, answer).await,
            Err(error) => {
                ask.facts.failed(&error);
                let cancelled = error.kind() == Kind::Cancelled;
                return (!cancelled).then(|| error_answer(&error, &relay.id));
            }
        }
    };
    ask.facts.answered(&answer);
    Some(answer)
}
