//! Owns: the one error of the data plane, and the table of what each kind says to a client.
//! Never: logging; an error is logged once, where it ends (`exchange`).
//! Next: `plan`, the settings that all obey.
//!
//! Codes: JSON-RPC 2.0 §5.1; -32001 as the MCP SDKs use it for a request that timed out;
//! -32010 and below are this proxy's own (MCP leaves -32000..-32019 to implementations).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller sent something that cannot be served.
    Client,
    /// A backend failed.
    Backend,
    /// The proxy refuses or fails by itself.
    Proxy,
}

/// Whether a failed request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It was surely not executed: any method may be repeated.
    Unsent,
    /// It may have been executed: only what is safe to repeat.
    Unknown,
    /// Repeating cannot help.
    Never,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident => $side:ident, $status:literal, $code:literal, $retry:ident, $text:literal;)*) => {
        /// What went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];
            /// Whose fault it is.
            pub const fn side(self) -> Side { match self { $(Kind::$name => Side::$side,)* } }
            /// HTTP status where the answer is not a JSON-RPC answer to a well-formed request.
            pub const fn status(self) -> u16 { match self { $(Kind::$name => $status,)* } }
            /// JSON-RPC error code.
            pub const fn code(self) -> i32 { match self { $(Kind::$name => $code,)* } }
            /// Whether the request may be sent again.
            pub const fn retry(self) -> Retry { match self { $(Kind::$name => Retry::$retry,)* } }
            /// The text that a client sees, before the context.
            pub const fn text(self) -> &'static str { match self { $(Kind::$name => $text,)* } }
        }
    };
}

kinds! {
    /// A body that is not JSON, or nests too deep.
    Parse => Client, 400, -32700, Never, "Parse error";
    /// JSON that is not a JSON-RPC message this endpoint takes.
    InvalidRequest => Client, 400, -32600, Never, "Invalid Request";
    /// A method that neither the proxy nor its backends know.
    MethodNotFound => Client, 200, -32601, Never, "Method not found";
    /// Parameters that the method does not take.
    InvalidParams => Client, 200, -32602, Never, "Invalid params";
    /// A tool that no backend has, or that is hidden from this caller: the two look alike.
    UnknownTool => Client, 200, -32602, Never, "Unknown tool";
    /// A prompt likewise.
    UnknownPrompt => Client, 200, -32602, Never, "Unknown prompt";
    /// A resource that no backend owns (session-era code).
    ResourceNotFound => Client, 200, -32002, Never, "Resource not found";
    /// A resource likewise (request-era code).
    UnknownResource => Client, 200, -32602, Never, "Resource not found";
    /// A method that does not exist in the request era.
    UnknownMethod => Client, 404, -32601, Never, "Method not found";
    /// A request of the request era that does not say what each must.
    BadEnvelope => Client, 400, -32602, Never, "Invalid params";
    /// A header that is missing, malformed, or not what the body says (request era).
    HeaderMismatch => Client, 400, -32020, Never, "Header mismatch";
    /// A request that only callers with the tasks extension may send (request era).
    MissingCapability => Client, 400, -32021, Never, "Missing required client capability";
    /// A revision that is not spoken; the context is its name alone.
    UnsupportedVersion => Client, 400, -32022, Never, "Unsupported protocol version";
    /// A backend asks its caller for input in a way that the caller's revision does not have.
    NeedsInput => Backend, 200, -32014, Never, "Backend asks for input that this session cannot give";
    /// A header that contradicts the body or is not understood.
    BadHeader => Client, 400, -32600, Never, "Bad Request";
    /// No token, or one that is worth nothing.
    Unauthorized => Client, 401, -32600, Never, "Unauthorized";
    /// A good token that is not for this.
    InsufficientScope => Client, 403, -32600, Never, "Insufficient scope";
    /// The Origin or the Host of the request is not allowed.
    Forbidden => Client, 403, -32600, Never, "Forbidden";
    /// A path that is not served.
    NotFound => Client, 404, -32600, Never, "Not Found";
    /// A session that does not exist, any more or at all.
    SessionNotFound => Client, 404, -32001, Never, "Session not found";
    /// A method that the path does not take.
    MethodNotAllowed => Client, 405, -32600, Never, "Method Not Allowed";
    /// A method that exists in the session era alone, from a caller of the request era.
    NotPost => Client, 405, -32600, Never, "Method Not Allowed";
    /// The caller takes neither JSON nor event streams.
    NotAcceptable => Client, 406, -32600, Never, "Not Acceptable: Client must accept both application/json and text/event-stream";
    /// The caller was too slow.
    RequestTimeout => Client, 408, -32600, Never, "Request Timeout";
    /// The body is over `security.max_request_bytes`.
    BodyTooLarge => Client, 413, -32600, Never, "Content Too Large";
    /// The body is not JSON by its content type.
    MediaType => Client, 415, -32600, Never, "Unsupported Media Type: Content-Type must be application/json";
    /// A fault of the proxy itself.
    Internal => Proxy, 500, -32603, Unknown, "Internal error";
    /// The proxy is full, or it is ending.
    Capacity => Proxy, 503, -32012, Unsent, "Over capacity";
    /// No connection to a backend.
    Unavailable => Backend, 502, -32010, Unsent, "Backend unavailable";
    /// The connection to a backend ended before its answer was whole.
    Lost => Backend, 502, -32010, Unknown, "Backend connection lost";
    /// A backend answered something that is not MCP.
    BadAnswer => Backend, 502, -32010, Unknown, "Backend answered out of protocol";
    /// A backend did not answer in time.
    Timeout => Backend, 504, -32001, Unknown, "Request timed out";
    /// Too many requests at one backend.
    Busy => Backend, 503, -32012, Unsent, "Backend over capacity";
    /// More requests than a rate limit admits.
    RateLimited => Proxy, 429, -32011, Never, "Rate limit exceeded";
    /// More calls at once than a backend is to have, and no place in the queue.
    Crowded => Proxy, 503, -32012, Never, "Over capacity";
    /// A backend that failed too often is left alone for a while.
    Resting => Backend, 503, -32013, Never, "Backend is resting after failures";
    /// The request was cancelled by its caller: nobody waits for an answer.
    Cancelled => Client, 200, -32600, Never, "Request cancelled";
}

