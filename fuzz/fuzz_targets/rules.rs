//! Laws of what decides who may see what:
//! - a pattern matches what a naive matcher, that tries everything, says it matches; one that spells
//!   a name out as a regular expression matches that name alone;
//! - however a URI is percent-encoded, its plain form is the same, and has no step upwards in it;
//! - roles and filters show what set arithmetic says, in the raw and in the plain form, and a list is
//!   cut to exactly that;
//! - a name leads to the backend whose prefix begins it, as trying each prefix says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::auth::policy::{Rights, Role};
use mcp_proxy::jsonrpc::{quote, scan};
use mcp_proxy::mcp::catalog::ListKind;
use mcp_proxy::mcp::name::{Names, Target};
use mcp_proxy::middleware::filter::{Filter, Rule, in_every_form, is_uri_text, plain, spellings};
use mcp_proxy::middleware::pattern::{Pattern, Patterns};
use mcp_proxy::middleware::{Request, Row};
use mcp_proxy_fuzz::plan;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (Some(one), Some(two), Some(name)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    // A naive matcher tries everything, which takes its time.
    if name.len() > 64 || one.len() > 32 || two.len() > 32 {
        return;
    }
    spelled_out(name);
    uris(name);
    prefixes(one, two, name);
    let (Some(one), Some(two)) = (pattern(one, name), pattern(two, name)) else { return };
    roles(&one, &two, name);
    filters(&one, name);
});

/// The first law; a pattern that is not accepted, and a regular expression, which has no naive
/// matcher, are passed over.
fn pattern(text: &str, name: &str) -> Option<Pattern> {
    let pattern = Pattern::parse(text).ok()?;
    if text.starts_with("re:") {
        pattern.matches(name);
        return None;
    }
    let (glob, name): (Vec<char>, Vec<char>) = (text.chars().collect(), name.chars().collect());
    let said: String = name.iter().collect();
    assert_eq!(pattern.matches(&said), naive(&glob, &name), "{text:?} and {said:?}");
    Some(pattern)
}

/// Which prefixes of the name the pattern so far matches, character by character of the pattern.
fn naive(mut glob: &[char], name: &[char]) -> bool {
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    while let [first, rest @ ..] = glob {
        glob = rest;
        if *first == '*' {
            let shortest = reached.iter().position(|reached| *reached).unwrap_or(name.len() + 1);
            reached.iter_mut().skip(shortest).for_each(|reached| *reached = true);
            continue;
        }
        let mut not = false;
        let mut ranges = vec![(*first, *first)];
        match first {
            '?' => ranges = vec![('\0', char::MAX)],
            '[' => {
                ranges.clear();
                if let ['!' | '^', rest @ ..] = glob {
                    (not, glob) = (true, rest);
                }
                // The first character of a set stands for itself, a bracket too.
                while ranges.is_empty() || glob[0] != ']' {
                    let high = match glob {
                        [_, '-', high, ..] if *high != ']' => *high,
                        _ => glob[0],
                    };
                    ranges.push((glob[0], high));
                    let is_range = matches!(glob, [_, '-', high, ..] if *high != ']');
                    glob = &glob[if is_range { 3 } else { 1 }..];
                }
                glob = &glob[1..];
            }
            _ => {}
        }
        let fits = |c: &char| ranges.iter().any(|(low, high)| (low..=high).contains(&c)) != not;
        let further =
            (0..=name.len()).map(|end| end > 0 && reached[end - 1] && fits(&name[end - 1]));
        reached = further.collect();
    }
    reached[name.len()]
}

fn spelled_out(name: &str) {
    // To compile an expression takes longer than all the rest.
    if name.len() > 8 {
        return;
    }
    let expression: String = name.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c))).collect();
    // Alternatives must not escape from the demand that all of the name matches.
    for text in [format!("re:{expression}"), format!("re:{expression}|{expression}")] {
        let pattern = Pattern::parse(&text).expect("a regular expression");
        assert!(pattern.matches(name));
        for other in [format!("{name}x"), format!("x{name}")] {
            assert!(!pattern.matches(&other), "{text}");
        }
    }
}

fn uris(uri: &str) {
    let shown = plain(uri).into_owned();
    let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let path = match shown.split_once(':') {
        Some((scheme, rest)) if scheme.chars().all(of_scheme) => rest,
        _ => shown.as_str(),
    };
    // The authority, or the first segment, is no place to leave.
    let first = if path.starts_with("//") { 3 } else { 1 };
    let mut segments = path.split(['/', '\\']).skip(first);
    assert!(segments.all(|segment| !matches!(segment, "." | "..")), "{uri:?}: {shown:?}");
    if uri.contains('%') {
        return;
    }
    assert_eq!(plain(&shown), shown, "{uri:?}");
    let all: String = uri.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let odd = |(at, byte): (usize, u8)| match at % 3 {
        0 => format!("%{byte:02X}").into_bytes(),
        _ => vec![byte],
    };
    let some: Vec<u8> = uri.bytes().enumerate().flat_map(odd).collect();
    assert_eq!(plain(&all), shown, "{all:?}");
    if let Ok(some) = std::str::from_utf8(&some) {
        assert_eq!(plain(some), shown, "{some:?}");
    }
}

