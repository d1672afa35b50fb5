//! Owns: JSON-RPC 2.0 messages as ranges of the bytes they came in: finding, splicing, writing.
//! Never: a tree of values, a meaning of a method; it knows nothing of MCP but where names stand.
//! Next: `message`, what a scan finds.
//!
//! Document: the JSON-RPC 2.0 specification, RFC 8259 as serde_json judges it.

pub mod canon;
pub mod message;
mod nest;
mod raw;
pub mod scan;
mod text;
mod token;
pub mod walk;
pub mod watch;
pub mod write;

pub use message::{Envelope, Kind, ScanFault, Span};
pub use raw::Raw;
pub use scan::{Elements, Shape, scan, shape};
pub use token::unescaped;
pub use walk::{elements, members};
pub use watch::Watch;
pub use write::{
    error, notification, quote, quote_into, request, result, splice, strings, unquote,
};
