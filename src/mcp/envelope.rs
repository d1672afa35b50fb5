//! Owns: what a request of the request era says about itself in `params._meta`, to read, to put in
//! and to take out.
//! Never: HTTP fields (`header`, `mirrored`).
//! Next: `mirrored`.
//!
//! MCP 2026-07-28, Basic, General fields. Other members of `_meta` keep their bytes.

use crate::jsonrpc::{self, Envelope, Span, walk};

/// Names of the members.
pub mod key {
    /// The revision; required.
    pub const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    /// What the caller can do; required.
    pub const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
    /// Who the caller is.
    pub const CLIENT: &str = "io.modelcontextprotocol/clientInfo";
    /// The least level of the log messages that it wants.
    pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
    /// Of a notification: the request whose stream it belongs to.
    pub const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
    /// Of a result: who answered.
    pub const SERVER: &str = "io.modelcontextprotocol/serverInfo";
}

/// The members that belong to the hop, not to the request.
const OF_THE_HOP: [&str; 4] = [key::VERSION, key::CAPABILITIES, key::CLIENT, key::LOG_LEVEL];

const UI: &str = "io.modelcontextprotocol/ui";
/// The tasks extension (SEP-2663), which no revision with sessions has.
pub const TASKS: &str = "io.modelcontextprotocol/tasks";

/// Extensions that need nothing but what is passed on anyway: metadata, and resources with URIs of
/// their own. One that has methods or results of its own would end at the proxy.
pub const CARRIED: [&str; 1] = [UI];
/// With those that the proxy carries from callers of the request era to backends of it.
pub const CARRIED_MODERN: [&str; 2] = [UI, TASKS];

/// The extensions among checked capabilities: a JSON object.
pub fn extensions(capabilities: &[u8]) -> Option<&[u8]> {
    Some(member(capabilities, "extensions")?.of(capabilities))
}

/// Whether the tasks extension is among these.
pub fn has_tasks(extensions: &[u8]) -> bool {
    member(extensions, TASKS).is_some_and(|settings| settings.of(extensions).starts_with(b"{"))
}

/// Checked capabilities of a client with no other extensions than `carried`, as others would end at
/// the proxy; `None` if there are none of those.
pub fn carried(capabilities: &[u8], carried: &[&str]) -> Option<Vec<u8>> {
    let extensions = extensions(capabilities)?;
    let known = |key: Span| carried.iter().any(|name| walk::key_is(key.of(extensions), name));
    let mut members = walk::members_of_checked(extensions)?;
    if members.all(|(key, _)| known(key)) {
        return None;
    }
    let kept: Vec<(&str, &[u8])> = carried
        .iter()
        .filter_map(|name| Some((*name, member(extensions, name)?.of(extensions))))
        .collect();
    let kept = rebuilt(b"{}", &[], &kept);
    Some(rebuilt(capabilities, &["extensions"], &[("extensions", &kept)]))
}

/// Whether a checked `_meta` names a revision: its message is of the request era.
pub fn names_version(meta: &[u8]) -> bool {
    // Nearly every `_meta` of the session era has a progress token and nothing else.
    memchr::memmem::find(meta, b"protocolVersion").is_some() && member(meta, key::VERSION).is_some()
}

/// A member of a checked `_meta`.
pub fn member(meta: &[u8], name: &str) -> Option<Span> {
    walk::members_of_checked(meta)?
        .find(|(key, _)| walk::key_is(key.of(meta), name))
        .map(|(_, value)| value)
}

/// A copy of a checked object without the members called `without`, and with others before the rest;
/// names are written as they are, values are raw.
pub fn rebuilt(object: &[u8], without: &[&str], with: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 256);
    out.push(b'{');
    for (name, value) in with {
        if out.len() > 1 {
            out.push(b',');
        }
        jsonrpc::quote(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value);
    }
    for (key, value) in walk::members_of_checked(object).into_iter().flatten() {
        let key = key.of(object);
        if without.iter().any(|name| walk::key_is(key, name)) {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(key);
        out.push(b':');
        out.extend_from_slice(value.of(object));
    }
    out.push(b'}');
    out
}

