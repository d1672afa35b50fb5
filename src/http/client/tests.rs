//! Owns: the tests of `client`: answers as bytes, and what is taken from them.
//! Never: the server side of this project.
//! Next: nothing.

use super::*;
use crate::http::request_head;
use crate::http::tls::{Trust, client_config};
use crate::rt::Driver;
use rustls::pki_types::pem::PemObject;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

const LIMIT: Duration = Duration::from_secs(10);

/// A backend of one connection, and its address.
fn backend<T: Send + 'static>(
    serve: impl FnOnce(std::net::TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        serve(stream)
    });
    (address, thread)
}

fn run<F: Future>(future: F) -> F::Output {
    let (driver, _) = Driver::choose(None).unwrap();
    driver
        .run(async {
            let output = future.await;
            // Closing is work of the loop, too.
            rt::time::sleep(Duration::from_millis(2)).await;
            output
        })
        .unwrap()
}

fn get(method: &str) -> Vec<u8> {
    let mut out = Vec::new();
    request_head(&mut out, method, "/", "a", "", None);
    out
}

/// Reads a head, byte by byte, so that nothing behind it is taken.
fn read_head(stream: &mut impl Read) -> bool {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
        head.push(byte[0]);
    }
    true
}

type Outcome = Result<(u16, String, bool), Fault>;

async fn exchange(connection: &mut ClientConnection, request: Vec<u8>) -> Outcome {
    connection.send(request).await.unwrap();
    let status = connection.head().await?.status();
    let mut body = Vec::new();
    while let Some(piece) = connection.body().await? {
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES_MAX);
        body.extend_from_slice(&piece);
    }
    assert_eq!(connection.body().await, Ok(None));
    Ok((status, String::from_utf8(body).unwrap(), connection.reusable()))
}

/// What a client makes of `wire`, sent in pieces of `step`, after which the backend closes.
fn answer_by(request: Vec<u8>, wire: &[u8], step: usize) -> Outcome {
    let wire = wire.to_vec();
    let (address, thread) = backend(move |mut stream| {
        stream.set_nodelay(true).unwrap();
        assert!(read_head(&mut stream));
        for piece in wire.chunks(step) {
            // A client that has seen enough may be gone.
            let _ = stream.write_all(piece);
            if step < wire.len() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    let outcome = run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        exchange(&mut connection, request).await
    });
    thread.join().unwrap();
    outcome
}

fn answer(wire: &str) -> Outcome {
    let whole = answer_by(get("GET"), wire.as_bytes(), wire.len().max(1));
    let pieces = answer_by(get("GET"), wire.as_bytes(), 3.max(wire.len() / 100));
    match (&whole, &pieces) {
        // Whether bytes behind an answer are seen in time depends on the network.
        (Ok(whole), Ok(pieces)) => assert_eq!((&whole.0, &whole.1), (&pieces.0, &pieces.1)),
        _ => assert_eq!(whole, pieces),
    }
    whole
}

#[test]
fn answers_are_read_by_their_framing() {
    let ok = |status: u16, body: &str, reusable: bool| Ok((status, body.to_owned(), reusable));
    for (wire, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ok(200, "hello", true)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ok(200, "", true)),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n",
            ok(200, "abcde", true),
        ),
        ("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", ok(202, "", true)),
        ("HTTP/1.1 204 No Content\r\n\r\n", ok(204, "", true)),
        ("HTTP/1.1 200 OK\r\n\r\nup to the end", ok(200, "up to the end", false)),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", ok(200, "a", false)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", ok(200, "a", false)),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
                 HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
            ok(200, "a", true),
        ),
        // A body where none may be.
        ("HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\na", ok(204, "", false)),
    ] {
        assert_eq!(answer(wire), expected, "{wire:?}");
    }
    let to_head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(answer_by(get("HEAD"), to_head.as_bytes(), 1000), ok(200, "", true));
}

