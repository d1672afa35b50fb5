//! Owns: what a server sends by itself: what it is, and what it is answered.
//! Never: carrying it to a client yet: requests of servers are refused.
//! Next: `judge`, what an answer over HTTP means.

use crate::error::Kind;
use crate::jsonrpc::{self, Envelope};

/// Lists that changed, as flags of a bell.
pub(super) mod changed {
    pub(crate) const TOOLS: u32 = 1;
    pub(crate) const RESOURCES: u32 = 1 << 1;
    pub(crate) const PROMPTS: u32 = 1 << 2;
    pub(crate) const ANY: u32 = TOOLS | RESOURCES | PROMPTS;
}

/// A notification of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Progress of a call.
    Progress,
    /// A list changed: the flag of [`changed`].
    Changed(u32),
    /// A resource changed.
    Updated,
    /// Of use only between the proxy and the server.
    Private,
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
        Some("notifications/resources/updated") => Word::Updated,
        // About requests of the server, which were refused at once.
        Some("notifications/cancelled") => Word::Private,
        _ => Word::Other,
    }
}

/// The answer to a request of a server: a ping is answered, all else is refused, which is what a
/// client without capabilities says.
pub(super) fn reply(envelope: &Envelope, message: &[u8]) -> Option<Vec<u8>> {
    let id = envelope.id?.of(message);
    let mut out = Vec::with_capacity(96);
    if envelope.method_name(message)? == "ping" {
        jsonrpc::result(&mut out, id, b"{}");
    } else {
        let kind = Kind::MethodNotFound;
        jsonrpc::error(&mut out, id, kind.code(), kind.text(), None);
    }
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
            ("notifications/cancelled", Word::Private),
        ] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{}}}}"#);
            let envelope = scan(message.as_bytes()).unwrap();
            assert_eq!(word(&envelope, message.as_bytes()), wanted, "{method}");
        }
    }
}
