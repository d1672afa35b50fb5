//! Owns: what the backends of two workers tell each other.
//! Never: how mail travels (`worker`), what is done with it (`mod`).
//! Next: `reload`.

use std::sync::Arc;

use super::asks::Word;
use super::failure::Failure;
use super::flight::FlightMail;
use super::handle::Item;
use super::leg::Leg;
use super::link::Behind;
use super::parking::{Claim, Piece};
use super::shelf::Kept as KeptAnswer;
use super::views::{Seen, Whose};
use crate::jsonrpc::Span;
use crate::mcp::catalog::Slice;
use crate::mcp::revision::Era;
use crate::mcp::session::{SessionId, SessionRecord};
use crate::plan::BackendId;
/// Mail between the backends of two workers.
pub enum BackendMail {
    /// A backend's lists changed; `None` = withdrawn.
    Slice {
        /// Whose.
        backend: BackendId,
        /// The new ones.
        slice: Option<Arc<Slice>>,
    },
    /// It was found out what a backend speaks.
    Era {
        /// Which backend.
        backend: BackendId,
        /// What.
        era: Era,
    },
    /// A backend's first start ended, well or not.
    Settled {
        /// Whose.
        backend: BackendId,
    },
    /// A request for a child that the receiver owns.
    Send {
        /// Which backend.
        backend: BackendId,
        /// Under isolation `session`: whose child.
        session: Option<Arc<SessionRecord>>,
        /// Its number on the channel.
        id: u64,
        /// The request with the client's id and token.
        body: Vec<u8>,
        /// Where the id stands.
        span: Span,
        /// Where the token stands.
        token: Option<Span>,
        /// Who is behind it.
        behind: Behind,
    },
    /// A client said something about a request that a backend sent it.
    Said {
        /// The session in which it was said.
        session: SessionId,
        /// What it is.
        word: Word,
        /// The message.
        message: Vec<u8>,
        /// Where the number of the request stands.
        at: Span,
    },
    /// To the session's owner: a notification of the client for all its backend sessions.
    Spread {
        /// Whose.
        session: Arc<SessionRecord>,
        /// The message.
        message: Vec<u8>,
    },
    /// What does a backend show there?
    View {
        /// Which backend.
        backend: BackendId,
        /// A session in which it can be seen.
        session: Arc<SessionRecord>,
        /// To whom it is shown.
        whose: Whose,
        /// Changes that must be in it.
        changes: u32,
    },
    /// The answer to `View`.
    Viewed {
        /// Which backend.
        backend: BackendId,
        /// To whom it is shown.
        whose: Whose,
        /// `None`: it cannot be told.
        seen: Option<Seen>,
    },
    /// The channel of a backend that all share was opened anew.
    Again {
        /// Whose.
        backend: BackendId,
    },
    /// Forget all views of a backend.
    Outdated {
        /// Which backend.
        backend: BackendId,
        /// Lists of which clients have to be told, as flags of its bell.
        flags: u32,
    },
    /// Something arrived for a call of the receiver.
    Carry {
        /// The call's number.
        id: u64,
        /// What.
        item: Item,
    },
    /// Cancel a request sent earlier; its answer is still wanted.
    Cancel {
        /// Which backend.
        backend: BackendId,
        /// Whose child.
        session: Option<SessionId>,
        /// Its number.
        id: u64,
        /// The client's reason.
        reason: Option<String>,
    },
    /// Nobody waits for the answer of a request any more.
    Forget {
        /// Which backend.
        backend: BackendId,
        /// Whose child.
        session: Option<SessionId>,
        /// Its number.
        id: u64,
    },
    /// What session shall be used with a backend over HTTP?
    Ask {
        /// Which backend.
        backend: BackendId,
        /// The client's session; `None` = the one that all share.
        session: Option<Arc<SessionRecord>>,
        /// The generation that the backend does not know any more.
        lost: Option<u64>,
    },
    /// The answer to `Ask`.
    Told {
        /// Which backend.
        backend: BackendId,
        /// The client's session.
        session: Option<SessionId>,
        /// The session with the backend.
        leg: std::result::Result<Box<Leg>, Failure>,
    },
    /// A place among the calls of a backend (`concurrency`), for the first in your queue.
    Place {
        /// Which backend.
        backend: BackendId,
    },
    /// To all: a session asked for a log level. Answered with `Wished`.
    Level {
        /// The session, that says which.
        session: Arc<SessionRecord>,
        /// Comes back with the answer.
        token: u64,
    },
    /// A session wants to hear of a resource, or no more. Answered with `Wished`.
    Wish {
        /// Which backend's.
        backend: BackendId,
        /// The client's session.
        session: Arc<SessionRecord>,
        /// The resource.
        uri: Box<str>,
        /// The parameters as the client sent them.
        params: Vec<u8>,
        /// Whether it subscribes.
        on: bool,
        /// Comes back with the answer.
        token: u64,
    },
    /// What another worker was asked is done.
    Wished {
        /// The token of the question.
        token: u64,
        /// A raw answer of the backend, if it is of use.
        outcome: std::result::Result<Vec<u8>, Failure>,
    },
    /// What tasks of this session are there at a backend that sessions share? Answered with `Wished`:
    /// a JSON array of ids.
    Tasks {
        /// Which backend.
        backend: BackendId,
        /// The client's session.
        session: Arc<SessionRecord>,
        /// One that has just been created.
        created: Option<String>,
        /// Comes back with the answer.
        token: u64,
    },
    /// A session with a backend that all share said something of interest to others, on the stream of
    /// a call.
    Heard {
        /// Which backend.
        backend: BackendId,
        /// The notification.
        message: Vec<u8>,
    },
    /// An answer that the sender keeps, for you to keep too.
    Keep {
        /// Of which backend.
        backend: BackendId,
        /// Under which it is found.
        key: Arc<[u8]>,
        /// The answer.
        kept: Box<KeptAnswer>,
    },
    /// About a call that runs for several callers.
    Flight(Box<FlightMail>),
    /// How a backend over HTTP is spoken to from now on.
    Spoken {
        /// Which backend.
        backend: BackendId,
        /// Over event streams (HTTP with SSE); else Streamable HTTP.
        sse: bool,
    },
    /// To the worker that parked a call: its caller comes back.
    Resume {
        /// What its pieces are to be sent under.
        token: u64,
        /// Who, and with what.
        claim: Box<Claim>,
    },
    /// Of a call that was parked.
    Piece {
        /// See `Resume`.
        token: u64,
        /// What.
        piece: Piece,
    },
    /// The caller of a call that was parked has left.
    Leave {
        /// See `Resume`.
        token: u64,
    },
    /// Something for a backend's supervisor to look at.
    Hint {
        /// Which backend.
        backend: BackendId,
        /// Flags of its bell.
        flags: u32,
    },
}