/// One row for each way in which a backend can lie about where an answer ends.
#[test]
fn what_is_ambiguous_or_cut_short_is_a_fault() {
    use FaultKind::{Body, Closed, Head, Interim};
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
    let chunked = |body: &str| head("Transfer-Encoding: chunked") + body;
    for (wire, kind) in [
        (head("Content-Length: 5\r\nTransfer-Encoding: chunked"), Head(HeadFault::Framing)),
        (head("Content-Length: 5\r\nContent-Length: 5"), Head(HeadFault::Length)),
        (head("Content-Length: +5"), Head(HeadFault::Length)),
        (head("Transfer-Encoding: gzip, chunked"), Head(HeadFault::Coding)),
        (head("A: b\nC: d"), Head(HeadFault::Malformed)),
        (head("A: b\r\n c"), Head(HeadFault::Malformed)),
        (head("A : b"), Head(HeadFault::Malformed)),
        (head("A: b\0"), Head(HeadFault::Malformed)),
        (head(&"A: b\r\n".repeat(101)), Head(HeadFault::TooManyFields)),
        (head(&format!("A: {}", "b".repeat(33_000))), Head(HeadFault::TooLarge)),
        ("HTTP/1.1 200 OK\n\n".into(), Head(HeadFault::Malformed)),
        ("SSH-2.0-OpenSSH_9.6\r\n".into(), Head(HeadFault::Malformed)),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into(), Interim),
        ("HTTP/1.1 100 Continue\r\n\r\n".repeat(17), Interim),
        (head("Content-Length: 5") + "hell", Body(FramingFault::Truncated)),
        (chunked("5\r\nhel"), Body(FramingFault::Truncated)),
        (chunked("5\r\nhello\r\n"), Body(FramingFault::Truncated)),
        (chunked("0\r\n"), Body(FramingFault::Truncated)),
        (chunked("0x5\r\nhello\r\n0\r\n\r\n"), Body(FramingFault::Malformed)),
        (chunked("5\nhello\r\n0\r\n\r\n"), Body(FramingFault::Malformed)),
        (chunked("5\r\nhello0\r\n\r\n"), Body(FramingFault::Malformed)),
        (chunked(&format!("5;{}", "x".repeat(5000))), Body(FramingFault::Overhead)),
        ("HTTP/1.1 200 OK\r\nContent".into(), Closed),
    ] {
        let fault = answer(&wire).unwrap_err();
        let text = &wire[..wire.len().min(80)];
        assert_eq!(fault, Fault { kind, sent: true, answered: true }, "{text:?}");
    }
    assert_eq!(answer(""), Err(Fault { kind: Closed, sent: true, answered: false }));
}

#[test]
fn a_connection_is_used_again_until_something_is_odd() {
    let (address, thread) = backend(|mut stream| {
        for _ in 0..3 {
            assert!(read_head(&mut stream));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
        assert!(read_head(&mut stream));
        // An answer that nobody asked for, right behind the one that somebody did.
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".repeat(2);
        stream.write_all(twice.as_bytes()).unwrap();
        assert!(!read_head(&mut stream));
    });
    run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        for _ in 0..3 {
            assert!(connection.is_quiet());
            let mut request = connection.buffer();
            request_head(&mut request, "GET", "/", "a", "", None);
            assert!(exchange(&mut connection, request).await.unwrap().2);
        }
        let outcome = exchange(&mut connection, get("GET")).await;
        assert_eq!(outcome, Ok((200, "ok".to_owned(), false)));
        let error = connection.send(get("GET")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert_eq!(connection.head().await.unwrap_err().kind, FaultKind::Unusable);
    });
    thread.join().unwrap();
}

