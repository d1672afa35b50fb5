//! Owns: what clients say they can do: as a kind of client, and as an answer to servers that ask.
//! Never: what servers can do (`catalog`).
//! Next: `name`, where a call goes.
//!
//! MCP 2025-11-25, Lifecycle, Capability Negotiation; Client Features.

use serde_json::Value;

use crate::error::Kind;
use crate::jsonrpc::{self, walk};
use crate::limits;

/// The kind of client that has these capabilities: their canonical text, the same for all that say
/// the same; empty for none, and for those whose text is too long to be a kind.
pub fn class(capabilities: &str) -> String {
    let Ok(Value::Object(members)) = serde_json::from_str(capabilities) else {
        return String::new();
    };
    if members.is_empty() || capabilities.len() > 4 * limits::VIEW_CLASS_BYTES_MAX {
        return String::new();
    }
    let mut out = Vec::with_capacity(capabilities.len());
    canonical(&Value::Object(members), &mut out);
    if out.len() > limits::VIEW_CLASS_BYTES_MAX {
        return String::new();
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Members in the order of their names, no space; the parser bounds the depth.
fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| key.as_str());
            out.push(b'{');
            for (at, (key, value)) in members.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                jsonrpc::quote(key, out);
                out.push(b':');
                canonical(value, out);
            }
            out.push(b'}');
        }
        Value::Array(elements) => {
            out.push(b'[');
            for (at, element) in elements.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                canonical(element, out);
            }
            out.push(b']');
        }
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
}

/// Why a client of these capabilities cannot take a request of a server; `None` if it can, or if
/// only it can tell.
pub fn lacks(capabilities: &str, method: &str, params: &[u8]) -> Option<Kind> {
    let all = capabilities.as_bytes();
    let has = |name: &str| {
        let value = walk::member(all, name)?.of(all);
        (value.first() == Some(&b'{')).then_some(value)
    };
    let needs = |name: &str| if has(name).is_some() { None } else { Some(Kind::MethodNotFound) };
    match method {
        "sampling/createMessage" => needs("sampling"),
        "roots/list" => needs("roots"),
        "elicitation/create" => {
            let Some(modes) = has("elicitation") else { return Some(Kind::MethodNotFound) };
            let said = |mode: &str| walk::member(modes, mode).is_some();
            let mode = walk::member(params, "mode").and_then(|mode| mode.text(params));
            let able = match mode.as_deref() {
                // What names no mode is the form of the revisions before there were two.
                None | Some("form") => said("form") || !said("url"),
                Some("url") => said("url"),
                Some(_) => true,
            };
            // Elicitation, Error Handling: a mode that was not declared.
            if able { None } else { Some(Kind::InvalidParams) }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_client_does_not_depend_on_spelling() {
        let one = class(r#"{"roots":{"listChanged":true}, "sampling":{}, "x":[1, {"b":1,"a":2}]}"#);
        assert_eq!(one, r#"{"roots":{"listChanged":true},"sampling":{},"x":[1,{"a":2,"b":1}]}"#);
        let other =
            class(r#"{"x":[1,{"a":2,"b":1}],"s\u0061mpling":{},"roots":{"listChanged":true}}"#);
        assert_eq!(one, other);
        assert_ne!(one, class(r#"{"roots":{"listChanged":false},"sampling":{}}"#));
        for none in ["{}", " { } ", "null", "[]", "1"] {
            assert_eq!(class(none), "");
        }
        let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(limits::VIEW_CLASS_BYTES_MAX));
        assert_eq!(class(&long), "");
    }

    #[test]
    fn what_a_client_lacks() {
        let form = r#"{"elicitation":{}}"#;
        let both = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}"#;
        let url = r#"{"elicitation":{"url":{}},"sampling":null}"#;
        let absent = Some(Kind::MethodNotFound);
        let wrong = Some(Kind::InvalidParams);
        for (method, params, wanted) in [
            ("sampling/createMessage", "{}", [absent, absent, None, absent]),
            ("roots/list", "null", [absent, absent, None, absent]),
            ("elicitation/create", "{}", [absent, None, None, wrong]),
            ("elicitation/create", r#"{"mode":"form"}"#, [absent, None, None, wrong]),
            ("elicitation/create", r#"{"mode":"url"}"#, [absent, wrong, None, None]),
            ("elicitation/create", r#"{"mode":"new"}"#, [absent, None, None, None]),
            ("tasks/get", "{}", [None; 4]),
        ] {
            for (capabilities, wanted) in ["{}", form, both, url].into_iter().zip(wanted) {
                let found = lacks(capabilities, method, params.as_bytes());
                assert_eq!(found, wanted, "{method} {params} {capabilities}");
            }
        }
    }
}
