//! HTTP/1.1 as attackers write it, through the real binary: refused, closed, and never two answers
//! where there was one request (RFC 9112; RFC 9110 §7).

use std::io::Write;

use crate::support::client::{ACCEPT, Client, JSON};
use crate::support::http::Conn;
use crate::support::process::{Proxy, stdio_backend};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
/// What must never be answered: the part of a request that an attacker hides behind another.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn world() -> (Proxy, Client) {
    let proxy = Proxy::start(&[stdio_backend("a", &[])]);
    let client = proxy.client();
    (proxy, client)
}

/// A request line and the fields of a valid POST but for its framing.
fn head(client: &Client) -> String {
    format!("POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}", client.lines())
}

/// Sends bytes, and reads one answer and the end of the connection behind it.
fn refused(proxy: &Proxy, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let mut conn = Conn::open(proxy.addr);
    // Refused early, the rest may meet a closed connection.
    let _ = conn.try_send(bytes);
    let Some(head) = conn.try_head() else { panic!("no answer to {shown:?}") };
    assert!(statuses.contains(&head.status), "{} for {shown:?}", head.status);
    while let Ok(Some(_)) = conn.piece() {}
    let rest = conn.rest();
    assert!(rest.is_empty(), "{shown:?} had more: {:?}", String::from_utf8_lossy(&rest));
}

#[test]
fn ambiguous_or_malformed_framing() {
    let (proxy, client) = world();
    let head = head(&client);
    let length = PING.len();
    for framing in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nContent-Length: 5\r\n"),
        format!("Content-Length: {length}, {length}\r\n"),
        format!("Content-Length: +{length}\r\n"),
        format!("Content-Length: 0x{length:x}\r\n"),
        format!("Content-Length: {length} {length}\r\n"),
        "Content-Length: -1\r\n".into(),
        "Content-Length: \r\n".into(),
        "Content-Length: 99999999999999999999\r\n".into(),
        "Content-Length: 18446744073709551616\r\n".into(),
        "Transfer-Encoding: gzip\r\n".into(),
        "Transfer-Encoding: gzip, chunked\r\n".into(),
        "Transfer-Encoding: chunked, chunked\r\n".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".into(),
        "Transfer-Encoding: xchunked\r\n".into(),
        "Transfer-Encoding: chunked;q=1\r\n".into(),
        "Transfer-Encoding: \"chunked\"\r\n".into(),
        "Transfer-Encoding: identity\r\n".into(),
        "Transfer-Encoding: \x0bchunked\r\n".into(),
        "Transfer-Encoding:\r\n".into(),
        format!("Content-Length : {length}\r\n"),
        format!("Content-Length\t: {length}\r\n"),
        format!("Content-Length: {length}\r\nTransfer-Encoding : chunked\r\n"),
        format!("Content-Length: {length}\r\n X: folded\r\n"),
        format!("Content-Length: {length}\r\nX: a\r\n\tb\r\n"),
        format!("Content-Length: {length}\r\n: empty\r\n"),
        format!("Content-Length: {length}\r\nno colon\r\n"),
        format!("Content-Length: {length}\r\nX: nul\0\r\n"),
        format!("Content-Length: {length}\r\nX: cr\rY: z\r\n"),
        format!("Content-Length: {length}\r\nX: lf\nY: z\r\n"),
        format!("Content-Length: {length}\r\nX: ctl\x01\r\n"),
        format!("Content-Length: {length}\r\nX: del\x7f\r\n"),
        format!("Content-Length: {length}\r\nX(y): z\r\n"),
        format!("Content-Length: {length}\r\nX\0y: z\r\n"),
        format!("Content-Length: {length}\r\n\u{e9}: z\r\n"),
    ] {
        refused(&proxy, format!("{head}{framing}\r\n{PING}{HIDDEN}").as_bytes(), &[400, 413, 501]);
    }
    // Bare line feeds end nothing.
    let bare = format!("{head}Content-Length: {length}\n\n{PING}").replace("\r\n", "\n");
    refused(&proxy, format!("{bare}\r\n\r\n{HIDDEN}").as_bytes(), &[400]);
}