/// The error of the data plane, one word wide.
pub struct Error(Box<Facts>);

struct Facts {
    kind: Kind,
    /// Shown to the client behind the kind's text; never a secret, a path or an address.
    context: Cow<'static, str>,
    /// For the log alone.
    cause: Option<String>,
    /// When the request may be tried again.
    retry_after: Option<Duration>,
    /// The status that a backend answered with; 0 = it did not.
    http_status: u16,
}

/// `std::result::Result` with the data plane's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with nothing more to say.
    pub fn new(kind: Kind) -> Error {
        Error(Box::new(Facts {
            kind,
            context: Cow::Borrowed(""),
            cause: None,
            retry_after: None,
            http_status: 0,
        }))
    }

    /// Adds what the client may read behind the fixed text, such as a backend's name.
    pub fn context(mut self, context: impl Into<Cow<'static, str>>) -> Error {
        self.0.context = context.into();
        self
    }

    /// Adds what only the log may read.
    pub fn cause(mut self, cause: impl fmt::Display) -> Error {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// Adds when the request may be tried again.
    pub fn retry_after(mut self, after: Option<Duration>) -> Error {
        self.0.retry_after = after;
        self
    }

    /// Adds the status that a backend answered with.
    pub fn http(mut self, status: u16) -> Error {
        self.0.http_status = status;
        self
    }

    /// When the request may be tried again, if that is known.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The status that a backend answered with; 0 = it did not.
    pub fn http_status(&self) -> u16 {
        self.0.http_status
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the client may read behind the fixed text; empty = nothing.
    pub fn public_context(&self) -> &str {
        &self.0.context
    }

    /// The text for the client.
    pub fn public(&self) -> String {
        if self.0.context.is_empty() {
            self.0.kind.text().to_owned()
        } else {
            format!("{}: {}", self.0.kind.text(), self.0.context)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public())?;
        match &self.0.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {}

/// The table of own errors as Markdown: README.md carries it, held by a test.
pub fn table() -> String {
    use fmt::Write;
    let mut out =
        String::from("| kind | HTTP status | JSON-RPC code | text |\n| --- | --- | --- | --- |\n");
    for kind in Kind::ALL {
        let _ =
            writeln!(out, "| {kind:?} | {} | {} | {} |", kind.status(), kind.code(), kind.text());
    }
    out
}

/// The impossible happened: panics in debug builds, else it is logged at `error`.
#[macro_export]
macro_rules! bug {
    ($($arg:tt)*) => {{
        if cfg!(debug_assertions) { panic!($($arg)*) }
        tracing::error!(bug = true, $($arg)*);
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn the_cause_is_not_public() {
        let error = Error::new(Kind::Unavailable).context("files").cause("secret");
        assert_eq!(error.public(), "Backend unavailable: files");
        assert_eq!(error.to_string(), "Backend unavailable: files (secret)");
    }
}
