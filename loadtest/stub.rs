//! Owns: the server of the measurement, an MCP server that costs next to nothing, and its stdio.
//! Never: a parser; it looks for the few members that clients of this harness send, wherever a
//! gateway has put them. One thread.
//! Next: `stub_http`.

use std::io::{self, Read, Write};
use std::time::Duration;

use clap::Args;
use memchr::memmem;

use crate::job::Text;
use crate::request::{CONTENT, END, END_COMPLETE, ENVELOPE, PREFIX, fill, filling, letter};

/// How the server behaves.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Port of the loopback address; 0 lets the system choose. Written to stdout.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Tools in its list; the first one is `echo`.
    #[arg(long, default_value_t = 1)]
    pub(crate) tools: usize,
    /// Speaks 2026-07-28 (requests that stand alone), not 2025-11-25 (sessions).
    #[arg(long)]
    pub(crate) modern: bool,
    /// Every so many milliseconds it stands still.
    #[arg(long, default_value_t = 0)]
    pub(crate) stall_every_ms: u64,
    /// For so long.
    #[arg(long, default_value_t = 0)]
    pub(crate) stall_ms: u64,
    /// Speaks on stdin and stdout.
    #[arg(long)]
    pub(crate) stdio: bool,
}

/// What one message is answered with.
#[derive(Default)]
pub(crate) struct Reply {
    /// JSON-RPC messages, and where each ends. None for a notification.
    pub(crate) bytes: Vec<u8>,
    pub(crate) ends: Vec<usize>,
    /// Asked for as an event stream.
    pub(crate) events: bool,
    /// A session begins with it.
    pub(crate) opens: bool,
    pub(crate) delay: Option<Duration>,
}

/// What it says, made once.
pub(crate) struct Answers {
    modern: bool,
    initialize: String,
    discover: String,
    tools: String,
}

const CALL: &[u8] = b"\"tools/call\"";
const NO_METHOD: &str = r#","error":{"code":-32601,"message":"Method not found"}}"#;
const NO_SESSIONS: &str = r#","error":{"code":-32022,"message":"Unsupported protocol version","data":{"supported":["2026-07-28"],"requested":"2025-11-25"}}}"#;

