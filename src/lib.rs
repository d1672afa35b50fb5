//! `mcp-proxy` joins many Model Context Protocol servers behind one endpoint.
//!
//! The modules below are in the order in which a request passes them; `ARCHITECTURE.md` tells the
//! same story in prose.
//!
//! Path: accept → http → session → jsonrpc → middleware → backend → answer.

pub mod limits;
#[macro_use]
pub mod error;
pub mod rt;

pub mod auth;
pub mod backend;
pub mod exchange;
pub mod http;
pub mod jsonrpc;
pub mod mcp;
pub mod middleware;
pub mod plan;
pub mod worker;
pub mod world;

pub mod control;
pub mod telemetry;

#[cfg(feature = "axum")]
pub mod embed;

pub mod demo;

pub use control::config::ProxyConfig;
pub use control::diagnose::Report;
pub use control::{BackendStatus, Handle, Options, Proxy, ProxyError, Stats};
pub use middleware::custom::Middleware;
