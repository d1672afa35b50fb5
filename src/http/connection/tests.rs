//! Owns: the tests of `connection`: requests as bytes in, answers as bytes out.
//! Never: what an exchange says.
//! Next: nothing.

use super::date::{DATE_LINE_BYTES, date};
use super::*;
use crate::rt::Driver;
use crate::rt::net::Listener;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

/// Serves one connection with a small service while `client` talks to it, and returns how many
/// requests it took and what the client made of it.
fn with_timing<T: Send + 'static>(
    timing: Timing,
    client: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u32, T) {
    with_driver(None, timing, client)
}

fn with_driver<T: Send + 'static>(
    driver: Option<Driver>,
    timing: Timing,
    client: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u32, T) {
    let (driver, _) = Driver::choose(driver).unwrap();
    driver
        .run(async move {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::thread::spawn(move || {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                client(stream)
            });
            let (stream, peer) = listener.accept().await.unwrap();
            let mut connection = Connection::with_timing(stream, peer, timing);
            while let Some(head) = connection.head().await {
                service(&mut connection, &head).await;
            }
            let served = connection.served;
            drop(connection);
            // The thread ends by itself now that its peer is closed; the loop has nothing more
            // to do than to close it.
            rt::time::sleep(Duration::from_millis(2)).await;
            (served, client.join().unwrap())
        })
        .unwrap()
}

async fn service(connection: &mut Connection, head: &RequestHead) {
    let _ = match head.path() {
        "/early" => connection.answer(401, "", b"no").await,
        "/empty" => connection.answer(204, "", b"").await,
        "/chunks" => {
            connection.begin(200, "A: b\r\n", None).await.unwrap();
            connection.chunk(b"hello ".to_vec()).await.unwrap();
            connection.finish_with(b"world").await
        }
        "/length" => {
            connection.begin_with(200, "", Some(5), b"he").await.unwrap();
            connection.chunk(b"llo".to_vec()).await.unwrap();
            connection.finish().await
        }
        "/short" => {
            connection.begin(200, "", Some(5)).await.unwrap();
            connection.chunk(b"he".to_vec()).await.unwrap();
            connection.finish().await
        }
        "/long" => {
            connection.begin(200, "", Some(1)).await.unwrap();
            connection.chunk(b"he".to_vec()).await
        }
        "/abort" => {
            connection.begin(200, "", None).await.unwrap();
            connection.chunk(b"he".to_vec()).await.unwrap();
            connection.abort();
            Ok(())
        }
        "/big" => connection.answer(200, "", &vec![b'x'; 1_000_000]).await,
        "/whole" => connection.answer_with(200, "", vec![b'w'; 200_000]).await,
        "/pieces" => {
            connection.open(200, "", Some(300_000)).unwrap();
            for _ in 0..3 {
                connection.chunk(vec![b'p'; 100_000]).await.unwrap();
            }
            connection.finish().await
        }
        "/gone" => {
            connection.closed().await;
            Ok(())
        }
        _ => match connection.body(100_000).await {
            Ok(body) => {
                let result = connection.answer(200, "", &body).await;
                rt::spare::give(body);
                result
            }
            Err(fault) => match fault.status() {
                Some(status) => connection.answer(status, "", b"").await,
                None => Ok(()),
            },
        },
    };
}

fn serve<T: Send + 'static>(client: impl FnOnce(TcpStream) -> T + Send + 'static) -> (u32, T) {
    with_timing(Timing::default(), client)
}

/// Sends `wire`, and returns all that comes until the connection ends, without Date lines.
fn transcript(timing: Timing, wire: impl Into<Vec<u8>>) -> (u32, String) {
    let wire = wire.into();
    with_timing(timing, move |mut stream| {
        stream.write_all(&wire).unwrap();
        rest(&mut stream)
    })
}

fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    undated(&answer)
}

fn undated(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

/// Reads until `end` has come.
fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    undated(&answer)
}

