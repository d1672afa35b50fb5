//! Load harness: what a `tools/call` costs through `mcp-proxy`, beside nginx and beside no proxy.
//!
//! Owns: the order of the measurement. Every row runs in every round, one after the other, so
//! that what the machine does meanwhile meets all rows alike; the median of the rounds counts.
//! Never: code of the proxy. The backend (`stub`) and the clients (`generate`) are processes of
//! their own, on mio, so that the CPU time of the proxy's process is the proxy's alone.
//! Next: `target`, what is measured.

mod generate;
mod histogram;
mod report;
mod stub;
mod target;
mod wire;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use report::{Cell, Report};
use target::{Kind, Target};

#[derive(Parser)]
#[command(about = "Load on mcp-proxy, nginx and a bare backend, with CPU time per request")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    run: Run,
}

/// What to run, and for how long.
#[derive(Args)]
struct Run {
    /// One short round of the main cells.
    #[arg(long)]
    quick: bool,
    /// Connections, each a closed loop with a session of its own.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    connections: Option<Vec<usize>>,
    /// Bytes of a result.
    #[arg(long, value_delimiter = ',', value_name = "BYTES,..")]
    sizes: Option<Vec<usize>>,
    /// Rows to run: direct, nginx, proxy, stdio.
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    rows: Option<Vec<String>>,
    /// Workers of the proxy and of nginx.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "N,..")]
    workers: Vec<usize>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Of one measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// Where the figures go as JSON; the default is loadtest.json in the target directory.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The proxy to measure, instead of the one that lies beside this program.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
}

/// The parts that run as processes of their own.
#[derive(Subcommand)]
enum Role {
    /// The backend over HTTP; writes its port to stdout.
    #[command(hide = true)]
    StubHttp,
    /// The backend on stdio.
    #[command(hide = true)]
    StubStdio,
    /// The clients; `begin`, `end` and the figures go to stdout.
    #[command(hide = true)]
    Generate(generate::Load),
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.role {
        Some(Role::StubHttp) => stub::http().map_err(Into::into),
        Some(Role::StubStdio) => stub::stdio().map_err(Into::into),
        Some(Role::Generate(load)) => generate::run(&load),
        None => measure(&arguments.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(run: &Run) -> Result<()> {
    let proxy = match &run.proxy {
        Some(file) => file.clone(),
        None => build_proxy()?,
    };
    let cells = cells(run);
    let rounds = run.rounds.unwrap_or(if run.quick { 1 } else { 3 });
    let seconds = run.seconds.unwrap_or(0.7);
    let scratch = tempfile::tempdir()?;
    let backend = target::Backend::start()?;

    let mut targets = Vec::new();
    let wanted = |row: &str| run.rows.as_ref().is_none_or(|rows| rows.iter().any(|r| r == row));
    if wanted("direct") {
        targets.push(Target::direct(&backend));
    }
    for &workers in &run.workers {
        let of = |kind| Target::start(kind, workers, &proxy, &backend, scratch.path());
        if wanted("nginx") && target::nginx_is_installed() {
            targets.push(of(Kind::Nginx)?);
        }
        if wanted("proxy") {
            targets.push(of(Kind::ProxyHttp)?);
        }
        if wanted("stdio") {
            targets.push(of(Kind::ProxyStdio)?);
        }
    }
    if wanted("nginx") && !target::nginx_is_installed() {
        eprintln!("nginx is not installed: rows and ratios without it");
    }

    let mut report = Report::new(seconds, rounds);
    for round in 1..=rounds {
        for &(connections, size) in &cells {
            for target in &targets {
                eprint!(
                    "\rround {round} of {rounds}, {connections} connections, {size} B, {:<24}",
                    target.row()
                );
                let duration = Duration::from_secs_f64(seconds);
                let sample = target.load(connections, size, duration)?;
                report.add(Cell { row: target.row(), connections, size }, sample);
            }
        }
    }
    eprintln!("\r{:<78}", "");
    print!("{}", report.table());
    let json = run.json.clone().unwrap_or_else(|| proxy.with_file_name("loadtest.json"));
    std::fs::write(&json, report.json())?;
    println!("\nAll samples: {}", json.display());
    if report.errors() > 0 {
        return Err(format!("{} errors: {}", report.errors(), report.first_error()).into());
    }
    Ok(())
}

/// All sizes at 32 connections, all numbers of connections at 200 bytes: the rest adds little.
fn cells(run: &Run) -> Vec<(usize, usize)> {
    let both = run.connections.is_some() || run.sizes.is_some();
    let connections = run.connections.clone().unwrap_or(vec![32]);
    let sizes = run.sizes.clone().unwrap_or(vec![200]);
    if both {
        let with_sizes = |&c: &usize| sizes.iter().map(move |&s| (c, s)).collect::<Vec<_>>();
        return connections.iter().flat_map(with_sizes).collect();
    }
    vec![(1, 200), (32, 200), (256, 200), (32, 4096), (32, 65536)]
}

/// `cargo run --example` builds the example but not the binary, which could be missing or stale.
fn build_proxy() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.parent().and_then(|examples| examples.parent()).ok_or("no target folder")?;
    let proxy = folder.join("mcp-proxy");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--bin", "mcp-proxy"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.file_name().is_some_and(|name| name == "release") {
            command.arg("--release");
        }
        if !command.status()?.success() {
            return Err("the proxy does not build".into());
        }
    }
    if cfg!(debug_assertions) {
        eprintln!("This is not a release build: the figures say nothing.");
    }
    if !proxy.exists() {
        return Err(format!("{} is missing: cargo build --release", proxy.display()).into());
    }
    Ok(proxy)
}
