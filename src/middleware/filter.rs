//! Owns: `expose_*`, `hide_*`, `hide_destructive`, `read_only_only` of `[[backends]]`.
//! Never: roles and tokens (`policy`).
//! Next: `validation`.
//!
//! ```toml
//! [[backends]]
//! expose_tools = ["read_*"]      # or hide_tools; likewise resources and prompts
//! hide_destructive = true        # tools that may destroy, by their annotations
//! read_only_only = true          # only tools that say that they only read
//! ```
//! Patterns match the backend's own names, and URIs. Where a filter stands, a name that the
//! backend's list does not have is answered by the proxy: a hidden one and one that never was look
//! alike.

use std::borrow::Cow;

use super::pattern::Patterns;
use super::{Request, Row};
use crate::error::Result;
use crate::mcp::catalog::{Draft, ListKind};
use crate::mcp::hints::Hints;

/// The filters of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Of tools.
    pub tools: Rule,
    /// Of resources and templates.
    pub resources: Rule,
    /// Of prompts.
    pub prompts: Rule,
    /// Tools that may destroy something are hidden.
    pub hide_destructive: bool,
    /// Tools that do not say that they only read are hidden.
    pub read_only_only: bool,
}

/// Which names of one kind are shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Rule {
    /// All.
    #[default]
    All,
    /// Those that match.
    Expose(Patterns),
    /// Those that do not match.
    Hide(Patterns),
}

impl Rule {
    fn shows(&self, name: &str) -> bool {
        match self {
            Rule::All => true,
            Rule::Expose(patterns) => patterns.matches(name),
            Rule::Hide(patterns) => !patterns.matches(name),
        }
    }

    /// A server may read `a/../b` as `b` and `%61` as `a`: exposed is what is exposed in either form,
    /// and hidden what is hidden in any that servers read as the same.
    fn shows_uri(&self, uri: &str) -> bool {
        match self {
            Rule::All => true,
            Rule::Expose(patterns) => in_every_form(uri, |uri| patterns.matches(uri)),
            Rule::Hide(patterns) => {
                is_uri_text(uri)
                    && !patterns.matches(uri)
                    && !spellings(uri).iter().any(|uri| patterns.matches(uri))
            }
        }
    }
}

impl Filter {
    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    fn shows(&self, what: ListKind, own: &str, hints: Hints) -> bool {
        match what {
            ListKind::Tools => {
                self.tools.shows(own)
                    && !(self.hide_destructive && hints.destructive())
                    && (!self.read_only_only || hints.read_only())
            }
            ListKind::Resources => self.resources.shows_uri(own),
            // Of a template nobody knows yet what it will name; reads are judged one by one.
            ListKind::Templates => self.resources.shows(own),
            ListKind::Prompts => self.prompts.shows(own),
        }
    }

    /// Whether it looks at what tools say of themselves.
    pub fn looks_at_hints(&self) -> bool {
        self.hide_destructive || self.read_only_only
    }

    fn concerns(&self, what: ListKind) -> bool {
        match what {
            ListKind::Tools => self.tools != Rule::All || self.looks_at_hints(),
            ListKind::Resources | ListKind::Templates => self.resources != Rule::All,
            ListKind::Prompts => self.prompts != Rule::All,
        }
    }
}

impl Row for Filter {
    const LISTS: bool = true;
    const CALLS: bool = true;

    fn entry(&self, draft: &mut Draft<'_>) -> bool {
        self.shows(draft.what, draft.own, draft.hints)
    }

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        if !self.concerns(ask.what) {
            return Ok(());
        }
        // Resources may be readable without being listed.
        let missing = ask.what != ListKind::Resources && ask.listed && ask.known.is_none();
        if missing || !self.shows(ask.what, &ask.own, ask.hints()) {
            return Err(ask.unknown());
        }
        Ok(())
    }
}

/// Whether a URI has no control characters in it, and no blanks around it.
///
/// No URI has (RFC 3986 §2), but parsers after the WHATWG (URL §4.4) pass over tabs and line breaks
/// wherever they stand, and over controls and spaces at both ends: `.<tab>.` is a step upwards there.
pub fn is_uri_text(uri: &str) -> bool {
    !uri.bytes().any(|byte| byte.is_ascii_control()) && uri.trim_matches(' ').len() == uri.len()
}

