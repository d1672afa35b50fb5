//! Owns: `[backends.cache]` and `[performance]`: which answers may serve more than one call, and the
//! key under which two calls are the same.
//! Never: the answers (`backend::shelf`), the calls under way (`backend::flight`).
//! Next: `mirror`.
//!
//! ```toml
//! [backends.cache]
//! tool_ttl_seconds = 60      # without it no tool is cached
//! resource_ttl_seconds = 300 # without it no resource is
//! max_entries = 1000
//! max_bytes = 67108864
//! tools = ["*"]              # one listed otherwise than by * is cached whatever its annotations
//! scope = "principal"        # "shared": one answer for all callers
//!
//! [performance]
//! coalesce_requests = true   # identical calls at the same time run once
//! coalesce_tools = ["db__query"]
//! ```
//! The key: backend, method, name or URI, arguments in one spelling, revision, principal. What
//! carries anything else that could change its answer (`task`, the retry of a request that asked
//! for input) has none, and goes its own way.

use std::sync::Arc;
use std::time::Duration;

use super::pattern::Patterns;
use super::{Request, Row};
use crate::error::Result;
use crate::jsonrpc::canon::canonical;
use crate::jsonrpc::{self, Kind as Message, Span, walk};
use crate::limits;
use crate::mcp::catalog::ListKind;

/// The row of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reuse {
    /// Which backend it is, for the key.
    pub backend: usize,
    /// `[backends.cache]`.
    pub cache: Option<Cache>,
    /// `[performance]`, if it is on.
    pub coalesce: Option<Coalesce>,
}

/// `[backends.cache]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// How long the result of a tool is kept; `None` = not at all.
    pub tool_ttl: Option<Duration>,
    /// The same of a resource.
    pub resource_ttl: Option<Duration>,
    /// Answers at most.
    pub max_entries: usize,
    /// Their bytes at most, keys too.
    pub max_bytes: u64,
    /// Tools that are cached.
    pub tools: Patterns,
    /// One answer for all callers.
    pub shared: bool,
}

/// `[performance]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Coalesce {
    /// Tools that run once whatever their annotations, by the name that clients see.
    pub tools: Patterns,
}

/// An answer that is kept.
#[derive(Clone, Debug)]
pub struct Held {
    /// The whole message.
    pub answer: Arc<[u8]>,
    /// Where its id stands.
    pub id: Span,
}

impl Held {
    /// The answer to a call of the raw id `id`.
    pub fn to(&self, id: &[u8]) -> Vec<u8> {
        jsonrpc::splice(&self.answer, &[(self.id, id)])
    }
}

/// What may be done with a call's answer.
#[derive(Clone, Debug)]
pub struct Reusable {
    /// Under which it is kept and found.
    pub key: Arc<[u8]>,
    /// How long it is kept; `None` = not at all.
    pub ttl: Option<Duration>,
    /// Kept for all callers.
    pub shared: bool,
    /// Whether it is about a resource: those are given up by other news than tools.
    pub resource: bool,
    /// Under which calls run once; `None` = each runs.
    pub flight: Option<Arc<[u8]>>,
    /// Whether it may run twice all the same.
    pub repeatable: bool,
}

/// What the cache of a backend did for a call of a kind that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It had the answer.
    Hit,
    /// It might have had it.
    Miss,
    /// It was not asked: what comes of the call is its caller's alone.
    Bypass,
}

impl Use {
    /// Their words, in the order of their numbers.
    pub const NAMES: &'static [&'static str] = &["hit", "miss", "bypass"];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        Use::NAMES[self as usize]
    }
}

impl Row for Reuse {
    const CALLS: bool = true;

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        let Some(reusable) = self.judge(ask) else { return Ok(()) };
        ask.held = reusable.ttl.and_then(|_| (ask.look)(&reusable));
        ask.reusable = Some(Box::new(reusable));
        Ok(())
    }
}

impl Reuse {
    /// What the cache did for a call that went through this row; `None` = it is for no such calls.
    pub fn used(
        &self,
        what: ListKind,
        held: Option<&Held>,
        reusable: Option<&Reusable>,
    ) -> Option<Use> {
        let cache = self.cache.as_ref()?;
        match what {
            ListKind::Tools => cache.tool_ttl?,
            ListKind::Resources => cache.resource_ttl?,
            _ => return None,
        };
        Some(match (held, reusable.and_then(|reusable| reusable.ttl)) {
            (Some(_), _) => Use::Hit,
            (None, Some(_)) => Use::Miss,
            (None, None) => Use::Bypass,
        })
    }

