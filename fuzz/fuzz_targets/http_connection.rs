//! Laws of a client's whole connection, over a socket:
//! - there are as many answers as well-formed requests before the first fault, in their order, each
//!   with the body of its own request, then the refusal of the fault, and nothing behind it;
//! - the connection says that it ends exactly if it does;
//! - none of this depends on how the bytes arrive.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::body::Decoder;
use mcp_proxy::http::{Connection, Framing, Method, RequestHead, ResponseHead, Version};
use mcp_proxy::rt::net::{Listener, Stream};
use mcp_proxy::rt::{Breath, Driver, join};

const BODY_MAX: usize = 64;
const LIMIT: Duration = Duration::from_secs(5);

fuzz_target!(|data: &[u8]| {
    mcp_proxy_fuzz::without_sigpipe();
    let [style, step, wire @ ..] = data else { return };
    let expected = model(wire, *style);
    let whole = serve(wire, *style, wire.len().max(1));
    assert_eq!(read(&whole, &expected), expected, "{}", whole.escape_ascii());
    let step = usize::from(*step) + 1;
    // Each piece is a turn of the loop: a few of them show what many would.
    if step < wire.len() {
        let pieces = serve(wire, *style, step.max(wire.len() / 16));
        assert_eq!(read(&pieces, &expected), expected, "{}", pieces.escape_ascii());
    }
});

/// How the request of that number is answered.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    Whole,
    Chunks,
    Length,
    /// Without a look at its body.
    Unread,
}

fn style(styles: u8, number: usize) -> Style {
    match styles >> (number % 4 * 2) & 3 {
        0 => Style::Whole,
        1 => Style::Chunks,
        2 => Style::Length,
        _ => Style::Unread,
    }
}

/// What one answer must be.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
    /// Whether the connection ends with it.
    last: bool,
    to_head: bool,
}

/// The rules of RFC 9112 §9 read aloud, over all bytes at once.
fn model(wire: &[u8], styles: u8) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = wire;
    loop {
        let refused = |status| Answer { status, body: Vec::new(), last: true, to_head: false };
        let mut head = RequestHead::default();
        match head.parse(rest) {
            Ok(None) => return answers,
            Err(fault) => {
                answers.push(refused(fault.status()));
                return answers;
            }
            Ok(Some(length)) => rest = &rest[length..],
        }
        let style = style(styles, answers.len());
        let to_head = head.method() == Method::Head;
        let old = head.version() == Version::Http10;
        let mut body = head.path().as_bytes().to_vec();
        let mut last = !head.keep_alive();
        if style == Style::Unread {
            last |= head.framing() != Framing::Empty;
        } else {
            last |= style == Style::Chunks && old;
            let read = Decoder::new(head.framing(), BODY_MAX as u64).and_then(|mut decoder| {
                let used = decoder.decode(rest, &mut body)?;
                Ok((used, decoder.is_done()))
            });
            match read {
                Ok((_, false)) => return answers,
                Ok((used, true)) => rest = &rest[used..],
                Err(fault) => {
                    let status = mcp_proxy::http::BodyFault::from(fault).status();
                    answers.push(Answer { to_head, ..refused(status.expect("somebody is there")) });
                    return answers;
                }
            }
        }
        if to_head {
            body.clear();
        }
        answers.push(Answer { status: 200, body, last, to_head });
        if last {
            return answers;
        }
    }
}

/// All that the connection answers to `wire`, which arrives in pieces of `step`.
fn serve(wire: &[u8], styles: u8, step: usize) -> Vec<u8> {
    let run = async {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        let (accepted, client) = join(listener.accept(), Stream::connect(address, LIMIT)).await;
        let (stream, peer) = accepted.expect("accept");
        let server = answer(Connection::new(stream, peer), styles);
        let (mut reader, mut writer) = client.expect("connect").split();
        let write = async {
            let mut breath = Breath::new().expect("eventfd");
            for piece in wire.chunks(step) {
                if writer.write_all(piece.to_vec()).await.0.is_err() {
                    break;
                }
                if step < wire.len() {
                    breath.take().await;
                }
            }
            writer.shutdown_write();
        };
        let read = async {
            let mut all = Vec::new();
            loop {
                let (count, buffer) = reader.read(all, 4096).await;
                all = buffer;
                // A reset is an end as well: what came before it counts.
                if !matches!(count, Ok(1..)) {
                    return all;
                }
            }
        };
        join(server, join(write, read)).await.1.1
    };
    Driver::Epoll.run(run).expect("a loop")
}

async fn answer(mut connection: Connection, styles: u8) {
    let mut number = 0;
    while let Some(head) = connection.head().await {
        let style = style(styles, number);
        number += 1;
        let mut body = head.path().as_bytes().to_vec();
        if style != Style::Unread {
            match connection.body(BODY_MAX).await {
                Ok(read) => body.extend_from_slice(&read),
                Err(fault) => {
                    let Some(status) = fault.status() else { return };
                    let _ = connection.answer(status, "", b"").await;
                    continue;
                }
            }
        }
        drop(head);
        let done = match style {
            Style::Whole | Style::Unread => connection.answer(200, "", &body).await,
            Style::Chunks | Style::Length => {
                let length = (style == Style::Length).then_some(body.len() as u64);
                let behind = body.split_off(body.len() / 2);
                async {
                    connection.begin(200, "", length).await?;
                    connection.chunk(body).await?;
                    connection.finish_with(&behind).await
                }
                .await
            }
        };
        if done.is_err() {
            return;
        }
    }
}

/// The answers on the wire; `expected` says only which of them are to HEAD.
fn read(mut wire: &[u8], expected: &[Answer]) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    while !wire.is_empty() {
        let to_head = expected.get(answers.len()).is_some_and(|answer| answer.to_head);
        let mut head = ResponseHead::default();
        let length = head.parse(wire, to_head).expect("a good head").expect("a whole one");
        wire = &wire[length..];
        if head.status() == 100 {
            continue;
        }
        let mut body = Vec::new();
        let mut decoder = Decoder::new(head.framing(), u64::MAX).expect("no bound");
        wire = &wire[decoder.decode(wire, &mut body).expect("a good body")..];
        if !decoder.is_done() {
            decoder.end().expect("a whole body");
        }
        let last = !head.keep_alive();
        answers.push(Answer { status: head.status(), body, last, to_head });
    }
    answers
}
