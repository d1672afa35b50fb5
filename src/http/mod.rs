//! Owns: http.