#[test]
fn malformed_chunks() {
    let (proxy, client) = world();
    let head = head(&client) + "Transfer-Encoding: chunked\r\n\r\n";
    let size = format!("{:x}", PING.len());
    for body in [
        format!("+{size}\r\n{PING}\r\n0\r\n\r\n"),
        format!("-{size}\r\n{PING}\r\n0\r\n\r\n"),
        format!("0x{size}\r\n{PING}\r\n0\r\n\r\n"),
        format!(" {size}\r\n{PING}\r\n0\r\n\r\n"),
        format!("{size} \r\n{PING}\r\n0\r\n\r\n"),
        format!("{size}\n{PING}\r\n0\r\n\r\n"),
        format!("{size}\r\n{PING}\n0\r\n\r\n"),
        format!("{size}\r\n{PING}junk\r\n0\r\n\r\n"),
        format!("{size}\r\n{PING}\r\n0\r\n\n"),
        format!("00000000000000000{size}\r\n{PING}\r\n0\r\n\r\n"),
        "fffffffffffffffff\r\n".to_owned(),
        "ffffffffffffffff\r\n".to_owned(),
        format!("\r\n{PING}\r\n0\r\n\r\n"),
        format!("g\r\n{PING}\r\n0\r\n\r\n"),
        format!("{size};{}\r\n{PING}\r\n0\r\n\r\n", "e".repeat(20_000)),
        format!("{size};\x01\r\n{PING}\r\n0\r\n\r\n"),
        format!("{size};a\nb\r\n{PING}\r\n0\r\n\r\n"),
        format!("{size}\r\n{PING}\r\n0\r\nX: {}\r\n\r\n", "t".repeat(40_000)),
        format!("{size}\r\n{PING}\r\n0\r\nX y: z\r\n\r\n"),
        format!("{size}\r\n{PING}\r\n0\r\n : z\r\n\r\n"),
    ] {
        refused(&proxy, format!("{head}{body}{HIDDEN}").as_bytes(), &[400, 413, 431]);
    }
    // Well-formed ones in one byte each are served.
    let mut conn = Conn::open(proxy.addr);
    let mut request = head.clone().into_bytes();
    for byte in PING.bytes() {
        write!(request, "1\r\n{}\r\n", byte as char).unwrap();
    }
    request.extend_from_slice(b"0\r\n\r\n");
    conn.send(&request);
    assert_eq!(conn.answer().status, 200);
}

#[test]
fn request_lines_and_hosts() {
    let (proxy, _client) = world();
    for request in [
        "GET /mcp HTTP/1.1\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: local host\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: x@localhost\r\n\r\n",
        "GET /mcp HTTP/1.1\r\nHost: localhost:port\r\n\r\n",
        "GET  /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /mcp  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        " GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET\t/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /m cp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /m\x01cp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "G{T /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /mcp\r\nHost: localhost\r\n\r\n",
        "GET /mcp HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
        "GET /mcp HTTP/2.0\r\nHost: localhost\r\n\r\n",
        "GET /mcp HTTP/1.\r\nHost: localhost\r\n\r\n",
        "GET /mcp HTTP/1.10\r\nHost: localhost\r\n\r\n",
        "GET /mcp http/1.1\r\nHost: localhost\r\n\r\n",
        "GET mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    ] {
        refused(&proxy, format!("{request}{HIDDEN}").as_bytes(), &[400, 403, 405, 501, 505]);
    }
}

#[test]
fn heads_over_their_bounds() {
    let (proxy, _client) = world();
    let start = "GET /mcp HTTP/1.1\r\nHost: localhost\r\n";
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(9_000));
    refused(&proxy, long.as_bytes(), &[414]);
    let endless = format!("GET /{}", "x".repeat(100_000));
    refused(&proxy, endless.as_bytes(), &[414]);
    let wide = format!("{start}X: {}\r\n\r\n", "x".repeat(40_000));
    refused(&proxy, wide.as_bytes(), &[431]);
    let unended = format!("{start}{}", "x".repeat(100_000));
    refused(&proxy, unended.as_bytes(), &[431]);
    let many = format!("{start}{}\r\n", "X: y\r\n".repeat(200));
    refused(&proxy, many.as_bytes(), &[431]);
    // Just below, it is another question.
    let mut conn = Conn::open(proxy.addr);
    let fields = "Accept: text/html\r\n".to_owned() + &"X: y\r\n".repeat(90);
    conn.send(format!("{start}{fields}\r\n").as_bytes());
    assert_eq!(conn.answer().status, 406);
}

#[test]
fn no_tunnel_is_ever_opened() {
    let (proxy, client) = world();
    for upgrade in ["h2c", "websocket", "unknown"] {
        let mut conn = Conn::open(proxy.addr);
        let more = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABk\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        );
        let head = head(&client);
        let length = PING.len();
        conn.send(format!("{head}{more}Content-Length: {length}\r\n\r\n{PING}").as_bytes());
        let answer = conn.answer();
        assert!(answer.status == 200 || answer.status >= 400, "{upgrade}: {answer:?}");
    }
    let mut conn = Conn::open(proxy.addr);
    conn.send(b"TRACE /mcp HTTP/1.1\r\nHost: localhost\r\nX-Secret: s\r\n\r\n");
    let answer = conn.answer();
    assert!([405, 501].contains(&answer.status), "{answer:?}");
    assert!(!answer.text().contains("X-Secret"));
}