/// Behind a large answer the next one is read as if it were alike, and is understood whatever it is.
#[test]
fn an_answer_is_read_whether_or_not_it_looks_like_the_last_one() {
    let large = |length: usize, more: &str| {
        let body: String = (0..length).map(|n| char::from(b'a' + (n / 7 % 26) as u8)).collect();
        let wire = format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {length}\r\n\r\n{body}");
        (wire, body)
    };
    let plain = |wire: &str, body: &str| (wire.to_owned(), body.to_owned());
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let hinted = large(50_000, "");
    let hinted = (format!("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{}", hinted.0), hinted.1);
    let answers = vec![
        large(60_000, ""),
        large(60_000, ""),
        large(59_999, ""),
        large(60_000, "A: a longer head\r\n"),
        large(60_000, ""),
        large(200_000, "A: as long as it was once more\r\n"),
        large(200_001, "A: as long as it was once more\r\n"),
        plain("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi"),
        large(70_000, ""),
        plain(chunked, "hello"),
        large(70_000, ""),
        plain("HTTP/1.1 204 No Content\r\n\r\n", ""),
        hinted,
        large(70_000, ""),
    ];
    for step in [usize::MAX, 70_001, 4099, 61] {
        let wires: Vec<String> = answers.iter().map(|(wire, _)| wire.clone()).collect();
        let (address, thread) = backend(move |mut stream| {
            for wire in wires {
                assert!(read_head(&mut stream));
                for piece in wire.as_bytes().chunks(step.min(wire.len())) {
                    stream.write_all(piece).unwrap();
                }
            }
        });
        run(async {
            let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
            for (at, (_, body)) in answers.iter().enumerate() {
                // All ways to read a body.
                let (text, reusable) = if at % 2 == 0 {
                    let (_, text, reusable) = exchange(&mut connection, get("GET")).await.unwrap();
                    (text, reusable)
                } else {
                    connection.send(get("GET")).await.unwrap();
                    connection.head().await.unwrap();
                    let text = match connection.at_hand(1_000_000) {
                        Some(body) => body,
                        None => connection.whole(1_000_000).await.unwrap(),
                    };
                    (String::from_utf8(text).unwrap(), connection.reusable())
                };
                assert!(text == *body && reusable, "answer {at} in pieces of {step}");
            }
        });
        thread.join().unwrap();
    }
}

/// A guess must not hide what nobody asked for.
#[test]
fn bytes_behind_an_answer_that_was_guessed_end_the_connection() {
    let body = "x".repeat(30_000);
    let wire = format!("HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n{body}");
    for (second, text) in [
        (wire.replace("30000", "20000"), &body[..20_000]),
        ("HTTP/1.1 200 OK\r\nContent-Length: 00000\r\n\r\nx".to_owned(), ""),
    ] {
        let first = wire.clone();
        let (address, thread) = backend(move |mut stream| {
            for wire in [first, second] {
                assert!(read_head(&mut stream));
                stream.write_all(wire.as_bytes()).unwrap();
            }
        });
        run(async {
            let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
            let (_, _, reusable) = exchange(&mut connection, get("GET")).await.unwrap();
            assert!(reusable);
            // The rest of it may still be on its way.
            let (_, got, reusable) = exchange(&mut connection, get("GET")).await.unwrap();
            assert!(got == text);
            assert!(!(reusable && connection.is_quiet()));
        });
        thread.join().unwrap();
    }
}

/// Who still held the head while the body was read made the next answer go on in the middle of
/// the last one: a session that was lost could not be opened again on the same connection.
#[test]
fn a_head_that_is_still_held_does_not_spoil_the_next_one() {
    let (address, thread) = backend(|mut stream| {
        for _ in 0..2 {
            assert!(read_head(&mut stream));
            stream.write_all(b"HTTP/1.1 404 Gone\r\nContent-Length: 2\r\n\r\nno").unwrap();
        }
    });
    run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        for _ in 0..2 {
            connection.send(get("GET")).await.unwrap();
            let head = connection.head().await.unwrap();
            assert_eq!(connection.whole(100).await.unwrap(), b"no");
            assert_eq!(head.status(), 404);
            drop(head);
        }
    });
    thread.join().unwrap();
}

