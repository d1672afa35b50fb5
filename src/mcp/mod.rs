//! Owns: what the Model Context Protocol says, revision by revision.
//! Never: sockets, backends.
//! Next: `revision`.

pub mod cache;
pub mod capable;
pub mod catalog;
pub mod envelope;
pub mod event;
pub mod header;
pub mod hints;
pub mod logging;
pub mod method;
pub mod mirrored;
pub mod name;
pub mod note;
pub mod revision;
pub mod session;
pub mod task_ids;
pub mod tasks;
pub mod template;
