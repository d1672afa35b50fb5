//! Owns: telemetry.