/// Whether something holds for a URI as it was sent and for each place where its way may end.
pub fn in_every_form(uri: &str, holds: impl Fn(&str) -> bool) -> bool {
    let plain = plain(uri);
    let squeezed = squeezed(uri);
    is_uri_text(uri)
        && holds(uri)
        && (plain == uri || holds(&plain))
        && squeezed.is_none_or(|uri| holds(&uri))
}

/// The forms of a URI that servers read as the same: the plain one, and those that a parser after the
/// WHATWG makes of it (URL §4.4), which knows what the schemes of the web and `file` are to look like.
pub fn spellings(uri: &str) -> Vec<String> {
    let plain = plain(uri).into_owned();
    let mut all = Vec::new();
    if let Some((scheme, rest)) = plain.split_once(':') {
        match scheme {
            "file" => {
                let (host, path) = match rest.strip_prefix("//") {
                    Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
                    None => ("", rest),
                };
                let host = host.to_ascii_lowercase();
                // Of slashes a file system sees one.
                let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
                let path = format!("/{}", segments.join("/"));
                match host.as_str() {
                    "" | "localhost" => {
                        let starts = ["file://", "file:", "file://localhost"];
                        all.extend(starts.map(|start| format!("{start}{path}")));
                    }
                    host => all.push(format!("file://{host}{path}")),
                }
            }
            "http" | "https" | "ws" | "wss" | "ftp" => {
                let rest = rest.trim_start_matches('/');
                let (authority, path) =
                    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                let host = authority.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
                let own = match scheme {
                    "http" | "ws" => ":80",
                    "ftp" => ":21",
                    _ => ":443",
                };
                let host = host.strip_suffix(own).or(host.strip_suffix(':')).unwrap_or(&host);
                let slash = if path.starts_with('/') { "" } else { "/" };
                all.push(format!("{scheme}://{host}{slash}{path}"));
            }
            _ => {}
        }
    }
    all.extend(squeezed(uri));
    all.push(plain);
    all
}

/// A URI without percent-encoding and dot segments, its scheme in lower case (RFC 3986 §6.2.2), and
/// with slashes for backslashes, which some servers read so: the same for all its spellings.
pub fn plain(uri: &str) -> Cow<'_, str> {
    // The first segment may stand directly behind the scheme.
    let dotted = uri.split(['/', ':']).any(|segment| matches!(segment, "." | ".."));
    let upper = uri[..scheme(uri)].bytes().any(|b| b.is_ascii_uppercase());
    if !uri.contains(['%', '\\']) && !dotted && !upper {
        return Cow::Borrowed(uri);
    }
    let text = decoded(uri);
    // Only now: a scheme may be encoded as well.
    let mut shown = resolved(&text, false);
    let end = scheme(&shown);
    shown[..end].make_ascii_lowercase();
    Cow::Owned(shown)
}

/// As [`plain`], to who sees one slash where there are several: `a//../b` is then `b`, not `a/b`.
/// `None` if that makes no difference.
fn squeezed(uri: &str) -> Option<String> {
    let text = decoded(uri);
    let climbs = text.split('/').any(|segment| segment == "..");
    (climbs && text.contains("//")).then(|| {
        let mut shown = resolved(&text, true);
        let end = scheme(&shown);
        shown[..end].make_ascii_lowercase();
        shown
    })
}

/// What has another character before its colon is a path with a colon in it.
fn scheme(text: &str) -> usize {
    let of_scheme = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    text.find(':').filter(|end| text.bytes().take(*end).all(of_scheme)).unwrap_or(0)
}

/// Without percent-encoding, and with slashes for backslashes.
fn decoded(uri: &str) -> String {
    let mut bytes = Vec::with_capacity(uri.len());
    let mut rest = uri.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: u8| char::from(b).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if let (Some(h), Some(l)) = (hex(*high), hex(*low)) => {
                bytes.push((h * 16 + l) as u8);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).replace('\\', "/")
}

