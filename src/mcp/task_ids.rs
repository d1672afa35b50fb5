//! Owns: task ids of the request era, as callers have them: with their owner and, where it is known
//! who calls, a tag that ties them to one caller.
//! Never: task ids of sessions (`tasks`); what tasks do.
//! Next: `middleware`, what rules make of messages.
//!
//! MCP extension io.modelcontextprotocol/tasks (SEP-2663). An id is no proof of who asks, and without
//! sessions nobody remembers whose it is: so the id itself says it. The tag is a MAC over the
//! principal, the backend and the backend's own id, under a key that is made at the start and leaves
//! no thread: it is good on every worker, and for as long as the process lives.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::tasks::{self, member, whole};
use crate::jsonrpc::{self, Envelope, Span};
use crate::plan::{BackendId, Plan};

/// The method that tells how a task is.
pub const NOTIFICATION: &str = "notifications/tasks";

/// What stands around the name of a backend that is in no list, whose prefix is no claim to any
/// name: no backend's name has it.
const MARK: char = '~';
/// Before the tag.
const DOT: char = '.';
/// Bytes of a MAC that make a tag: nobody guesses 128 bits.
const TAG_BYTES: usize = 16;

/// Makes and checks ids. Shared by all workers, and never changed.
pub struct TaskIds(hmac::Key);

impl fmt::Debug for TaskIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskIds")
    }
}

impl TaskIds {
    /// Under this key, which nobody else has.
    pub fn new(key: hmac::Key) -> TaskIds {
        TaskIds(key)
    }

    /// A backend's own id, as this caller knows it.
    pub fn shown(
        &self,
        plan: &Plan,
        principal: Option<&str>,
        backend: BackendId,
        own: &str,
    ) -> String {
        let mut id = prefix(plan, backend);
        id.push_str(own);
        if let Some(principal) = principal {
            id.push(DOT);
            id.push_str(&self.tag(principal, backend, own));
        }
        id
    }

    /// The backend of an id, and the backend's own id; `None`: to this caller there is no such task.
    pub fn own<'i>(
        &self,
        plan: &Plan,
        principal: Option<&str>,
        id: &'i str,
    ) -> Option<(BackendId, &'i str)> {
        let (backend, prefix) = owner(plan, id)?;
        let rest = &id[prefix..];
        let Some(principal) = principal else { return Some((backend, rest)) };
        let (own, tag) = rest.rsplit_once(DOT)?;
        // Their MACs are compared: how long that takes says nothing about the tag.
        let mac = |text: &str| hmac::sign(&self.0, text.as_bytes());
        let wanted = mac(&self.tag(principal, backend, own));
        (mac(tag).as_ref() == wanted.as_ref()).then_some((backend, own))
    }

    fn tag(&self, principal: &str, backend: BackendId, own: &str) -> String {
        // What is of variable length stands behind its length, so that no two tasks sign the same
        // bytes.
        let mut text = Vec::with_capacity(16 + principal.len() + own.len());
        text.extend_from_slice(&(backend as u64).to_be_bytes());
        text.extend_from_slice(&(principal.len() as u64).to_be_bytes());
        text.extend_from_slice(principal.as_bytes());
        text.extend_from_slice(own.as_bytes());
        URL_SAFE_NO_PAD.encode(&hmac::sign(&self.0, &text).as_ref()[..TAG_BYTES])
    }
}

/// Whether this caller knows the tasks of a backend by other ids than the backend.
pub fn differ(plan: &Plan, principal: Option<&str>, backend: BackendId) -> bool {
    principal.is_some() || !prefix(plan, backend).is_empty()
}

fn prefix(plan: &Plan, backend: BackendId) -> String {
    match plan.backends.get(backend).filter(|own| own.unlisted) {
        Some(own) => format!("{MARK}{}{MARK}", own.name),
        None => tasks::prefix(plan, backend),
    }
}

fn owner(plan: &Plan, id: &str) -> Option<(BackendId, usize)> {
    let unlisted = || {
        let (name, _) = id.strip_prefix(MARK)?.split_once(MARK)?;
        let mut unlisted = plan.backends.iter().filter(|backend| backend.unlisted);
        let backend = unlisted.find(|backend| *backend.name == *name)?;
        Some((backend.id, name.len() + 2 * MARK.len_utf8()))
    };
    unlisted().or_else(|| tasks::owner(plan, id))
}

/// Where a scanned request or notification names its task: a JSON string.
pub fn asked(message: &[u8], envelope: &Envelope) -> Option<Span> {
    string(message, member(message, envelope.params?, "taskId")?)
}

/// Where an answer names its task; `call`: if it says that a call became one.
pub fn answered(answer: &[u8], call: bool) -> Option<Span> {
    let result = member(answer, whole(answer), "result")?;
    if call && member(answer, result, "resultType")?.text(answer)? != "task" {
        return None;
    }
    string(answer, member(answer, result, "taskId")?)
}

fn string(message: &[u8], span: Span) -> Option<Span> {
    span.of(message).starts_with(b"\"").then_some(span)
}

/// A message with another id where its task is named.
pub fn renamed(message: &[u8], at: Span, id: &str) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(id.len() + 2);
    jsonrpc::quote(id, &mut quoted);
    jsonrpc::splice(message, &[(at, &quoted)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_named_where_the_extension_says() {
        let text = |span: Option<Span>, message: &str| {
            span.map(|span| String::from_utf8(span.of(message.as_bytes()).to_vec()).unwrap())
        };
        for (message, call, wanted) in [
            (r#"{"result":{"resultType":"task","taskId":"t"}}"#, true, Some(r#""t""#)),
            (r#"{"result":{"taskId":"t","resultType":"t\u0061sk"}}"#, true, Some(r#""t""#)),
            (r#"{"result":{"resultType":"complete","taskId":"t"}}"#, true, None),
            (r#"{"result":{"taskId":"t"}}"#, true, None),
            (r#"{"result":{"resultType":"complete","taskId":"t"}}"#, false, Some(r#""t""#)),
            (r#"{"result":{"taskId":7}}"#, false, None),
            (r#"{"result":{"result":{"taskId":"t"}}}"#, false, None),
            (r#"{"error":{"taskId":"t"}}"#, false, None),
        ] {
            let found = answered(message.as_bytes(), call);
            assert_eq!(text(found, message).as_deref(), wanted, "{message}");
        }
        let message = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":1.0,"taskId":"t"}}"#;
        let at = asked(message.as_bytes(), &jsonrpc::scan(message.as_bytes()).unwrap()).unwrap();
        let renamed = renamed(message.as_bytes(), at, "a\"b");
        assert_eq!(
            String::from_utf8(renamed).unwrap(),
            message.replace(r#""t""#, r#""a\"b""#),
            "and nothing else changes"
        );
    }
}
