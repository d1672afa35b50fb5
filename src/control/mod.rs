//! Owns: control.
