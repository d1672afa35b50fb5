//! Laws of the scanner of JSON-RPC messages:
//!
//! 1. What it accepts, serde_json passes over, and where it understands it too (it takes no half of a
//!    surrogate pair, and no number beyond a double), says the same about every part.
//! 2. What it refuses, serde_json refuses too, or the reason is one of the scanner's own, and true.
//! 3. `Watch`, fed at any split, accepts exactly the responses that the scan accepts.
//! 4. A splice of a part changes that part alone, and the envelope can follow it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::jsonrpc::{
    Envelope, Kind, ScanFault, Shape, Span, Watch, scan, shape, splice, unescaped,
};
use mcp_proxy_fuzz::{Members, is_private};
use serde_json::Value;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (splits, message) = input;
    if is_private(message) {
        return;
    }
    let theirs = serde_json::from_slice::<Value>(message);
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(message).is_ok();
    let ours = scan(message);
    match (&ours, &theirs) {
        (Ok(found), Ok(value)) => agree(message, found, value),
        (Ok(_), Err(fault)) => assert!(is_json, "serde_json refuses it: {fault}"),
        (Err(fault), Ok(value)) => justified(message, *fault, value),
        // Long numbers are ours to refuse, wherever the fault is.
        (Err(ScanFault::ScalarTooLong), Err(_)) => assert!(message.len() > 1024),
        (Err(_), Err(_)) if is_json => {}
        (Err(fault), Err(_)) => assert_eq!(fault.kind(), mcp_proxy::error::Kind::Parse),
    }
    watch(message, &splits, &ours);
    batch(message, &theirs);
    if let Ok(found) = &ours {
        edits(message, found);
    }
});

/// Law 1.
fn agree(message: &[u8], found: &Envelope, value: &Value) {
    let none = Value::Null;
    let params = value.get("params").unwrap_or(&none);
    let meta = params.get("_meta").unwrap_or(&none);
    let same = |span: Option<Span>, member: Option<&Value>, fits: fn(&Value) -> bool| {
        let member = member.filter(|member| fits(member));
        let part = span.map(|span| {
            serde_json::from_slice::<Value>(span.of(message)).expect("a part is a value")
        });
        assert_eq!(part.as_ref(), member);
        if let (Some(span), Some(Value::String(text))) = (span, member) {
            assert_eq!(span.text(message).expect("a string"), *text);
        }
        if let (Some(span), Some(Value::Number(_))) = (span, member) {
            assert!(!span.of(message)[0].is_ascii_whitespace());
        }
    };
    let any = |_: &Value| true;
    let token = |value: &Value| value.is_string() || value.is_number();
    same(found.id, value.get("id"), any);
    same(found.method, value.get("method"), any);
    same(found.params, value.get("params"), any);
    same(found.result, value.get("result"), any);
    same(found.error, value.get("error"), any);
    same(found.name, params.get("name"), Value::is_string);
    same(found.uri, params.get("uri"), Value::is_string);
    same(found.arguments, params.get("arguments"), any);
    same(found.meta, params.get("_meta"), Value::is_object);
    same(found.request_id, params.get("requestId"), token);
    let reported =
        if found.kind == Kind::Notification { params.get("progressToken") } else { None };
    let asked = meta.get("progressToken").filter(|value| token(value));
    same(found.progress_token, reported.filter(|value| token(value)).or(asked), token);
    let has = |name| value.get(name).is_some();
    assert_eq!(value["jsonrpc"], "2.0");
    let expected = match (has("method"), has("id"), has("result"), has("error")) {
        (true, true, false, false) => Kind::Request,
        (true, false, false, false) => Kind::Notification,
        (false, true, true, false) => Kind::Response,
        (false, _, false, true) => Kind::ErrorResponse,
        other => panic!("accepted with {other:?}"),
    };
    assert_eq!(found.kind, expected);
    if found.kind != Kind::ErrorResponse {
        assert!(value.get("id").is_none_or(token));
    }
}

