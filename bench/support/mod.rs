//! Owns: what several benchmarks measure or need: messages, lists, a plan, and the pieces of the hot
//! path as closures that do one turn.
//! Never: a clock or a socket.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use mcp_proxy::auth::Caller;
use mcp_proxy::auth::bearer::Tokens;
use mcp_proxy::http::body::{Decoder, LAST_CHUNK, write_chunk};
use mcp_proxy::http::{Framing, RequestHead, ResponseHead, request_head, sse};
use mcp_proxy::jsonrpc::{self, Envelope, Watch, scan};
use mcp_proxy::mcp::catalog::{Catalog, List, ListKind, Pages, Slice};
use mcp_proxy::mcp::hints::Hints;
use mcp_proxy::mcp::name::{Names, Target};
use mcp_proxy::middleware::breaker::{self, Breaker};
use mcp_proxy::middleware::concurrency::Concurrency;
use mcp_proxy::middleware::pattern::{Pattern, Patterns};
use mcp_proxy::middleware::rate::RateLimit;
use mcp_proxy::middleware::reuse::{Cache, Reuse};
use mcp_proxy::middleware::{Known, Request, Row};
use mcp_proxy::plan::{BackendPlan, Plan};

/// What an MCP client sends.
pub(crate) const CALL_HEAD: &[u8] = b"POST /mcp HTTP/1.1\r\nHost: localhost:8080\r\n\
    Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n\
    MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: 5c8a7b90d1e24f3b8a6c5d4e3f2a1b0c\r\n\
    User-Agent: node\r\nAccept-Language: *\r\nSec-Fetch-Mode: cors\r\n\
    Accept-Encoding: gzip, deflate\r\nContent-Length: 205\r\n\r\n";
/// What a backend answers.
pub(crate) const ANSWER_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Date: Tue, 24 Nov 2026 18:00:00 GMT\r\nContent-Length: 210\r\n\r\n";

/// A tools/call with one long text of prose: mostly plain, some escapes, some other scripts.
pub(crate) fn call(bytes: usize) -> Vec<u8> {
    let head = r#"{"jsonrpc":"2.0","id":1234,"method":"tools/call","params":{"name":"files__write","arguments":{"path":"/tmp/a.txt","text":""#;
    let tail = r#"","mode":420},"_meta":{"progressToken":1234}}}"#;
    let text = r#"The quick brown fox jumps over the lazy dog, \"twice\", für 3 €.\n"#;
    let mut message = head.to_owned();
    while message.len() + tail.len() + text.len() <= bytes {
        message.push_str(text);
    }
    message.push_str(tail);
    message.into_bytes()
}

/// A result whose text is JSON, as most servers send what they have: every few bytes are escaped.
pub(crate) fn json(bytes: usize) -> Vec<u8> {
    let head = r#"{"jsonrpc":"2.0","id":1234,"result":{"content":[{"type":"text","text":""#;
    let tail = r#""}],"isError":false}}"#;
    let mut message = head.to_owned();
    let mut row = 0;
    while message.len() + tail.len() < bytes.saturating_sub(64) {
        message.push_str(&format!(
            r#"{{\"id\": {row}, \"path\": \"/srv/file-{row}.txt\", \"mode\": \"rw\"}},\n"#
        ));
        row += 1;
    }
    message.push_str(tail);
    message.into_bytes()
}