/// The members that make a request of the request era; `capabilities` and `client` are raw JSON.
pub fn members<'a>(
    capabilities: &'a str,
    client: &'a str,
    log_level: Option<&'a str>,
) -> Vec<(&'static str, &'a [u8])> {
    let mut members: Vec<(&str, &[u8])> = vec![
        (key::VERSION, b"\"2026-07-28\""),
        (key::CAPABILITIES, capabilities.as_bytes()),
        (key::CLIENT, client.as_bytes()),
    ];
    members.extend(log_level.map(|level| (key::LOG_LEVEL, level.as_bytes())));
    members
}

/// Whether what a scanned request says of itself can be added to: it is an object, or null or nothing.
pub fn may_be_wrapped(message: &[u8], envelope: &Envelope) -> bool {
    let params = envelope.params.map_or(&b"{}"[..], |params| params.of(message));
    let meta = match envelope.meta {
        None if params.starts_with(b"{") => walk::member(params, "_meta"),
        _ => None,
    };
    meta.is_none_or(|meta| meta.of(params) == b"null")
}

/// A scanned request of the session era as one of the request era.
pub fn wrap(message: &[u8], envelope: &Envelope, with: &[(&str, &[u8])]) -> Vec<u8> {
    if let Some(meta) = envelope.meta {
        let whole = rebuilt(meta.of(message), &OF_THE_HOP, with);
        return jsonrpc::splice(message, &[(meta, &whole)]);
    }
    let meta = rebuilt(b"{}", &[], with);
    let params = envelope.params.filter(|params| params.of(message).starts_with(b"{"));
    match (params, envelope.params) {
        (Some(params), _) => {
            // One that is no object, such as null, says nothing.
            let whole = rebuilt(params.of(message), &["_meta"], &[("_meta", &meta)]);
            jsonrpc::splice(message, &[(params, &whole)])
        }
        (None, Some(params)) => {
            jsonrpc::splice(message, &[(params, &rebuilt(b"{}", &[], &[("_meta", &meta)]))])
        }
        (None, None) => {
            let params = rebuilt(b"{}", &[], &[("_meta", &meta)]);
            rebuilt(message.trim_ascii(), &[], &[("params", &params)])
        }
    }
}

/// A scanned request of the request era as one of the session era.
pub fn unwrap(message: &[u8], envelope: &Envelope) -> Vec<u8> {
    let Some(meta) = envelope.meta else { return message.to_vec() };
    let rest = rebuilt(meta.of(message), &OF_THE_HOP, &[]);
    jsonrpc::splice(message, &[(meta, &rest)])
}

/// A checked notification with the caller's own name of the stream that it comes on.
pub fn tagged(message: &[u8], envelope: &Envelope, subscription: &[u8]) -> Vec<u8> {
    let tag = [(key::SUBSCRIPTION, subscription)];
    if let Some(meta) = envelope.meta {
        let whole = rebuilt(meta.of(message), &[key::SUBSCRIPTION], &tag);
        return jsonrpc::splice(message, &[(meta, &whole)]);
    }
    wrap(message, envelope, &tag)
}