const CLOSE: &str = "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const CLOSED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[test]
fn requests_are_answered_in_order_at_any_split() {
    let wire = format!(
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
             GET /chunks HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n\
             HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /empty HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /length HTTP/1.1\r\nHost: a\r\n\r\n{CLOSE}"
    );
    let expected = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
             HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n\
             6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde\
             HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\
             HTTP/1.1 204 No Content\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello{CLOSED}"
    );
    let drivers = [None, Some(Driver::Epoll)];
    for (driver, step) in drivers.into_iter().flat_map(|d| [1, 7, 50, 5000].map(|s| (d, s))) {
        let (wire, expected) = (wire.clone(), expected.clone());
        let (served, got) = with_driver(driver, Timing::default(), move |mut stream| {
            stream.set_nodelay(true).unwrap();
            for piece in wire.as_bytes().chunks(step) {
                stream.write_all(piece).unwrap();
                if step > 1 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            rest(&mut stream)
        });
        assert_eq!(served, 7);
        assert_eq!(got, expected);
    }
}

/// A body that is not copied stands behind its head and before what follows, on every driver.
#[test]
fn large_bodies_are_answered_in_order() {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
    let wanted = format!(
        "{}\r\n{}{}\r\n{}{}\r\n{}{}\r\n{}HTTP/1.1 400 ",
        head(200_000),
        "w".repeat(200_000),
        head(300_000),
        "p".repeat(300_000),
        head(200_000),
        "",
        head(200_000),
        "w".repeat(200_000),
    );
    let get = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let wire = get("GET", "/whole")
        + &get("GET", "/pieces")
        + &get("HEAD", "/whole")
        + &get("GET", "/whole")
        + "nonsense\r\n\r\n";
    for driver in [Driver::TunedRing, Driver::Ring, Driver::Epoll] {
        if Driver::choose(Some(driver)).is_err() {
            continue;
        }
        for pipelined in [true, false] {
            let wire = wire.clone();
            let (served, answer) =
                with_driver(Some(driver), Timing::default(), move |mut stream| {
                    for request in wire.split_inclusive("\r\n\r\n") {
                        stream.write_all(request.as_bytes()).unwrap();
                        if !pipelined {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                    rest(&mut stream)
                });
            assert_eq!(served, 4);
            assert!(answer.starts_with(&wanted), "{driver}, {}", answer.len());
        }
    }
}

#[test]
fn a_client_that_waits_gets_each_answer() {
    let (served, ()) = serve(|mut stream| {
        for body in ["one", "two", &"three".repeat(10_000)] {
            let length = body.len();
            let head = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body.as_bytes()).unwrap();
            let head = until(&mut stream, "\r\n\r\n");
            assert_eq!(head, format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            let mut back = vec![0; length];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, body.as_bytes());
        }
    });
    assert_eq!(served, 3);
}

#[test]
fn a_half_closed_client_is_answered() {
    let (_, got) = serve(|mut stream| {
        stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&mut stream)
    });
    assert_eq!(got.len(), 1_000_000 + "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".len());
}

