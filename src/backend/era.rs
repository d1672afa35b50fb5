//! Owns: finding out which era a backend speaks, and how the proxy introduces itself to it.
//! Never: calls of clients (`modern`).
//! Next: `modern`.
//!
//! MCP 2026-07-28, Versioning, Backward Compatibility: `server/discover` is asked first; whoever does
//! not know it is greeted with `initialize`. That a server cannot be reached, wants credentials or
//! fails says nothing about its era.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Backends;
use super::entry::Entry;
use super::failure::Failure;
use super::link::Link;
use super::own::{self, Channel, Said};
use crate::error::Kind;
use crate::jsonrpc::{self, Kind as Message, walk};
use crate::limits;
use crate::mcp::envelope::{self, key};
use crate::mcp::revision::{Era, MODERN, Revision};
use crate::mcp::session::SessionRecord;
use crate::plan::{Plan, Protocol};

const DISCOVER: &str = "server/discover";

/// What was found.
pub(super) enum Found {
    /// The request era, and what a session would have answered to `initialize`.
    Modern(Vec<u8>),
    /// Nothing that speaks for the request era.
    Legacy,
}

/// The parameters of a request of the proxy's own. Capabilities are empty: nothing is asked of it.
pub(super) fn own_params(plan: &Plan, params: Option<&[u8]>) -> Vec<u8> {
    let mut client = Vec::with_capacity(64);
    client.extend_from_slice(br#"{"name":"#);
    jsonrpc::quote(&plan.name, &mut client);
    client.extend_from_slice(br#","version":"#);
    jsonrpc::quote(&plan.version, &mut client);
    client.push(b'}');
    let client = String::from_utf8_lossy(&client);
    let meta = envelope::rebuilt(b"{}", &[], &envelope::members("{}", &client, None));
    envelope::rebuilt(params.unwrap_or(b"{}"), &[], &[("_meta", &meta)])
}

/// Finds out what a server over HTTP speaks. `Found::Modern` says nothing about sessions.
///
/// # Errors
/// Nothing can be told now.
pub(super) async fn over_http(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
) -> Result<Found, Failure> {
    let limit = entry.plan.startup_timeout.min(limits::REQUEST_TIMEOUT / 2);
    let asked = Channel::Posts.answer(backends, entry, DISCOVER, None, limit).await;
    let found = match asked {
        Ok(answer) => judge(&answer)?,
        Err(failure) if is_refusal(&failure) => Found::Legacy,
        Err(failure) => return Err(failure),
    };
    match (entry.plan.protocol, &found) {
        (Protocol::Modern, Found::Legacy) => Err(Failure::new(
            Kind::BadAnswer,
            "it does not speak 2026-07-28, and protocol is \"modern\"",
        )),
        _ => Ok(found),
    }
}

/// Whether a server took the trouble to refuse what it does not know.
fn is_refusal(failure: &Failure) -> bool {
    match failure.status {
        // Credentials, patience, load: all of them come before the question.
        401 | 403 | 407 | 408 | 429 => false,
        400..=499 => true,
        // Servers that stumble over what they do not know: `initialize` will show.
        500 | 501 => true,
        502.. => false,
        _ => failure.session_lost || failure.kind == Kind::BadAnswer,
    }
}

/// What an answer to `server/discover` says.
///
/// # Errors
/// It speaks for the request era, but for no revision of it that is known here.
fn judge(answer: &[u8]) -> Result<Found, Failure> {
    let bad = |cause: &'static str| Failure::new(Kind::BadAnswer, cause);
    let Ok(message) = jsonrpc::scan(answer) else { return Ok(Found::Legacy) };
    if let (Message::Response, Some(result)) = (message.kind, message.result) {
        return Ok(as_init(result.of(answer)).map_or(Found::Legacy, Found::Modern));
    }
    let Some(error) = message.error.map(|error| error.of(answer)) else { return Ok(Found::Legacy) };
    let code = walk::member(error, "code").map(|code| code.of(error));
    match code {
        Some(b"-32022") => {
            let data = walk::member(error, "data").map(|data| data.of(error)).unwrap_or(b"{}");
            #[derive(Deserialize)]
            struct Data {
                supported: Vec<String>,
            }
            let legacy = serde_json::from_slice::<Data>(data).is_ok_and(|data| {
                data.supported.iter().any(|name| Revision::parse(name.as_bytes()).is_some())
            });
            match legacy {
                true => Ok(Found::Legacy),
                false => Err(bad("it speaks no revision that is known here")),
            }
        }
        Some(b"-32020" | b"-32021") => Err(bad("it refuses server/discover")),
        _ => Ok(Found::Legacy),
    }
}

/// The result of `server/discover` in the form of one of `initialize`; `None` if it is none, or names
/// no revision of the request era.
fn as_init(discovered: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Discovered<'a> {
        supported_versions: Vec<String>,
        #[serde(borrow)]
        capabilities: &'a RawValue,
        #[serde(borrow, default)]
        instructions: Option<&'a RawValue>,
        #[serde(borrow, default)]
        ttl_ms: Option<&'a RawValue>,
        #[serde(borrow, default)]
        cache_scope: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "_meta")]
        meta: Option<&'a RawValue>,
    }
    let found: Discovered<'_> = serde_json::from_slice(discovered).ok()?;
    if !found.supported_versions.iter().any(|version| version == MODERN) {
        return None;
    }
    let meta = found.meta.map_or(&b"{}"[..], |meta| meta.get().as_bytes());
    let server = envelope::member(meta, key::SERVER).map(|server| server.of(meta));
    let mut members: Vec<(&str, &[u8])> = vec![
        ("protocolVersion", b"\"2026-07-28\""),
        ("capabilities", found.capabilities.get().as_bytes()),
    ];
    members.push(("serverInfo", server.unwrap_or(b"{}")));
    for (name, value) in [
        ("instructions", found.instructions),
        ("ttlMs", found.ttl_ms),
        ("cacheScope", found.cache_scope),
    ] {
        members.extend(value.map(|value| (name, value.get().as_bytes())));
    }
    Some(envelope::rebuilt(b"{}", &[], &members))
}

