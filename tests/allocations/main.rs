//! Heap allocations of a plain call: the proxy runs in this process, whose allocator counts.
//!
//! A binary of its own: it has another global allocator than the other tests, and nothing else may
//! run beside it. What the client does here allocates nothing, and the backends are processes of
//! their own, so that all that is counted is the proxy's. Its other threads allocate now and then;
//! the median over many calls does not see that.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;

use mcp_proxy::control::Options;
use mcp_proxy::{Proxy, ProxyConfig};
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};
use support::client::{ACCEPT, Client, JSON, call_params, message};
use support::process::{HttpStub, stdio_backend};
use support::{DEADLINE, wait_until};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of a plain `tools/call` of some 200 bytes, in steady state.
const PER_CALL_OVER_HTTP: usize = 0;
/// See [`PER_CALL_OVER_HTTP`].
const PER_CALL_OVER_STDIO: usize = 0;
/// Allocations of a `ping`, which the proxy answers itself.
const PER_PING: usize = 0;

/// Before anything is counted: buffers, pools and tables have their size then.
const WARM_UP: usize = 300;
/// Calls that are counted one by one.
const CALLS: usize = 501;

fn count(stats: Stats) -> usize {
    stats.allocations + stats.reallocations
}

/// A connection that asks the same again and again, without an allocation.
struct Asker {
    stream: TcpStream,
    request: Vec<u8>,
    room: Box<[u8]>,
}

impl Asker {
    fn new(client: &Client, body: &str) -> Asker {
        let head = format!(
            "POST /mcp HTTP/1.1\r\n{}{ACCEPT}{JSON}Content-Length: {}\r\n\r\n",
            client.lines(),
            body.len()
        );
        let stream = TcpStream::connect(client.addr).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        Asker { stream, request: format!("{head}{body}").into_bytes(), room: vec![0; 4096].into() }
    }

    /// One call and its answer, which has to be a result.
    fn ask(&mut self) {
        self.stream.write_all(&self.request).expect("send");
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.room[filled..]).expect("an answer");
            assert!(read > 0, "the proxy has closed the connection");
            filled += read;
            if let Some(whole) = whole(&self.room[..filled]) {
                assert_eq!(filled, whole, "more than one answer");
                break;
            }
        }
        let said = &self.room[..filled];
        assert!(said.starts_with(b"HTTP/1.1 200 "), "{}", said.escape_ascii());
        assert!(find(said, b"\"result\"").is_some(), "{}", said.escape_ascii());
    }

    /// The median of what single calls allocate.
    fn median(&mut self) -> usize {
        for _ in 0..WARM_UP {
            self.ask();
        }
        let mut counts = [0; CALLS];
        for counted in &mut counts {
            let before = count(ALLOCATOR.stats());
            self.ask();
            *counted = count(ALLOCATOR.stats()) - before;
        }
        counts.sort_unstable();
        counts[CALLS / 2]
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// The length of the answer at the start of `bytes`, once its head is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let length = find(&bytes[..head], b"Content-Length: ").expect("an answer with a length") + 16;
    let digits = bytes[length..head].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    (bytes.len() >= head + body).then_some(head + body)
}

/// One test: two would count each other's allocations.
#[test]
fn a_plain_call_allocates_nothing() {
    let stub = HttpStub::start("h", &[]);
    let text = format!(
        "[proxy]\nname = \"p\"\nworkers = 1\nadmin_tools = \"off\"\n[proxy.listen]\nport = 0\n{}{}",
        stub.backend("h"),
        stdio_backend("s", &[])
    );
    let config = ProxyConfig::parse(&text).unwrap_or_else(|report| panic!("{report}"));
    let proxy = Proxy::start(config, Options::default()).expect("a start");
    let handle = proxy.handle();
    assert!(handle.wait_settled(DEADLINE), "the backends do not come up");
    let mut client = Client::connect(handle.addr());
    wait_until("the tools of both backends", || {
        let names = client.names("tools/list");
        ["h__echo", "s__echo"].iter().all(|name| names.iter().any(|known| known == name))
    });
    let payload = "x".repeat(64);
    let call = |name: &str| {
        let arguments = format!(r#"{{"payload":"{payload}"}}"#);
        message("7", "tools/call", &call_params(name, &arguments))
    };
    let measured = [
        ("a ping", message("7", "ping", "{}"), PER_PING),
        ("a call over HTTP", call("h__echo"), PER_CALL_OVER_HTTP),
        ("a call over stdio", call("s__echo"), PER_CALL_OVER_STDIO),
    ]
    .map(|(what, body, most)| (what, Asker::new(&client, &body).median(), most));
    for (what, median, most) in measured {
        println!("{what}: {median} allocations, at most {most}");
    }
    for (what, median, most) in measured {
        assert!(median <= most, "{what} makes {median} allocations, and may make {most}");
    }
    handle.shutdown();
    handle.wait().expect("a good end");
}
