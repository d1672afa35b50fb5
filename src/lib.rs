//! `mcp-proxy` joins many Model Context Protocol servers behind one endpoint.
//!
//! # In a program of your own
//!
//! [`ProxyConfig::load`] or [`ProxyConfig::parse`] reads a configuration, [`Proxy::from_config`]
//! starts it on threads of its own, under any executor ([`Proxy::start`] without one), and a
//! [`Handle`] is what the program keeps: addresses, [`Handle::stats`], [`Handle::reload`],
//! [`Handle::shutdown`]. A `Proxy` that is dropped ends.
//!
//! ```
//! use mcp_proxy::{Proxy, ProxyConfig, Options};
//!
//! let config = ProxyConfig::parse(
//!     r#"
//!     [proxy]
//!     name = "inside"
//!     workers = 1
//!     listen.port = 0             # the system chooses
//!     [[backends]]
//!     name = "files"
//!     transport = "stdio"
//!     command = "true"
//!     "#,
//! )?;
//! let proxy = Proxy::start(config, Options::default())?;
//! let handle = proxy.handle();
//! println!("{} for {} backend", handle.url(), handle.stats().backends.len());
//! handle.shutdown();
//! handle.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - Rules in Rust: [`Middleware`], given to [`Proxy::with_middleware`].
//! - In an axum application: `Proxy::into_router`, with the feature `axum`.
//! - In any other: [`Handle::connect`], a connection that only this process can make.
//!
//! What is named here and at the root, [`control`], [`middleware::custom`], [`error`] and [`limits`]
//! are meant for other programs. The other modules are public for tests, benchmarks and those who
//! read; they change without notice.
//!
//! # The way of a request
//!
//! The modules below are in the order in which a request first meets them, behind those that all
//! stand on; `ARCHITECTURE.md` tells the same story in prose.
//!
//! Path: accept → http → session → jsonrpc → middleware → backend → answer.

// What all stand on.
pub mod limits;
#[macro_use]
pub mod error;
pub mod plan;
pub mod rt;

// The way of a request.
pub mod worker;
pub mod http;
pub mod exchange;
pub mod auth;
pub mod jsonrpc;
pub mod world;
pub mod mcp;
pub mod middleware;
pub mod backend;
pub mod telemetry;

// Around it.
pub mod control;
#[cfg(feature = "axum")]
pub mod embed;
pub mod demo;

pub use control::config::ProxyConfig;
pub use control::diagnose::Report;
pub use control::{BackendStatus, Handle, Options, Proxy, ProxyError, Stats};
pub use middleware::custom::Middleware;
