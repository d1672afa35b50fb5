//! Owns: worker.
