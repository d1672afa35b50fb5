//! Black-box tests: one binary, a module a feature.

mod interop;