#[test]
fn expectations_are_met_or_refused_never_waited_on() {
    let (proxy, client) = world();
    let head = head(&client);
    let length = PING.len();
    let mut conn = Conn::open(proxy.addr);
    conn.send(format!("{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n").as_bytes());
    assert_eq!(conn.head().status, 100);
    conn.send(PING.as_bytes());
    assert_eq!(conn.answer().status, 200);
    // Refused by its head: a final status, and no body is asked for.
    let mut conn = Conn::open(proxy.addr);
    let foreign =
        head.replace(&client.session, "unknown").replace("application/json\r\n", "text/plain\r\n");
    conn.send(
        format!("{foreign}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
    );
    assert!(conn.head().status >= 400);
    let mut conn = Conn::open(proxy.addr);
    conn.send(format!("{head}Expect: 200-ok\r\nContent-Length: {length}\r\n\r\n{PING}").as_bytes());
    assert_eq!(conn.head().status, 417);
}

#[test]
fn the_body_of_a_request_that_was_answered_early_is_never_a_request() {
    let (proxy, client) = world();
    let length = HIDDEN.len();
    let head = head(&client);
    for request in [
        format!("POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"),
        format!("PUT /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"),
        format!("GET /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"),
        format!("DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"),
        format!("POST /mcp HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {length}\r\n\r\n"),
        format!(
            "{}Content-Length: {length}\r\n\r\n",
            head.replace("application/json\r\n", "text/x\r\n")
        ),
        format!("{head}Content-Length: {length}\r\n\r\n"),
    ] {
        let mut conn = Conn::open(proxy.addr);
        conn.send(format!("{request}{HIDDEN}").as_bytes());
        conn.stream().shutdown(std::net::Shutdown::Write).unwrap();
        assert!(conn.answer().status >= 400, "{request}");
        let rest = conn.rest();
        assert!(rest.is_empty(), "{request} had more: {:?}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn nothing_is_served_behind_a_framing_error() {
    let (proxy, client) = world();
    let good = format!("{}Content-Length: {}\r\n\r\n{PING}", head(&client), PING.len());
    let mut conn = Conn::open(proxy.addr);
    conn.send(format!("{good}{good}GET /x HTTP/1.1\r\nbad\r\n\r\n{good}{HIDDEN}").as_bytes());
    assert_eq!(conn.answer().status, 200);
    assert_eq!(conn.answer().status, 200);
    assert_eq!(conn.answer().status, 400);
    assert!(conn.rest().is_empty());
}

#[test]
fn requests_in_single_bytes_and_connections_kept_or_closed_as_asked() {
    let (proxy, client) = world();
    let good = format!("{}Content-Length: {}\r\n\r\n{PING}", head(&client), PING.len());
    let mut conn = Conn::open(proxy.addr);
    for byte in good.bytes() {
        conn.send(&[byte]);
    }
    assert_eq!(conn.answer().status, 200);
    conn.send(good.replace("Accept:", "Connection: close\r\nAccept:").as_bytes());
    assert_eq!(conn.answer().status, 200);
    assert!(conn.ends());
    // Clients that vanish in the middle of a head or a body are nobody's problem.
    for end in [1, 20, good.len() - 5] {
        Conn::open(proxy.addr).send(&good.as_bytes()[..end]);
    }
    let mut conn = Conn::open(proxy.addr);
    conn.send(good.as_bytes());
    assert_eq!(conn.answer().status, 200);
}

#[test]
fn slow_heads_and_bodies_are_cut() {
    let (proxy, client) = world();
    let head = head(&client);
    // All wait at the same time: the limits are 10 seconds each.
    let mut conns: Vec<Conn> = [
        "G".to_owned(),
        "GET /mcp HTTP/1.1\r\nHost: loc".into(),
        format!("{head}Content-Length: 100\r\n\r\n"),
        format!("{head}Content-Length: 100\r\n\r\n{{\"json"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"j"),
    ]
    .into_iter()
    .map(|start| {
        let mut conn = Conn::open(proxy.addr);
        conn.send(start.as_bytes());
        conn
    })
    .collect();
    for conn in &mut conns {
        if let Some(head) = conn.try_head() {
            assert_eq!(head.status, 408);
            while let Ok(Some(_)) = conn.piece() {}
        }
        assert!(conn.rest().is_empty());
    }
}
