//! Owns: middleware.
