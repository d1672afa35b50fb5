//! Owns: whole exchanges through a proxy of one worker in this process, over loopback: what the
//! proxy answers itself, what it keeps, what it passes on.
//! Never: load (`loadtest`); one client waits for each answer.
//! Next: `pieces`, what an exchange is made of.
//!
//! The baselines are the same client on the backend itself, and on a thread that only echoes: what
//! the sockets cost without anybody who reads the messages.

#[allow(dead_code, reason = "the pieces are measured elsewhere")]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mcp_proxy::control::Options;
use mcp_proxy::{Proxy, ProxyConfig};

/// Long for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, word)
}

/// Reads one message with a Content-Length behind what `room` held; its bytes.
fn message(stream: &mut TcpStream, room: &mut Vec<u8>) -> Option<usize> {
    room.clear();
    let mut piece = [0; 16 * 1024];
    loop {
        if let Some(head) = find(room, b"\r\n\r\n").map(|at| at + 4) {
            let lower = room[..head].to_ascii_lowercase();
            let length = find(&lower, b"content-length: ").map_or(0, |at| {
                let digits = lower[at + 16..].iter().take_while(|byte| byte.is_ascii_digit());
                digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
            });
            if room.len() >= head + length {
                return Some(head);
            }
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => room.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
}

/// A thread for each connection, which answers every message by `answer`, head and all.
fn serve(answer: fn(&[u8], usize, &mut Vec<u8>)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                stream.set_nodelay(true).expect("nodelay");
                let (mut room, mut out) = (Vec::new(), Vec::new());
                while let Some(head) = message(&mut stream, &mut room) {
                    out.clear();
                    answer(&room, head, &mut out);
                    if stream.write_all(&out).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn ok(body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n");
    out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(body);
}

fn echo(request: &[u8], head: usize, out: &mut Vec<u8>) {
    ok(&request[head..], out);
}

/// An MCP server without sessions that knows 200 tools.
fn backend(request: &[u8], head: usize, out: &mut Vec<u8>) {
    let body = &request[head..];
    let says = |word: &str| find(body, word.as_bytes()).is_some();
    let id = find(body, b"\"id\":").map(|at| {
        let rest = &body[at + 5..];
        let end = rest.iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(rest.len());
        &rest[..end]
    });
    let Some(id) = id else {
        out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    let tools;
    let result: &[u8] = if says("\"initialize\"") {
        br#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}"#
    } else if says("\"tools/list\"") {
        tools = support::tools(200);
        &tools
    } else if says("\"tools/call\"") {
        br#"{"content":[{"type":"text","text":"The quick brown fox jumps over the lazy dog, the quick brown fox jumps over the lazy dog, and the quick brown fox jumps over it again."}]}"#
    } else {
        b"{}"
    };
    let mut answer = Vec::new();
    if says("\"server/discover\"") {
        mcp_proxy::jsonrpc::error(&mut answer, id, -32601, "Method not found", None);
    } else {
        mcp_proxy::jsonrpc::result(&mut answer, id, result);
    }
    ok(&answer, out);
}

/// One connection that sends the same request again and again.
struct Asker {
    stream: TcpStream,
    request: Vec<u8>,
    room: Vec<u8>,
}

impl Asker {
    fn new(address: SocketAddr, lines: &str, body: &str) -> Asker {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let request = format!(
            "POST /mcp HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Asker { stream, request: request.into_bytes(), room: Vec::new() }
    }

    fn ask(&mut self) -> &[u8] {
        self.stream.write_all(&self.request).expect("send");
        message(&mut self.stream, &mut self.room).expect("an answer");
        &self.room
    }
}

const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"b","version":"1"}}}"#;

/// A session at the proxy: the lines that name it.
fn session(address: SocketAddr) -> String {
    let mut hello = Asker::new(address, "", HELLO);
    let answer = String::from_utf8_lossy(hello.ask()).into_owned();
    let lower = answer.to_ascii_lowercase();
    let at = lower.find("mcp-session-id: ").expect("a session") + 16;
    let id: String = answer[at..].chars().take_while(|c| !c.is_whitespace()).collect();
    format!("MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: {id}\r\n")
}

fn exchanges(criterion: &mut Criterion) {
    let (server, mirror) = (serve(backend), serve(echo));
    let table = |name: &str| {
        format!(
            "[[backends]]\nname = \"{name}\"\ntransport = \"http\"\nurl = \"http://{server}/mcp\"\n"
        )
    };
    let text = format!(
        "[proxy]\nname = \"p\"\nworkers = 1\nadmin_tools = \"off\"\n[proxy.listen]\nport = 0\n{}{}\
         [backends.cache]\ntool_ttl_seconds = 86400\n",
        table("files"),
        table("kept"),
    );
    let config = ProxyConfig::parse(&text).unwrap_or_else(|report| panic!("{report}"));
    let proxy = Proxy::start(config, Options::default()).expect("a start");
    let address = proxy.handle().addr();
    assert!(proxy.handle().wait_settled(PATIENCE), "the backends do not come up");
    let lines = session(address);

    let named = |name: &str| {
        let call = String::from_utf8(support::call(200)).expect("UTF-8");
        call.replace("files__write", name)
    };
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let mut group = criterion.benchmark_group("exchange");
    for (case, size, at, lines, body) in [
        ("echo", "200B", mirror, "", named("tool_7")),
        ("direct", "200B", server, "", named("tool_7")),
        ("call", "200B", address, lines.as_str(), named("files__tool_7")),
        ("cached", "200B", address, &lines, named("kept__tool_7")),
        ("ping", "40B", address, &lines, ping.to_owned()),
        ("list", "400-tools", address, &lines, list.to_owned()),
    ] {
        let mut asker = Asker::new(at, lines, &body);
        let first = String::from_utf8_lossy(asker.ask()).into_owned();
        assert!(first.starts_with("HTTP/1.1 200"), "{case}: {first}");
        assert!(case == "echo" || first.contains("\"result\""), "{case}: {first}");
        // A connection is closed after ten thousand requests.
        let mut asked = 1;
        group.bench_function(BenchmarkId::new(case, size), |b| {
            b.iter(|| {
                if asked == 9_000 {
                    asker = Asker::new(at, lines, &body);
                    asked = 0;
                }
                asked += 1;
                asker.ask().len()
            });
        });
    }
    group.finish();
    proxy.handle().shutdown();
    proxy.handle().wait().expect("a good end");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = exchanges
}
criterion_main!(benches);