/// A result of many small values: structure rather than text.
pub(crate) fn rows(bytes: usize) -> Vec<u8> {
    let mut message = String::from(r#"{"jsonrpc":"2.0","id":1234,"result":{"structuredContent":["#);
    let mut row = 0;
    while message.len() < bytes.saturating_sub(64) {
        let comma = if row > 0 { "," } else { "" };
        message
            .push_str(&format!(r#"{comma}{{"id":{row},"ok":true,"x":-0.25,"name":"row {row}"}}"#));
        row += 1;
    }
    message.push_str("],\"isError\":false}}");
    message.into_bytes()
}

/// One page of a list of so many tools.
pub(crate) fn tools(count: usize) -> Vec<u8> {
    let tools: Vec<_> = (0..count)
        .map(|n| format!(r#"{{"name":"tool_{n}","description":"Does the thing number {n}, and says so at some length.","inputSchema":{{"type":"object","properties":{{"path":{{"type":"string","description":"Where"}},"limit":{{"type":"integer","minimum":1}}}},"required":["path"]}},"annotations":{{"readOnlyHint":true}}}}"#))
        .collect();
    format!(r#"{{"tools":[{}]}}"#, tools.join(",")).into_bytes()
}

/// The backend `files`.
pub(crate) fn backend() -> BackendPlan {
    BackendPlan::bare(0, "files", "files__")
}

/// A catalogue with one backend, `files`, of so many tools; and its slice.
pub(crate) fn catalog(count: usize) -> (Catalog, Arc<Slice>) {
    let hello = br#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}"#;
    let pages = Pages { tools: vec![tools(count)], ..Pages::default() };
    let backend = backend();
    let slice = Arc::new(Slice::build(&backend, hello, &pages).expect("good lists"));
    let mut catalog = Catalog::new(&Plan::bare(1, vec![backend]));
    catalog.set(0, Some(slice.clone()));
    (catalog, slice)
}

/// The row that makes keys of calls.
pub(crate) fn reuse() -> Reuse {
    Reuse {
        backend: 0,
        cache: Some(Cache {
            tool_ttl: Some(Duration::from_secs(60)),
            resource_ttl: None,
            max_entries: 10,
            max_bytes: 1000,
            tools: Patterns(vec![Pattern::parse("*").expect("a pattern")]),
            shared: false,
        }),
        coalesce: None,
    }
}

/// The key of a call, made as the chain makes it.
pub(crate) fn key(row: &Reuse, message: &mut Vec<u8>, envelope: &mut Envelope) -> Arc<[u8]> {
    let mut ask = Request {
        what: ListKind::Tools,
        called: "files__write",
        own: "write".into(),
        known: Some(Known { own: "write", hints: Hints::default() }),
        listed: true,
        message,
        envelope,
        copies: Vec::new(),
        principal: None,
        revision: "2025-11-25",
        look: &|_| None,
        held: None,
        backend: "b",
        custom: None,
        watch: None,
        decided: None,
        reusable: None,
    };
    row.request(&mut ask).expect("it refuses nothing");
    ask.reusable.expect("a call that is like others").key
}

/// One turn of a piece.
pub(crate) type Turn = Box<dyn FnMut()>;

/// The pieces of the hot path, as `area/case/size`.
pub(crate) fn pieces() -> Vec<(&'static str, Turn)> {
    let mut pieces: Vec<(&'static str, Turn)> = Vec::new();
    let mut add = |name, turn: Turn| pieces.push((name, turn));

    let mut head = RequestHead::default();
    add(
        "head/request/419B",
        Box::new(move || {
            head.reset();
            assert_eq!(head.parse(black_box(CALL_HEAD)), Ok(Some(CALL_HEAD.len())));
        }),
    );
    let mut head = ResponseHead::default();
    add(
        "head/response/117B",
        Box::new(move || {
            head.reset();
            assert_eq!(head.parse(black_box(ANSWER_HEAD), false), Ok(Some(ANSWER_HEAD.len())));
        }),
    );
    let mut out = Vec::new();
    add(
        "head/write/149B",
        Box::new(move || {
            out.clear();
            let lines = "Content-Type: application/json\r\n";
            request_head(&mut out, "POST", "/mcp", "localhost:9000", black_box(lines), Some(205));
            black_box(&mut out);
        }),
    );
    let (mut wire, mut out) = (Vec::new(), Vec::with_capacity(4096));
    write_chunk(&mut wire, &[b'x'; 4096]);
    wire.extend_from_slice(LAST_CHUNK);
    add(
        "body/chunked/4KiB",
        Box::new(move || {
            out.clear();
            let mut decoder = Decoder::new(Framing::Chunked, u64::MAX).expect("no bound");
            assert_eq!(decoder.decode(black_box(&wire), &mut out), Ok(wire.len()));
        }),
    );
    let (mut wire, mut reader) = (Vec::new(), sse::Reader::default());
    sse::write(&mut wire, Some("12-345"), &rows(205));
    add(
        "sse/read/205B",
        Box::new(move || {
            let mut input = black_box(wire.as_slice());
            black_box(reader.take(&mut input)).expect("a good event").expect("a whole one");
        }),
    );
    let (data, mut out) = (rows(205), Vec::new());
    add(
        "sse/write/205B",
        Box::new(move || {
            out.clear();
            sse::write(&mut out, Some("12-345"), black_box(&data));
            black_box(&mut out);
        }),
    );
    for (name, message) in [
        ("message/scan/200B", call(200)),
        ("message/scan-json/64KiB", json(64 << 10)),
        ("message/scan-rows/64KiB", rows(64 << 10)),
    ] {
        add(
            name,
            Box::new(move || {
                black_box(scan(black_box(&message))).expect("a good message");
            }),
        );
    }
    for (name, message) in
        [("message/watch/64KiB", rows(64 << 10)), ("message/watch-json/64KiB", json(64 << 10))]
    {
        add(
            name,
            Box::new(move || {
                let mut watch = Watch::new();
                for piece in message.chunks(16 << 10) {
                    watch.feed(black_box(piece)).expect("a good piece");
                }
                black_box(watch.finish()).expect("a response");
            }),
        );
    }
    let message = call(200);
    let name = scan(&message).expect("a good message").name.expect("a name");
    add(
        "message/splice/200B",
        Box::new(move || {
            black_box(jsonrpc::splice(black_box(&message), &[(name, b"\"write\"")]));
        }),
    );
    let prefixes: Vec<String> = (0..100).map(|n| format!("backend{n}__")).collect();
    let backends = prefixes
        .iter()
        .enumerate()
        .map(|(id, prefix)| BackendPlan::bare(id, prefix, prefix))
        .collect();
    let names = Names::new(&Plan::bare(1, backends));
    add(
        "name/resolve/100-backends",
        Box::new(move || {
            let target = names.resolve(black_box("backend57__read_file"));
            assert_eq!(target, Target::Prefixed(57, 11));
        }),
    );
    let (pages, one) = (vec![tools(200)], backend());
    add(
        "list/build/200-tools",
        Box::new(move || {
            black_box(List::build(&one, ListKind::Tools, black_box(&pages))).expect("a list");
        }),
    );
    let (mut merged, slice) = catalog(200);
    add(
        "list/merge/200-tools",
        Box::new(move || {
            merged.set(0, None);
            merged.set(0, Some(slice.clone()));
            black_box(merged.list(ListKind::Tools));
        }),
    );
    let ((whole, _), mut out) = (catalog(200), Vec::new());
    add(
        "list/answer/200-tools",
        Box::new(move || {
            out.clear();
            jsonrpc::result(&mut out, b"1234", &black_box(&whole).list(ListKind::Tools));
            black_box(&mut out);
        }),
    );
    for (name, mut message) in [("reuse/key/200B", call(200)), ("reuse/key/4KiB", call(4 << 10))] {
        let (row, mut envelope) = (reuse(), scan(&message).expect("a good message"));
        add(
            name,
            Box::new(move || {
                black_box(key(&row, &mut message, &mut envelope));
            }),
        );
    }
    let (limit, mut now) = (RateLimit::new(1000, Duration::from_micros(1)), Duration::ZERO);
    add(
        "limit/rate/1000",
        Box::new(move || {
            now += Duration::from_micros(3);
            limit.admit(black_box(now), None).expect("room");
        }),
    );
    let limit = Concurrency::new(64, 64, Duration::from_secs(1), 2);
    add(
        "limit/concurrency/2-workers",
        Box::new(move || {
            assert!(black_box(&limit).take());
            assert_eq!(limit.pass_on(), None);
        }),
    );
    let settings = breaker::Settings {
        failure_rate: 0.5,
        minimum_calls: 10,
        wait: Duration::from_secs(30),
        permitted: 3,
        window: mcp_proxy::middleware::breaker::Span::Calls(100),
    };
    let breaker = Breaker::new(settings, 2);
    add(
        "limit/breaker/2-workers",
        Box::new(move || {
            let pass = breaker.admit(black_box(Duration::from_secs(1))).expect("closed");
            black_box(breaker.record(0, pass, false, Duration::from_secs(1)));
        }),
    );
    let caller = |name: &str| Caller { principal: name.into(), rights: None, admin: false };
    let texts: Vec<String> = (0..100).map(|n| format!("token-of-some-length-{n}")).collect();
    let tokens = Tokens::new(texts.iter().map(|text| (text.as_str(), caller(text))));
    let tokens = tokens.expect("random bytes");
    add(
        "auth/bearer/100-tokens",
        Box::new(move || {
            black_box(tokens.find(black_box(b"token-of-some-length-57"))).expect("known");
        }),
    );
    pieces
}