/// Law 2.
fn justified(message: &[u8], fault: ScanFault, value: &Value) {
    let text = std::str::from_utf8(message).expect("serde_json takes UTF-8 alone");
    match fault {
        ScanFault::Utf8
        | ScanFault::Syntax
        | ScanFault::Depth
        | ScanFault::NumberRange
        | ScanFault::Surrogate => {
            panic!("refused as {fault:?}, but it is JSON")
        }
        ScanFault::TooLong => panic!("no input is that long"),
        ScanFault::ScalarTooLong => assert!(message.len() > 1024),
        ScanFault::EscapedKey => assert!(text.contains('\\')),
        ScanFault::Duplicate => assert!(duplicates(text), "{text}"),
        ScanFault::Lookalike => {
            let folds = |object: &Value, names: &[&str]| {
                object.as_object().is_some_and(|members| {
                    members.keys().any(|key| {
                        let fold = key.replace('\u{17F}', "s").replace('\u{212A}', "k");
                        let fold = fold.to_ascii_lowercase();
                        names.iter().any(|name| *key != *name && fold == *name)
                    })
                })
            };
            let envelope = ["jsonrpc", "id", "method", "params", "result", "error"];
            let params = ["name", "uri", "arguments", "_meta"];
            assert!(folds(value, &envelope) || folds(&value["params"], &params), "{text}");
        }
        ScanFault::Shape => {
            let has = |name| value.get(name).is_some();
            let token = |value: &Value| value.is_string() || value.is_number();
            let id = value.get("id");
            let fits = |name: &str, fits: fn(&Value) -> bool| value.get(name).is_none_or(fits);
            let good = value.is_object()
                && value["jsonrpc"] == "2.0"
                // Written with escapes it is refused too.
                && text.contains("\"2.0\"")
                && fits("method", Value::is_string)
                && fits("params", |v| v.is_object() || v.is_array() || v.is_null())
                && fits("error", Value::is_object)
                && match (has("method"), has("result"), has("error")) {
                    (true, false, false) => id.is_none_or(token),
                    (false, true, false) => id.is_some_and(token) && !has("params"),
                    (false, false, true) => {
                        id.is_none_or(|id| token(id) || id.is_null()) && !has("params")
                    }
                    _ => false,
                };
            // Of two members serde_json keeps the last, the scan may have stopped at the first.
            assert!(!good || duplicates(text), "refused as no message: {text}");
        }
    }
}

/// Whether a member that is acted on stands there twice.
fn duplicates(text: &str) -> bool {
    let twice = |members: &Members, names: &[&str]| {
        names.iter().any(|name| members.0.iter().filter(|(key, _)| key == name).count() > 1)
    };
    let under = |members: &Members, name: &str| -> Vec<Members> {
        let values = members.0.iter().filter(|(key, _)| key == name);
        values.filter_map(|(_, value)| serde_json::from_str(value.get()).ok()).collect()
    };
    let envelope: Members = serde_json::from_str(text).expect("an object");
    let params = under(&envelope, "params");
    twice(&envelope, &["jsonrpc", "id", "method", "params", "result", "error"])
        || params.iter().any(|params| {
            twice(params, &["name", "uri", "arguments", "_meta", "progressToken", "requestId"])
                || under(params, "_meta").iter().any(|meta| twice(meta, &["progressToken"]))
        })
}

/// Law 3.
fn watch(message: &[u8], splits: &[u8], ours: &Result<Envelope, ScanFault>) {
    let mut watch = Watch::new();
    let mut rest = message;
    for &split in splits {
        let (piece, behind) = rest.split_at(usize::from(split).min(rest.len()));
        if watch.feed(piece).is_err() {
            break;
        }
        rest = behind;
    }
    let _ = watch.feed(rest);
    let id_at = watch.id_at();
    let watched = watch.finish();
    let expected = match ours {
        Ok(found) if found.kind == Kind::Response => Some((found.id, false)),
        Ok(found) if found.kind == Kind::ErrorResponse => Some((found.id, true)),
        _ => None,
    };
    if let Some((id, _)) = expected {
        let at = id.map(|id| u64::from(id.start)..u64::from(id.end));
        assert_eq!(id_at, at);
    }
    let expected = expected.map(|(id, error)| (id.map(|id| id.of(message).to_vec()), error));
    assert_eq!(watched.ok(), expected);
}

/// An array's elements are those that serde_json sees.
fn batch(message: &[u8], theirs: &serde_json::Result<Value>) {
    let first = message.iter().find(|byte| !b" \t\r\n".contains(byte));
    match shape(message) {
        Ok(Shape::Batch(elements)) => {
            let Ok(theirs) = theirs else { return };
            let parts: Vec<Value> = elements
                .map(|span| serde_json::from_slice(span.of(message)).expect("an element"))
                .collect();
            assert_eq!(Some(&parts), theirs.as_array());
        }
        Ok(Shape::One(_)) => assert_eq!(first, Some(&b'{')),
        Err(ScanFault::ScalarTooLong) => {}
        Err(_) => assert!(first != Some(&b'[') || theirs.is_err()),
    }
}

/// Law 4.
fn edits(message: &[u8], found: &Envelope) {
    for part in [found.id, found.name, found.progress_token].into_iter().flatten() {
        let edited = splice(message, &[(part, b"\"a new value\"")]);
        let mut followed = *found;
        followed.follow(part, 13);
        // A null id becomes a string, which is as good in an error response.
        assert_eq!(scan(&edited), Ok(followed));
        let back = Span { start: part.start, end: part.start + 13 };
        assert_eq!(splice(&edited, &[(back, part.of(message))]), message);
    }
    if let Some(name) = found.name {
        let raw = name.of(message);
        let all: String = unescaped(&raw[1..raw.len() - 1]).collect();
        match name.text(message) {
            Some(text) => assert_eq!(text, all),
            None => assert!(all.contains('\u{FFFD}'), "half of a surrogate pair"),
        }
    }
}
