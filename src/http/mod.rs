//! Owns: HTTP/1.1 on the wire, as a server and as a client, and event streams.
//! Never: MCP or JSON; it knows messages, bodies and events, and refuses what is ambiguous.
//! Next: `head`, where every message begins.
//!
//! RFC 9110, RFC 9112, WHATWG HTML §9.2. The codecs (`head`, `body`, `sse`) have neither sockets nor
//! clocks; `connection` serves a client, `client` calls a backend, `tls` encrypts for both.

pub mod body;
pub mod client;
pub mod connection;
pub mod head;
mod retry_after;
pub mod sse;
pub mod tls;

pub use client::{ClientConnection, ConnectFault, Fault, FaultKind};
pub use connection::{BodyFault, Connection, Moving, SealFault, Timing};
pub use head::{Framing, HeadFault, Method, RequestHead, ResponseHead, Version, request_head};
pub use retry_after::retry_after;
