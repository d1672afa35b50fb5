//! Owns: taking up the stream of an answer that ended before the answer came.
//! Never: what stands on it (`http`).
//! Next: `pool`, connections kept for the next call.
//!
//! MCP 2025-11-25, Transports: a server may close such a stream once it has sent an event id, and a
//! client that knows one comes back with a GET, after the pause that the server asked for.

use std::rc::Rc;
use std::time::Duration;

use super::entry::Entry;
use super::leg::Leg;
use super::{Backends, http};
use crate::http::head::is_value;
use crate::http::{ClientConnection, sse};
use crate::limits;
use crate::rt;

/// Where an answer's stream is to be taken up.
#[derive(Debug, Default)]
pub(super) struct Place {
    last_id: Vec<u8>,
    /// The pause that the server asked for.
    pub(super) retry: Option<Duration>,
    /// How often in a row it was taken up without an event.
    pub(super) tries: u32,
}

impl Place {
    /// Learns from a stream that has ended; false if there is nowhere to go on.
    pub(super) fn learn(&mut self, reader: &sse::Reader) -> bool {
        if !reader.last_id().is_empty() {
            self.last_id = reader.last_id().to_vec();
        }
        if let Some(retry) = reader.last_retry() {
            self.retry = Some(Duration::from_millis(retry).min(limits::RESUME_PAUSE_MAX));
        }
        !self.last_id.is_empty() && is_value(&self.last_id)
    }
}

/// How an attempt went.
pub(super) enum Again {
    Open(Box<ClientConnection>),
    /// The server will not have it.
    Refused(u16),
    /// Nothing came of it.
    Failed(String),
}

/// One attempt, after the pause. Safe to drop.
pub(super) async fn open(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Leg,
    place: &Place,
) -> Again {
    // Without a word from the server as its clients do by default; never so short that it spins.
    rt::time::sleep(place.retry.unwrap_or(limits::SSE_RETRY).max(limits::RESUME_PAUSE_MIN)).await;
    let mut connection = match http::connect(backends, entry).await {
        Ok(connection) => connection,
        Err(failure) => return Again::Failed(failure.to_string()),
    };
    let id = String::from_utf8_lossy(&place.last_id);
    let more = format!("Accept: text/event-stream\r\nLast-Event-ID: {id}\r\n");
    let mut bytes = connection.buffer();
    leg.bare(&mut bytes, entry.http().0, "GET", &more);
    if let Err(fault) = connection.send(bytes).await {
        return Again::Failed(fault.to_string());
    }
    let head = match connection.head().await {
        Ok(head) => head,
        Err(fault) => return Again::Failed(fault.to_string()),
    };
    match head.status() {
        200 if matches!(http::media(&head), http::Media::Events) => {}
        status @ 500.. => return Again::Failed(format!("HTTP {status}")),
        status => return Again::Refused(status),
    }
    drop(head);
    Again::Open(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> sse::Reader {
        let mut reader = sse::Reader::default();
        let mut input = text.as_bytes();
        while let Ok(Some(_)) = reader.take(&mut input) {}
        reader
    }

    #[test]
    fn a_place_is_an_id_that_fits_a_header() {
        let mut place = Place::default();
        assert!(!place.learn(&after("data: x\n\n")));
        assert!(place.learn(&after("id: 7\nretry: 20\ndata: \n\n")));
        assert_eq!((&place.last_id[..], place.retry), (&b"7"[..], Some(Duration::from_millis(20))));
        // A stream without a word of its own goes on from where the one before it stood.
        assert!(place.learn(&after("data: x\n\n")));
        assert_eq!(place.last_id, b"7");
        assert!(place.learn(&after("retry: 99999999999\nid: 8\ndata: \n\n")));
        assert_eq!(place.retry, Some(limits::RESUME_PAUSE_MAX));
        assert!(!Place::default().learn(&after("id: a\u{7f}b\ndata: \n\n")));
    }
}
