//! Owns: the tests of `head`: what is read, and what is refused and why.
//! Never: sockets.
//! Next: nothing.

use super::fields::{KEPT_BYTES, KEPT_FIELDS};
use super::*;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX};

/// Parses `wire` as it arrives in pieces of `step` bytes.
fn request_by(wire: &[u8], step: usize) -> Result<Option<(usize, RequestHead)>, HeadFault> {
    let mut head = RequestHead::default();
    let mut end = 0;
    loop {
        end = (end + step).min(wire.len());
        if let Some(length) = head.parse(&wire[..end])? {
            return Ok(Some((length, head)));
        }
        if end == wire.len() {
            return Ok(None);
        }
    }
}

fn request(wire: impl AsRef<[u8]>) -> Result<Option<RequestHead>, HeadFault> {
    let wire = wire.as_ref();
    let whole = request_by(wire, wire.len());
    for step in [1, 2, 3, 7, 64, 1000] {
        let pieces = request_by(wire, step);
        assert_eq!(
            pieces.as_ref().map(|found| found.as_ref().map(|(length, _)| *length)),
            whole.as_ref().map(|found| found.as_ref().map(|(length, _)| *length)),
            "pieces of {step}: {:?}",
            String::from_utf8_lossy(wire)
        );
    }
    whole.map(|found| found.map(|(_, head)| head))
}

fn good(wire: &str) -> RequestHead {
    match request(wire) {
        Ok(Some(head)) => head,
        other => panic!("{wire:?}: {other:?}"),
    }
}

fn response(wire: &str) -> Result<Option<ResponseHead>, HeadFault> {
    let run = |step: usize| {
        let mut head = ResponseHead::default();
        for end in (0..wire.len()).step_by(step).chain([wire.len()]) {
            if let Some(length) = head.parse(&wire.as_bytes()[..end], false)? {
                return Ok(Some((length, head)));
            }
        }
        Ok(None)
    };
    let whole = run(wire.len());
    for step in [1, 3, 64] {
        assert_eq!(
            run(step).map(|found| found.map(|(length, _)| length)),
            whole.as_ref().map(|found| found.as_ref().map(|(length, _)| *length)).map_err(|f| *f)
        );
    }
    whole.map(|found| found.map(|(_, head)| head))
}

/// Every byte at every place of values of every length around a word.
#[test]
fn values_hold_no_control_characters() {
    for length in 0..20 {
        for at in 0..length {
            for byte in 0..=255u8 {
                let mut value = vec![b'a'; length];
                value[at] = byte;
                let fits = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
                assert_eq!(is_value(&value), fits, "{byte} at {at} of {length}");
                value[0] = b'\t';
                assert_eq!(is_value(&value), at == 0 || fits, "{byte} behind a tab");
            }
        }
    }
    assert!(is_value(b""));
}

#[test]
fn a_request_is_read() {
    let head = good(
        "POST /mcp?x=1?y HTTP/1.1\r\nHost: localhost:8080\r\nAccept:application/json\r\n\
             aCCEPT: \t text/event-stream \t\r\nX-Empty:\r\nContent-Length: 12\r\n\r\nhello",
    );
    assert_eq!((head.method(), head.version()), (Method::Post, Version::Http11));
    assert_eq!((head.path(), head.query()), ("/mcp", Some("x=1?y")));
    assert_eq!(head.host(), Some("localhost:8080"));
    assert_eq!(head.field("accept"), Some(b"application/json".as_slice()));
    assert_eq!(head.fields("Accept").nth(1), Some(b"text/event-stream".as_slice()));
    assert_eq!(head.field("x-empty"), Some(b"".as_slice()));
    assert_eq!(head.field("x-absent"), None);
    assert_eq!(head.framing(), Framing::Length(12));
    assert!(head.keep_alive() && !head.expect_continue());
    assert_eq!(head.each_field().count(), 5);
}

#[test]
fn storage_is_reused_and_given_back() {
    let mut head = RequestHead::default();
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    head.parse(big.as_bytes()).unwrap().unwrap();
    head.reset();
    assert!(head.fields.bytes.capacity() <= KEPT_BYTES);
    let small = b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n";
    head.parse(small).unwrap().unwrap();
    assert_eq!((head.path(), head.host(), head.query()), ("/a", Some("b"), None));
    assert_eq!(head.field("x"), None);
}

