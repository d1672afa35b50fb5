//! Owns: one message a line on stdin and stdout.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::modern;
use crate::server::{Channel, Message, Reply, Stub};

/// Lines on stdout, whole ones: the lock is held for each.
pub(crate) struct Lines;

impl Channel for Lines {
    fn say(&self, message: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(format!("{message}\n").as_bytes())?;
        out.flush()
    }
}

pub(crate) fn serve(stub: &Arc<Stub>) -> ExitCode {
    // In the request era nothing is said that nobody asked for.
    let listening = (!stub.options.modern).then(|| stub.listen(""));
    std::thread::spawn(move || {
        let Some(listening) = listening else { return };
        while let Ok(message) = listening.recv() {
            if Lines.say(&message).is_err() {
                break;
            }
        }
    });
    let mut greeted = false;
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        greeted |= line.contains(r#""initialize""#);
        if stub.options.shy && !greeted {
            stub.note("shy");
            return ExitCode::FAILURE;
        }
        if stub.options.silent && !greeted {
            stub.note("silent");
            continue;
        }
        if stub.muted() {
            continue;
        }
        let slow = match Message::read(line.as_bytes()) {
            Ok(message) => message.is_slow() && message.id.is_some(),
            Err(why) => {
                stub.note(&format!("bad {why}: {line}"));
                continue;
            }
        };
        // One that stops reading must be handled here, whatever time it takes.
        if slow && !line.contains(r#""stop_reading""#) {
            let stub = stub.clone();
            std::thread::spawn(move || one(&stub, &line));
        } else {
            one(stub, &line);
        }
    }
    stub.note("end of stdin");
    if stub.options.ignore_eof {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    ExitCode::SUCCESS
}

fn one(stub: &Arc<Stub>, line: &str) {
    let message = Message::read(line.as_bytes()).expect("read before");
    if stub.options.modern && modern::is_request(&message) {
        return modern::line(stub, &message, line.as_bytes());
    }
    if stub.options.only_modern && message.method.as_deref() == Some("initialize") {
        stub.note("legacy initialize");
        Lines.say(&modern::no_sessions(&message.id_text())).expect("stdout");
        return;
    }
    let said = match stub.handle("", &message, line.as_bytes(), &Lines) {
        Reply::Answer(answer) => Lines.say(&answer),
        Reply::Pieces { answer, pieces, pause, .. } => in_pieces(&answer, pieces, pause),
        Reply::Raw { bytes, close } => {
            let mut out = io::stdout().lock();
            let said = out.write_all(&bytes).and_then(|()| out.flush());
            if close {
                std::process::exit(0);
            }
            said
        }
        Reply::Silence | Reply::Nothing => Ok(()),
        Reply::StopReading(answer) => {
            Lines.say(&answer).expect("stdout");
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    };
    if let Err(error) = said {
        stub.note(&format!("stdout failed: {error}"));
    }
}

fn in_pieces(answer: &str, pieces: usize, pause: Duration) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for piece in answer.as_bytes().chunks(answer.len().div_ceil(pieces)) {
        out.write_all(piece)?;
        out.flush()?;
        std::thread::sleep(pause);
    }
    out.write_all(b"\n")?;
    out.flush()
}
