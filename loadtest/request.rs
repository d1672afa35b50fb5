//! Owns: the requests of a job as bytes, and the judgement of what comes back.
//! Never: an answer taken on trust. Each is checked for its status, its id, its length, every byte
//! of its text, and the caller's own tag at both ends: another caller's answer is an error here.

use memchr::memmem;

use crate::job::{Call, Era, Form, Job, Kind, Method, Place, Text};
use crate::wire::Answer;

/// Bytes of a request body, unless its arguments need more.
const REQUEST_BYTES: usize = 200;
/// Digits of ids, which are tags too: the number of the connection, then of the call. JSON readers
/// that hold numbers as doubles keep so many.
pub(crate) const TAG_DIGITS: usize = 15;
const CALLS_PER_CONNECTION: u64 = 1_000_000_000;

pub(crate) type Tag = [u8; TAG_DIGITS];

/// The tag of a call. Never with a leading zero, which is no JSON number.
pub(crate) fn tag(connection: usize, call: u64) -> Tag {
    let number = (connection as u64 + 100_000) * CALLS_PER_CONNECTION + call;
    let mut digits = [b'0'; TAG_DIGITS];
    digits.copy_from_slice(itoa::Buffer::new().format(number).as_bytes());
    digits
}

/// The letter that fills the text of a result, so that pieces of two answers are told apart.
pub(crate) fn letter(tag: &[u8]) -> u8 {
    b'a' + (tag.iter().fold(0_u32, |sum, &b| sum * 31 % 26 + u32::from(b)) % 26) as u8
}

/// A record of a text in JSON, with the place where letters tell it from others.
const RECORD: &[u8; 76] =
    br#"{\"id\": 1042, \"path\": \"/srv/................\", \"mode\": \"rw\"},\n    "#;
const RECORD_LETTERS: std::ops::Range<usize> = 32..48;

/// What fills the text of a result, between its two tags.
pub(crate) fn fill(text: Text, letter: u8, bytes: usize) -> impl Iterator<Item = u8> {
    let mut record = *RECORD;
    record[RECORD_LETTERS].fill(letter);
    let whole = match text {
        Text::Letters => 0,
        Text::Json => bytes / record.len(),
    };
    let letters = bytes - whole * record.len();
    std::iter::repeat_n(record, whole).flatten().chain(std::iter::repeat_n(letter, letters))
}

pub(crate) const PREFIX: &str = r#"{"jsonrpc":"2.0","id":"#;
pub(crate) const CONTENT: &str = r#","result":{"content":[{"type":"text","text":""#;
pub(crate) const END: &str = r#""}]}}"#;
/// The end in the request era, which makes an answer so much longer.
pub(crate) const END_COMPLETE: &str = r#""}],"resultType":"complete"}}"#;
/// Stands in the envelope of every request of the request era.
pub(crate) const ENVELOPE: &str = "io.modelcontextprotocol/protocolVersion";

/// Bytes of the text in an answer of so many bytes whose id is a tag, without its two tags. The
/// same in both eras, whichever the server speaks: it may be another one than its client's.
pub(crate) fn filling(result_bytes: usize) -> usize {
    result_bytes.saturating_sub(RESULT_BYTES_MIN)
}

/// The least that `result_bytes` may be.
pub(crate) const RESULT_BYTES_MIN: usize =
    PREFIX.len() + CONTENT.len() + END.len() + 3 * TAG_DIGITS;

const META: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"loadtest","version":"1"}"#;

/// The head of a request without its end, up to where a session would stand, and from there on.
pub(crate) fn head(place: &Place, modern: Option<(&str, Option<&str>)>) -> (Vec<u8>, Vec<u8>) {
    let Place { host, path, .. } = place;
    let before = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
    let mut after = String::from(
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n",
    );
    if let Some(token) = &place.bearer {
        after += &format!("Authorization: Bearer {token}\r\n");
    }
    if let Some((method, name)) = modern {
        after += &format!("MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: {method}\r\n");
        if let Some(name) = name {
            after += &format!("Mcp-Name: {name}\r\n");
        }
    }
    (before, after.into_bytes())
}