#[test]
fn a_pooled_connection_that_was_closed_or_spoken_on_is_not_quiet() {
    for speak in [false, true] {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (done, end) = std::sync::mpsc::channel::<()>();
        let (address, thread) = backend(move |mut stream| {
            assert!(read_head(&mut stream));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            wait.recv().unwrap();
            if speak {
                stream.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
                end.recv().unwrap();
            }
        });
        run(async {
            let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
            assert!(exchange(&mut connection, get("GET")).await.unwrap().2);
            assert!(connection.is_quiet());
            go.send(()).unwrap();
            while connection.is_quiet() {
                rt::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = done.send(());
        });
        thread.join().unwrap();
    }
}

#[test]
fn an_unread_body_keeps_a_connection_from_reuse() {
    let (address, thread) = backend(|mut stream| {
        assert!(read_head(&mut stream));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello").unwrap();
        assert!(!read_head(&mut stream));
    });
    run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        connection.send(get("GET")).await.unwrap();
        assert_eq!(connection.head().await.unwrap().content_length(), Some(9));
        assert!(!connection.reusable());
        assert_eq!(connection.body().await.unwrap().as_deref(), Some(b"hello".as_slice()));
        assert!(!connection.reusable());
        // The rest does not come, and whoever gives up waiting for it gives up the connection.
        let waited = rt::time::timeout(Duration::from_millis(5), connection.body()).await;
        assert_eq!(waited, Err(rt::time::Elapsed));
        assert!(!connection.reusable());
        assert_eq!(connection.body().await.unwrap_err().kind, FaultKind::Unusable);
    });
    thread.join().unwrap();
}

fn post(length: usize) -> Vec<u8> {
    let mut request = Vec::new();
    request_head(&mut request, "POST", "/", "a", "", Some(length));
    request.resize(request.len() + length, b'x');
    request
}

#[test]
fn large_requests_and_answers_pass_at_the_same_time() {
    const LENGTH: usize = 4_000_000;
    let (address, thread) = backend(|mut stream| {
        assert!(read_head(&mut stream));
        // Answers before it has read anything, with more than sockets hold.
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut piece = vec![0; LENGTH / 10];
        for _ in 0..10 {
            stream.write_all(&vec![b'y'; LENGTH / 10]).unwrap();
            stream.read_exact(&mut piece).unwrap();
        }
    });
    run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        connection.send(post(LENGTH)).await.unwrap();
        connection.head().await.unwrap();
        assert_eq!(connection.whole(LENGTH).await.unwrap().len(), LENGTH);
        // The end of the request leaves with the connection, which stays until it is taken.
        while !thread.is_finished() {
            rt::time::sleep(Duration::from_millis(1)).await;
        }
        thread.join().unwrap();
    });
}

#[test]
fn an_early_refusal_of_a_large_request_is_read() {
    let (done, end) = std::sync::mpsc::channel::<()>();
    let (address, thread) = backend(move |mut stream| {
        assert!(read_head(&mut stream));
        stream.write_all(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno").unwrap();
        // Neither reads on nor closes, which would reset the connection.
        end.recv().unwrap();
    });
    let outcome = run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        exchange(&mut connection, post(20_000_000)).await
    });
    assert_eq!(outcome, Ok((413, "no".to_owned(), false)));
    done.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_large_request_that_is_not_taken_was_not_sent() {
    let (address, thread) = backend(|mut stream| {
        assert!(read_head(&mut stream));
    });
    let fault = run(async {
        let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
        exchange(&mut connection, post(20_000_000)).await.unwrap_err()
    });
    assert!(!fault.sent && !fault.answered, "{fault:?}");
    thread.join().unwrap();
}

#[test]
fn a_whole_body_is_bounded() {
    for framing in ["Content-Length: 9\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n9\r\n"] {
        let (address, thread) = backend(move |mut stream| {
            assert!(read_head(&mut stream));
            let wire = format!("HTTP/1.1 200 OK\r\n{framing}123456789");
            stream.write_all(wire.as_bytes()).unwrap();
            assert!(!read_head(&mut stream));
        });
        run(async {
            let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
            connection.send(get("GET")).await.unwrap();
            connection.head().await.unwrap();
            let fault = connection.whole(8).await.unwrap_err();
            assert_eq!(fault.kind, FaultKind::Body(FramingFault::TooLarge));
            assert!(!connection.reusable());
        });
        thread.join().unwrap();
    }
}

