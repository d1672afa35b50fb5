//! Black-box tests: the real binary between a raw HTTP client and a stub server with faults on
//! demand. One binary, a module a feature; `support` is what they stand on.
//!
//! `MCP_PROXY_TEST_DRIVER=epoll` runs all of them on that driver.

mod admin;
mod asks;
mod attacks;
mod audit;
mod auth;
mod busy_poll;
mod cache;
mod calls;
mod capacity;
mod catalog;
mod cli;
mod completion;
mod crosstalk;
mod drivers;
#[cfg(feature = "axum")]
mod embed;
mod eras;
mod examples;
mod faithful;
mod faults;
mod first_use;
mod harness;
mod house;
mod import;
mod interop;
mod isolation;
mod jwt;
mod library;
mod loadtest;
mod logging;
mod manners;
mod metrics;
mod modern;
mod moves;
mod polling;
mod principals;
mod reload;
mod reload_admin;
mod reload_routes;
mod resilience;
mod resume;
mod routes;
mod schema;
mod service;
mod sessions;
mod shaping;
mod shutdown;
mod sse_backend;
mod subscriptions;
mod support;
mod swaps;
mod tasks;
mod tasks_extension;
mod tls;
mod tls_listener;
mod traces;
mod traffic;
