//! Owns: backends as a worker sees them: calling them, keeping them alive.
//! Never: client connections; JSON-RPC semantics beyond id, method and progress token.
//! Next: `attempt`, the only place that repeats or abandons a call.

mod address;
mod bell;
mod failure;
mod handle;
pub mod health;
mod names;
mod pool;
