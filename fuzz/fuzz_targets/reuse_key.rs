//! Laws of the keys under which answers are kept and calls run once:
//! - two calls have one key exactly if a plain reading of their arguments, and all that stands beside
//!   them, is equal; what says a name twice has no key;
//! - a call written otherwise (members in another order, blanks, escapes) has the same key;
//! - another principal, backend, revision, kind or name is another key, but a principal not where one
//!   answer is for all.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mcp_proxy::jsonrpc::{quote, scan};
use mcp_proxy::limits::REUSE_KEY_BYTES_MAX;
use mcp_proxy::mcp::catalog::ListKind;
use mcp_proxy::mcp::hints::Hints;
use mcp_proxy::middleware::pattern::{Pattern, Patterns};
use mcp_proxy::middleware::reuse::{Cache, Coalesce, Reuse};
use mcp_proxy::middleware::{Known, Request, Row};
use mcp_proxy_fuzz::{Members, is_private};
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let [kinds, rest @ ..] = data else { return };
    if is_private(rest) {
        return;
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    // Two calls: who, what, its arguments.
    let mut lines = text.split('\n');
    let mut call = |bit: u8| {
        let tool = kinds >> bit & 1 == 0;
        let shared = kinds >> 2 & 1 == 1;
        let (who, own, arguments) = (lines.next()?, lines.next()?, lines.next()?);
        Some(Call { tool, shared, who, own, arguments })
    };
    let (Some(one), Some(two)) = (call(0), call(1)) else { return };
    // One value each: what closes the brackets around it is another message.
    let is_value = |text: &str| serde_json::from_str::<Box<RawValue>>(text).is_ok();
    if ![&one, &two]
        .iter()
        .all(|call| is_value(call.arguments) || !call.tool && call.arguments.is_empty())
    {
        return;
    }
    let (first, second) = (key(&one, None), key(&two, None));
    assert_eq!(first.is_some(), meaning(&one).is_some(), "{one:?}");
    if let (Some(first), Some(second)) = (&first, &second) {
        assert_eq!(first == second, meaning(&one) == meaning(&two), "{one:?} {two:?}");
    }
    for call in [&one, &two] {
        let Some(written) = meaning(call).and_then(|_| otherwise(call.arguments, 0)) else {
            continue;
        };
        if written.len() < REUSE_KEY_BYTES_MAX {
            assert_eq!(key(call, None), key(call, Some(&written)), "{call:?} {written}");
        }
    }
});

#[derive(Clone, Copy, Debug)]
struct Call<'a> {
    /// A tool, or else a resource.
    tool: bool,
    /// One answer for all.
    shared: bool,
    /// Empty = nobody.
    who: &'a str,
    own: &'a str,
    arguments: &'a str,
}

/// The keys of the answer and of the call, with its arguments or these instead.
fn key(call: &Call<'_>, arguments: Option<&str>) -> Option<(Vec<u8>, Vec<u8>)> {
    let row = Reuse {
        backend: 3,
        cache: Some(Cache {
            tool_ttl: Some(Duration::from_secs(1)),
            resource_ttl: Some(Duration::from_secs(1)),
            max_entries: 10,
            max_bytes: 1000,
            tools: Patterns(vec![Pattern::parse("*").expect("a pattern")]),
            shared: call.shared,
        }),
        coalesce: Some(Coalesce { tools: Patterns::default() }),
    };
    let mut named = Vec::new();
    quote(call.own, &mut named);
    let named = String::from_utf8(named).expect("a JSON string");
    let arguments = arguments.unwrap_or(call.arguments);
    let (method, params) = match call.tool {
        true => ("tools/call", format!(r#"{{"name":{named},"arguments":{arguments}}}"#)),
        // A resource has no arguments: what stands there makes a call that is like no other.
        false if call.arguments.is_empty() => ("resources/read", format!(r#"{{"uri":{named}}}"#)),
        false => ("resources/read", format!(r#"{{"uri":{named},"more":{arguments}}}"#)),
    };
    let mut message =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#).into_bytes();
    let mut envelope = scan(&message).ok()?;
    let mut ask = Request {
        what: if call.tool { ListKind::Tools } else { ListKind::Resources },
        called: call.own,
        own: call.own.to_owned(),
        known: Some(Known { own: call.own, hints: Hints::default() }),
        listed: true,
        message: &mut message,
        envelope: &mut envelope,
        copies: Vec::new(),
        principal: (!call.who.is_empty()).then_some(call.who),
        revision: "2025-11-25",
        look: &|_| None,
        held: None,
        reusable: None,
    };
    row.request(&mut ask).expect("it refuses nothing");
    let reusable = ask.reusable?;
    let flight = reusable.flight.as_deref().unwrap_or_default().to_vec();
    Some((reusable.key.to_vec(), flight))
}

/// What two calls must have in common to be one: the answer's and the call's part of it.
fn meaning(call: &Call<'_>) -> Option<[String; 2]> {
    let arguments = match call.tool {
        true => {
            // What the scan does not take never comes this far.
            let message = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"arguments":{}}}}}"#,
                call.arguments
            );
            scan(message.as_bytes()).ok()?;
            normal(call.arguments, 0)?
        }
        false if call.arguments.is_empty() => String::new(),
        false => return None,
    };
    let of = |who: &str| format!("{:?}", (call.tool, who, call.own, &arguments));
    Some([of(if call.shared { "" } else { call.who }), of(call.who)])
}

/// A value with its members in order and its strings as Rust shows them; numbers keep their text.
fn normal(text: &str, depth: usize) -> Option<String> {
    let text = text.trim_ascii();
    if depth > 128 {
        return None;
    }
    if text.starts_with('{') {
        let members = Members::of(text)?;
        let mut all = Vec::new();
        for (name, value) in &members.0 {
            all.push((name.clone(), normal(value.get(), depth + 1)?));
        }
        all.sort();
        return members.are_distinct().then(|| format!("{all:?}"));
    }
    if text.starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
        let all: Option<Vec<String>> =
            items.iter().map(|item| normal(item.get(), depth + 1)).collect();
        return Some(format!("array {:?}", all?));
    }
    match text.starts_with('"') {
        true => serde_json::from_str::<String>(text).ok().map(|text| format!("{text:?}")),
        false => Some(text.to_owned()),
    }
}

/// The same, written otherwise.
fn otherwise(text: &str, depth: usize) -> Option<String> {
    let text = text.trim_ascii();
    if depth > 120 {
        return None;
    }
    let escaped = |text: &str| {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        format!("\"{units}\"")
    };
    if text.starts_with('{') {
        let members = Members::of(text)?.0;
        let all: Option<Vec<String>> = members
            .iter()
            .rev()
            .map(|(name, value)| {
                Some(format!(" {} :\t{}", escaped(name), otherwise(value.get(), depth + 1)?))
            })
            .collect();
        return Some(format!("{{{}\r\n}}", all?.join(" ,")));
    }
    if text.starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
        let all: Option<Vec<String>> =
            items.iter().map(|item| otherwise(item.get(), depth + 1)).collect();
        return Some(format!("[ {} ]", all?.join(" , ")));
    }
    match text.starts_with('"') {
        true => serde_json::from_str::<String>(text).ok().map(|text| escaped(&text)),
        false => Some(text.to_owned()),
    }
}
