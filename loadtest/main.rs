//! Load harness: what a call costs through `mcp-proxy`, or through any other MCP gateway, beside
//! nginx, beside a plain proxy on hyper, beside a relay of bytes, and beside no proxy at all.
//!
//! Owns: the program's roles. The parent (`run`) starts the server (`stub`), the rows (`target`)
//! and the clients (`generate`, `hold`) as processes of their own, so that the CPU time of each is
//! its own.
//! Never: code of the proxy. Both ends run on mio; only the relay runs on the proxy's runtime.
//! Next: `run`, the order of a measurement.

mod client;
mod generate;
mod histogram;
mod hold;
mod html;
mod job;
mod measure;
mod nginx;
mod pace;
mod plain;
mod process;
mod progress;
mod proxy;
mod relay;
mod request;
mod run;
mod sample;
mod scenario;
mod soak;
mod stub;
mod stub_http;
mod summary;
mod svg;
mod table;
mod target;
mod wire;
mod workers;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use job::{Idle, Job};

/// The allocator of the proxy that is measured, for all that stands beside it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    about = "Load on MCP gateways: throughput, latency, CPU time per request and memory",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    run: run::Run,
}

/// The parts that run as processes of their own.
#[derive(Subcommand)]
enum Role {
    /// The MCP server that a gateway of yours is measured with.
    Stub(stub::Options),
    /// The reverse proxy on hyper; its port goes to stdout.
    #[command(hide = true)]
    Plain { backend: SocketAddr, workers: usize },
    /// What carries bytes and no more; its port goes to stdout.
    #[command(hide = true)]
    Relay { server: SocketAddr, workers: usize },
    /// The clients, told what to do on stdin.
    #[command(hide = true)]
    Generate,
    /// What is opened and left alone, told on stdin.
    #[command(hide = true)]
    Hold { what: What },
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Sessions,
    Connections,
    Streams,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::raise_files();
    let done = match &arguments.role {
        Some(Role::Stub(options)) if options.stdio => stub::stdio(options).map_err(Into::into),
        Some(Role::Stub(options)) => stub_http::serve(options).map_err(Into::into),
        Some(Role::Plain { backend, workers }) => plain::serve(*backend, *workers),
        Some(Role::Relay { server, workers }) => relay::serve(*server, *workers),
        Some(Role::Generate) => told().and_then(|job| generate::run(&job)),
        Some(Role::Hold { what }) => told().and_then(|job| {
            let what = match what {
                What::Sessions => Idle::Sessions,
                What::Connections => Idle::Connections,
                What::Streams => Idle::Streams,
            };
            hold::run(&job, what)
        }),
        None => run::run(&arguments.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The job, one line on stdin.
fn told() -> Result<Job> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
