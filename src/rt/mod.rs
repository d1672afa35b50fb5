//! Owns: rt.