/// A body that came with its head needs no wait, and leaves the connection as any other does.
#[test]
fn a_body_is_at_hand_only_if_it_is_whole_and_alone() {
    let hi = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    for (wire, max, at_hand, reusable) in [
        (hi, 2, true, true),
        (hi, 1, false, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", 2, true, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!", 9, false, false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            9,
            false,
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhi", 9, false, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 9, false, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", 9, false, false),
    ] {
        let (address, thread) = backend(move |mut stream| {
            assert!(read_head(&mut stream));
            stream.write_all(wire.as_bytes()).unwrap();
        });
        run(async {
            let mut connection = ClientConnection::connect(address, None, LIMIT).await.unwrap();
            assert_eq!(connection.at_hand(max), None, "nothing was asked yet");
            connection.send(get("GET")).await.unwrap();
            connection.head().await.unwrap();
            let body = connection.at_hand(max);
            assert_eq!(body.as_deref(), at_hand.then_some(&b"hi"[..]), "{wire:?}");
            if body.is_none() {
                let _ = connection.whole(max).await;
            }
            assert_eq!(connection.at_hand(max), None, "it was taken: {wire:?}");
            assert_eq!(connection.reusable(), reusable, "{wire:?}");
        });
        thread.join().unwrap();
    }
}

#[test]
fn a_refused_connect_says_so() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let fault = run(ClientConnection::connect(address, None, LIMIT)).err().unwrap();
    assert!(matches!(fault, ConnectFault::Tcp(_)), "{fault}");
}

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

fn authority() -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: rcgen::Issuer::new(params, key) }
}

