//! Owns: what the Model Context Protocol says, revision by revision.
//! Never: sockets, backends.
//! Next: `middleware`.

pub mod catalog;
pub mod revision;
pub mod method;
pub mod header;
pub mod name;
pub mod session;
pub mod template;