/// Fields of a list's result, and what names an entry there.
const KINDS: [(ListKind, &str, &str); 4] = [
    (ListKind::Tools, "tools", "name"),
    (ListKind::Prompts, "prompts", "name"),
    (ListKind::Resources, "resources", "uri"),
    (ListKind::Templates, "resourceTemplates", "uriTemplate"),
];

fn roles(one: &Pattern, two: &Pattern, name: &str) {
    let list = |pattern: &Pattern| Patterns(vec![pattern.clone()]);
    let roles = [
        Role { allow_tools: Some(list(one)), deny_tools: list(two), ..Role::default() },
        Role { allow_resources: Some(list(one)), ..Role::default() },
        Role { allow_prompts: Some(Patterns::default()), deny_tools: list(one), ..Role::default() },
        Role::default(),
    ]
    .map(std::sync::Arc::new);
    let (one, two) = (|name: &str| one.matches(name), |name: &str| two.matches(name));
    let shown = plain(name);
    for key in 0..16u64 {
        let has = |role: u64| key >> role & 1 == 1;
        let rights = Rights::of(&roles, key);
        // Only one who is not denied anything may see everything.
        assert_eq!(rights.is_none(), key == 0b1000 || key == 0b1010, "{key:b}");
        let Some(rights) = rights else { continue };
        for (what, member, field) in KINDS {
            let allowed = |name: &str| match what {
                ListKind::Tools => has(0) && one(name) || has(3),
                ListKind::Prompts => has(3),
                ListKind::Resources | ListKind::Templates => has(1) && one(name) || has(3),
            };
            let expected = match what {
                ListKind::Tools => {
                    allowed(name) && !(has(0) && two(name)) && !(has(2) && one(name))
                }
                ListKind::Resources => in_every_form(name, |uri| allowed(uri)),
                _ => allowed(name),
            };
            assert_eq!(rights.shows(what, name), expected, "{key:b} {what:?} {name:?}");
            if what == ListKind::Resources && expected {
                assert!(is_uri_text(name) && allowed(name) && allowed(&shown));
            }
            let mut quoted = Vec::new();
            quote(name, &mut quoted);
            let quoted = String::from_utf8(quoted).expect("a JSON string");
            let entry = format!(r#"{{"x":1,"{field}":{quoted}}}"#);
            let all = format!(r#"{{"a":0,"{member}":[{entry},{entry},{{}}],"b":1}}"#);
            let cut: Value =
                serde_json::from_slice(&rights.list(what, all.as_bytes())).expect("JSON");
            let entry: Value = serde_json::from_str(&entry).expect("JSON");
            let left = if expected { vec![entry.clone(), entry] } else { Vec::new() };
            assert_eq!(cut[member], Value::Array(left));
            assert_eq!((&cut["a"], &cut["b"]), (&Value::from(0), &Value::from(1)));
        }
    }
}

fn filters(one: &Pattern, name: &str) {
    let list = || Patterns(vec![one.clone()]);
    let mut uri = Vec::new();
    quote(name, &mut uri);
    let uri = String::from_utf8(uri).expect("a JSON string");
    let (shown, is_text) = (plain(name), is_uri_text(name));
    let mut any = spellings(name);
    assert!(any.iter().any(|uri| *uri == *shown), "{any:?}");
    any.push(name.to_owned());
    for (rule, expected) in [
        (Rule::All, true),
        (Rule::Expose(list()), in_every_form(name, |uri| one.matches(uri))),
        (Rule::Hide(list()), is_text && !any.iter().any(|uri| one.matches(uri))),
    ] {
        let filter = Filter { resources: rule, ..Filter::default() };
        let mut message = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{{"uri":{uri}}}}}"#
        )
        .into_bytes();
        let mut envelope = scan(&message).expect("a message");
        let mut ask = Request {
            what: ListKind::Resources,
            called: name,
            own: name.to_owned(),
            known: None,
            listed: true,
            message: &mut message,
            envelope: &mut envelope,
            copies: Vec::new(),
            principal: None,
            revision: "2025-11-25",
            look: &|_| None,
            backend: "b",
            custom: None,
            watch: None,
            decided: None,
            held: None,
            reusable: None,
        };
        assert_eq!(filter.request(&mut ask).is_ok(), expected, "{:?} {name:?}", filter.resources);
    }
}

fn prefixes(one: &str, two: &str, name: &str) {
    // As they are compiled: none begins another.
    if one.starts_with(two) || two.starts_with(one) || one.is_empty() || two.is_empty() {
        return;
    }
    for third in ["", "zz__"] {
        let prefixes = [one, two, third];
        if third != ""
            && prefixes[..2].iter().any(|p| p.starts_with(third) || third.starts_with(*p))
        {
            continue;
        }
        let names = Names::new(&plan(1, &prefixes));
        let mut fitting = prefixes.iter().enumerate().filter(|(_, prefix)| {
            !prefix.is_empty() && name.len() > prefix.len() && name.starts_with(**prefix)
        });
        let expected = match fitting.next() {
            Some((id, prefix)) => Target::Prefixed(id, prefix.len()),
            None if third.is_empty() => Target::Bare,
            None => Target::Unknown,
        };
        assert_eq!(names.resolve(name), expected, "{prefixes:?} {name:?}");
    }
}
