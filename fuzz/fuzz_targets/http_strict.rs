//! Laws of strictness: httparse, fed what a lenient server would take, is the second opinion.
//! - a head that httparse takes and the proxy refuses is refused for a reason that a plain look at
//!   its bytes confirms, and for requests with the status that belongs to the reason;
//! - a head that httparse refuses is never taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::http::{HeadFault, RequestHead, ResponseHead};
use mcp_proxy::limits::{HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX};

/// More than are allowed, so that the bound is the proxy's own.
const FIELDS: usize = 3 * HEADERS_MAX;

fuzz_target!(|data: &[u8]| {
    let [kind, wire @ ..] = data else { return };
    // A short head, said again until it is long, reaches the bounds.
    let wire = match kind >> 4 {
        0 => wire.to_vec(),
        times => stretched(wire, usize::from(times)),
    };
    if kind & 1 == 0 { request(&wire) } else { response(&wire, kind & 2 != 0) }
});

/// The first line `times` * 8 times as wide, or the second one that often.
fn stretched(wire: &[u8], times: usize) -> Vec<u8> {
    let mut lines = wire.split_inclusive(|byte| *byte == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let rest = &wire[first.len() + second.len()..];
    [first, &second.repeat(times * 16), rest].concat()
}

/// Fields with their names in lower case, as httparse reads them.
type Fields = Vec<(String, Vec<u8>)>;

fn fields(headers: &[httparse::Header<'_>]) -> Fields {
    headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.to_vec())).collect()
}

fn of<'f>(fields: &'f Fields, name: &str) -> Vec<&'f [u8]> {
    fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_slice()).collect()
}

fn request(wire: &[u8]) {
    let ours = RequestHead::default().parse(wire);
    let mut room = [httparse::EMPTY_HEADER; FIELDS];
    let mut other = httparse::Request::new(&mut room);
    let theirs = other.parse(wire);
    match (ours, &theirs) {
        (Ok(Some(length)), theirs) => {
            assert_eq!(*theirs, Ok(httparse::Status::Complete(length)));
        }
        (Ok(None), theirs) => assert!(!matches!(theirs, Ok(httparse::Status::Complete(_)))),
        (Err(fault), Ok(httparse::Status::Complete(length))) => {
            let fields = fields(other.headers);
            let head = &wire[..*length];
            let method = other.method.unwrap_or_default();
            let target = other.path.unwrap_or_default();
            let old = other.version == Some(0);
            assert!(
                justified(fault, head, &fields, old)
                    || request_justified(fault, head, &fields, method, target),
                "{fault:?}: {}",
                head.escape_ascii()
            );
        }
        (Err(_), _) => {}
    }
}

fn response(wire: &[u8], to_head: bool) {
    let ours = ResponseHead::default().parse(wire, to_head);
    let mut room = [httparse::EMPTY_HEADER; FIELDS];
    let mut other = httparse::Response::new(&mut room);
    let theirs = other.parse(wire);
    match (ours, &theirs) {
        (Ok(Some(length)), theirs) => {
            assert_eq!(*theirs, Ok(httparse::Status::Complete(length)));
        }
        (Ok(None), theirs) => assert!(!matches!(theirs, Ok(httparse::Status::Complete(_)))),
        (Err(fault), Ok(httparse::Status::Complete(length))) => {
            let fields = fields(other.headers);
            let head = &wire[..*length];
            let code = other.code.unwrap_or_default();
            let strange = !(100..=599).contains(&code) || head.starts_with(b"\r\n");
            // `HTTP/1.1 200` without the space that must follow.
            let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let cut = line.iter().filter(|byte| **byte == b' ').count() < 2;
            assert!(
                justified(fault, head, &fields, other.version == Some(0))
                    || fault == HeadFault::Malformed && (strange || cut),
                "{fault:?}: {}",
                head.escape_ascii()
            );
        }
        (Err(_), _) => {}
    }
}

/// Reasons that hold for both.
fn justified(fault: HeadFault, head: &[u8], fields: &Fields, old: bool) -> bool {
    let lengths = of(fields, "content-length");
    let codings = of(fields, "transfer-encoding");
    match fault {
        HeadFault::Malformed => {
            let bare = |at: usize| head[at] == b'\n' && (at == 0 || head[at - 1] != b'\r');
            (0..head.len()).any(bare)
        }
        HeadFault::TooLarge => head.len() > HEAD_BYTES_MAX,
        HeadFault::TooManyFields => fields.len() > HEADERS_MAX,
        HeadFault::LineTooLong => {
            head.iter().position(|byte| *byte == b'\n').unwrap_or(0) > REQUEST_LINE_BYTES_MAX - 2
        }
        HeadFault::Length => {
            let good = |text: &str| {
                text.bytes().all(|b| b.is_ascii_digit())
                    && text.len() < 20
                    && text.parse::<u64>().is_ok_and(|length| length < 1 << 63)
            };
            lengths.len() > 1
                || !lengths.iter().all(|value| std::str::from_utf8(value).is_ok_and(good))
        }
        HeadFault::Framing => {
            codings.len() > 1 || !codings.is_empty() && (!lengths.is_empty() || old)
        }
        HeadFault::Coding => codings.iter().any(|coding| !coding.eq_ignore_ascii_case(b"chunked")),
        _ => false,
    }
}

fn request_justified(
    fault: HeadFault,
    head: &[u8],
    fields: &Fields,
    method: &str,
    target: &str,
) -> bool {
    let lower = target.to_ascii_lowercase();
    let behind = ["http://", "https://"].into_iter().find_map(|scheme| lower.strip_prefix(scheme));
    let authority = behind.map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
    match fault {
        HeadFault::Malformed => {
            let form = target.starts_with('/')
                || target == "*" && method == "OPTIONS"
                || authority.is_some();
            let uri = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
            let spaces = head.split(|byte| *byte == b'\n').find(|line| line.len() > 1);
            let spaces = spaces.unwrap_or_default().iter().filter(|byte| **byte == b' ').count();
            let empty = head.starts_with(b"\r\n\r\n");
            !form || !target.bytes().all(uri) || spaces != 2 || empty
        }
        HeadFault::Method => matches!(method, "CONNECT" | "TRACE"),
        HeadFault::Host => {
            let hosts = of(fields, "host");
            let good = |host: &[u8]| {
                std::str::from_utf8(host).is_ok_and(|host| {
                    let (name, port) = match host.rfind(':') {
                        Some(at) if !host[at..].contains(']') => (&host[..at], &host[at + 1..]),
                        _ => (host, ""),
                    };
                    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                    let name = match address {
                        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
                        None => {
                            !name.is_empty()
                                && name.bytes().all(|b| {
                                    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&b)
                                })
                        }
                    };
                    let digits = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
                    name && digits && (port.is_empty() || port.parse::<u16>().is_ok())
                })
            };
            hosts.len() != 1
                || !good(hosts[0])
                || authority.is_some_and(|authority| {
                    !good(authority.as_bytes())
                        || !authority.as_bytes().eq_ignore_ascii_case(hosts[0])
                })
        }
        HeadFault::Expectation => {
            of(fields, "expect").iter().any(|value| !value.eq_ignore_ascii_case(b"100-continue"))
        }
        _ => false,
    }
}
