//! https backends: whom they trust, who they are, and that nothing is sent to anybody else.

use std::net::SocketAddr;

use crate::support::process::{HttpStub, Proxy, scratch, stdio_backend};
use crate::support::tls::{Authority, front};
use crate::support::{quote, texts, wait_until};

fn backend(host: &str, addr: SocketAddr, lines: &str) -> String {
    let url = quote(&format!("https://{host}:{}/mcp", addr.port()));
    format!(
        "\n[[backends]]\nname = \"a\"\ntransport = \"http\"\nurl = {url}\nbearer_token = \"secret-token\"\n\
         restart = {{ initial_ms = 100, max_ms = 500 }}\n{lines}"
    )
}

#[test]
fn an_authority_of_ones_own_and_a_client_certificate() {
    let scratch = scratch();
    let write = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).expect("write");
        quote(path.to_str().expect("UTF-8"))
    };
    let authority = Authority::new();
    let server = authority.identity(&["localhost", "127.0.0.1"]);
    let client = authority.identity(&["the proxy"]);
    let ca = write("ca.pem", &authority.pem);
    let (cert, key) = (write("cert.pem", &client.cert), write("key.pem", &client.key));
    let stub = HttpStub::start("a", &["--sse"]);
    for host in ["localhost", "127.0.0.1"] {
        for mutual in [false, true] {
            let front = front(stub.addr, &server, mutual.then_some(&authority));
            let mut lines = format!("[backends.tls]\nca = {ca}\n");
            if mutual {
                lines += &format!("cert = {cert}\nkey = {key}\n");
            }
            let proxy = Proxy::start(&[backend(host, front, &lines), stdio_backend("b", &[])]);
            let mut client = proxy.client_seeing(&["a__echo"]);
            for n in 0..20 {
                let arguments = format!(r#"{{"payload":"{n}"}}"#);
                assert_eq!(client.call("a__echo", &arguments).said(), n.to_string());
            }
            assert!(client.call("a__rich", "{}").text.contains(texts::RICH_RESULT));
            let params =
                r#"{"name":"a__progress","arguments":{"steps":3},"_meta":{"progressToken":1}}"#;
            assert_eq!(client.ask("tools/call", params).before.len(), 3);
            let big = client.call("a__big", r#"{"bytes":5000000}"#).said();
            assert_eq!(big.len(), 5_000_000);
        }
    }
}

#[test]
fn strangers_are_not_trusted_and_told_nothing() {
    let scratch = scratch();
    let authority = Authority::new();
    let ca = scratch.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let ca = quote(ca.to_str().unwrap());
    let stub = HttpStub::start("a", &[]);
    let good = authority.identity(&["localhost"]);
    let elsewhere = authority.identity(&["elsewhere.example"]);
    let foreign = Authority::new().identity(&["localhost"]);
    let trusting = format!("[backends.tls]\nca = {ca}\n");
    for (what, front, lines) in [
        ("no such authority on this machine", front(stub.addr, &good, None), ""),
        ("another authority", front(stub.addr, &foreign, None), trusting.as_str()),
        ("another name", front(stub.addr, &elsewhere, None), trusting.as_str()),
        ("no client certificate", front(stub.addr, &good, Some(&authority)), trusting.as_str()),
        ("not TLS at all", stub.addr, trusting.as_str()),
    ] {
        let proxy = Proxy::start(&[backend("localhost", front, lines), stdio_backend("b", &[])]);
        let mut client = proxy.client_seeing(&["b__echo"]);
        for _ in 0..3 {
            let (code, text) = client.call("a__echo", r#"{"payload":"x"}"#).error();
            assert_eq!(code, -32010, "{what}: {text}");
            assert!(text.contains(": a"), "{what}: {text}");
        }
        assert_eq!(client.call("b__echo", r#"{"payload":"x"}"#).said(), "x", "{what}");
        wait_until("a word in the log", || !proxy.stderr().is_empty());
        assert!(!proxy.stderr().contains("secret-token"), "{what}");
    }
    let stats = crate::support::http::once(stub.addr, "GET", "/control/stats", "").json();
    assert_eq!(stats["sessions"], 0, "somebody got through");
}

#[test]
fn verification_can_be_switched_off_with_a_warning() {
    let stub = HttpStub::start("a", &[]);
    let front = front(stub.addr, &Authority::new().identity(&["elsewhere.example"]), None);
    let lines = "[backends.tls]\ninsecure_skip_verify = true\n";
    let proxy = Proxy::start(&[backend("localhost", front, lines)]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    wait_until("the warning", || proxy.stderr().contains("insecure_skip_verify"));
}

#[test]
fn a_restart_behind_tls_is_survived() {
    let scratch = scratch();
    let authority = Authority::new();
    let ca = scratch.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let mut stub = HttpStub::start("a", &[]);
    let front = front(stub.addr, &authority.identity(&["localhost"]), None);
    let lines = format!("[backends.tls]\nca = {}\n", quote(ca.to_str().unwrap()));
    let proxy = Proxy::start(&[backend("localhost", front, &lines)]);
    let mut client = proxy.client_seeing(&["a__echo"]);
    for _ in 0..3 {
        assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
        stub = stub.restart("a", &[]);
        assert_eq!(client.call_until_well("a__echo", r#"{"payload":"y"}"#).said(), "y");
    }
}
