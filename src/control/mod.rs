//! Owns: control.

mod compile;
pub mod config;
pub mod diagnose;
mod import;