#[test]
fn targets_take_four_forms_and_one_is_refused() {
    let path = |target: &str| {
        let head = good(&format!("OPTIONS {target} HTTP/1.1\r\nHost: a.b:1\r\n\r\n"));
        (head.path().to_owned(), head.query().map(str::to_owned))
    };
    assert_eq!(path("/"), ("/".into(), None));
    assert_eq!(path("//admin;x%61?"), ("//admin;x%61".into(), Some("".into())));
    assert_eq!(path("*"), ("*".into(), None));
    assert_eq!(path("http://A.b:1/x?y"), ("/x".into(), Some("y".into())));
    assert_eq!(path("HTTPS://a.b:1"), ("/".into(), None));
    assert_eq!(path("http://a.b:1?q"), ("/".into(), Some("q".into())));
}

#[test]
fn persistence_follows_version_and_connection() {
    for (version, lines, kept) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = good(&format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(head.keep_alive(), kept, "{version} {lines:?}");
    }
    assert_eq!(good("GET / HTTP/1.0\r\n\r\n").host(), None);
}

#[test]
fn an_expectation_needs_a_body_and_the_newer_version() {
    let expect = |rest: &str| {
        good(&format!("POST / {rest}\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n")).expect_continue()
    };
    assert!(expect("HTTP/1.1\r\nContent-Length: 1"));
    assert!(expect("HTTP/1.1\r\nTransfer-Encoding: Chunked"));
    assert!(!expect("HTTP/1.1\r\nContent-Length: 0"));
    assert!(!expect("HTTP/1.1"));
    assert!(!expect("HTTP/1.0\r\nContent-Length: 1"));
}

