//! TLS towards clients: what is served under it, who must show a certificate, and what becomes of
//! those who speak something else.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use mcp_proxy::limits;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::support::client::{ACCEPT, JSON, call_params, message};
use crate::support::process::{HttpStub, Proxy, Setup, scratch, stdio_backend};
use crate::support::tls::{Authority, Identity};
use crate::support::{DEADLINE, quote, wait_for};

/// A proxy under TLS.
struct World {
    proxy: Proxy,
    authority: Authority,
    scratch: TempDir,
}

fn write(scratch: &TempDir, name: &str, text: &str) -> String {
    let path = scratch.path().join(name);
    std::fs::write(&path, text).expect("write");
    quote(path.to_str().expect("UTF-8"))
}

fn world(clients: Option<&Authority>, backends: &str) -> World {
    world_with(clients, backends, &[])
}

fn world_with(clients: Option<&Authority>, backends: &str, args: &[&str]) -> World {
    let scratch = scratch();
    let authority = Authority::new();
    let own = authority.identity(&["localhost", "127.0.0.1"]);
    let (cert, key) = (write(&scratch, "c.pem", &own.cert), write(&scratch, "k.pem", &own.key));
    let mut tls = format!("[proxy.listen.tls]\ncert = {cert}\nkey = {key}\n");
    if let Some(clients) = clients {
        tls += &format!("client_ca = {}\n", write(&scratch, "clients.pem", &clients.pem));
    }
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let backends = backends.to_owned();
    let proxy = Setup { backends, proxy: tls, args, ..Setup::default() }.start();
    World { proxy, authority, scratch }
}

fn client_config(trusted: &Authority, own: Option<&Identity>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.pem.as_bytes()).expect("PEM")).expect("root");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let cert = CertificateDer::from_pem_slice(own.cert.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![cert], key).expect("identity")
        }
    })
}

/// A client under TLS, reading whatever comes.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn open(addr: SocketAddr, config: &Arc<ClientConfig>) -> Secure {
        let tcp = TcpStream::connect(addr).expect("connect");
        tcp.set_read_timeout(Some(DEADLINE)).expect("timeout");
        tcp.set_nodelay(true).expect("nodelay");
        let name = "localhost".try_into().expect("name");
        let tls = ClientConnection::new(config.clone(), name).expect("client");
        Secure(StreamOwned::new(tls, tcp))
    }

    /// Sends a request; the head of its answer and its body.
    fn ask(&mut self, lines: &str, body: &str) -> std::io::Result<(String, Vec<u8>)> {
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\n{ACCEPT}{JSON}{lines}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes())?;
        self.0.write_all(body.as_bytes())?;
        let mut got = Vec::new();
        let end = loop {
            if let Some(at) = got.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more(&mut got)?;
        };
        let head = String::from_utf8(got.drain(..end).collect()).expect("ASCII");
        match head.to_ascii_lowercase().split_once("content-length: ") {
            Some((_, rest)) => {
                let length: usize = rest.split("\r\n").next().unwrap().parse().expect("length");
                while got.len() < length {
                    self.more(&mut got)?;
                }
            }
            None if head.starts_with("HTTP/1.1 202") => {}
            None => {
                while !got.ends_with(b"0\r\n\r\n") {
                    self.more(&mut got)?;
                }
            }
        }
        Ok((head, got))
    }

    fn more(&mut self, got: &mut Vec<u8>) -> std::io::Result<()> {
        let mut room = [0; 16 * 1024];
        match self.0.read(&mut room)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                got.extend_from_slice(&room[..count]);
                Ok(())
            }
        }
    }

    /// A session; its line for further requests.
    fn initialize(&mut self) -> std::io::Result<String> {
        let hello = r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}"#;
        let (head, _) = self.ask("", &message("1", "initialize", hello))?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let line =
            head.lines().find(|line| line.to_ascii_lowercase().starts_with("mcp-session-id"));
        Ok(format!("{}\r\nMCP-Protocol-Version: 2025-11-25\r\n", line.expect("a session")))
    }

    fn call(&mut self, session: &str, tool: &str, arguments: &str) -> String {
        let body = message("7", "tools/call", &call_params(tool, arguments));
        let (head, body) = self.ask(session, &body).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        String::from_utf8(body).expect("UTF-8")
    }
}

