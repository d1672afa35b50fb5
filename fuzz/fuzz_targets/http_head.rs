//! Laws of the head parser, for requests and responses:
//! - the verdict does not depend on how the bytes arrive;
//! - an accepted head is within its bounds, and input beyond them never waits for more;
//! - what is accepted, httparse accepts too, and reads the same;
//! - the framing is what a plain look at the fields says, and never contradictory;
//! - written again from its parts, it reads the same;
//! - behind another head on the same connection, it reads as it does alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::{Framing, HeadFault, RequestHead, ResponseHead, Version, head};
use mcp_proxy::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

type Parts = Vec<(Vec<u8>, Vec<u8>)>;

fuzz_target!(|data: &[u8]| {
    let [kind, step, wire @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    if kind & 1 == 0 {
        request(wire, step);
    } else {
        response(wire, step, kind & 2 != 0);
    }
});

/// Feeds growing prefixes of `wire` until `parse` has a verdict.
fn grow(
    wire: &[u8],
    step: usize,
    mut parse: impl FnMut(&[u8]) -> Result<Option<usize>, HeadFault>,
) -> Result<Option<usize>, HeadFault> {
    let mut end = 0;
    loop {
        end = (end + step).min(wire.len());
        match parse(&wire[..end]) {
            Ok(None) if end < wire.len() => {}
            verdict => return verdict,
        }
    }
}

fn check_bounds(wire: &[u8], verdict: Result<Option<usize>, HeadFault>, fields: usize) {
    match verdict {
        Ok(Some(length)) => {
            assert!(length <= HEAD_BYTES_MAX && length <= wire.len());
            assert!(wire[..length].ends_with(b"\r\n\r\n"));
            assert!(fields <= HEADERS_MAX);
        }
        Ok(None) => assert!(wire.len() < HEAD_BYTES_MAX),
        Err(fault) => assert!(fault.status() >= 400),
    }
}

fn check_framing(parts: &Parts, framing: Framing, version: Version, default: Framing) {
    let values = |name: &str| -> Vec<String> {
        parts
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| String::from_utf8_lossy(value).to_ascii_lowercase())
            .collect()
    };
    let lengths = values("content-length");
    let codings = values("transfer-encoding");
    let expected = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => default,
        ([length], []) => match length.parse().expect("a length that was accepted") {
            0 => Framing::Empty,
            length => Framing::Length(length),
        },
        ([], [coding]) => {
            assert_eq!((coding.as_str(), version), ("chunked", Version::Http11));
            Framing::Chunked
        }
        _ => panic!("contradictory framing was accepted"),
    };
    assert_eq!(framing, expected);
}