/// The name of the stream that a checked notification comes on.
pub fn subscription(message: &[u8], envelope: &Envelope) -> Option<Span> {
    let meta = envelope.meta?;
    let span = member(meta.of(message), key::SUBSCRIPTION)?;
    Some(Span { start: span.start + meta.start, end: span.end + meta.start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::scan;

    fn wrapped(message: &str) -> serde_json::Value {
        let envelope = scan(message.as_bytes()).unwrap();
        let with = members(r#"{"roots":{}}"#, r#"{"name":"c","version":"1"}"#, None);
        let out = wrap(message.as_bytes(), &envelope, &with);
        let seen = scan(&out).unwrap();
        assert!(names_version(seen.meta.unwrap().of(&out)));
        // And out again.
        let back = unwrap(&out, &seen);
        assert!(!names_version(scan(&back).unwrap().meta.unwrap().of(&back)));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_request_is_wrapped_whatever_it_has() {
        for message in [
            r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#,
            r#" {"jsonrpc":"2.0","id":1,"method":"m","params":null} "#,
            r#"{"jsonrpc":"2.0","id":1,"params":{},"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":1,"params":{"_meta":{}},"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":1,"params":{"_meta":null,"name":"n"},"method":"m"}"#,
        ] {
            let value = wrapped(message);
            let meta = &value["params"]["_meta"];
            assert_eq!(meta[key::VERSION], "2026-07-28", "{message}");
            assert_eq!(meta[key::CAPABILITIES]["roots"], serde_json::json!({}));
            assert_eq!(meta[key::CLIENT]["name"], "c");
        }
    }

    #[test]
    fn what_is_no_object_cannot_be_wrapped() {
        for (meta, may) in [("{}", true), ("null", true), ("5", false), ("[]", false)] {
            let message =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{meta}}}}}"#);
            let envelope = scan(message.as_bytes()).unwrap();
            assert_eq!(may_be_wrapped(message.as_bytes(), &envelope), may, "{meta}");
        }
    }

    #[test]
    fn what_else_is_there_keeps_its_bytes() {
        let message = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"name":"\u0061","_meta":{"progressToken":1.0,"x\/y": 9007199254740993},"arguments":{"n":1e2}}}"#;
        let envelope = scan(message.as_bytes()).unwrap();
        let out = wrap(message.as_bytes(), &envelope, &members("{}", "{}", Some("\"info\"")));
        let text = String::from_utf8(out.clone()).unwrap();
        for kept in [
            r#""name":"\u0061""#,
            r#""progressToken":1.0"#,
            r#""x\/y":9007199254740993"#,
            r#""n":1e2"#,
        ] {
            assert!(text.contains(kept), "{text}");
        }
        let back = unwrap(&out, &scan(&out).unwrap());
        let text = String::from_utf8(back).unwrap();
        assert!(!text.contains("io.modelcontextprotocol"), "{text}");
        assert!(text.contains(r#""progressToken":1.0,"x\/y":9007199254740993"#), "{text}");
    }

    #[test]
    fn a_revision_named_with_escapes_is_named() {
        assert!(names_version(br#"{"io.modelcontextprotocol\/protocolVersion":"2026-07-28"}"#));
        assert!(!names_version(br#"{"progressToken":1}"#));
        assert!(!names_version(br#"{"x":"io.modelcontextprotocol/protocolVersion"}"#));
    }

    #[test]
    fn extensions_that_end_here_are_not_promised() {
        for (before, after) in [
            ("{}", None),
            (r#"{"extensions":{"io.modelcontextprotocol/ui":{"a":1.0}}}"#, None),
            (r#"{"x":1.0,"extensions":{"a/b":{}}}"#, Some(r#"{"extensions":{},"x":1.0}"#)),
            (
                r#"{"extensions":{"io.modelcontextprotocol/tasks":{},"io.modelcontextprotocol\/ui":{"a":1.0}}}"#,
                Some(r#"{"extensions":{"io.modelcontextprotocol/ui":{"a":1.0}}}"#),
            ),
        ] {
            let found = carried(before.as_bytes(), &CARRIED);
            let found = found.map(|text| String::from_utf8(text).unwrap());
            assert_eq!(found.as_deref(), after, "{before}");
        }
        let both = r#"{"extensions":{"a/b":{},"io.modelcontextprotocol/tasks":{"n":1.0}}}"#;
        let kept = carried(both.as_bytes(), &CARRIED_MODERN).unwrap();
        assert_eq!(kept, br#"{"extensions":{"io.modelcontextprotocol/tasks":{"n":1.0}}}"#);
        assert!(carried(&kept, &CARRIED_MODERN).is_none());
        assert!(has_tasks(extensions(&kept).unwrap()));
        assert!(!has_tasks(br#"{"io.modelcontextprotocol/tasks":true}"#));
        assert!(extensions(b"{}").is_none());
    }

    #[test]
    fn notifications_get_the_callers_own_tag() {
        for (message, rest) in [
            (
                r#"{"jsonrpc":"2.0","method":"n","params":{"uri":"a","_meta":{"io.modelcontextprotocol/subscriptionId":7,"x":1}}}"#,
                "1",
            ),
            (r#"{"jsonrpc":"2.0","method":"n","params":{"uri":"a"}}"#, "null"),
            (r#"{"jsonrpc":"2.0","method":"n"}"#, "null"),
        ] {
            let envelope = scan(message.as_bytes()).unwrap();
            let out = tagged(message.as_bytes(), &envelope, br#""mine""#);
            let seen = scan(&out).unwrap();
            assert_eq!(subscription(&out, &seen).unwrap().of(&out), br#""mine""#);
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(value["params"]["_meta"]["x"].to_string(), rest);
        }
    }
}