impl Answers {
    pub(crate) fn new(options: &Options) -> Answers {
        let era = if options.modern { r#","resultType":"complete""# } else { "" };
        let kept = if options.modern { r#","ttlMs":60000,"cacheScope":"public""# } else { "" };
        let mut tools = String::from(
            r#"{"name":"echo","description":"Answers with as many bytes as it is asked for.","inputSchema":{"type":"object","properties":{"tag":{"type":"string"},"size":{"type":"integer"},"sse":{"type":"integer"},"progress":{"type":"integer"},"delay":{"type":"integer"},"json":{"type":"integer"},"pad":{"type":"string"}}},"annotations":{"readOnlyHint":true}}"#,
        );
        for number in 1..options.tools {
            tools += &format!(
                r#",{{"name":"tool_{number}","description":"One of many, described as tools are described: what it does, when to use it, and what it never does.","inputSchema":{{"type":"object","properties":{{"path":{{"type":"string","description":"Where to look."}},"limit":{{"type":"integer","minimum":1}}}},"required":["path"]}}}}"#
            );
        }
        Answers {
            modern: options.modern,
            initialize: r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"stub","version":"1.0.0"}}"#.into(),
            discover: r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":60000,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"stub","version":"1.0.0"}}}"#.into(),
            tools: format!(r#"{{"tools":[{tools}]{kept}{era}}}"#),
        }
    }

    /// Puts the answer to `message` into `reply`.
    pub(crate) fn to(&mut self, message: &[u8], reply: &mut Reply) {
        reply.bytes.clear();
        reply.ends.clear();
        (reply.events, reply.opens, reply.delay) = (false, false, None);
        let method = value(message, b"\"method\":").unwrap_or_default();
        let Some(id) = value(message, b"\"id\":").filter(|_| !method.is_empty()) else { return };
        if method == CALL {
            self.call(message, id, reply);
            reply.ends.push(reply.bytes.len());
            return;
        }
        reply.bytes.extend_from_slice(PREFIX.as_bytes());
        reply.bytes.extend_from_slice(id);
        let result = match method {
            b"\"initialize\"" if self.modern => Err(NO_SESSIONS),
            b"\"initialize\"" => {
                reply.opens = true;
                Ok(self.initialize.as_str())
            }
            b"\"server/discover\"" if self.modern => Ok(self.discover.as_str()),
            b"\"tools/list\"" => Ok(self.tools.as_str()),
            b"\"ping\"" => Ok("{}"),
            _ => Err(NO_METHOD),
        };
        match result {
            Err(error) => reply.bytes.extend_from_slice(error.as_bytes()),
            Ok(result) => {
                reply.bytes.extend_from_slice(b",\"result\":");
                reply.bytes.extend_from_slice(result.as_bytes());
                reply.bytes.push(b'}');
            }
        }
        reply.ends.push(reply.bytes.len());
    }

    fn call(&self, message: &[u8], id: &[u8], reply: &mut Reply) {
        let number = |key: &[u8]| {
            let digits = value(message, key).and_then(|n| std::str::from_utf8(n).ok());
            digits.and_then(|digits| digits.parse().ok()).unwrap_or(0_usize)
        };
        reply.events = number(b"\"sse\":") > 0;
        let delay = number(b"\"delay\":");
        reply.delay = (delay > 0).then(|| Duration::from_millis(delay as u64));
        let token = value(message, b"\"progressToken\":").unwrap_or(b"0");
        for step in 1..=number(b"\"progress\":") {
            let start =
                br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"#;
            reply.bytes.extend_from_slice(start);
            reply.bytes.extend_from_slice(token);
            reply.bytes.extend_from_slice(format!(r#","progress":{step}}}}}"#).as_bytes());
            reply.ends.push(reply.bytes.len());
        }
        // The caller's tag comes back at both ends of the text, so that it can tell its own answer.
        let tag = value(message, b"\"tag\":").unwrap_or(b"\"\"");
        let tag = &tag[1..tag.len() - 1];
        let modern = memmem::find(message, ENVELOPE.as_bytes()).is_some();
        reply.bytes.extend_from_slice(PREFIX.as_bytes());
        reply.bytes.extend_from_slice(id);
        reply.bytes.extend_from_slice(CONTENT.as_bytes());
        reply.bytes.extend_from_slice(tag);
        let filling = filling(number(b"\"size\":"));
        let text = if number(b"\"json\":") > 0 { Text::Json } else { Text::Letters };
        reply.bytes.extend(fill(text, letter(tag), filling));
        reply.bytes.extend_from_slice(tag);
        let end = if modern { END_COMPLETE } else { END };
        reply.bytes.extend_from_slice(end.as_bytes());
    }
}

/// The first number or string (without escapes) behind `key`, as it is written.
fn value<'a>(message: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = &message[memmem::find(message, key)? + key.len()..];
    let rest = rest.trim_ascii_start();
    let len = match rest.first()? {
        b'"' => memchr::memchr(b'"', &rest[1..])? + 2,
        _ => rest.iter().take_while(|&&b| b.is_ascii_digit() || b == b'-').count(),
    };
    (len > 0).then(|| &rest[..len])
}

/// One JSON-RPC message a line.
pub(crate) fn stdio(options: &Options) -> io::Result<()> {
    let (mut stdin, stdout) = (io::stdin().lock(), io::stdout());
    let mut answers = Answers::new(options);
    let mut reply = Reply::default();
    let (mut bytes, mut filled) = (vec![0; 256 * 1024], 0);
    let mut out = Vec::new();
    loop {
        if filled == bytes.len() {
            bytes.resize(filled * 2, 0);
        }
        match stdin.read(&mut bytes[filled..])? {
            0 => return Ok(()),
            n => filled += n,
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &bytes[..filled]) {
            answers.to(&bytes[start..end], &mut reply);
            start = end + 1;
            if let Some(delay) = reply.delay {
                let mut late = Vec::new();
                lines(&reply, &mut late);
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    // Nobody is there to be told.
                    let _ = io::stdout().write_all(&late).and_then(|()| io::stdout().flush());
                });
            } else {
                lines(&reply, &mut out);
            }
        }
        bytes.copy_within(start..filled, 0);
        filled -= start;
        if !out.is_empty() {
            let mut stdout = stdout.lock();
            stdout.write_all(&out)?;
            stdout.flush()?;
        }
        out.clear();
    }
}

fn lines(reply: &Reply, out: &mut Vec<u8>) {
    let mut start = 0;
    for &end in &reply.ends {
        out.extend_from_slice(&reply.bytes[start..end]);
        out.push(b'\n');
        start = end;
    }
}
