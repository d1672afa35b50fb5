//! Owns: what comes back for a call, whatever stands between it and the backend's answer.
//! Never: sending the call (`attempt`, `around`, `flight`, `stand_in`).
//! Next: `failure`, how calls fail.

use std::time::{Duration, Instant};

use super::attempt::Guard;
use super::{around, aside, flight, http, line, rounds, stand_in};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::middleware::custom::Watch;
use crate::plan::BackendId;
use crate::rt;

/// What a backend sends for a call: any number of notifications, then one of the others.
#[derive(Debug)]
pub enum Reply {
    /// A whole notification; the client's progress token is in place.
    Notification(Vec<u8>),
    /// A whole request of the backend for the client; its id is a number of the proxy's own. Who
    /// cannot bring it there says so with [`Backends::decline`](super::Backends::decline).
    Ask(Vec<u8>),
    /// The server has ended the stream on purpose, and goes on after this pause: asking for the next
    /// reply waits for that.
    Away {
        /// The pause, if it said one.
        retry: Option<Duration>,
    },
    /// The whole answer, result or error; the client's id is in place.
    Answer(Vec<u8>),
    /// The answer is long: it follows through [`Replies::chunk`].
    Streaming {
        /// Its length, if the backend said so.
        len: Option<u64>,
    },
}

/// The replies to one call. Dropping it abandons the call: its connection is closed, or its answer
/// dropped when it comes; the backend is told only if the call was cancelled before.
pub struct Replies {
    kept: Kept,
    /// A program's own middleware waits for the answer.
    watch: Option<Watch>,
}

pub(super) enum Kept {
    /// Nothing stands around the call.
    Plain(Attempt),
    Run(Box<around::Run>),
    /// Answered from memory.
    Ready(Vec<u8>, BackendId),
    /// Its answer is kept when it comes.
    Tapped(Box<flight::Tap>),
    /// It runs together with others.
    Joined(Box<flight::Joined>),
    /// Other backends may answer it too.
    StandIn(Box<stand_in::StandIn>),
}

impl Replies {
    /// A whole answer that this backend has given before.
    pub fn ready(answer: Vec<u8>, backend: BackendId) -> Replies {
        Replies::of(Kept::Ready(answer, backend))
    }

    pub(super) fn of(kept: Kept) -> Replies {
        Replies { kept, watch: None }
    }

    /// The same, with somebody who sees the answer before anybody else.
    pub fn watched(self, watch: Option<Watch>) -> Replies {
        Replies { watch, ..self }
    }

    /// The answer, if it is here already and nothing came before it; else nothing has happened, and
    /// [`Replies::next`] brings it. What it saves is a chain of futures that have nothing to wait for.
    ///
    /// # Errors
    /// As for [`Replies::next`].
    pub fn at_hand(&mut self) -> Option<Result<Reply>> {
        match (&mut self.kept, &self.watch) {
            (Kept::Plain(Attempt { wire: Wire::Http(http), guard }), None) => {
                http.at_hand().map(|reply| guard.judge(reply))
            }
            _ => None,
        }
    }

    /// The next reply; not to be called again after the answer. A drop loses nothing but the place
    /// in the stream: drop the whole.
    ///
    /// # Errors
    /// One error ends the call; its context names the backend.
    pub async fn next(&mut self) -> Result<Reply> {
        let reply = match &mut self.kept {
            Kept::Plain(attempt) => attempt.next().await,
            Kept::Run(run) => Box::pin(run.next()).await,
            Kept::Ready(answer, _) => Ok(Reply::Answer(std::mem::take(answer))),
            Kept::Tapped(tap) => Box::pin(tap.next()).await,
            Kept::Joined(joined) => Box::pin(joined.next()).await,
            Kept::StandIn(call) => Box::pin(call.next()).await,
        };
        match self.watch {
            None => reply,
            Some(_) => Box::pin(self.shown(reply)).await,
        }
    }

    /// Whether the answer that came was seen to be no error of any kind when it was checked: saves
    /// another look at it. False says nothing.
    pub fn has_succeeded(&self) -> bool {
        match (&self.kept, &self.watch) {
            (Kept::Plain(Attempt { wire: Wire::Http(http), .. }), None) => http.has_succeeded(),
            _ => false,
        }
    }