/// Keys, counters and what has come too early go with it.
#[test]
fn a_connection_under_tls_goes_to_another_worker() {
    let backends = stdio_backend("s", &[]) + &stdio_backend("t", &[]);
    let world = world_with(None, &backends, &["--log-level", "debug"]);
    let config = client_config(&world.authority, None);
    let mut client = Secure::open(world.proxy.addr, &config);
    let session = client.initialize().expect("a session");
    for round in 0..3 {
        for backend in ["s", "t"] {
            for n in 0..20 {
                let payload = format!("{backend} {round} {n}");
                let tool = format!("{backend}__echo");
                let answer = wait_for("the tool", || {
                    let arguments = format!(r#"{{"payload":"{payload}"}}"#);
                    let answer = client.call(&session, &tool, &arguments);
                    (!answer.contains("\"error\"")).then_some(answer)
                });
                assert!(answer.contains(&payload), "{answer}");
            }
        }
    }
    wait_for("moves in the log", || {
        let log = world.proxy.stderr();
        (log.matches("a connection goes where its calls go").count() >= 5).then_some(())
    });
}

#[test]
fn everything_is_served_under_tls() {
    let stub = HttpStub::start("web", &[]);
    let world = world(None, &[stub.backend("web"), stdio_backend("pipe", &[])].concat());
    assert!(world.proxy.stdout().contains("https://127.0.0.1:"), "{}", world.proxy.stdout());
    let config = client_config(&world.authority, None);
    let mut client = Secure::open(world.proxy.addr, &config);
    let session = client.initialize().expect("a session");
    for backend in ["web", "pipe"] {
        wait_for("the backend", || {
            let said = client.call(&session, &format!("{backend}__echo"), r#"{"payload":"early"}"#);
            said.contains("early").then_some(())
        });
        for n in 0..50 {
            let payload = format!("{n}-{}", "p".repeat(n * n));
            let arguments = format!(r#"{{"payload":"{payload}"}}"#);
            let said = client.call(&session, &format!("{backend}__echo"), &arguments);
            assert!(said.contains(&payload));
        }
    }
    // Many records in both directions, a stream, and a long answer.
    let large = "l".repeat(1_000_000);
    let said = client.call(&session, "web__echo", &format!(r#"{{"payload":"{large}"}}"#));
    assert!(said.contains(&large));
    let said = client.call(&session, "web__big", r#"{"bytes":5000000}"#);
    assert!(said.len() > 5_000_000, "{}", said.len());
    let body = r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"web__progress","arguments":{"steps":3},"_meta":{"progressToken":1}}}"#;
    let (head, stream) = client.ask(&session, body).expect("a stream");
    assert!(head.contains("text/event-stream"), "{head}");
    assert_eq!(String::from_utf8(stream).unwrap().matches("notifications/progress").count(), 3);
    // A second connection resumes the session of TLS, on whichever worker.
    assert_eq!(client.0.conn.handshake_kind(), Some(HandshakeKind::Full));
    for _ in 0..6 {
        let mut again = Secure::open(world.proxy.addr, &config);
        assert!(again.call(&session, "web__echo", r#"{"payload":"x"}"#).contains('x'));
        assert_eq!(again.0.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    }
    // The end is said, so that it is no cut.
    let last = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.0.write_all(last.as_bytes()).unwrap();
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).expect("a proper end");
    assert!(rest.starts_with(b"HTTP/1.1 200 "));
    // 401 and its address would name this scheme too.
    assert_eq!(world.proxy.stderr().matches("panicked").count(), 0);
}

#[test]
fn clients_show_a_certificate_where_they_must() {
    let clients = Authority::new();
    let world = world(Some(&clients), &stdio_backend("pipe", &[]));
    let own = clients.identity(&["a client"]);
    let mut client = Secure::open(world.proxy.addr, &client_config(&world.authority, Some(&own)));
    client.initialize().expect("a session");
    let foreign = Authority::new().identity(&["a client"]);
    for (what, own) in [("none", None), ("by another authority", Some(&foreign))] {
        let mut client = Secure::open(world.proxy.addr, &client_config(&world.authority, own));
        assert!(client.initialize().is_err(), "{what}");
    }
}

#[test]
fn who_speaks_something_else_costs_nobody() {
    let world = world(None, &stdio_backend("pipe", &[]));
    let addr = world.proxy.addr;
    let speak = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(addr).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.write_all(bytes).expect("write");
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        got
    };
    for request in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /mcp HTTP/1.1\r\n"] {
        let got = String::from_utf8(speak(request.as_bytes())).expect("text");
        assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
        assert!(got.contains("https://"), "{got}");
    }
    assert_eq!(speak(b"\x00\x01\x02nonsense"), b"");
    // The alert that says why, and the end.
    let alert = speak(&[&[22u8, 3, 1, 0, 5][..], b"abcde"].concat());
    assert!(alert.first().is_none_or(|kind| *kind == 21), "{alert:?}");
    // Silent ones wait for their time limit, in nobody's way.
    let _silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let mut half = TcpStream::connect(addr).unwrap();
    half.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    let mut client = Secure::open(addr, &client_config(&world.authority, None));
    client.initialize().expect("a session");
}

#[test]
fn the_files_are_checked() {
    let scratch = scratch();
    let (one, two) = (Authority::new(), Authority::new());
    let (a, b) = (one.identity(&["localhost"]), two.identity(&["localhost"]));
    let cert = write(&scratch, "a.pem", &a.cert);
    let key = write(&scratch, "a.key", &a.key);
    let other = write(&scratch, "b.key", &b.key);
    let junk = write(&scratch, "junk", "junk");
    let check = |lines: &str| {
        let file = scratch.path().join("proxy.toml");
        let text = format!("[proxy]\nname = \"p\"\n[proxy.listen.tls]\n{lines}\n");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"));
        let output = command.args(["--check", "-c"]).arg(&file).output().expect("run");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        (output.status.success(), said)
    };
    let (well, said) = check(&format!("cert = {cert}\nkey = {key}"));
    assert!(well, "{said}");
    // A path that is relative starts at the file's folder.
    let (well, said) = check("cert = \"a.pem\"\nkey = \"a.key\"");
    assert!(well, "{said}");
    for (lines, expected) in [
        (format!("cert = {cert}\nkey = \"/no/such\""), "proxy.listen.tls.key: the file /no/such"),
        (format!("cert = {junk}\nkey = {key}"), "proxy.listen.tls.cert: unusable certificate"),
        (format!("cert = {cert}\nkey = {junk}"), "unusable certificate or key: key: "),
        (format!("cert = {cert}\nkey = {other}"), "proxy.listen.tls.cert: unusable"),
        (
            format!("cert = {cert}\nkey = {key}\nclient_ca = {junk}"),
            "proxy.listen.tls.client_ca: unusable certificate authority",
        ),
    ] {
        let (well, said) = check(&lines);
        assert!(!well && said.contains(expected), "{lines}\n{said}");
    }
}

/// Certificates run out: another one is put in its place without a stop.
#[test]
fn a_new_certificate_is_shown_to_new_connections() {
    let mut world = world(None, &stdio_backend("pipe", &[]));
    let old = client_config(&world.authority, None);
    let ping = message("1", "ping", "{}");
    let mut before = Secure::open(world.proxy.addr, &old);
    assert!(before.ask("", &ping).unwrap().0.starts_with("HTTP/1.1 4"), "no session");
    let next = Authority::new();
    let own = next.identity(&["localhost"]);
    write(&world.scratch, "c.pem", &own.cert);
    // Half of a change is none: the key is not this certificate's.
    world.proxy.signal("HUP");
    wait_for("the refusal", || {
        world.proxy.stderr().contains("the old one stays in force").then_some(())
    });
    Secure::open(world.proxy.addr, &old).ask("", &ping).unwrap();
    write(&world.scratch, "k.pem", &own.key);
    world.proxy.signal("HUP");
    wait_for("the reload", || {
        world.proxy.stderr().contains("configuration reloaded").then_some(())
    });
    Secure::open(world.proxy.addr, &client_config(&next, None)).ask("", &ping).unwrap();
    let fault = Secure::open(world.proxy.addr, &old).ask("", &ping).unwrap_err();
    assert_eq!(fault.kind(), ErrorKind::InvalidData, "{fault}");
    // Who is connected stays so.
    before.ask("", &ping).unwrap();
    world.authority = next;
}

#[test]
fn a_silent_client_does_not_hold_up_the_end() {
    let mut world = world(None, &stdio_backend("s", &[]));
    let began = Instant::now();
    let mut silent = TcpStream::connect(world.proxy.addr).expect("connect");
    silent.set_read_timeout(Some(DEADLINE)).expect("timeout");
    // Only then is it in for sure.
    drop(Secure::open(world.proxy.addr, &client_config(&world.authority, None)));
    world.proxy.signal("TERM");
    assert!(matches!(silent.read(&mut [0; 1]), Ok(0)));
    assert_eq!(world.proxy.wait().code(), Some(0), "{}", world.proxy.stderr());
    assert!(began.elapsed() < limits::TLS_HANDSHAKE_TIMEOUT, "{:?}", began.elapsed());
}
