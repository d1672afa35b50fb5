//! Owns: the way back: what a backend sends for a call, passed on to its client.
//! Never: what is said about it before it is sent (`backend`).
//! Next: `batch`.

use std::io;
use std::pin::pin;

use super::Ask;
use super::answer::{EVENTS, JSON, error_answer, refused, respond, with};
use crate::backend::{Replies, Reply};
use crate::error::{Error, Kind};
use crate::http::{Connection, sse};
use crate::limits;
use crate::rt;

/// A call at a backend, and what is needed to answer its caller.
pub(super) struct Relay {
    pub(super) replies: Replies,
    /// The client's id, as it was sent.
    pub(super) id: Vec<u8>,
    pub(super) _in_flight: crate::world::InFlight,
}

/// Passes a backend's messages on to the client: as JSON when the response comes first, as an
/// event stream when something precedes it.
pub(super) async fn pass_on(
    connection: &mut Connection,
    ask: &Ask,
    mut relay: Relay,
) -> io::Result<()> {
    let cors = ask.cors.as_str();
    let mut streaming = false;
    // The backend has asked the client something.
    let mut asked = false;
    loop {
        let reply = {
            let mut next = pin!(relay.replies.next());
            loop {
                // Long silence: a comment keeps what is between us and the client from cutting it.
                match rt::race(next.as_mut(), silence(connection, asked)).await {
                    rt::Either::Left(reply) => break reply,
                    rt::Either::Right(Silence::Gone) => {
                        connection.abort();
                        return Ok(());
                    }
                    rt::Either::Right(Silence::Long) => {
                        event_out(connection, cors, &mut streaming, sse::COMMENT.to_vec()).await?;
                    }
                }
            }
        };
        asked |= matches!(reply, Ok(Reply::Ask(_)));
        let event = match reply {
            Ok(Reply::Notification(message) | Reply::Ask(message)) => {
                let mut event = Vec::with_capacity(message.len() + 16);
                sse::write(&mut event, None, &message);
                event
            }
            Ok(Reply::Answer(answer)) => {
                ask.facts.answered(&answer);
                return respond(connection, cors, streaming, answer).await;
            }
            Ok(Reply::Streaming { len }) => {
                ask.facts.well();
                return stream_on(connection, ask, streaming, len, &mut relay.replies).await;
            }
            Err(error) if error.kind() == Kind::Cancelled => {
                // The client said that it wants no answer (Utilities, Cancellation).
                ask.facts.failed(&error);
                if !streaming {
                    connection.begin(200, &with(EVENTS, cors), None).await?;
                }
                return connection.finish().await;
            }
            Err(error) => {
                tracing::debug!(%error, "a call failed");
                return refused(connection, ask, streaming, &error, &relay.id).await;
            }
        };
        event_out(connection, cors, &mut streaming, event).await?;
    }
}

/// Why a wait for the backend was interrupted.
enum Silence {
    /// Nothing was said for so long.
    Long,
    /// The client left.
    Gone,
}

/// Waits. While its backend waits for an answer, a client that leaves is noticed at once.
async fn silence(connection: &Connection, asked: bool) -> Silence {
    let silence = rt::time::sleep(limits::SSE_COMMENT_INTERVAL);
    if !asked {
        silence.await;
        return Silence::Long;
    }
    match rt::race(silence, Box::pin(connection.closed())).await {
        rt::Either::Left(()) => Silence::Long,
        rt::Either::Right(()) => Silence::Gone,
    }
}

/// Sends one event; the first one begins the stream.
async fn event_out(
    connection: &mut Connection,
    cors: &str,
    streaming: &mut bool,
    event: Vec<u8>,
) -> io::Result<()> {
    if std::mem::replace(streaming, true) {
        return connection.chunk(event).await;
    }
    connection.begin_with(200, &with(EVENTS, cors), None, &event).await
}

/// Sends a response that is too large to hold, piece by piece; each piece waits for the client.
async fn stream_on(
    connection: &mut Connection,
    ask: &Ask,
    streaming: bool,
    len: Option<u64>,
    replies: &mut Replies,
) -> io::Result<()> {
    let cors = ask.cors.as_str();
    if streaming {
        // A JSON body behind an event: only a whole one can be framed as an event.
        let mut whole = Vec::new();
        loop {
            match replies.chunk().await {
                Ok(Some(piece)) if whole.len() + piece.len() <= limits::MESSAGE_BYTES_MAX => {
                    whole.extend_from_slice(&piece);
                }
                Ok(None) => {
                    ask.facts.answered(&whole);
                    return respond(connection, cors, true, whole).await;
                }
                _ => {
                    ask.facts.failed(&Error::new(Kind::BadAnswer));
                    connection.abort();
                    return Ok(());
                }
            }
        }
    }
    connection.begin(200, &with(JSON, cors), len).await?;
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
    ask: &Ask,
    mut relay: Relay,
    out: &rt::local::Sender<(bool, Vec<u8>)>,
) -> Option<Vec<u8>> {
    let answer = loop {
        match relay.replies.next().await {
            Ok(Reply::Notification(message) | Reply::Ask(message)) => {
                drop(out.send((false, message)).await);
            }
            Ok(Reply::Answer(answer)) => break answer,
            Ok(Reply::Streaming { .. }) => {
                let mut whole = Vec::new();
                let error = loop {
                    match relay.replies.chunk().await {
                        Ok(Some(piece)) => whole.extend_from_slice(&piece),
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                    if whole.len() > limits::MESSAGE_BYTES_MAX {
                        break Some(Error::new(Kind::BadAnswer).context("too large for a batch"));
                    }
                };
                break error.map_or(whole, |error| error_answer(&error, &relay.id));
            }
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