/// One row for each attack on the framing of requests: refused, closed, nothing served after.
#[test]
fn nothing_is_served_after_a_framing_error() {
    let rows = [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5, 6", 400),
        ("Content-Length: 9223372036854775808", 400),
        ("Transfer-Encoding: gzip", 501),
        ("Transfer-Encoding: chunked, identity", 501),
        ("Content-Length : 5", 400),
        (": 5", 400),
        ("A: b\0", 400),
        ("A: b\rc", 400),
        ("A: b\r\n c", 400),
        ("A: b\nC: d", 400),
        ("Host: b", 400),
        ("Expect: x", 417),
    ];
    for (field, status) in rows {
        let wire = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\nhello{CLOSE}");
        let (served, got) = transcript(Timing::default(), wire);
        assert_eq!(served, 0, "{field:?}");
        let refusal = format!(
            "HTTP/1.1 {status} {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            crate::http::head::reason(status)
        );
        assert_eq!(got, refusal, "{field:?}");
    }
    for (wire, status) in [
        ("GET / HTTP/1.1\r\nA: b\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), 501),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 501),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "A: b\r\n".repeat(101)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(33_000)), 431),
    ] {
        let (served, got) = transcript(Timing::default(), wire + CLOSE);
        assert_eq!(served, 0);
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        assert!(got.ends_with("\r\n\r\n") && got.matches("HTTP/1.1").count() == 1, "{got}");
    }
    for (body, status) in [
        ("+5\r\nhello\r\n0\r\n\r\n".to_owned(), 400),
        ("5\nhello\r\n0\r\n\r\n".to_owned(), 400),
        ("5\r\nhelloX\r\n0\r\n\r\n".to_owned(), 400),
        ("00000000000000005\r\nhello".to_owned(), 400),
        (format!("5;{}\r\nhello", "x".repeat(5000)), 400),
        (format!("0\r\nA:{}\r\n\r\n", "x".repeat(5000)), 400),
        ("186a1\r\n".to_owned(), 413),
    ] {
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (served, got) = transcript(Timing::default(), format!("{head}{body}{CLOSE}"));
        assert_eq!(served, 1);
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{body:?}: {got}");
        assert!(got.matches("HTTP/1.1").count() == 1 && got.contains("close"), "{got}");
    }
}

#[test]
fn an_upgrade_is_no_tunnel() {
    let wire = format!(
        "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{CLOSE}"
    );
    let (_, got) = transcript(Timing::default(), wire);
    assert_eq!(got, format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{CLOSED}"));
}

#[test]
fn an_early_answer_with_an_unread_body_closes() {
    let wire = format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{CLOSE}");
    let (served, got) = transcript(Timing::default(), wire);
    assert_eq!(served, 1);
    assert_eq!(
        got,
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    );
    // Nothing is unread here.
    let (served, _) =
        transcript(Timing::default(), format!("GET /early HTTP/1.1\r\nHost: a\r\n\r\n{CLOSE}"));
    assert_eq!(served, 2);
}

/// A client that sends its whole body before it reads must find the answer, not a reset.
#[test]
fn a_large_body_is_refused_before_it_is_read() {
    let (served, got) = serve(|mut stream| {
        let length = 6_000_000;
        let head = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; length]).unwrap();
        rest(&mut stream)
    });
    assert_eq!(served, 1);
    assert!(got.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{got}");
}

#[test]
fn an_expectation_is_met_or_answered() {
    let expect = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                 Content-Length: {length}\r\n\r\n"
        )
    };
    let (met, early, large) = (expect("/x", 5), expect("/early", 5), expect("/x", 100_001));
    let (_, got) = serve(move |mut stream| {
        stream.write_all(met.as_bytes()).unwrap();
        let first = until(&mut stream, "\r\n\r\n");
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        first + &rest(&mut stream)
    });
    assert_eq!(
        got,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    );
    let (_, got) = transcript(Timing::default(), early);
    assert!(got.starts_with("HTTP/1.1 401 "), "{got}");
    let (_, got) = transcript(Timing::default(), large);
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
}

#[test]
fn the_older_version_closes_unless_asked_and_gets_no_chunks() {
    let (served, got) = transcript(
        Timing::default(),
        "GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /chunks HTTP/1.0\r\n\r\n",
    );
    assert_eq!(served, 2);
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n\
             HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\nhello world"
    );
}