impl Authority {
    /// Certificate and key for `name`.
    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn server_config(authority: &Authority, clients: bool, tls12: bool) -> Arc<rustls::ServerConfig> {
    let (certificate, key) = authority.issue("backend.test");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = if clients {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(
                rustls::pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes())
                    .unwrap(),
            )
            .unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let chain =
        vec![rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

type TlsStream = rustls::StreamOwned<rustls::ServerConnection, std::net::TcpStream>;

fn tls_backend<T: Send + 'static>(
    config: Arc<rustls::ServerConfig>,
    serve: impl FnOnce(TlsStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    backend(move |stream| {
        let session = rustls::ServerConnection::new(config).unwrap();
        serve(rustls::StreamOwned::new(session, stream))
    })
}

#[test]
fn tls_carries_exchanges_of_any_size() {
    let authority = authority();
    for tls12 in [false, true] {
        let config = server_config(&authority, false, tls12);
        let (address, thread) = tls_backend(config, |mut stream| {
            for length in [10, 100_000, 3_000_000] {
                assert!(read_head(&mut stream));
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&body).unwrap();
            }
            // Up to the end, which TLS has to confirm.
            assert!(read_head(&mut stream));
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbye").unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            stream.conn.protocol_version()
        });
        run(async {
            let trust = Trust { ca: Some(authority.pem.as_bytes()), ..Trust::default() };
            let config = client_config(trust).unwrap();
            let tls = Some((config, "backend.test"));
            let mut connection = ClientConnection::connect(address, tls, LIMIT).await.unwrap();
            for length in [10, 100_000, 3_000_000] {
                let (status, body, reusable) =
                    exchange(&mut connection, post(length)).await.unwrap();
                assert_eq!((status, body.len(), reusable), (200, length, true));
            }
            let outcome = exchange(&mut connection, get("GET")).await;
            assert_eq!(outcome, Ok((200, "bye".to_owned(), false)));
        });
        let version = thread.join().unwrap();
        assert_eq!(version == Some(rustls::ProtocolVersion::TLSv1_2), tls12);
    }
}

#[test]
fn a_tls_stream_that_is_cut_is_not_whole() {
    let authority = authority();
    let (address, thread) = tls_backend(server_config(&authority, false, false), |mut stream| {
        assert!(read_head(&mut stream));
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").unwrap();
    });
    let outcome = run(async {
        let trust = Trust { ca: Some(authority.pem.as_bytes()), ..Trust::default() };
        let tls = Some((client_config(trust).unwrap(), "backend.test"));
        let mut connection = ClientConnection::connect(address, tls, LIMIT).await.unwrap();
        exchange(&mut connection, get("GET")).await
    });
    assert_eq!(outcome.unwrap_err().kind, FaultKind::Body(FramingFault::Truncated));
    thread.join().unwrap();
}

/// What connecting under `trust` comes to.
fn tls_connect(
    authority: &Authority,
    clients: bool,
    trust: Trust<'_>,
    name: &str,
) -> Result<(), String> {
    let config = server_config(authority, clients, false);
    let (address, thread) = tls_backend(config, |mut stream| {
        if read_head(&mut stream) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let outcome = run(async {
        let tls = Some((client_config(trust).unwrap(), name));
        let mut connection = ClientConnection::connect(address, tls, LIMIT)
            .await
            .map_err(|fault| fault.to_string())?;
        // In TLS 1.3 a server judges the client's certificate after the client is done.
        let outcome = exchange(&mut connection, get("GET")).await;
        outcome.map(drop).map_err(|fault| fault.to_string())
    });
    thread.join().unwrap();
    outcome
}

#[test]
fn trust_is_what_was_configured() {
    let (ours, other) = (authority(), authority());
    let ca = Trust { ca: Some(ours.pem.as_bytes()), ..Trust::default() };
    assert_eq!(tls_connect(&ours, false, ca, "backend.test"), Ok(()));
    let fault = tls_connect(&ours, false, ca, "other.test").unwrap_err();
    assert!(fault.starts_with("TLS: invalid peer certificate"), "{fault}");
    let stranger = Trust { ca: Some(other.pem.as_bytes()), ..Trust::default() };
    let fault = tls_connect(&ours, false, stranger, "backend.test").unwrap_err();
    assert!(fault.starts_with("TLS: invalid peer certificate"), "{fault}");
    let any = Trust { insecure_skip_verify: true, ..Trust::default() };
    assert_eq!(tls_connect(&ours, false, any, "other.test"), Ok(()));
    // Mutual.
    let (certificate, key) = ours.issue("client");
    let mutual = Trust { identity: Some((certificate.as_bytes(), key.as_bytes())), ..ca };
    assert_eq!(tls_connect(&ours, true, mutual, "backend.test"), Ok(()));
    let fault = tls_connect(&ours, true, ca, "backend.test").unwrap_err();
    assert!(fault.contains("alert"), "{fault}");
}

#[test]
fn unusable_trust_is_named() {
    let ours = authority();
    let (certificate, key) = ours.issue("client");
    let fault = |trust| client_config(trust).unwrap_err().to_string();
    let none = Trust { ca: Some(b"nothing"), ..Trust::default() };
    assert!(fault(none).starts_with("unusable certificate authority: "));
    let ca = Trust { ca: Some(ours.pem.as_bytes()), ..Trust::default() };
    for identity in [
        (b"nothing".as_slice(), key.as_bytes()),
        (certificate.as_bytes(), b"nothing".as_slice()),
        (ours.pem.as_bytes(), key.as_bytes()),
    ] {
        let fault = fault(Trust { identity: Some(identity), ..ca });
        assert!(fault.starts_with("unusable certificate or key: "), "{fault}");
    }
}

#[test]
fn a_handshake_that_ends_early_is_lost() {
    let (address, thread) = backend(drop);
    let fault = run(async {
        let config =
            client_config(Trust { insecure_skip_verify: true, ..Trust::default() }).unwrap();
        ClientConnection::connect(address, Some((config, "a")), LIMIT).await.err().unwrap()
    });
    assert!(matches!(fault, ConnectFault::Lost | ConnectFault::Tcp(_)), "{fault}");
    thread.join().unwrap();
}