/// What is ambiguous, or over a bound, is refused with the status that says why.
#[test]
fn attacks_are_refused() {
    use HeadFault::*;
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let field = |field: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    let host = |host: &str| format!("GET / HTTP/1.1\r\n{host}\r\n\r\n");
    let table: Vec<(String, HeadFault)> = vec![
        // Framing.
        (field("Content-Length: 5\r\nTransfer-Encoding: chunked"), Framing),
        (field("Transfer-Encoding: chunked\r\nContent-Length: 5"), Framing),
        (field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Framing),
        (field("Transfer-Encoding: gzip, chunked"), Coding),
        (field("Transfer-Encoding: chunked, chunked"), Coding),
        (field("Transfer-Encoding: xchunked"), Coding),
        (field("Transfer-Encoding: chunked;q=1"), Coding),
        (field("Transfer-Encoding: identity"), Coding),
        (field("Transfer-Encoding:"), Coding),
        (field("Transfer-Encoding: \x0bchunked"), Malformed),
        (field("Transfer-Encoding : chunked"), Malformed),
        (line("POST / HTTP/1.0\r\nTransfer-Encoding: chunked"), Framing),
        (field("Content-Length: 5\r\nContent-Length: 5"), Length),
        (field("Content-Length: 5\r\ncontent-length: 6"), Length),
        (field("Content-Length: 5, 6"), Length),
        (field("Content-Length: 5, 5"), Length),
        (field("Content-Length: +5"), Length),
        (field("Content-Length: -5"), Length),
        (field("Content-Length: 0x5"), Length),
        (field("Content-Length: 5 5"), Length),
        (field("Content-Length:"), Length),
        (field("Content-Length: 9223372036854775808"), Length),
        (field("Content-Length: 00000000000000000005"), Length),
        // Fields.
        (field("A : b"), Malformed),
        (field("A\t: b"), Malformed),
        (field(": b"), Malformed),
        (field("no colon"), Malformed),
        (field("A: b\r\n folded"), Malformed),
        (field("A: b\r\n\tfolded"), Malformed),
        (field("A: b\0c"), Malformed),
        (field("A: b\rc"), Malformed),
        (field("A: b\nB: c"), Malformed),
        (field("A: b\x7f"), Malformed),
        (field("A: \x01"), Malformed),
        (field("A(: b"), Malformed),
        (field("\u{e4}: b"), Malformed),
        (field("A: b\r"), Malformed),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), Malformed),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), Malformed),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n".into(), Malformed),
        // Request lines.
        (line("GET  / HTTP/1.1"), Malformed),
        (line("GET /  HTTP/1.1"), Malformed),
        (line("GET / HTTP/1.1 "), Malformed),
        (line(" GET / HTTP/1.1"), Malformed),
        (line("GET\t/ HTTP/1.1"), Malformed),
        (line("GET /"), Malformed),
        (line("GET"), Malformed),
        (line("G@T / HTTP/1.1"), Malformed),
        (line("GET / http/1.1"), Malformed),
        (line("GET / HTTP/1.1x"), Malformed),
        (line("GET / HTTP/11"), Malformed),
        (line("GET / HTTP/1.2"), Version),
        (line("GET / HTTP/2.0"), Version),
        (line("GET / HTTP/0.9"), Version),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Version),
        (line("CONNECT a:443 HTTP/1.1"), Method),
        (line("TRACE / HTTP/1.1"), Method),
        (line("GET * HTTP/1.1"), Malformed),
        (line("GET mcp HTTP/1.1"), Malformed),
        (line("GET /a#b HTTP/1.1"), Malformed),
        (line("GET /a\\b HTTP/1.1"), Malformed),
        (line("GET /\u{e4} HTTP/1.1"), Malformed),
        (line("GET ftp://a/ HTTP/1.1"), Malformed),
        (line("GET http:///x HTTP/1.1"), Host),
        (line("GET http://u@a/x HTTP/1.1"), Host),
        (line("GET http://b/x HTTP/1.1"), Host),
        ("\r\n\r\nGET / HTTP/1.1\r\n".into(), Malformed),
        ("\n".into(), Malformed),
        // Host.
        (host("A: b"), Host),
        (host("Host: a\r\nHost: a"), Host),
        (host("Host:"), Host),
        (host("Host: a b"), Host),
        (host("Host: a, b"), Host),
        (host("Host: u@a"), Host),
        (host("Host: a/b"), Host),
        (host("Host: a:b"), Host),
        (host("Host: a:65536"), Host),
        (host("Host: :80"), Host),
        (host("Host: [::1"), Host),
        (host("Host: [::1]x"), Host),
        (host("Host: [a]"), Host),
        (host("Host: ::1"), Host),
        // Expectations.
        (field("Expect: 200-ok"), Expectation),
        (field("Expect: 100-continue, x"), Expectation),
        // Bounds.
        (line(&format!("GET /{} HTTP/1.1", "a".repeat(8200))), LineTooLong),
        ("a".repeat(REQUEST_LINE_BYTES_MAX), LineTooLong),
        (field(&format!("A: {}", "a".repeat(HEAD_BYTES_MAX))), TooLarge),
        (field(&"A: b\r\n".repeat(HEADERS_MAX)), TooManyFields),
    ];
    for (wire, fault) in table {
        assert_eq!(request(&wire).map(|_| ()), Err(fault), "{wire:?}");
    }
}

#[test]
fn statuses_of_faults() {
    use HeadFault::*;
    for (fault, status) in [
        (Malformed, 400),
        (LineTooLong, 414),
        (TooLarge, 431),
        (TooManyFields, 431),
        (Version, 505),
        (Method, 501),
        (Host, 400),
        (Length, 400),
        (Framing, 400),
        (Coding, 501),
        (Expectation, 417),
    ] {
        assert_eq!(fault.status(), status);
        assert_ne!(reason(status), "");
    }
}