#[test]
fn an_answer_that_is_not_whole_is_not_ended() {
    for (path, end) in [
        ("/abort", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n"),
        ("/short", "Content-Length: 5\r\n\r\nhe"),
        ("/long", "Content-Length: 1\r\n\r\n"),
    ] {
        let wire = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n{CLOSE}");
        let (served, got) = with_timing(Timing::default(), move |mut stream| {
            stream.write_all(wire.as_bytes()).unwrap();
            let mut answer = Vec::new();
            // The unread request may turn the end into a reset.
            let _ = stream.read_to_end(&mut answer);
            undated(&answer)
        });
        assert_eq!(served, 1);
        assert!(got.ends_with(end), "{path}: {got}");
    }
}

fn short() -> Timing {
    Timing {
        handshake: Duration::from_millis(300),
        idle: Duration::from_millis(100),
        head: Duration::from_millis(100),
        body: Duration::from_millis(300),
        body_idle: Duration::from_millis(100),
        stall: Duration::from_millis(200),
        linger: Duration::from_millis(200),
    }
}

#[test]
fn the_idle_are_closed_and_the_slow_are_refused() {
    assert_eq!(transcript(short(), ""), (0, String::new()));
    let (served, got) = transcript(short(), "GET / HTTP/1.1\r\nHost");
    assert!(served == 0 && got.starts_with("HTTP/1.1 408 "), "{got}");
    // A client that ends a body with an empty line is no slow one: an answer that it never asked
    // for could pass for that to its next request.
    let (served, got) = transcript(short(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n");
    assert!(served == 1 && got.starts_with("HTTP/1.1 200 ") && !got.contains("408"), "{got}");
    let head = "POST /x HTTP/1.1\r\nHost: a\r\n";
    for framing in ["Content-Length: 5\r\n\r\nhe", "Transfer-Encoding: chunked\r\n\r\n5\r\nhe"] {
        let (served, got) = transcript(short(), format!("{head}{framing}"));
        assert!(served == 1 && got.starts_with("HTTP/1.1 408 "), "{got}");
    }
    // Drops of a head or of a body do not buy more time than the whole may take.
    let timing = Timing { idle: Duration::from_secs(10), ..short() };
    for start in ["", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"] {
        let (_, got) = with_timing(timing, move |mut stream| {
            stream.write_all(start.as_bytes()).unwrap();
            let mut reader = stream.try_clone().unwrap();
            let reader = std::thread::spawn(move || rest(&mut reader));
            while !reader.is_finished() && stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
            reader.join().unwrap()
        });
        assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    }
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let timing = Timing { idle: Duration::from_secs(100), ..short() };
    let (served, ()) = with_timing(timing, |mut stream| {
        for _ in 0..50 {
            if stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").is_err() {
                return;
            }
        }
        // Waits for the end without reading: what was sent ends in a reset.
        while stream.take_error().unwrap().is_none() && stream.write_all(b"\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(served < 50, "{served}");
}

#[test]
fn a_client_that_left_is_noticed() {
    let (served, ()) = serve(|mut stream| {
        stream.write_all(b"GET /gone HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
    });
    assert_eq!(served, 1);
}

#[test]
fn told_to_stop_it_finishes_the_answer_and_ends() {
    let (driver, _) = Driver::choose(None).unwrap();
    let got = driver.run(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            rest(&mut stream)
        });
        let (stream, peer) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, peer);
        let head = connection.head_unless(pending()).await.unwrap();
        service(&mut connection, &head).await;
        assert!(connection.head_unless(async {}).await.is_none());
        assert!(connection.head().await.is_none());
        drop(connection);
        rt::time::sleep(Duration::from_millis(2)).await;
        client.join().unwrap()
    });
    assert!(got.unwrap().len() > 1_000_000);
}

#[test]
fn an_idle_connection_keeps_little() {
    let (driver, _) = Driver::choose(None).unwrap();
    let kept = driver.run(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            let body = "x".repeat(90_000);
            let head = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body.as_bytes()).unwrap();
            until(&mut stream, "\r\n\r\n");
            stream.read_exact(&mut vec![0; 90_000]).unwrap();
            stream
        });
        let (stream, peer) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, peer);
        let head = connection.head().await.unwrap();
        service(&mut connection, &head).await;
        drop(head);
        // The client keeps the connection open and silent for longer than buffers are kept.
        let stop = rt::time::sleep(SETTLE + Duration::from_millis(200));
        assert!(connection.head_unless(stop).await.is_none());
        let kept = connection.output.capacity() + connection.input.capacity();
        drop(connection);
        drop(client.join().unwrap());
        kept
    });
    assert_eq!(kept.unwrap(), 0);
}

