//! Owns: what a server sends by itself: what it is, and what it is answered without a client.
//! Never: carrying it to a client (`asks`).
//! Next: `asks`, requests that clients answer.

use crate::error::Kind;
use crate::jsonrpc::{self, Envelope};
use crate::mcp::catalog::Changes;

/// Lists that changed, as flags of a bell.
pub(super) mod changed {
    pub(crate) const TOOLS: u32 = 1;
    pub(crate) const RESOURCES: u32 = 1 << 1;
    pub(crate) const PROMPTS: u32 = 1 << 2;
    pub(crate) const ANY: u32 = TOOLS | RESOURCES | PROMPTS;
}

/// The same as clients are told.
pub(super) fn changes(flags: u32) -> Changes {
    Changes {
        tools: flags & changed::TOOLS != 0,
        resources: flags & changed::RESOURCES != 0,
        prompts: flags & changed::PROMPTS != 0,
    }
}

/// A notification of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Progress of a call.
    Progress,
    /// A list changed: the flag of [`changed`].
    Changed(u32),
    /// The server takes back a request of its own.
    Withdrawn,
    /// Anything else.
    Other,
}

/// What a notification is about.
pub(super) fn word(envelope: &Envelope, message: &[u8]) -> Word {
    match envelope.method_name(message).as_deref() {
        Some("notifications/progress") => Word::Progress,
        Some("notifications/tools/list_changed") => Word::Changed(changed::TOOLS),
        Some("notifications/resources/list_changed") => Word::Changed(changed::RESOURCES),
        Some("notifications/prompts/list_changed") => Word::Changed(changed::PROMPTS),
        Some("notifications/cancelled") => Word::Withdrawn,
        _ => Word::Other,
    }
}

/// The answer to a ping; `None` if the request is another one.
pub(super) fn pong(envelope: &Envelope, message: &[u8]) -> Option<Vec<u8>> {
    let id = envelope.id?.of(message);
    if envelope.method_name(message)? != "ping" {
        return None;
    }
    let mut out = Vec::with_capacity(64);
    jsonrpc::result(&mut out, id, b"{}");
    Some(out)
}

/// The answer to a request of a server behind which is no client that it could be for: a ping is
/// answered, all else is refused, which is what a client without capabilities says.
pub(super) fn reply(envelope: &Envelope, message: &[u8]) -> Option<Vec<u8>> {
    if let Some(pong) = pong(envelope, message) {
        return Some(pong);
    }
    let mut out = Vec::with_capacity(96);
    let kind = Kind::MethodNotFound;
    jsonrpc::error(&mut out, envelope.id?.of(message), kind.code(), kind.text(), None);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::scan;

    #[test]
    fn pings_are_answered_and_requests_refused() {
        for (request, wanted) in [
            (
                r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#,
                r#"{"jsonrpc":"2.0","id":"p","result":{}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","id":0,"method":"sampling\/createMessage","params":{}}"#,
                r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"Method not found"}}"#,
            ),
        ] {
            let envelope = scan(request.as_bytes()).unwrap();
            let reply = reply(&envelope, request.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(reply).unwrap(), wanted);
        }
    }

    #[test]
    fn notifications_are_told_apart() {
        for (method, wanted) in [
            ("notifications/progress", Word::Progress),
            ("notifications\\/tools\\/list_changed", Word::Changed(changed::TOOLS)),
            ("notifications/prompts/list_changed", Word::Changed(changed::PROMPTS)),
            ("notifications/message", Word::Other),
            ("notifications/cancelled", Word::Withdrawn),
        ] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{}}}}"#);
            let envelope = scan(message.as_bytes()).unwrap();
            assert_eq!(word(&envelope, message.as_bytes()), wanted, "{method}");
        }
    }
}