/// The fields of a request in a session.
pub(crate) fn session_fields(session: &str) -> String {
    format!("Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: 2025-11-25\r\n")
}

/// A request of any body.
pub(crate) fn whole(place: &Place, session: Option<&str>, body: &str) -> Vec<u8> {
    let (mut out, after) = head(place, None);
    out.extend_from_slice(session.map(session_fields).unwrap_or_default().as_bytes());
    out.extend_from_slice(&after);
    out.extend_from_slice(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    out
}

/// A request without a body in a session: DELETE ends it, GET listens.
pub(crate) fn bare(method: &str, place: &Place, session: &str) -> Vec<u8> {
    let Place { host, path, bearer, .. } = place;
    let bearer = bearer.as_ref();
    let bearer = bearer.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let session = session_fields(session);
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\
         {bearer}{session}\r\n"
    )
    .into_bytes()
}

pub(crate) const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"loadtest","version":"1"}}}"#;
pub(crate) const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// All requests of one kind to one tool, in which only session and tag change.
pub(crate) struct Template {
    before: Vec<u8>,
    /// From behind the session to the end of the body.
    after: Vec<u8>,
    /// Where copies of the tag stand in `after`.
    tags: Vec<usize>,
    call: Call,
    filling: usize,
    listed: usize,
    /// Which of the job's tools.
    pub(crate) tool: usize,
}

impl Template {
    pub(crate) fn new(job: &Job, call: &Call, tool: usize) -> Template {
        let modern = job.era == Era::Request;
        let name = &job.tools[tool];
        let (call_name, mut body) = match call.method {
            Method::List => (None, call_body(call, None, modern)),
            Method::Call => (Some(name.as_str()), call_body(call, Some((name, 0)), modern)),
        };
        if call.method == Method::Call {
            let pad = REQUEST_BYTES.saturating_sub(body.len()).max(call.argument_bytes);
            body = call_body(call, Some((name, pad)), modern);
        }
        let modern = modern.then(|| (call.method.name(), call_name));
        let (before, mut after) = head(&job.place, modern);
        after.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        after.extend_from_slice(body.as_bytes());
        let tags = memmem::find_iter(&after, &PLACEHOLDER).collect();
        let filling = filling(call.result_bytes);
        Template { before, after, tags, call: call.clone(), filling, listed: job.listed, tool }
    }

    /// Writes the request with this tag.
    pub(crate) fn write(&self, session: Option<&str>, tag: &Tag, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.before);
        if let Some(session) = session {
            out.extend_from_slice(session_fields(session).as_bytes());
        }
        let start = out.len();
        out.extend_from_slice(&self.after);
        for at in &self.tags {
            out[start + at..start + at + TAG_DIGITS].copy_from_slice(tag);
        }
    }

    /// [`Template::check`] for those who do not measure.
    pub(crate) fn judge(&self, tag: &Tag, answer: &Answer) -> Verdict {
        self.check(tag, answer.status, answer.events, &answer.body)
    }

    /// Whether this is the answer to the request with this tag.
    pub(crate) fn check(&self, tag: &Tag, status: u16, events: bool, body: &[u8]) -> Verdict {
        if status == 429 || status >= 500 {
            return complain(Kind::Failed, "an error", tag, status, body);
        }
        if status != 200 {
            return complain(Kind::Wrong, "a status", tag, status, body);
        }
        if !events {
            self.message(tag, status, body)?;
            return match self.call.progress {
                0 => Ok(()),
                _ => complain(Kind::Wrong, "no progress", tag, status, body),
            };
        }
        let mut progress = 0;
        let mut answer = None;
        for line in body.split(|&b| b == b'\n') {
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if memmem::find(data, b"notifications/progress").is_some() && is_of(data, tag) {
                progress += 1;
            } else if !data.is_empty() {
                if answer.is_some() {
                    return complain(Kind::Wrong, "two answers", tag, status, body);
                }
                answer = Some(data);
            }
        }
        match answer {
            None => complain(Kind::Wrong, "no answer in the stream", tag, status, body),
            Some(message) => {
                self.message(tag, status, message)?;
                if progress == self.call.progress {
                    return Ok(());
                }
                complain(Kind::Wrong, &format!("{progress} progress messages"), tag, status, body)
            }
        }
    }

    fn message(&self, tag: &Tag, status: u16, message: &[u8]) -> Verdict {
        let ours = member(message, b"\"id\":", tag);
        if !ours {
            return complain(Kind::Wrong, "another id", tag, status, message);
        }
        if self.call.method == Method::List {
            let tools = memmem::find_iter(message, b"\"inputSchema\"").count();
            if tools >= self.listed {
                return Ok(());
            }
            return complain(Kind::Wrong, &format!("{tools} tools"), tag, status, message);
        }
        let text = memmem::find(message, b"\"text\":").map(|at| &message[at + 7..]);
        let text = text.map(<[u8]>::trim_ascii_start).and_then(|text| text.strip_prefix(b"\""));
        let len = TAG_DIGITS + self.filling;
        let letter = letter(tag);
        let whole = |text: &[u8]| {
            text.len() > len + TAG_DIGITS
                && text.starts_with(tag)
                && text[TAG_DIGITS..len].iter().copied().eq(fill(
                    self.call.text,
                    letter,
                    self.filling,
                ))
                && text[len..].starts_with(tag)
                && text[len + TAG_DIGITS] == b'"'
        };
        match text {
            Some(text) if whole(text) => Ok(()),
            None if memmem::find(message, b"\"error\":").is_some() => {
                complain(Kind::Failed, "an error", tag, status, message)
            }
            _ => complain(Kind::Wrong, "another result", tag, status, message),
        }
    }
}

