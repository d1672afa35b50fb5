//! Owns: jsonrpc.