    /// How long the backend wants to be left alone, if its answer is an error that came with such a
    /// word beside it.
    pub fn wait(&self) -> Option<Duration> {
        match &self.kept {
            Kept::Plain(attempt) => attempt.beside().wait,
            Kept::Run(run) => run.wait(),
            Kept::StandIn(call) => call.wait(),
            Kept::Ready(..) | Kept::Tapped(_) | Kept::Joined(_) => None,
        }
    }

    /// Shows the end of a call to who waits for it; what becomes of it. A long answer is held.
    async fn shown(&mut self, reply: Result<Reply>) -> Result<Reply> {
        let answer = match reply {
            Ok(Reply::Answer(answer)) => Ok(answer),
            Ok(Reply::Streaming { .. }) => self.whole().await,
            Err(error) => Err(error),
            Ok(other) => return Ok(other),
        };
        let Some(watch) = self.watch.take() else { return answer.map(Reply::Answer) };
        match answer {
            Ok(answer) => watch.answered(answer).map(Reply::Answer),
            Err(error) => {
                watch.failed(&error);
                Err(error)
            }
        }
    }

    /// A streamed answer in one piece.
    async fn whole(&mut self) -> Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.chunk().await? {
            if whole.len() + piece.len() > limits::MESSAGE_BYTES_MAX {
                return Err(Error::new(Kind::BadAnswer).context("too large to be looked at"));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// The backend that the call was sent to.
    pub fn backend(&self) -> BackendId {
        match &self.kept {
            Kept::Plain(attempt) => attempt.guard.backend(),
            Kept::Run(run) => run.backend(),
            Kept::Ready(_, backend) => *backend,
            Kept::Tapped(tap) => tap.backend(),
            Kept::Joined(joined) => joined.backend(),
            Kept::StandIn(call) => call.backend(),
        }
    }

    /// The next piece of a streamed answer, `None` at its proper end.
    ///
    /// # Errors
    /// The answer is not whole or not to this call: what was passed on so far must not look like a
    /// whole answer, so the client's connection has to be aborted.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match &mut self.kept {
            Kept::Plain(attempt) => attempt.chunk().await,
            Kept::Run(run) => run.chunk().await,
            Kept::Ready(..) => Ok(None),
            Kept::Tapped(tap) => Box::pin(tap.chunk()).await,
            Kept::Joined(joined) => Box::pin(joined.chunk()).await,
            Kept::StandIn(call) => Box::pin(call.chunk()).await,
        }
    }
}

/// One attempt of a call.
pub(super) struct Attempt {
    // Before the guard: a cancellation that was not told yet is told while the call still counts.
    pub(super) wire: Wire,
    pub(super) guard: Guard,
}

pub(super) enum Wire {
    Http(rt::Place<http::HttpReplies>),
    Line(line::LineReplies),
    /// A caller without a session that may be asked something, a backend with sessions over HTTP.
    Aside(aside::AsideReplies),
    /// A caller with a session, a backend without.
    Crossed(Box<rounds::Crossed>),
}

impl Wire {
    /// See [`Attempt::beside`].
    pub(super) fn beside(&self) -> http::Beside {
        match self {
            Wire::Http(http) => http.beside(),
            Wire::Crossed(crossed) => crossed.beside(),
            Wire::Aside(aside) => aside.beside(),
            Wire::Line(_) => http::Beside::default(),
        }
    }
}

impl Attempt {
    /// See [`Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        let reply = match &mut self.wire {
            Wire::Http(http) => http.next().await,
            Wire::Line(line) => line.next().await,
            Wire::Aside(aside) => aside.next().await,
            Wire::Crossed(crossed) => Box::pin(crossed.next()).await,
        };
        self.guard.judge(reply)
    }

    /// What HTTP says beside the answer that came, if it is an error.
    pub(super) fn beside(&self) -> http::Beside {
        self.wire.beside()
    }

    /// The time limit of the attempt begins anew, but does not go beyond `ends`.
    pub(super) fn restart_clock(&self, ends: Option<Instant>) {
        self.guard.restart_clock(ends);
    }

    /// See [`Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let chunk = match &mut self.wire {
            Wire::Http(http) => http.chunk().await,
            // All of them are whole.
            Wire::Line(_) | Wire::Aside(_) | Wire::Crossed(_) => Ok(None),
        };
        self.guard.judge(chunk)
    }
}