#[test]
fn bounds_are_met_exactly() {
    let fits = |wire: String| request(&wire).map(|head| head.is_some());
    let line = |length: usize| {
        let path = "a".repeat(length - "GET / HTTP/1.1\r\n".len());
        format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    assert_eq!(fits(line(REQUEST_LINE_BYTES_MAX)), Ok(true));
    assert_eq!(fits(line(REQUEST_LINE_BYTES_MAX + 1)), Err(HeadFault::LineTooLong));
    let head = |length: usize| {
        let value = "a".repeat(length - "GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n".len());
        format!("GET / HTTP/1.1\r\nHost: a\r\nA: {value}\r\n\r\n")
    };
    assert_eq!(fits(head(HEAD_BYTES_MAX)), Ok(true));
    assert_eq!(fits(head(HEAD_BYTES_MAX + 1)), Err(HeadFault::TooLarge));
    let fields =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    assert_eq!(fits(fields(HEADERS_MAX)), Ok(true));
    assert_eq!(fits(fields(HEADERS_MAX + 1)), Err(HeadFault::TooManyFields));
}

#[test]
fn one_empty_line_before_a_request_is_forgiven() {
    assert_eq!(good("\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n").path(), "/x");
}

#[test]
fn upgrades_are_ignored() {
    let head = good(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    );
    assert_eq!((head.framing(), head.keep_alive()), (Framing::Empty, true));
}

#[test]
fn a_response_is_read() {
    let head = response(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    );
    let head = head.unwrap().unwrap();
    assert_eq!((head.status(), head.content_length()), (200, Some(2)));
    assert_eq!(head.field("content-type"), Some(b"application/json".as_slice()));
    for (wire, framing, kept) in [
        ("HTTP/1.1 200 \r\n\r\n", Framing::UntilClose, true),
        ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Chunked, true),
        ("HTTP/1.1 204 No Content\r\n\r\n", Framing::Empty, true),
        ("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", Framing::Empty, true),
        ("HTTP/1.1 202 \u{e4}\r\nContent-Length: 0\r\n\r\n", Framing::Empty, true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", Framing::Length(1), false),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", Framing::UntilClose, false),
        ("HTTP/1.1 100 Continue\r\n\r\n", Framing::Empty, true),
    ] {
        let head = response(wire).unwrap().unwrap();
        assert_eq!((head.framing(), head.keep_alive()), (framing, kept), "{wire:?}");
    }
}

#[test]
fn bad_responses_are_refused() {
    use HeadFault::*;
    let field = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n");
    for (wire, fault) in [
        (field("Content-Length: 5\r\nTransfer-Encoding: chunked"), Framing),
        (field("Content-Length: 5\r\nContent-Length: 5"), Length),
        (field("Content-Length: 5, 5"), Length),
        (field("Transfer-Encoding: gzip"), Coding),
        (field("A: b\nC: d"), Malformed),
        (field("A: b\r\n folded"), Malformed),
        (field("A : b"), Malformed),
        (field("A: b\0"), Malformed),
        (field(&format!("A: {}", "a".repeat(HEAD_BYTES_MAX))), TooLarge),
        (field(&"A: b\r\n".repeat(HEADERS_MAX + 1)), TooManyFields),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Framing),
        ("HTTP/1.1 200 OK\n\n".into(), Malformed),
        ("HTTP/1.1  200 OK\r\n\r\n".into(), Malformed),
        ("HTTP/1.1 20 OK\r\n\r\n".into(), Malformed),
        ("HTTP/1.1 2000 OK\r\n\r\n".into(), Malformed),
        ("HTTP/1.1 099 OK\r\n\r\n".into(), Malformed),
        ("HTTP/1.1 600 OK\r\n\r\n".into(), Malformed),
        ("HTTP/1.1 200 O\0K\r\n\r\n".into(), Malformed),
        ("HTTP/2.0 200 OK\r\n\r\n".into(), Version),
        ("ICY 200 OK\r\n\r\n".into(), Malformed),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n".into(), Malformed),
    ] {
        assert_eq!(response(&wire).map(|_| ()), Err(fault), "{wire:?}");
    }
}

#[test]
fn written_requests_read_back() {
    let mut wire = Vec::new();
    request_head(&mut wire, "POST", "/mcp?a", "[::1]:80", "A: b\r\nC:\r\n", Some(7));
    assert_eq!(
        wire,
        b"POST /mcp?a HTTP/1.1\r\nHost: [::1]:80\r\nA: b\r\nC:\r\nContent-Length: 7\r\n\r\n"
    );
    let head = good(std::str::from_utf8(&wire).unwrap());
    assert_eq!((head.path(), head.framing()), ("/mcp", Framing::Length(7)));
}

#[test]
fn only_whole_lines_are_lines() {
    assert!(are_lines("") && are_lines("A: b\r\nC:\r\n"));
    for lines in ["A: b", "A: b\r\n\r\n", "\r\n", "A\r\n", "A: b\nC: d\r\n", " A: b\r\n"] {
        assert!(!are_lines(lines), "{lines:?}");
    }
}

