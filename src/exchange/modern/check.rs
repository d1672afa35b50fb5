//! Owns: what each request of the request era must say, in its head and in its body alike.
//! Never: what it asks for.
//! Next: `offer`.
//!
//! MCP 2026-07-28, Basic (General fields), Streamable HTTP (Request Metadata, Server Validation). The
//! order is the reference servers': a request that contradicts itself is told so before it is told
//! that its revision is not spoken.

use crate::backend::Caller;
use crate::error::{Error, Kind, Result};
use crate::http::RequestHead;
use crate::jsonrpc::{self, Envelope, Span};
use crate::mcp::envelope::{self, key};
use crate::mcp::header;
use crate::mcp::logging::Level;
use crate::mcp::method::Method;
use crate::mcp::mirrored::{self, Mirrored};
use crate::mcp::revision::MODERN;
use crate::mcp::task_ids;

/// A client that does not name itself.
const UNNAMED: &str = r#"{"name":"unknown","version":"0"}"#;

fn mismatch(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::HeaderMismatch).context(text)
}

/// Checks a request; what it says of its caller, and the log messages that it wants.
pub(super) fn request(
    head: &RequestHead,
    message: &[u8],
    envelope: &Envelope,
    method: Method,
) -> Result<(Caller, Option<Level>)> {
    let bad = |text: &'static str| Error::new(Kind::BadEnvelope).context(text);
    let meta = envelope.meta.map_or(&b"{}"[..], |meta| meta.of(message));
    let member = |name| envelope::member(meta, name).map(|value| value.of(meta));
    let version = member(key::VERSION)
        .ok_or_else(|| bad("_meta lacks io.modelcontextprotocol/protocolVersion"))?;
    let capabilities = member(key::CAPABILITIES)
        .ok_or_else(|| bad("_meta lacks io.modelcontextprotocol/clientCapabilities"))?;
    held(head, version, message, envelope, method)?;
    let name = jsonrpc::unquote(version).ok_or_else(|| bad("a revision is a string"))?;
    if name != MODERN {
        let name: String = name.chars().take(64).collect();
        return Err(Error::new(Kind::UnsupportedVersion).context(name));
    }
    if !capabilities.starts_with(b"{") {
        return Err(bad("clientCapabilities is an object"));
    }
    let client = member(key::CLIENT).unwrap_or(UNNAMED.as_bytes());
    if !client.starts_with(b"{") {
        return Err(bad("clientInfo is an object"));
    }
    let log_level = match member(key::LOG_LEVEL) {
        None => None,
        Some(level) => Some(named_level(level).ok_or_else(|| bad("no such logLevel"))?),
    };
    // Scanned before, and so UTF-8.
    let text = |raw: &[u8]| String::from_utf8_lossy(raw).into();
    let caller = Caller {
        principal: None,
        authorization: None,
        capabilities: text(capabilities),
        client: text(client),
        lines: String::new(),
        tasks: false,
    };
    Ok((caller, log_level))
}

/// The level that a raw JSON string names.
fn named_level(raw: &[u8]) -> Option<Level> {
    Level::parse(&jsonrpc::unquote(raw)?)
}

/// Checks the revision of a notification: nothing else is asked of its head.
pub(super) fn version(head: &RequestHead, message: &[u8], envelope: &Envelope) -> Result<()> {
    let meta = envelope.meta.map_or(&b"{}"[..], |meta| meta.of(message));
    let named = envelope::member(meta, key::VERSION).and_then(|value| value.text(meta));
    let header = field(head, header::VERSION)?;
    let header = header.map(|value| String::from_utf8_lossy(value));
    match header.or(named) {
        Some(version) if version != MODERN => {
            let name: String = version.chars().take(64).collect();
            Err(Error::new(Kind::UnsupportedVersion).context(name))
        }
        _ => Ok(()),
    }
}

/// A field that may stand there once: of two, each reader may take another one.
fn field<'h>(head: &'h RequestHead, name: &'static str) -> Result<Option<&'h [u8]>> {
    let mut fields = head.fields(name);
    match (fields.next(), fields.next()) {
        (_, Some(_)) => Err(mismatch(format!("{name} stands there twice"))),
        (one, None) => Ok(one),
    }
}

/// Holds the fields against the body.
fn held(
    head: &RequestHead,
    version: &[u8],
    message: &[u8],
    envelope: &Envelope,
    method: Method,
) -> Result<()> {
    let missing = |name: &'static str| mismatch(format!("{name} is missing"));
    let differs = |name: &'static str| mismatch(format!("{name} is not what the body says"));
    let named = field(head, header::VERSION)?.ok_or_else(|| missing(header::VERSION))?;
    if jsonrpc::unquote(version).is_none_or(|version| version.as_bytes() != named) {
        return Err(differs(header::VERSION));
    }
    let named = field(head, header::METHOD)?.ok_or_else(|| missing(header::METHOD))?;
    if envelope.method_name(message).is_none_or(|method| method.as_bytes() != named) {
        return Err(differs(header::METHOD));
    }
    let about: Option<Span> = match method {
        Method::ToolsCall | Method::PromptsGet => envelope.name,
        Method::ResourcesRead => envelope.uri,
        Method::TasksGet | Method::TasksUpdate | Method::TasksCancel => {
            task_ids::asked(message, envelope)
        }
        _ => return Ok(()),
    };
    // A body without it is refused for that.
    let Some(about) = about.and_then(|span| span.text(message)) else { return Ok(()) };
    let named = field(head, header::NAME)?.ok_or_else(|| missing(header::NAME))?;
    match mirrored::decode(named) {
        Some(named) if named == about => Ok(()),
        _ => Err(differs(header::NAME)),
    }
}

/// Holds the fields that repeat arguments against them, and returns the others as lines: whoever
/// knows them may want them.
pub(super) fn params(
    head: &RequestHead,
    known: &[Mirrored],
    arguments: Option<&[u8]>,
) -> Result<String> {
    for one in known {
        let name = one.field();
        let mut fields = head.each_field().filter(|(field, _)| one.is(field));
        let (named, again) = (fields.next(), fields.next());
        let value = arguments.and_then(|arguments| one.value(arguments));
        let fault = match (named, value) {
            _ if again.is_some() => "stands there twice",
            (None, None) => continue,
            (Some(_), None) => "repeats an argument that is not there",
            (None, Some(_)) => "is missing",
            (Some((_, field)), Some(value)) => match mirrored::decode(field) {
                Some(field) if one.agrees(&field, &value) => continue,
                _ => "is not what the body says",
            },
        };
        return Err(mismatch(format!("{name} {fault}")));
    }
    let mut lines = String::new();
    for (name, value) in head.each_field() {
        let prefix = header::PARAM.as_bytes();
        if name.len() > prefix.len()
            && name[..prefix.len()].eq_ignore_ascii_case(prefix)
            && !known.iter().any(|one| one.is(name))
            && let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value))
        {
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    Ok(lines)
}
