//! Owns: the chain of middleware around every call (empty so far).
//! Never: I/O, backends, connections.
//! Next: `backend`.