/// Without dot segments; `squeeze` = of slashes in a row one counts.
fn resolved(text: &str, squeeze: bool) -> String {
    // Only directly behind the scheme stands an authority: `://` in a query must not hide the path
    // before it.
    let end = scheme(text);
    let start = match &text[end..] {
        rest if rest.starts_with("://") => end + 3,
        rest if rest.starts_with(':') => end + 1,
        _ => end,
    };
    let (head, path) = text.split_at(start);
    let mut kept: Vec<&str> = Vec::new();
    for (index, segment) in path.split('/').enumerate() {
        match segment {
            "." => {}
            "" if squeeze && index > 0 => {}
            // The authority, or the empty segment before the first slash, is no place to leave.
            ".." if kept.len() > 1 => drop(kept.pop()),
            ".." if index > 0 => {}
            _ => kept.push(segment),
        }
    }
    format!("{head}{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Pattern;
    use super::super::testing::{Case, shaped};
    use super::*;
    use crate::error::Kind;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns(texts.iter().map(|text| Pattern::parse(text).unwrap()).collect())
    }

    #[test]
    fn what_is_hidden_is_neither_listed_nor_called() {
        let row = Filter { tools: Rule::Hide(patterns(&["write_*"])), ..Filter::default() };
        assert!(shaped(&row, ListKind::Tools, r#"{"name":"write_file"}"#).is_none());
        assert!(shaped(&row, ListKind::Tools, r#"{"name":"read_file"}"#).is_some());
        assert!(shaped(&row, ListKind::Prompts, r#"{"name":"write_file"}"#).is_some());
        let error = Case::tool("write_file", "{}").run(&row).unwrap_err();
        assert_eq!(error.public(), "Unknown tool: write_file");
        Case::tool("read_file", "{}").run(&row).unwrap();
    }

    #[test]
    fn what_the_list_has_not_is_answered_here() {
        let row = Filter { tools: Rule::Hide(patterns(&["write_*"])), ..Filter::default() };
        let mut case = Case::tool("other", "{}");
        case.listed = true;
        assert_eq!(case.run(&row).unwrap_err().kind(), Kind::UnknownTool);
        case.known = Some("other");
        case.run(&row).unwrap();
    }

    #[test]
    fn annotations() {
        let silent = r#"{"name":"t"}"#;
        let reader = r#"{"name":"t","annotations":{"readOnlyHint":true}}"#;
        let adder = r#"{"name":"t","annotations":{"destructiveHint":false}}"#;
        let careful = Filter { hide_destructive: true, ..Filter::default() };
        let strict = Filter { read_only_only: true, ..Filter::default() };
        for (tool, by_careful, by_strict) in
            [(silent, false, false), (reader, true, true), (adder, true, false)]
        {
            assert_eq!(shaped(&careful, ListKind::Tools, tool).is_some(), by_careful, "{tool}");
            assert_eq!(shaped(&strict, ListKind::Tools, tool).is_some(), by_strict, "{tool}");
        }
        // Nothing is known of the tool: nothing says that it is harmless.
        assert!(Case::tool("t", "{}").run(&strict).is_err());
    }

    #[test]
    fn uris_are_judged_in_every_spelling() {
        let expose = Rule::Expose(patterns(&["file:///pub/*"]));
        let hide = Rule::Hide(patterns(&["file:///etc/*"]));
        for (uri, exposed, unhidden) in [
            ("file:///pub/a", true, true),
            ("file:///pub/../etc/passwd", false, false),
            ("file:///pub/%2e%2e/etc/passwd", false, false),
            ("file:///pub/..%2fetc/passwd", false, false),
            ("file:///%65tc/passwd", false, false),
            ("FILE:///etc/passwd", false, false),
            ("file:///pub/./a", true, true),
            ("file:///pub/a%20b", true, true),
            ("file:///pub/..\\etc/x", false, false),
            ("file:///etcetera", false, true),
        ] {
            assert_eq!(expose.shows_uri(uri), exposed, "{uri} {}", plain(uri));
            assert_eq!(hide.shows_uri(uri), unhidden, "{uri} {}", plain(uri));
        }
        assert_eq!(plain("memo://a/../../b"), "memo://a/b");
        assert_eq!(plain("urn:a:%41"), "urn:a:A");
    }

    /// The official SDKs parse URIs after the WHATWG, and look for resources under what that makes of
    /// them: a tab in `..` went through, and so did another way to write `file:///`.
    #[test]
    fn what_servers_read_as_a_hidden_uri_is_hidden() {
        let hide = Rule::Hide(patterns(&["file:///etc/*", "https://host/in/*"]));
        let short = Rule::Hide(patterns(&["file:/etc/*"]));
        let expose = Rule::Expose(patterns(&["file:///pub/*"]));
        for uri in [
            "file:///e\ttc/passwd",
            "file:///etc/passwd\n",
            " file:///etc/passwd",
            "\u{1}file:///etc/passwd",
            "fi\nle:///etc/passwd",
            "file:/etc/passwd",
            "file:etc/passwd",
            "file://localhost/etc/passwd",
            "FILE://LocalHost/etc/passwd",
            "file:////etc//passwd",
            "file:///pub/../etc/passwd",
            "file:///pub/.\t./etc/passwd",
            "file:///pub/%2e\n%2e/etc/passwd",
            "file:///etc\\passwd",
            "file:\\\\\\etc\\passwd",
            "https://host/in/x",
            "https://HOST/in/x",
            "https://host:443/in/x",
            "https://a:b@host/in/x",
            "https:host/in/x",
            "https:////host/out/../in/x",
        ] {
            assert!(!hide.shows_uri(uri), "{uri:?} {:?}", spellings(uri));
            assert!(!expose.shows_uri(uri), "{uri:?}");
            let of_file = plain(uri).starts_with("file:");
            assert!(!of_file || !short.shows_uri(uri), "{uri:?} {:?}", spellings(uri));
        }
        for uri in ["file:///pub/a b", "https://host/out", "https://other/in/x", "file://etc/in/x"]
        {
            assert!(hide.shows_uri(uri) && short.shows_uri(uri), "{uri:?} {:?}", spellings(uri));
        }
        // A file system steps out of the folder, a parser only out of the empty segment.
        assert!(!expose.shows_uri("file:///pub/a//../../etc/passwd"));
        assert!(expose.shows_uri("file:///pub/a//../b") && expose.shows_uri("file:///pub/a//b"));
        assert!(expose.shows_uri("file:///pub/a b") && !expose.shows_uri("file:///pub/a\t"));
    }

    /// A scheme that was itself percent-encoded ended the exchange in a panic, `://` in a query hid
    /// the path before it, a backslash became a slash only if something else was odd, and so did the
    /// first segment behind a scheme lose its dot.
    #[test]
    fn every_spelling_has_one_plain_form() {
        for (uri, expected) in [
            ("%46%49%4c%45:", "file:"),
            ("%66ile:///%70ub/../etc", "file:///etc"),
            ("FILE%3a///a", "file:///a"),
            ("file:/pub/../etc/passwd?x=://", "file:/etc/passwd?x=://"),
            ("file:/pub/../etc/passwd%3fx%3d%3a//", "file:/etc/passwd?x=://"),
            ("pub/../../etc/a:b", "pub/etc/a:b"),
            ("file:///etc\\passwd", "file:///etc/passwd"),
            ("file:///C:\\a\\..\\b", "file:///C:/b"),
            ("file:./a", "file:a"),
            ("file:%2e/a", "file:a"),
            ("file:.//b/a", "file:/b/a"),
        ] {
            assert_eq!(plain(uri), expected, "{uri}");
        }
        let expose = Rule::Expose(Patterns(vec![Pattern::parse("file:/pub/*").unwrap()]));
        assert!(expose.shows_uri("file:/pub/a"));
        assert!(!expose.shows_uri("file:/pub/../etc/passwd?x=://"));
    }

    #[test]
    fn a_hidden_resource_is_not_found() {
        let row = Filter { resources: Rule::Hide(patterns(&["secret:*"])), ..Filter::default() };
        let error = Case::resource("secret:a").run(&row).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceNotFound);
        let mut case = Case::resource("open:a");
        case.listed = true;
        case.run(&row).unwrap();
        assert!(shaped(&row, ListKind::Templates, r#"{"name":"secret:{id}"}"#).is_none());
    }
}