fn request_parts(head: &RequestHead) -> Parts {
    head.each_field().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn request(wire: &[u8], step: usize) {
    let mut whole = RequestHead::default();
    let verdict = whole.parse(wire);
    let mut pieces = RequestHead::default();
    assert_eq!(grow(wire, step, |prefix| pieces.parse(prefix)), verdict);
    check_bounds(wire, verdict, whole.each_field().count());
    let Ok(Some(length)) = verdict else { return };
    let parts = request_parts(&whole);
    assert_eq!(parts, request_parts(&pieces));

    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut other = httparse::Request::new(&mut fields);
    assert_eq!(other.parse(wire), Ok(httparse::Status::Complete(length)));
    let theirs: Parts =
        other.headers.iter().map(|h| (h.name.as_bytes().to_vec(), h.value.to_vec())).collect();
    assert_eq!(parts, theirs);
    let target = other.path.expect("a target");
    let rest = match whole.query() {
        Some(query) => format!("{}?{query}", whole.path()),
        None => whole.path().to_owned(),
    };
    // An absolute target without a path stands for the root.
    assert!(target.ends_with(&rest) || !target.starts_with('/'));
    assert_eq!(u8::from(whole.version() == Version::Http11), other.version.expect("a version"));

    let expected = whole.framing();
    check_framing(&parts, expected, whole.version(), Framing::Empty);
    let hosts = parts.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"host")).count();
    assert!(hosts == 1 || hosts == 0 && whole.version() == Version::Http10);

    // The same once more, and with one byte changed.
    let mut next = wire.to_vec();
    for change in [0, 1] {
        next[step % length] ^= change;
        let mut alone = RequestHead::default();
        let verdict = alone.parse(&next);
        pieces.remember();
        assert_eq!(pieces.parse(&next), verdict);
        if let Ok(Some(_)) = verdict {
            assert_eq!(request_parts(&pieces), request_parts(&alone));
            assert_eq!(pieces.framing(), alone.framing());
            assert_eq!(pieces.expect_continue(), alone.expect_continue());
        } else {
            pieces.reset();
            assert_eq!(pieces.parse(wire), Ok(Some(length)));
        }
    }

    // Written again: only HTTP/1.1 is written, and Host and Content-Length by name.
    let Some(host) = whole.host().filter(|_| whole.version() == Version::Http11) else { return };
    let mut lines = String::new();
    for (name, value) in &parts {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return;
        };
        if !name.eq_ignore_ascii_case("host") {
            lines += &format!("{name}: {value}\r\n");
        }
    }
    let mut again = Vec::new();
    head::request_head(&mut again, other.method.expect("a method"), target, host, &lines, None);
    let mut back = RequestHead::default();
    let verdict = back.parse(&again);
    // Tidier spacing may still take more room.
    if again.len() <= HEAD_BYTES_MAX && verdict != Err(HeadFault::LineTooLong) {
        assert_eq!(verdict, Ok(Some(again.len())));
        assert_eq!((back.path(), back.query()), (whole.path(), whole.query()));
        assert_eq!((back.method(), back.framing()), (whole.method(), expected));
        assert_eq!(back.keep_alive(), whole.keep_alive());
        assert_eq!(back.each_field().count(), parts.len());
    }
}

fn response_parts(head: &ResponseHead) -> Parts {
    head.each_field().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn response(wire: &[u8], step: usize, to_head: bool) {
    let mut whole = ResponseHead::default();
    let verdict = whole.parse(wire, to_head);
    let mut pieces = ResponseHead::default();
    assert_eq!(grow(wire, step, |prefix| pieces.parse(prefix, to_head)), verdict);
    check_bounds(wire, verdict, whole.each_field().count());
    let Ok(Some(length)) = verdict else { return };
    let parts = response_parts(&whole);
    assert_eq!(parts, response_parts(&pieces));
    assert!((100..=599).contains(&whole.status()));

    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut other = httparse::Response::new(&mut fields);
    assert_eq!(other.parse(wire), Ok(httparse::Status::Complete(length)));
    let theirs: Parts =
        other.headers.iter().map(|h| (h.name.as_bytes().to_vec(), h.value.to_vec())).collect();
    assert_eq!(parts, theirs);
    assert_eq!(other.code, Some(whole.status()));

    let mut next = wire.to_vec();
    for change in [0, 1] {
        next[step % length] ^= change;
        let mut alone = ResponseHead::default();
        let verdict = alone.parse(&next, to_head);
        pieces.remember();
        assert_eq!(pieces.parse(&next, to_head), verdict);
        if let Ok(Some(_)) = verdict {
            assert_eq!(response_parts(&pieces), response_parts(&alone));
            assert_eq!(pieces.framing(), alone.framing());
            assert_eq!(pieces.keep_alive(), alone.keep_alive());
        } else {
            pieces.reset();
            assert_eq!(pieces.parse(wire, to_head), Ok(Some(length)));
        }
    }

    if to_head || matches!(whole.status(), 100..=199 | 204 | 304) {
        assert_eq!(whole.framing(), Framing::Empty);
    } else {
        check_framing(&parts, whole.framing(), whole.version(), Framing::UntilClose);
    }
}