/// Requests go on coming while the connection goes from one thread to another and on: none is lost,
/// none comes twice, and what was left to be written is written by whoever has it then.
#[test]
fn a_connection_that_goes_to_another_thread_goes_on_there() {
    const REQUESTS: usize = 60;
    for driver in [Driver::TunedRing, Driver::Ring, Driver::Epoll] {
        if Driver::choose(Some(driver)).is_err() {
            continue;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        let mut writer = client.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            for n in 0..REQUESTS {
                // Now all at once, now byte by byte.
                let body = format!("request {n}");
                let head =
                    format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}", body.len());
                let wire = format!("{head}\r\n\r\n{body}");
                if n % 10 == 9 {
                    for byte in wire.as_bytes() {
                        writer.write_all(&[*byte]).unwrap();
                    }
                } else {
                    writer.write_all(wire.as_bytes()).unwrap();
                }
            }
            writer.write_all(CLOSE.as_bytes()).unwrap();
        });
        let reading = std::thread::spawn(move || {
            let mut client = client;
            rest(&mut client)
        });
        let work = move |moving: Option<Moving>, stream: Option<TcpStream>| {
            driver
                .run(async move {
                    let mut connection = match (moving, stream) {
                        (Some(moving), _) => moving.unpack().unwrap(),
                        (None, stream) => {
                            let stream = Stream::adopt(stream.unwrap().into(), peer).unwrap();
                            Connection::new(stream, peer)
                        }
                    };
                    for _ in 0..7 {
                        let head = connection.head().await?;
                        // A wait for the client's end that is given up, as in every call.
                        let nap = rt::time::sleep(Duration::from_millis(1));
                        let _ = rt::race(connection.closed(), nap).await;
                        service(&mut connection, &head).await;
                    }
                    assert!(connection.may_move());
                    let socket = connection.socket().unwrap();
                    Some(connection.pack(socket))
                })
                .unwrap()
        };
        let mut moving = std::thread::spawn(move || work(None, Some(stream))).join().unwrap();
        let mut threads = 1;
        while moving.is_some() {
            moving = std::thread::spawn(move || work(moving, None)).join().unwrap();
            threads += 1;
        }
        sending.join().unwrap();
        let answers = reading.join().unwrap();
        assert_eq!(threads, (REQUESTS + 1).div_ceil(7), "{driver}");
        let bodies: Vec<_> = answers.split("request ").skip(1).collect();
        assert_eq!(bodies.len(), REQUESTS, "{driver}: {answers}");
        for (n, body) in bodies.iter().enumerate() {
            assert!(body.starts_with(&format!("{n}HTTP/1.1 200 OK")), "{driver}: {body}");
        }
        assert!(answers.ends_with(CLOSED), "{driver}: {answers}");
    }
}

/// An answer whose body is written from where it is, and has not been written yet.
#[test]
fn a_large_answer_goes_along() {
    let (driver, _) = Driver::choose(None).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (stream, peer) = listener.accept().unwrap();
    let wire = format!("GET /whole HTTP/1.1\r\nHost: a\r\n\r\n{CLOSE}");
    client.write_all(wire.as_bytes()).unwrap();
    let first = std::thread::spawn(move || {
        let packed = driver.run(async move {
            let stream = Stream::adopt(stream.into(), peer).unwrap();
            let mut connection = Connection::new(stream, peer);
            let head = connection.head().await.unwrap();
            service(&mut connection, &head).await;
            assert!(!connection.tail.is_empty());
            let socket = connection.socket().unwrap();
            connection.pack(socket)
        });
        packed.unwrap()
    });
    let moving = first.join().unwrap();
    let second = std::thread::spawn(move || {
        driver.run(async move {
            let mut connection = moving.unpack().unwrap();
            let head = connection.head().await.unwrap();
            service(&mut connection, &head).await;
            assert!(connection.head().await.is_none());
        })
    });
    let answers = rest(&mut client);
    second.join().unwrap().unwrap();
    assert_eq!(answers.matches('w').count(), 200_000);
    assert!(answers.ends_with(CLOSED), "{}", &answers[answers.len() - 200..]);
}

#[test]
fn one_that_is_about_to_end_stays() {
    let (served, _) = with_timing(Timing::default(), |mut stream| {
        stream.write_all(CLOSE.as_bytes()).unwrap();
        rest(&mut stream)
    });
    assert_eq!(served, 1);
    let (driver, _) = Driver::choose(None).unwrap();
    driver
        .run(async {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            let mut connection = Connection::new(stream, peer);
            assert!(connection.may_move());
            connection.head().await.unwrap();
            assert!(!connection.may_move(), "a request waits for its answer");
            connection.answer(200, "", b"").await.unwrap();
            assert!(connection.may_move());
            connection.close_after();
            assert!(!connection.may_move());
        })
        .unwrap();
}

