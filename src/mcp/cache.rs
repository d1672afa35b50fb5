//! Owns: how long, and for whom, a result may be kept (MCP 2026-07-28, Caching).
//! Never: keeping anything.
//! Next: `note`, what comes unasked.

use std::time::{Duration, Instant};

use crate::jsonrpc::walk;

/// The hints of a result, and when it was read. The least of several is what all of them allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Fresh before this.
    pub until: Instant,
    /// How long it said that it is fresh.
    pub ttl: Duration,
    /// Anybody may see it.
    pub public: bool,
}

/// Longer than anybody plans for; keeps sums of times within their type.
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl Fresh {
    /// What a checked result says; one that says nothing is stale, and its caller's alone.
    pub fn of(result: &[u8], now: Instant) -> Fresh {
        let value = |name| walk::member(result, name).map(|value| value.of(result));
        let millis = value("ttlMs")
            .and_then(|raw| std::str::from_utf8(raw).ok()?.parse::<f64>().ok())
            .filter(|millis| *millis > 0.0)
            .unwrap_or(0.0);
        let ttl = Duration::from_millis(millis as u64).min(TTL_MAX);
        let public = value("cacheScope") == Some(b"\"public\"");
        Fresh { until: now + ttl, ttl, public }
    }

    /// What both allow.
    pub fn and(self, other: Fresh) -> Fresh {
        Fresh {
            until: self.until.min(other.until),
            ttl: self.ttl.min(other.ttl),
            public: self.public && other.public,
        }
    }

    /// What all allow; `None` if there are none.
    pub fn all(parts: impl Iterator<Item = Fresh>) -> Option<Fresh> {
        parts.reduce(Fresh::and)
    }
}

/// Appends the hints as members of a result, a comma before them; without any it is stale.
pub fn write(fresh: Option<Fresh>, now: Instant, out: &mut Vec<u8>) {
    let left = fresh.map_or(Duration::ZERO, |fresh| fresh.until.saturating_duration_since(now));
    let scope = if fresh.is_some_and(|fresh| fresh.public) { "public" } else { "private" };
    out.extend_from_slice(b",\"ttlMs\":");
    out.extend_from_slice(itoa::Buffer::new().format(left.as_millis() as u64).as_bytes());
    out.extend_from_slice(b",\"cacheScope\":\"");
    out.extend_from_slice(scope.as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_counts() {
        let now = Instant::now();
        let of = |text: &str| Fresh::of(text.as_bytes(), now);
        let long = of(r#"{"ttlMs":60000,"cacheScope":"public"}"#);
        let short = of(r#"{"ttlMs":1.5e3,"cacheScope":"public"}"#);
        let mine = of(r#"{"ttlMs":90000,"cacheScope":"private"}"#);
        let silent = of("{}");
        let text = |parts: &[Fresh], at: Duration| {
            let mut out = Vec::new();
            write(Fresh::all(parts.iter().copied()), now + at, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(&[long, short], Duration::ZERO), r#","ttlMs":1500,"cacheScope":"public""#);
        assert_eq!(
            text(&[long, mine], Duration::from_secs(20)),
            r#","ttlMs":40000,"cacheScope":"private""#
        );
        let stale = r#","ttlMs":0,"cacheScope":"private""#;
        assert_eq!(text(&[long, silent], Duration::ZERO), stale);
        assert_eq!(text(&[], Duration::ZERO), stale);
        assert_eq!(text(&[mine], Duration::from_secs(100)), stale);
        // Neither a negative time nor one beyond all bounds does harm.
        for odd in [r#"{"ttlMs":-5}"#, r#"{"ttlMs":1e300}"#, r#"{"ttlMs":"x"}"#] {
            let _ = of(odd);
        }
    }
}
