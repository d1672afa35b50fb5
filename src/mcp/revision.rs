//! Owns: the revisions of MCP and every difference between them.
//! Never: a date of a revision anywhere else.
//! Next: `method`.
//!
//! Two eras: revisions up to 2025-11-25 begin with `initialize` and go on in a session; from
//! 2026-07-28 on each request carries its revision and its caller's capabilities itself.

/// The revision of the request era that is spoken.
pub const MODERN: &str = "2026-07-28";

/// What a backend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Era {
    /// Sessions alone.
    #[default]
    Session = 0,
    /// Requests that stand alone, and nothing else.
    Request = 1,
    /// Either, as its caller likes.
    Both = 2,
}

impl Era {
    /// Every era, in the order of their numbers.
    pub const ALL: [Era; 3] = [Era::Session, Era::Request, Era::Both];

    /// Its name in the admin surface.
    pub const fn as_str(self) -> &'static str {
        match self {
            Era::Session => "legacy",
            Era::Request => "modern",
            Era::Both => "dual",
        }
    }

    /// Whether requests of the request era are understood.
    pub const fn is_modern(self) -> bool {
        !matches!(self, Era::Session)
    }
}

/// The HTTP status of an answer with this JSON-RPC error in the request era (2026-07-28, Streamable
/// HTTP; where it names none, as the reference servers do).
pub const fn modern_status(code: i64) -> u16 {
    match code {
        -32700 | -32600 | -32602 | -32022..=-32020 => 400,
        -32601 => 404,
        _ => 200,
    }
}

/// A revision with `initialize`, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// 2024-11-05.
    V2024_11_05,
    /// 2025-03-26: Streamable HTTP, batches.
    V2025_03_26,
    /// 2025-06-18: version header, structured output; batches are gone.
    V2025_06_18,
    /// 2025-11-25: the newest revision with `initialize`.
    V2025_11_25,
}

impl Revision {
    /// The newest one that this proxy speaks in the session era.
    pub const NEWEST: Revision = Revision::V2025_11_25;
    /// What a request without version header and without session is taken for
    /// (2025-11-25, Transports, Protocol Version Header).
    pub const UNSTATED: Revision = Revision::V2025_03_26;
    /// All, oldest first.
    pub const ALL: [Revision; 4] = [
        Revision::V2024_11_05,
        Revision::V2025_03_26,
        Revision::V2025_06_18,
        Revision::V2025_11_25,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Revision::V2024_11_05 => "2024-11-05",
            Revision::V2025_03_26 => "2025-03-26",
            Revision::V2025_06_18 => "2025-06-18",
            Revision::V2025_11_25 => "2025-11-25",
        }
    }

    /// The revision of that name; `None` for any other.
    pub fn parse(name: &[u8]) -> Option<Revision> {
        Revision::ALL.into_iter().find(|revision| revision.as_str().as_bytes() == name)
    }

    /// What a server answers to an `initialize` that asks for `name`: the same when it is known,
    /// else the newest (2025-11-25, Lifecycle, Version Negotiation).
    pub fn negotiate(name: &[u8]) -> Revision {
        Revision::parse(name).unwrap_or(Revision::NEWEST)
    }

    /// Arrays of messages: in 2025-03-26 alone.
    pub const fn batches(self) -> bool {
        matches!(self, Revision::V2025_03_26)
    }

    /// Whether a stream begins with an event that has an id and no data: older clients would take it
    /// for a message (2025-11-25, Transports, Sending Messages to the Server).
    pub fn primes(self) -> bool {
        self >= Revision::V2025_11_25
    }
}