#[test]
fn dates_are_civil() {
    for (seconds, text) in [
        (0, "Thu, 01 Jan 1970 00:00:00"),
        (784_111_777, "Sun, 06 Nov 1994 08:49:37"),
        (951_782_399, "Mon, 28 Feb 2000 23:59:59"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00"),
        (1_709_164_800, "Thu, 29 Feb 2024 00:00:00"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00"),
        (u64::MAX, "Fri, 31 Dec 9999 23:59:59"),
    ] {
        assert_eq!(date(seconds), format!("Date: {text} GMT\r\n"));
        assert_eq!(date(seconds).len(), DATE_LINE_BYTES);
    }
}

/// One connection in a hurry from the start, with time limits that no test waits for; what its client
/// makes of it.
fn hurried<T: Send + 'static>(client: impl FnOnce(TcpStream) -> T + Send + 'static) -> T {
    let (driver, _) = Driver::choose(None).unwrap();
    let long = Duration::from_secs(600);
    let timing = Timing {
        handshake: long,
        idle: long,
        head: long,
        body: long,
        body_idle: long,
        stall: long,
        linger: long,
    };
    driver
        .run(async move {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::thread::spawn(move || {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                client(stream)
            });
            let (stream, peer) = listener.accept().await.unwrap();
            let mut connection = Connection::with_timing(stream, peer, timing);
            let hurry = Rc::new(Event::new());
            connection.hurry_when(hurry.clone());
            rt::spawn("hurry", async move {
                rt::time::sleep(Duration::from_millis(100)).await;
                hurry.set();
            });
            while let Some(head) = connection.head().await {
                match head.path() {
                    "/body" => match connection.body(1000).await {
                        Ok(_) => connection.answer(200, "", b"").await.unwrap(),
                        Err(fault) => {
                            connection.answer(fault.status().unwrap(), "", b"").await.unwrap();
                        }
                    },
                    "/stream" => {
                        connection.begin(200, "", None).await.unwrap();
                        let piece = || vec![b'x'; WRITE_PIECE];
                        while connection.chunk(piece()).await.is_ok() {}
                    }
                    _ => service(&mut connection, &head).await,
                }
            }
            drop(connection);
            rt::time::sleep(Duration::from_millis(2)).await;
            client.join().unwrap()
        })
        .unwrap()
}

#[test]
fn in_a_hurry_nobody_is_waited_for() {
    // A body that does not come.
    let body = "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe";
    let got = hurried(move |mut stream| {
        stream.write_all(body.as_bytes()).unwrap();
        rest(&mut stream)
    });
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    // A client that sends on behind a refusal.
    hurried(|mut stream| {
        stream.write_all(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n").unwrap();
        rest(&mut stream);
        // The end of the answer is not the end of the connection, which is seen by a reset.
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    // A client that takes nothing of a stream, or of an answer.
    for path in ["/stream", "/big"] {
        hurried(move |mut stream| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            for _ in 0..50 {
                if stream.write_all(request.as_bytes()).is_err() {
                    return;
                }
            }
            while stream.take_error().unwrap().is_none() && stream.write_all(b"\r\n").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }
}

#[test]
fn half_a_head_does_not_outlast_the_order_to_stop() {
    let (driver, _) = Driver::choose(None).unwrap();
    let got = driver.run(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /big HTTP/1.1\r\nHo").unwrap();
            rest(&mut stream)
        });
        let (stream, peer) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, peer);
        let stop = rt::time::sleep(Duration::from_millis(100));
        assert!(connection.head_unless(stop).await.is_none());
        drop(connection);
        rt::time::sleep(Duration::from_millis(2)).await;
        client.join().unwrap()
    });
    assert_eq!(got.unwrap(), "", "no 408, which takes its time");
}
