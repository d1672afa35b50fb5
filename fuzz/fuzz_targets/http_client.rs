//! Laws of a backend's connection, over a socket:
//! - what is made of an answer, or why it is refused, is what a plain reading of all its bytes says,
//!   however they arrive;
//! - neither does what is made of it depend on the answer before, whose likeness it may be read in;
//! - nothing of a refused body was handed on that is not in it;
//! - a connection is used again exactly if the answer ended properly, neither side said close, and
//!   nothing came behind it.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::body::Decoder;
use mcp_proxy::http::{ClientConnection, FaultKind, Framing, ResponseHead, request_head};
use mcp_proxy::rt::local::Event;
use mcp_proxy::rt::net::{Listener, Stream};
use mcp_proxy::rt::{Breath, Driver, join};

const LIMIT: Duration = Duration::from_secs(5);
/// Interim answers that are skipped.
const INTERIM_MAX: usize = 16;

fuzz_target!(|data: &[u8]| {
    mcp_proxy_fuzz::without_sigpipe();
    let [kind, step, wire @ ..] = data else { return };
    let to_head = kind & 1 == 1;
    let before = (kind & 2 == 2).then(|| large(usize::from(kind >> 2)));
    let expected = model(wire, to_head);
    check(wire, to_head, &expected, wire.len().max(1), before.as_deref());
    let step = usize::from(*step) + 1;
    if step < wire.len() {
        check(wire, to_head, &expected, step.max(wire.len() / 16), before.as_deref());
    }
});

/// A good answer with a large body, whose head is `more` bytes longer than it need be.
fn large(more: usize) -> Vec<u8> {
    let more = "x".repeat(more);
    let head = format!("HTTP/1.1 200 OK\r\nA:{more}\r\nContent-Length: {LARGE}\r\n\r\n");
    let mut wire = head.into_bytes();
    wire.resize(wire.len() + LARGE, b'x');
    wire
}

/// Bytes of a body behind which the next one is expected to be large as well.
const LARGE: usize = 9_000;

#[derive(Debug)]
struct Expected {
    /// The status, if the head was whole.
    status: Option<u16>,
    /// The body, as far as it is good.
    body: Vec<u8>,
    fault: Option<FaultKind>,
    /// The backend has to close before anything can be said.
    waits: bool,
    /// Another request may follow.
    again: bool,
    /// Bytes that nobody asked for.
    behind: bool,
}

fn model(wire: &[u8], to_head: bool) -> Expected {
    let mut expected = Expected {
        status: None,
        body: Vec::new(),
        fault: None,
        waits: false,
        again: false,
        behind: false,
    };
    let mut rest = wire;
    let mut interim = 0;
    let head = loop {
        let mut head = ResponseHead::default();
        match head.parse(rest, to_head) {
            Ok(None) => {
                expected.fault = Some(FaultKind::Closed);
                expected.waits = true;
                return expected;
            }
            Err(fault) => {
                expected.fault = Some(FaultKind::Head(fault));
                return expected;
            }
            Ok(Some(length)) => rest = &rest[length..],
        }
        if head.status() >= 200 {
            break head;
        }
        interim += 1;
        if head.status() == 101 || interim > INTERIM_MAX {
            expected.fault = Some(FaultKind::Interim);
            return expected;
        }
    };
    expected.status = Some(head.status());
    let mut decoder = Decoder::new(head.framing(), u64::MAX).expect("no bound");
    match decoder.decode(rest, &mut expected.body) {
        Err(fault) => expected.fault = Some(FaultKind::Body(fault)),
        Ok(used) if decoder.is_done() => {
            expected.again = head.keep_alive();
            expected.behind = used < rest.len();
        }
        Ok(_) => {
            expected.waits = true;
            expected.fault = decoder.end().err().map(FaultKind::Body);
            assert!(expected.fault.is_some() || head.framing() == Framing::UntilClose);
        }
    }
    expected
}

fn check(wire: &[u8], to_head: bool, expected: &Expected, step: usize, before: Option<&[u8]>) {
    let run = async {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        let (written, over) = (Event::new(), Event::new());
        let backend = async {
            let (mut stream, _) = listener.accept().await.expect("accept");
            if let Some(before) = before {
                asked(&mut stream).await;
                stream.write_all(before.to_vec()).await.0.expect("somebody reads");
            }
            answer(stream, wire, step, expected.waits, &written, &over).await;
        };
        let client = async {
            let connected = ClientConnection::connect(address, None, LIMIT).await;
            let mut connection = connected.expect("connect");
            if before.is_some() {
                let mut request = connection.buffer();
                request_head(&mut request, "GET", "/", "a", "", None);
                connection.send(request).await.expect("a fresh connection");
                assert_eq!(connection.head().await.expect("a good answer").status(), 200);
                assert_eq!(connection.whole(LARGE).await.expect("a good body"), [b'x'; LARGE]);
                assert!(connection.reusable());
            }
            // Either way to take a body that is here already.
            let at_hand = wire.len() % 2 == 0;
            ask(&mut connection, to_head, at_hand, expected).await;
            // Whether it can be used again is asked when all that was sent is there.
            written.wait().await;
            let again = connection.reusable() && connection.is_quiet();
            assert_eq!(again, expected.again && !expected.behind, "{expected:?}");
            over.set();
        };
        join(backend, client).await;
    };
    Driver::Epoll.run(run).expect("a loop");
}

/// Reads a request.
async fn asked(stream: &mut Stream) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let (count, buffer) = stream.read(asked, 256).await;
        asked = buffer;
        assert!(count.is_ok_and(|count| count > 0));
    }
}

async fn answer(
    mut stream: Stream,
    wire: &[u8],
    step: usize,
    close: bool,
    written: &Event,
    over: &Event,
) {
    asked(&mut stream).await;
    let mut breath = Breath::new().expect("eventfd");
    for piece in wire.chunks(step) {
        // A client that has seen enough may be gone.
        if stream.write_all(piece.to_vec()).await.0.is_err() {
            break;
        }
        if step < wire.len() {
            breath.take().await;
        }
    }
    if close {
        stream.shutdown_write();
    }
    written.set();
    over.wait().await;
}

async fn ask(connection: &mut ClientConnection, to_head: bool, at_hand: bool, expected: &Expected) {
    let mut request = connection.buffer();
    let method = if to_head { "HEAD" } else { "GET" };
    request_head(&mut request, method, "/", "a", "", None);
    connection.send(request).await.expect("a fresh connection");
    let mut body = Vec::new();
    let fault = async {
        let head = connection.head().await?;
        assert_eq!(Some(head.status()), expected.status);
        drop(head);
        if at_hand && let Some(whole) = connection.at_hand(usize::MAX) {
            body = whole;
        }
        while let Some(piece) = connection.body().await? {
            assert!(!piece.is_empty());
            body.extend_from_slice(&piece);
        }
        Ok::<(), mcp_proxy::http::Fault>(())
    };
    let fault = fault.await.err();
    assert_eq!(fault.as_ref().map(|fault| &fault.kind), expected.fault.as_ref());
    match fault {
        None => assert_eq!(body, expected.body),
        Some(fault) => {
            assert!(expected.body.starts_with(&body) || body.starts_with(&expected.body));
            assert!(fault.sent);
        }
    }
}
