//! Owns: metrics, audit and traces (empty so far).
//! Never: a label, line or span that is not bounded.
//! Next: `control`.