/// What a head says, for comparison.
fn said(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<(Vec<u8>, Vec<u8>)> =
        head.each_field().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let line = (head.method(), head.version(), head.path().to_owned());
    let target = (head.query().map(str::to_owned), head.host().map(str::to_owned));
    (line, target, head.framing(), head.keep_alive(), head.expect_continue(), fields)
}

/// One head after another on one connection: what is remembered of the first changes nothing of
/// what the second says, whatever they have in common.
#[test]
fn a_head_is_read_the_same_behind_any_other() {
    let post = |length: &str, more: &str| {
        format!("POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n")
    };
    let heads = [
        post("100", ""),
        post("999", ""),
        post("099", ""),
        post("000", ""),
        post("1000", ""),
        post("1x0", ""),
        post("1 0", ""),
        post("", ""),
        post("0", ""),
        post("5", ""),
        post("100", "Expect: 100-continue\r\n"),
        post("000", "Expect: 100-continue\r\n"),
        post("100", "Connection: close\r\n"),
        post("100", "content-length: 100\r\n"),
        post("100", &format!("X: {}\r\n", "x".repeat(2 * KEPT_BYTES))),
        post("200", &format!("X: {}\r\n", "x".repeat(2 * KEPT_BYTES))),
        post("100", &"X: x\r\n".repeat(KEPT_FIELDS + 1)),
        "POST /mcp HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        "POST /mcp HTTP/1.1\r\nHost: b\r\nContent-Length: 100\r\n\r\n".into(),
        "GET /?100 HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "\r\nGET /?100 HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /?100 HTTP/1.0\r\n\r\n".into(),
        "\r\n\r\n".into(),
    ];
    for first in &heads {
        for second in &heads {
            for step in [1, 7, second.len() + 3] {
                let mut head = RequestHead::default();
                if !matches!(head.parse(first.as_bytes()), Ok(Some(_))) {
                    continue;
                }
                head.remember();
                assert!(head.fields.bytes.capacity() <= KEPT_BYTES);
                assert_eq!(head.parse(b""), Ok(None));
                let wire = format!("{second}ab");
                let mut verdict = Ok(None);
                for end in (step..wire.len()).step_by(step).chain([wire.len()]) {
                    verdict = head.parse(&wire.as_bytes()[..end]);
                    if verdict != Ok(None) {
                        break;
                    }
                }
                let mut fresh = RequestHead::default();
                assert_eq!(verdict, fresh.parse(wire.as_bytes()), "{first:?} {second:?}");
                if let Ok(Some(_)) = verdict {
                    assert_eq!(said(&head), said(&fresh), "{first:?} {second:?}");
                }
            }
        }
    }
}

/// The same of answers, some of which are to HEAD.
#[test]
fn an_answer_is_read_the_same_behind_any_other() {
    let answer = |status: &str, length: &str, more: &str| {
        format!("HTTP/1.1 {status}\r\nDate: x\r\nContent-Length: {length}\r\n{more}\r\n")
    };
    let heads = [
        answer("200 OK", "100", ""),
        answer("200 OK", "999", ""),
        answer("200 OK", "000", ""),
        answer("200 OK", "10x", ""),
        answer("204 No Content", "100", ""),
        answer("204 No Content", "200", ""),
        answer("204 No Content", "000", ""),
        answer("304 Not Modified", "100", ""),
        answer("200 OK", "100", "Connection: close\r\n"),
        "HTTP/1.1 200 OK\r\nDate: x\r\n\r\n".into(),
        "HTTP/1.1 100 Continue\r\n\r\n".into(),
    ];
    for (first, second) in heads.iter().flat_map(|first| heads.iter().map(move |h| (first, h))) {
        for (one, other) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut head = ResponseHead::default();
            let Ok(Some(_)) = head.parse(first.as_bytes(), one) else { continue };
            head.remember();
            let mut fresh = ResponseHead::default();
            let verdict = fresh.parse(second.as_bytes(), other);
            assert_eq!(head.parse(second.as_bytes(), other), verdict, "{first:?} {second:?}");
            let said = |head: &ResponseHead| {
                let length = head.field("content-length").map(<[u8]>::to_vec);
                (head.status(), head.framing(), head.keep_alive(), length)
            };
            if let Ok(Some(_)) = verdict {
                assert_eq!(said(&head), said(&fresh), "{first:?} {second:?}");
            }
        }
    }
}
