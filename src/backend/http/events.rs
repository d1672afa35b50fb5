//! Owns: answers that come as an event stream: what else it carries, its end, and taking it up again.
//! Never: the stand-alone stream of a session (`listen`).
//! Next: `side`, what is said beside calls.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use super::{HttpReplies, Mode, cancel, send};
use crate::backend::asks::{self, Back, Caller};
use crate::backend::attempt::Ended;
use crate::backend::failure::Failure;
use crate::backend::names;
use crate::backend::relay::{self, Word};
use crate::backend::resume::{self, Again};
use crate::backend::{BackendMail, Reply, wishes};
use crate::error::Kind;
use crate::jsonrpc::{self, Envelope, Kind as Message, Shape, Span};
use crate::limits;
use crate::mcp::session::SessionRecord;
use crate::plan::Isolation;
use crate::rt;

impl HttpReplies {
    /// The next message of an event stream that is for the caller.
    pub(super) async fn event(&mut self) -> Result<Reply, Ended> {
        loop {
            let Mode::Events { reader, piece, at, queue } = &mut self.mode else {
                return Err(Failure::new(Kind::Internal, "no event stream").into());
            };
            if let Some(message) = queue.pop_front() {
                let envelope = match jsonrpc::scan(&message) {
                    Ok(envelope) => envelope,
                    Err(fault) => return Err(self.bad(fault.text()).into()),
                };
                match self.message(message, &envelope)? {
                    Some(reply) => return Ok(reply),
                    None => continue,
                }
            }
            let mut input = &piece[*at..];
            let event = reader.take(&mut input);
            *at = piece.len() - input.len();
            match event {
                // Without data: a place to resume from, or nothing (2025-11-25, Transports). Of
                // another type: a keep-alive, or something else that is no message.
                Ok(Some(event)) if event.data.is_empty() || !event.is_message() => self.goes_on(),
                Ok(Some(event)) => match jsonrpc::shape(&event.data) {
                    // Revision 2025-03-26 alone.
                    Ok(Shape::Batch(elements)) => {
                        let of = |element: Span| element.of(&event.data).to_vec();
                        queue.extend(elements.map(of));
                        self.goes_on();
                    }
                    Ok(Shape::One(envelope)) => {
                        self.goes_on();
                        if let Some(reply) = self.message(event.data, &envelope)? {
                            return Ok(reply);
                        }
                    }
                    Err(fault) => return Err(self.bad(fault.text()).into()),
                },
                Ok(None) => {
                    let fault = match self.piece_or_fault().await? {
                        Ok(Some(next)) => {
                            if let Mode::Events { piece, at, .. } = &mut self.mode {
                                (*piece, *at) = (next, 0);
                            }
                            continue;
                        }
                        Ok(None) => None,
                        Err(fault) => Some(fault.to_string()),
                    };
                    let on_purpose = fault.is_none();
                    if !self.ended_early() {
                        let cause = fault.unwrap_or_else(|| "event stream ended early".into());
                        return Err(self.lost(cause).into());
                    }
                    if on_purpose {
                        let retry = self.place.as_ref().and_then(|place| place.retry);
                        return Ok(Reply::Away { retry });
                    }
                    Box::pin(self.come_back()).await?;
                }
                Err(fault) => return Err(self.bad(fault.to_string()).into()),
            }
        }
    }

    /// There was an event.
    fn goes_on(&mut self) {
        if let Some(place) = &mut self.place {
            place.tries = 0;
        }
    }

    /// The stream has ended without the answer; false if it cannot be taken up again.
    fn ended_early(&mut self) -> bool {
        let Mode::Events { reader, .. } = &self.mode else { return false };
        // A request of the newer era ends with its stream, and before there is a session there is
        // nothing to come back to.
        if self.leg.is_modern() || self.leg.is_provisional() {
            return false;
        }
        let place = self.place.get_or_insert_default();
        if !place.learn(reader) {
            return false;
        }
        self.connection = None;
        self.mode = Mode::Away;
        true
    }

    /// Takes the stream up again behind the last event that came.
    pub(super) async fn come_back(&mut self) -> Result<(), Ended> {
        let mut cause = "event stream ended early".to_owned();
        loop {
            let Some(place) = &mut self.place else { return Err(self.lost(cause).into()) };
            if place.tries >= limits::RESUME_TRIES_MAX {
                return Err(self.lost(cause).into());
            }
            place.tries += 1;
            let HttpReplies { backends, entry, leg, handle, asked, place, .. } = self;
            let Some(place) = place else { continue };
            let tell = || cancel(backends, entry, leg, handle, asked);
            let again = {
                let again = pin!(resume::open(backends, entry, leg, place));
                handle.watch_telling(again, tell).await
            };
            match again {
                Ok(Again::Open(connection)) => {
                    self.connection = Some(connection);
                    self.mode = Mode::Events {
                        reader: Box::default(),
                        piece: Vec::new(),
                        at: 0,
                        queue: VecDeque::new(),
                    };
                    return Ok(());
                }
                Ok(Again::Refused(status)) => {
                    cause = format!("event stream ended early, and is refused: HTTP {status}");
                    return Err(self.lost(cause).into());
                }
                Ok(Again::Failed(why)) => cause = format!("event stream ended early: {why}"),
                Err(stop) => {
                    self.expired();
                    return Err(stop.into());
                }
            }
        }
    }

