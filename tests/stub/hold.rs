//! Owns: a client that opens many connections, asks once on each, and then keeps them idle.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

/// Prints `held N` when all stand, and ends when stdin does, printing how many were still open.
pub(crate) fn run(addr: &str, count: usize) -> ExitCode {
    let mut held = Vec::with_capacity(count);
    let request = format!("GET /nothing HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    for n in 0..count {
        let mut stream = match TcpStream::connect(addr) {
            Ok(stream) => stream,
            Err(error) => {
                println!("failed at {n}: {error}");
                return ExitCode::FAILURE;
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        stream.write_all(request.as_bytes()).expect("request");
        let mut answer = Vec::new();
        let mut room = [0; 2048];
        while !whole(&answer) {
            match stream.read(&mut room) {
                Ok(0) | Err(_) => {
                    println!("failed at {n}: no answer");
                    return ExitCode::FAILURE;
                }
                Ok(read) => answer.extend_from_slice(&room[..read]),
            }
        }
        held.push(stream);
    }
    println!("held {}", held.len());
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    let open = held.into_iter().filter(|mut stream| {
        stream.set_nonblocking(true).expect("nonblocking");
        let read = stream.read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    println!("open {}", open.count());
    ExitCode::SUCCESS
}

fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_none_or(|length| body.len() >= length)
}
