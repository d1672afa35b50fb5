//! Owns: `poll` (`--polling`): a call over HTTP whose stream the server ends before the answer, to be
//! taken up again.
//! Never: framing of other answers.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use serde_json::Value;

use crate::server::{Reply, Stub, result, text_result};

/// The calls that have not ended, by the number in their event ids.
#[derive(Default)]
pub(crate) struct Polls(Mutex<HashMap<u64, Poll>>);

struct Poll {
    id: String,
    round: u64,
    /// How often it has to be taken up.
    rounds: u64,
}

const HEAD: &str =
    "HTTP/1.1 200 Said\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
}

fn priming(out: &mut Vec<u8>, number: u64, round: u64) {
    chunk(out, &format!("id: poll-{number}-{round}\nretry: 20\ndata: \n\n"));
}

fn note(out: &mut Vec<u8>, text: &str) {
    let message = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"info","data":"{text}"}}}}"#
    );
    chunk(out, &format!("data: {message}\n\n"));
}

/// The first stream: `rounds` says how often it goes on; with `say` it says something; with `cut` it
/// does not end as it should; with `lost` nobody will know of it afterwards.
pub(crate) fn call(stub: &Stub, id: &str, arguments: &Value) -> Reply {
    let number = stub.next_number();
    let rounds = arguments["rounds"].as_u64().unwrap_or(1);
    let mut bytes = HEAD.as_bytes().to_vec();
    priming(&mut bytes, number, 0);
    if arguments["say"] == true {
        note(&mut bytes, "before");
    }
    let cut = arguments["cut"] == true;
    if !cut {
        bytes.extend_from_slice(b"0\r\n\r\n");
    }
    if arguments["lost"] != true {
        let poll = Poll { id: id.to_owned(), round: 0, rounds };
        stub.polls.0.lock().unwrap().insert(number, poll);
    }
    stub.note(&format!("poll {number}"));
    Reply::Raw { bytes, close: cut }
}

/// A stream that is taken up; `None` if the id is none of these.
pub(crate) fn resume(stub: &Stub, mut out: &TcpStream, last: &str) -> Option<io::Result<bool>> {
    let number = last.strip_prefix("poll-")?.split('-').next()?.parse().ok()?;
    stub.note(&format!("resumed {last}"));
    let mut polls = stub.polls.0.lock().unwrap();
    let Some(poll) = polls.get_mut(&number) else {
        let refusal = b"HTTP/1.1 400 Said\r\nContent-Length: 0\r\n\r\n";
        return Some(out.write_all(refusal).map(|()| true));
    };
    poll.round += 1;
    let mut bytes = HEAD.as_bytes().to_vec();
    note(&mut bytes, &format!("round {}", poll.round));
    if poll.round < poll.rounds {
        priming(&mut bytes, number, poll.round);
    } else {
        chunk(&mut bytes, &format!("data: {}\n\n", result(&poll.id, &text_result("polled"))));
        polls.remove(&number);
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    Some(out.write_all(&bytes).map(|()| true))
}
