//! Owns: the stream that a client opens by GET.
//! Never: who sends on it (`world`).
//! Next: `answer`.

use std::io;
use std::rc::Rc;

use super::answer::{EVENTS, refuse, with};
use super::{Ask, session_of};
use crate::error::{Error, Kind};
use crate::http::{Connection, sse};
use crate::limits;
use crate::rt;
use crate::world::World;

/// `GET`: a stream of messages that belong to no request of the client.
pub(super) async fn listen(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
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
    let (_open, mut messages) = world.open_stream(&record);
    connection.begin_with(200, &lines, None, sse::COMMENT).await?;
    loop {
        let wait = rt::time::timeout(limits::SSE_COMMENT_INTERVAL, messages.recv());
        match rt::race(wait, connection.closed()).await {
            rt::Either::Left(Ok(Some(Some(message)))) => {
                let mut event = Vec::with_capacity(message.len() + 16);
                sse::write(&mut event, None, &message);
                connection.chunk(event).await?;
            }
            rt::Either::Left(Err(rt::time::Elapsed)) => {
                record.touch(rt::time::now());
                connection.chunk(sse::COMMENT.to_vec()).await?;
            }
            rt::Either::Left(Ok(_)) => return connection.finish().await,
            rt::Either::Right(()) => {
                connection.abort();
                return Ok(());
            }
        }
    }
}