    /// What a notification is about; an update outdates what is kept.
    fn word(&self, envelope: &Envelope, message: &[u8]) -> Word {
        let word = relay::word(envelope, message);
        if word == Word::Updated {
            self.backends.board.outdate(self.entry.id, false, true);
        }
        word
    }

    /// One message of an event stream: what the caller gets of it.
    fn message(&mut self, message: Vec<u8>, envelope: &Envelope) -> Result<Option<Reply>, Ended> {
        match envelope.kind {
            Message::Response | Message::ErrorResponse => {
                let answer = self.checked(message, envelope)?;
                self.drain();
                Ok(Some(Reply::Answer(answer)))
            }
            Message::Notification => match self.word(envelope, &message) {
                Word::Changed(flags) => {
                    let session = self.leg.session.as_deref();
                    self.backends.changed_in(&self.entry, session, flags);
                    // Who listens hears of it there, once.
                    let here = session.is_some_and(|session| !session.listens());
                    Ok(here.then_some(Reply::Notification(message)))
                }
                Word::Withdrawn => Ok(self.withdrawn(&message, envelope)),
                Word::Progress => {
                    let Some(own) = &self.own else {
                        return Ok(Some(Reply::Notification(message)));
                    };
                    let token = envelope.progress_token;
                    let token = token.filter(|token| names::same(&self.asked, token.of(&message)));
                    let progress = token.and_then(|token| own.progress(&message, token));
                    Ok(progress.map(Reply::Notification))
                }
                // In a session that all share: of interest to who subscribed, wherever it came.
                Word::Updated | Word::Task if self.own.is_some() && self.shared() => {
                    if self.entry.owner == self.backends.me {
                        wishes::said_to_all(&self.backends, &self.entry, &message);
                    } else {
                        let mail = BackendMail::Heard { backend: self.entry.id, message };
                        let _ = self.backends.try_send(self.entry.owner, mail);
                    }
                    Ok(None)
                }
                // It came on the stream of this very request.
                Word::Other | Word::Log | Word::Updated | Word::Task => {
                    Ok(Some(Reply::Notification(message)))
                }
            },
            // In the request era servers send none, and take no answers.
            Message::Request if self.leg.is_modern() => Ok(None),
            Message::Request => match self.question(&message, envelope) {
                Ok(question) => Ok(Some(Reply::Ask(question))),
                Err(reply) => {
                    send(&self.backends, &self.entry, &self.leg, reply);
                    Ok(None)
                }
            },
        }
    }

    /// Whether all clients share the session.
    fn shared(&self) -> bool {
        self.entry.plan.isolation == Isolation::Shared
    }

    /// The client that a message on this stream is for.
    fn client(&self) -> Option<&Arc<SessionRecord>> {
        let client = self.leg.session.as_ref().or(self.caller.as_ref());
        client.filter(|_| !self.handle.is_deaf())
    }

    /// A request of the server as the client shall see it, or the answer that the server gets.
    fn question(&self, message: &[u8], envelope: &Envelope) -> Result<Vec<u8>, Vec<u8>> {
        let pong = relay::pong(envelope, message);
        if pong.is_none() {
            self.backends.board.asked(self.entry.id);
        }
        let client = match (pong, self.client()) {
            (Some(pong), _) => return Err(pong),
            (None, Some(client)) => client,
            (None, None) => return Err(relay::reply(envelope, message).unwrap_or_default()),
        };
        let back = Back::Leg(self.leg.clone());
        let caller = Some(Caller::over_http(&self.handle));
        let (backends, entry) = (&self.backends, &self.entry);
        let opened = asks::open(backends, entry, client, back, caller, message, envelope)?;
        self.handle.hold_clock(Instant::now());
        Ok(opened.message)
    }

    /// The server takes back what it asked.
    fn withdrawn(&self, message: &[u8], envelope: &Envelope) -> Option<Reply> {
        let (backends, entry, leg) = (&self.backends, &self.entry, Some(&self.leg));
        let client = self.client()?;
        let (message, _) = asks::withdrawn(backends, entry, client, leg, message, envelope)?;
        Some(Reply::Notification(message))
    }

    /// After the answer a stream should end; if it does so soon, its connection is kept.
    fn drain(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // As a rule the end came with the answer.
        if connection.is_at_end() {
            self.connection = Some(connection);
            return self.release();
        }
        let entry = self.entry.clone();
        rt::spawn("stream end", async move {
            let end = async { while let Ok(Some(_)) = connection.body().await {} };
            // When time is up the connection is closed.
            let ended = rt::time::timeout(limits::DRAIN_AFTER_ANSWER, end).await;
            if ended.is_ok() && connection.reusable() {
                entry.http().1.pool.put(connection, Instant::now());
            }
        });
    }
}
