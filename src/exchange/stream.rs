//! Owns: the stream that a client opens by GET, or comes back to.
//! Never: who sends on it (`world`).
//! Next: `tasks`, other requests that go to a backend.
//!
//! MCP 2025-11-25, Transports. With `Last-Event-ID` a client gets what it missed of that stream and
//! then the rest of it. If that stream is not kept any more, one that belonged to no request is
//! served anew: what comes next is still worth hearing. The rest of an answer can come nowhere else,
//! so its client is told (400, as the TypeScript SDK tells ids that it does not know); 404 would
//! make it give up its session.

use std::io;
use std::rc::Rc;

use super::answer::{EVENTS, refuse, with};
use super::{Ask, session_of};
use crate::error::{Error, Kind, Result};
use crate::http::{Connection, RequestHead, sse};
use crate::limits;
use crate::mcp::event::{EventId, StreamKind};
use crate::mcp::session::SessionRecord;
use crate::rt;
use crate::world::{Reader, World};

/// `GET`: a stream of messages that belong to no request of the client, or the rest of one that was
/// lost.
pub(super) async fn listen(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
) -> io::Result<()> {
    if !ask.accepts_events {
        let error = Error::new(Kind::NotAcceptable);
        return refuse(connection, ask, &error, b"null").await;
    }
    let record = match session_of(world, ask).await {
        Ok(record) => record,
        Err(error) => return refuse(connection, ask, &error, b"null").await,
    };
    let lines = with(EVENTS, &ask.cors);
    let last = head.field("last-event-id").filter(|last| !last.is_empty());
    let (mut reader, resumed) = match find(world, &record, last).await {
        Ok(found) => found,
        Err(error) => return refuse(connection, ask, &error, b"null").await,
    };
    let mut first = Vec::new();
    if record.revision.primes() && !resumed {
        sse::write_priming(&mut first, &reader.id(0).text(), limits::SSE_RETRY);
    } else {
        first.extend_from_slice(sse::COMMENT);
    }
    connection.begin_with(200, &lines, None, &first).await?;
    loop {
        let wait = rt::time::timeout(limits::SSE_COMMENT_INTERVAL, reader.next());
        let end = rt::race(connection.closed(), world.dismissed.wait());
        match rt::race(wait, end).await {
            rt::Either::Left(Ok(Some(messages))) => {
                let mut events = Vec::new();
                for (number, message) in &messages {
                    sse::write(&mut events, Some(&reader.id(*number).text()), message);
                }
                connection.chunk(events).await?;
            }
            rt::Either::Left(Err(rt::time::Elapsed)) => {
                record.touch(rt::time::now());
                connection.chunk(sse::COMMENT.to_vec()).await?;
            }
            rt::Either::Left(Ok(None)) | rt::Either::Right(rt::Either::Right(())) => {
                return connection.finish().await;
            }
            rt::Either::Right(rt::Either::Left(())) => {
                connection.abort();
                return Ok(());
            }
        }
    }
}

/// The stream to read, and whether it is one that was lost.
async fn find(
    world: &Rc<World>,
    record: &SessionRecord,
    last: Option<&[u8]>,
) -> Result<(Reader, bool)> {
    if let Some(last) = last {
        let unknown = || Error::new(Kind::BadHeader).context("Last-Event-ID: nothing to resume");
        let id = EventId::parse(last).ok_or_else(unknown)?;
        match world.resume_stream(record, id).await? {
            Some(reader) => return Ok((reader, true)),
            None if id.kind == StreamKind::Answering => return Err(unknown()),
            None => {}
        }
    }
    Ok((world.open_stream(record).await?, false))
}
