//! A Model Context Protocol server for tests, with faults on demand; over stdio, or over HTTP with
//! `--http PORT`. Written without the library that it tests: plain threads, blocking I/O, and a
//! strict reading of what a client may send, so that a fault of the proxy shows here.
//!
//! `server` has the tools and the options, `asks` those that ask the client; `stdio`, `http` and
//! `old` carry the messages; `hold` is a client that opens many idle connections.

mod asks;
mod hold;
mod http;
mod modern;
mod modern_tasks;
mod old;
mod polling;
mod rounds;
mod server;
mod stdio;
mod tasks;
mod texts;
mod utilities;

use std::process::ExitCode;
use std::time::Duration;

use server::{Options, Stub};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("stub-server: {why}");
            return ExitCode::from(2);
        }
    };
    if options.sleep_only {
        // The grandchild: holds the pipes that it inherited, and does nothing.
        std::thread::sleep(Duration::from_secs(600));
        return ExitCode::SUCCESS;
    }
    if let Some((addr, count)) = &options.hold {
        return hold::run(addr, *count);
    }
    if options.exit_while.as_ref().is_some_and(|file| file.exists()) {
        eprintln!("stub-server: refusing to start");
        return ExitCode::FAILURE;
    }
    let http = options.http;
    if options.until_stdin_ends {
        // Whoever started it is gone: a test that was killed must leave nothing behind.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(0);
        });
    }
    let stub = Stub::new(options);
    stub.note(&format!("start {}", std::process::id()));
    if stub.options.grandchild {
        let own = std::env::current_exe().expect("own path");
        let mut child = std::process::Command::new(own).arg("--sleep-only").spawn().expect("spawn");
        stub.note(&format!("grandchild {}", child.id()));
        std::thread::spawn(move || child.wait());
    }
    if stub.options.flood > 0 {
        server::flood_stderr(stub.options.flood);
        stub.note("flooded");
    }
    match http {
        Some(port) => http::serve(stub, port),
        None => stdio::serve(&stub),
    }
}