    /// What may be done with the answer to this request; `None` = nothing.
    fn judge(&self, ask: &Request<'_>) -> Option<Reusable> {
        let hints = ask.hints();
        let reads = ask.what != ListKind::Tools;
        let ttl = self.cache.as_ref().and_then(|cache| match ask.what {
            ListKind::Tools => {
                let named = cache.tools.names(&ask.own);
                // Of a tool that nothing is known of, nothing is assumed.
                let harmless = ask.known.is_some() && !hints.says_it_writes();
                let wanted = named || harmless && cache.tools.matches(&ask.own);
                cache.tool_ttl.filter(|_| wanted)
            }
            ListKind::Resources => cache.resource_ttl,
            _ => None,
        });
        let repeatable = reads || hints.repeatable();
        let merged = self.coalesce.as_ref().is_some_and(|coalesce| {
            repeatable || ttl.is_some() || coalesce.tools.matches(ask.called)
        });
        if ttl.is_none() && !merged {
            return None;
        }
        let shared = self.cache.as_ref().is_some_and(|cache| cache.shared);
        let own: Arc<[u8]> = self.key(ask, ask.principal)?.into();
        let key = match ask.principal {
            Some(_) if shared => self.key(ask, None)?.into(),
            _ => own.clone(),
        };
        Some(Reusable {
            key,
            ttl,
            shared,
            resource: ask.what == ListKind::Resources,
            flight: merged.then_some(own),
            repeatable,
        })
    }

    /// Parts of variable length stand behind their lengths, so that no two calls write one key.
    fn key(&self, ask: &Request<'_>, principal: Option<&str>) -> Option<Vec<u8>> {
        let mut key = Vec::with_capacity(128);
        let mut part = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            key.extend_from_slice(bytes);
        };
        part(&self.backend.to_be_bytes());
        part(&[ask.what as u8, u8::from(principal.is_some())]);
        part(principal.unwrap_or_default().as_bytes());
        part(ask.revision.as_bytes());
        part(ask.own.as_bytes());
        let params = ask.envelope.params?.of(ask.message);
        if params.len() > limits::REUSE_KEY_BYTES_MAX {
            return None;
        }
        for (name, value) in walk::members_of_checked(params)? {
            match &*jsonrpc::unquote(name.of(params))? {
                "name" | "uri" | "_meta" => {}
                "arguments" if ask.what != ListKind::Resources => {
                    key.push(b'=');
                    canonical(value.of(params), &mut key)?;
                }
                _ => return None,
            }
        }
        Some(key)
    }
}

/// An answer as it is kept, where its id stands, and for how long; `None` = it is not. What is given
/// out later is good for less than its server said, and nobody knows how long: for no time.
pub fn keepable(reusable: &Reusable, answer: &[u8]) -> Option<(Vec<u8>, Span, Duration)> {
    let (id, ttl) = lifetime(reusable, answer)?;
    let result = jsonrpc::scan(answer).ok()?.result?;
    let Some(said) = walk::member(result.of(answer), "ttlMs") else {
        return Some((answer.to_vec(), id, ttl));
    };
    let said = Span { start: result.start + said.start, end: result.start + said.end };
    let kept = jsonrpc::splice(answer, &[(said, b"0")]);
    let id = jsonrpc::scan(&kept).ok()?.id?;
    Some((kept, id, ttl))
}