const PLACEHOLDER: Tag = [b'0'; TAG_DIGITS];

/// `call` is the name of the tool and the bytes that fill the arguments; without it, a list.
fn call_body(call: &Call, about: Option<(&str, usize)>, modern: bool) -> String {
    let tag = "0".repeat(TAG_DIGITS);
    let mut meta = if modern { META.to_owned() } else { String::new() };
    if call.progress > 0 {
        let comma = if modern { "," } else { "" };
        meta += &format!(r#"{comma}"progressToken":{tag}"#);
    }
    if !meta.is_empty() {
        meta = format!(r#""_meta":{{{meta}}}"#);
    }
    let mut params = String::new();
    if let Some((name, pad)) = about {
        let mut more = String::new();
        if call.answer == Form::Sse || call.progress > 0 {
            more += &format!(r#","sse":1,"progress":{}"#, call.progress);
        }
        if call.text == Text::Json {
            more += r#","json":1"#;
        }
        if call.delay_ms > 0 {
            more += &format!(r#","delay":{}"#, call.delay_ms);
        }
        params = format!(
            r#""name":"{name}","arguments":{{"tag":"{tag}","size":{}{more},"pad":"{}"}}"#,
            call.result_bytes,
            "p".repeat(pad),
        );
        if !meta.is_empty() {
            params.push(',');
        }
    }
    let method = call.method.name();
    format!(r#"{{"jsonrpc":"2.0","id":{tag},"method":"{method}","params":{{{params}{meta}}}}}"#)
}

/// What is wrong with an answer.
pub(crate) type Verdict = std::result::Result<(), (Kind, String)>;

fn complain(kind: Kind, what: &str, tag: &Tag, status: u16, body: &[u8]) -> Verdict {
    let tag = String::from_utf8_lossy(tag);
    let start = String::from_utf8_lossy(&body[..body.len().min(160)]);
    Err((kind, format!("call {tag}: {what}: status {status}, {} bytes: {start}", body.len())))
}

/// Whether a member has this number as its value, blanks or not.
fn member(message: &[u8], key: &[u8], number: &Tag) -> bool {
    memmem::find_iter(message, key).any(|at| {
        let value = message[at + key.len()..].trim_ascii_start();
        value.starts_with(number) && !value.get(TAG_DIGITS).is_some_and(u8::is_ascii_digit)
    })
}

fn is_of(notification: &[u8], tag: &Tag) -> bool {
    member(notification, b"\"progressToken\":", tag)
}