/// Asks a server of the request era whether it is there.
///
/// # Errors
/// It does not answer, or not as one of that era.
pub(super) async fn ping(
    channel: &Channel,
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
) -> Result<(), Failure> {
    match channel.ask(backends, entry, DISCOVER, None, limits::PING_TIMEOUT).await? {
        Said::Result(_) => Ok(()),
        Said::Error { code, .. } => {
            let cause = format!("server/discover is answered with error {code}: another server?");
            Err(Failure::new(Kind::BadAnswer, cause))
        }
    }
}

/// Introduces the proxy to a child, in the era that it speaks: that era, and the raw result of
/// `initialize` or what stands for it. `probing` is true while an unknown message may be what ends
/// the child.
///
/// # Errors
/// It does not answer in time, or says no.
pub(super) async fn greet(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    link: &Rc<Link>,
    how: Protocol,
    session: Option<&Arc<SessionRecord>>,
    probing: &std::cell::Cell<bool>,
) -> Result<(Era, Vec<u8>), Failure> {
    let limit = entry.plan.startup_timeout;
    let channel = Channel::ModernLine(link.clone());
    let discover = async |limit: Duration| {
        judge(&channel.answer(backends, entry, DISCOVER, None, limit).await?)
    };
    let refused =
        || Failure::new(Kind::BadAnswer, "it does not speak 2026-07-28, as protocol asks for");
    let mut silent = false;
    if how != Protocol::Legacy {
        let patience = match how {
            Protocol::Modern => limit,
            _ => limit.min(limits::PROBE_SILENCE),
        };
        probing.set(how == Protocol::Auto);
        let found = discover(patience).await;
        // A channel that broke may have been broken by the question.
        probing.set(probing.get() && matches!(&found, Err(fault) if fault.kind == Kind::Lost));
        match found {
            Ok(Found::Modern(init)) => return Ok((Era::Request, init)),
            Ok(Found::Legacy) if how == Protocol::Modern => return Err(refused()),
            Ok(Found::Legacy) => {}
            Err(failure) if failure.kind == Kind::Timeout && how == Protocol::Auto => silent = true,
            Err(failure) => return Err(failure),
        }
    }
    let channel = Channel::Line(link.clone());
    let greeted =
        own::greet(backends, entry, &channel, session.map(|session| &**session), limit).await;
    match greeted {
        Ok(init) => Ok((Era::Session, init)),
        // It was only slow to start: by now it has read the question.
        Err(failure) if silent && failure.kind == Kind::Unavailable => {
            match discover(limit).await {
                Ok(Found::Modern(init)) => Ok((Era::Request, init)),
                _ => Err(failure),
            }
        }
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(answer: &str) -> &'static str {
        match judge(answer.as_bytes()) {
            Ok(Found::Modern(_)) => "modern",
            Ok(Found::Legacy) => "legacy",
            Err(_) => "neither",
        }
    }

    #[test]
    fn only_what_speaks_for_the_request_era_counts() {
        let result = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let error = |error: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#);
        for (answer, wanted) in [
            (result(r#"{"supportedVersions":["2026-07-28"],"capabilities":{}}"#), "modern"),
            (result(r#"{"supportedVersions":["2025-11-25"],"capabilities":{}}"#), "legacy"),
            (result(r#"{"supportedVersions":["2099-01-01"],"capabilities":{}}"#), "legacy"),
            (result("{}"), "legacy"),
            (error(r#"{"code":-32601,"message":"no"}"#), "legacy"),
            (error(r#"{"code":-32602,"message":"no"}"#), "legacy"),
            (error(r#"{"code":-32000,"message":"no"}"#), "legacy"),
            (
                error(r#"{"code":-32022,"message":"no","data":{"supported":["2099-01-01"]}}"#),
                "neither",
            ),
            (
                error(r#"{"code":-32022,"message":"no","data":{"supported":["2025-11-25"]}}"#),
                "legacy",
            ),
            (error(r#"{"code":-32020,"message":"no"}"#), "neither"),
        ] {
            assert_eq!(verdict(&answer), wanted, "{answer}");
        }
    }

    #[test]
    fn outages_say_nothing() {
        for (status, telling) in [
            (400, true),
            (404, true),
            (405, true),
            (415, true),
            (500, true),
            (401, false),
            (403, false),
            (429, false),
            (502, false),
            (503, false),
        ] {
            let mut failure = Failure::new(Kind::BadAnswer, "");
            failure.status = status;
            assert_eq!(is_refusal(&failure), telling, "{status}");
        }
        assert!(!is_refusal(&Failure::new(Kind::Timeout, "")));
        assert!(!is_refusal(&Failure::new(Kind::Unavailable, "")));
    }

    #[test]
    fn a_discovery_reads_as_a_handshake() {
        let init = as_init(br#"{"resultType":"complete","supportedVersions":["2026-07-28","x"],"capabilities":{"tools":{}},"ttlMs":5,"cacheScope":"public","instructions":"do","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}"#).unwrap();
        assert_eq!(
            String::from_utf8(init).unwrap(),
            r#"{"protocolVersion":"2026-07-28","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"},"instructions":"do","ttlMs":5,"cacheScope":"public"}"#
        );
    }
}
