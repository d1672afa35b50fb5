//! Owns: how an exchange ends: JSON or an event, an error or a refusal.
//! Never: what is answered.
//! Next: `auth`, whom `door` asks who calls.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use super::Ask;
use crate::error::{Error, Kind};
use crate::http::Connection;
use crate::jsonrpc;
use crate::mcp::envelope::TASKS;
use crate::mcp::revision::MODERN;

pub(super) const JSON: &str = "Content-Type: application/json\r\n";
pub(super) const EVENTS: &str = "Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n\
                      X-Accel-Buffering: no\r\n";

/// Sends an error as the response to a request, and when to try again if that is known.
pub(super) async fn refused(
    connection: &mut Connection,
    ask: &Ask,
    error: &Error,
    id: &[u8],
) -> io::Result<()> {
    ask.facts.failed(error);
    let cors = ask.cors.as_str();
    let answer = error_answer(error, id);
    match error.wait() {
        Some(wait) => {
            let lines = format!("{JSON}{cors}{}", after(wait));
            connection.answer(200, &lines, &answer).await
        }
        None => respond(connection, cors, answer).await,
    }
}

/// The field that says when to try again (RFC 9110 §10.2.3).
pub(super) fn after(wait: Duration) -> String {
    format!("Retry-After: {}\r\n", wait.as_millis().div_ceil(1000).max(1))
}

/// Sends the response of an exchange that is whole.
pub(super) async fn respond(
    connection: &mut Connection,
    cors: &str,
    answer: Vec<u8>,
) -> io::Result<()> {
    connection.answer_with(200, &with(JSON, cors), answer).await
}

/// `lines`, and what CORS adds to them.
pub(super) fn with<'a>(lines: &'a str, cors: &str) -> Cow<'a, str> {
    if cors.is_empty() { Cow::Borrowed(lines) } else { Cow::Owned(format!("{lines}{cors}")) }
}

/// A JSON-RPC error response of our own.
pub(super) fn error_answer(error: &Error, id: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(128);
    let mut data = Vec::new();
    if matches!(error.kind(), Kind::ResourceNotFound | Kind::UnknownResource) {
        // 2025-11-25, Server Features, Resources, Error Handling.
        data.extend_from_slice(b"{\"uri\":");
        jsonrpc::quote(error.public_context(), &mut data);
        data.push(b'}');
    } else if error.kind() == Kind::UnsupportedVersion {
        // 2026-07-28, Versioning, Protocol Version Negotiation.
        let _ = io::Write::write_fmt(
            &mut data,
            format_args!("{{\"supported\":[\"{MODERN}\"],\"requested\":"),
        );
        jsonrpc::quote(error.public_context(), &mut data);
        data.push(b'}');
    } else if error.kind() == Kind::MissingCapability {
        // SEP-2663, Capability Negotiation.
        data.extend_from_slice(b"{\"requiredCapabilities\":{\"extensions\":{");
        jsonrpc::quote(TASKS, &mut data);
        data.extend_from_slice(b":{}}}}");
    } else if let Some(wait) = error.wait() {
        let millis = wait.as_micros().div_ceil(1000);
        let _ = io::Write::write_fmt(&mut data, format_args!("{{\"retryAfterMs\":{millis}}}"));
    }
    let data = (!data.is_empty()).then_some(&data[..]);
    jsonrpc::error(&mut answer, id, error.kind().code(), &error.public(), data);
    answer
}

/// Refuses a request before or beside JSON-RPC: an HTTP status, and an error body.
pub(super) async fn refuse(
    connection: &mut Connection,
    ask: &Ask,
    error: &Error,
    id: &[u8],
) -> io::Result<()> {
    refuse_with(connection, ask, &ask.cors, error, id).await
}

/// As [`refuse`], with these lines in the place of those of CORS alone.
pub(super) async fn refuse_with(
    connection: &mut Connection,
    ask: &Ask,
    more: &str,
    error: &Error,
    id: &[u8],
) -> io::Result<()> {
    ask.facts.failed(error);
    tracing::debug!(%error, peer = %connection.peer(), "refused");
    let mut lines = format!("{JSON}{more}");
    match error.kind() {
        Kind::MethodNotAllowed => lines.push_str("Allow: GET, POST, DELETE, OPTIONS\r\n"),
        Kind::NotPost => lines.push_str("Allow: POST, OPTIONS\r\n"),
        Kind::Capacity => lines.push_str("Retry-After: 1\r\n"),
        _ => {}
    }
    connection.answer(error.kind().status(), &lines, &error_answer(error, id)).await
}