/// How long an answer may be kept that came for such a call: only whole results are, and the
/// server's own word narrows the time (2026-07-28, Caching); `None` = not at all.
pub fn lifetime(reusable: &Reusable, answer: &[u8]) -> Option<(Span, Duration)> {
    let mut ttl = reusable.ttl?;
    let envelope = jsonrpc::scan(answer).ok()?;
    let result = envelope.result.filter(|_| envelope.kind == Message::Response)?.of(answer);
    for (name, value) in walk::members_of_checked(result)? {
        let value = value.of(result);
        match &*jsonrpc::unquote(name.of(result))? {
            "isError" if value != b"false" => return None,
            "resultType" if value != br#""complete""# => return None,
            "cacheScope" if reusable.shared && value != br#""public""# => return None,
            "ttlMs" => {
                let millis: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
                if millis.is_nan() || millis < 1.0 {
                    return None;
                }
                ttl = ttl.min(Duration::from_millis(millis as u64));
            }
            _ => {}
        }
    }
    Some((envelope.id?, ttl))
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Pattern;
    use super::*;

    fn reusable(shared: bool) -> Reusable {
        Reusable {
            key: Arc::from(*b"k"),
            ttl: Some(Duration::from_secs(60)),
            shared,
            resource: false,
            flight: None,
            repeatable: true,
        }
    }

    #[test]
    fn only_whole_results_are_kept_and_the_server_narrows_the_time() {
        let of = |shared, result: &str| {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":7,{result}}}"#);
            lifetime(&reusable(shared), answer.as_bytes()).map(|(id, ttl)| {
                assert_eq!(id.of(answer.as_bytes()), b"7");
                ttl.as_millis()
            })
        };
        for (result, kept) in [
            (r#""result":{"content":[]}"#, Some(60_000)),
            (r#""result":{"content":[],"isError":false}"#, Some(60_000)),
            (r#""result":{"content":[],"isError":true}"#, None),
            (r#""error":{"code":1,"message":"m"}"#, None),
            (r#""result":{"ttlMs":500,"resultType":"complete"}"#, Some(500)),
            (r#""result":{"ttlMs":900000}"#, Some(60_000)),
            (r#""result":{"ttlMs":0}"#, None),
            (r#""result":{"resultType":"input_required"}"#, None),
            (r#""result":{"cacheScope":"private"}"#, Some(60_000)),
        ] {
            assert_eq!(of(false, result), kept, "{result}");
        }
        assert_eq!(of(true, r#""result":{"cacheScope":"private"}"#), None);
        assert_eq!(of(true, r#""result":{"cacheScope":"public"}"#), Some(60_000));
        let mut never = reusable(false);
        never.ttl = None;
        assert!(lifetime(&never, br#"{"jsonrpc":"2.0","id":7,"result":{}}"#).is_none());
    }

    #[test]
    fn what_is_kept_says_that_it_is_good_for_no_time() {
        for (before, after) in [
            (
                r#"{"jsonrpc":"2.0","result":{"ttlMs":60000,"x":1.0},"id":7}"#,
                r#"{"jsonrpc":"2.0","result":{"ttlMs":0,"x":1.0},"id":7}"#,
            ),
            (r#"{"jsonrpc":"2.0","id":7,"result":{}}"#, r#"{"jsonrpc":"2.0","id":7,"result":{}}"#),
        ] {
            let (kept, id, _) = keepable(&reusable(false), before.as_bytes()).unwrap();
            assert_eq!((&*kept, id.of(&kept)), (after.as_bytes(), &b"7"[..]));
        }
    }

    fn row(tools: &[&str]) -> Reuse {
        let patterns = |texts: &[&str]| {
            Patterns(texts.iter().map(|text| Pattern::parse(text).unwrap()).collect())
        };
        Reuse {
            backend: 3,
            cache: Some(Cache {
                tool_ttl: Some(Duration::from_secs(1)),
                resource_ttl: None,
                max_entries: 10,
                max_bytes: 1000,
                tools: patterns(tools),
                shared: false,
            }),
            coalesce: None,
        }
    }

    fn judged(row: &Reuse, params: &str, principal: Option<&str>, tool: &str) -> Option<Reusable> {
        let mut message =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
                .into_bytes();
        let mut envelope = jsonrpc::scan(&message).unwrap();
        let hints = crate::mcp::hints::Hints::of(tool.as_bytes());
        let ask = Request {
            what: ListKind::Tools,
            called: "b__t",
            own: "t".into(),
            known: Some(super::super::Known { own: "t", hints }),
            listed: true,
            message: &mut message,
            envelope: &mut envelope,
            copies: Vec::new(),
            principal,
            revision: "2025-11-25",
            look: &|_| None,
            backend: "b",
            custom: None,
            watch: None,
            decided: None,
            held: None,
            reusable: None,
        };
        row.judge(&ask)
    }

    #[test]
    fn keys_tell_apart_what_differs_and_nothing_else() {
        let all = row(&["*"]);
        let key = |params: &str, principal| judged(&all, params, principal, "{}").map(|r| r.key);
        let plain = key(r#"{"name":"t","arguments":{"a":1,"b":[2]}}"#, None);
        assert!(plain.is_some());
        for same in [
            r#"{"arguments":{"b":[2],"a":1},"name":"t"}"#,
            r#"{"name":"t","_meta":{"progressToken":1},"arguments":{ "\u0061":1,"b":[ 2 ]}}"#,
        ] {
            assert_eq!(key(same, None), plain, "{same}");
        }
        for other in [
            r#"{"name":"t"}"#,
            r#"{"name":"t","arguments":{}}"#,
            r#"{"name":"t","arguments":{"a":1.0,"b":[2]}}"#,
        ] {
            assert_ne!(key(other, None), plain, "{other}");
        }
        assert_ne!(key(r#"{"name":"t","arguments":{"a":1,"b":[2]}}"#, Some("me")), plain);
        assert_ne!(key(r#"{"name":"t"}"#, Some("")), key(r#"{"name":"t"}"#, None));
        // What could change the answer unseen is no call like another.
        for alone in [
            r#"{"name":"t","task":{"ttl":1}}"#,
            r#"{"name":"t","requestState":"s"}"#,
            r#"{"name":"t","arguments":{"a":1,"a":2}}"#,
        ] {
            assert_eq!(key(alone, None), None, "{alone}");
        }
    }

    #[test]
    fn tools_that_say_they_write_are_kept_only_by_name() {
        let params = r#"{"name":"t"}"#;
        for (annotations, by_star) in [
            (r#"{}"#, true),
            (r#"{"readOnlyHint":true}"#, true),
            (r#"{"readOnlyHint":false}"#, false),
            (r#"{"destructiveHint":true}"#, false),
            (r#"{"destructiveHint":false}"#, true),
        ] {
            let tool = format!(r#"{{"name":"t","annotations":{annotations}}}"#);
            assert_eq!(judged(&row(&["*"]), params, None, &tool).is_some(), by_star, "{tool}");
            assert!(judged(&row(&["t"]), params, None, &tool).is_some(), "{tool}");
            assert!(judged(&row(&["other"]), params, None, &tool).is_none(), "{tool}");
        }
    }
}
