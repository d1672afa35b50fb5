//! Owns: which resource URIs a URI template can expand to.
//! Never: the values of its variables; backends.
//! Next: `hints`, in another.
//!
//! Document: RFC 6570, read backwards as the MCP SDKs read it: a variable has at least one
//! character, and a template that is not understood matches nothing.

/// A URI template, compiled for matching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// These bytes.
    Literal(Box<[u8]>),
    /// One or more characters that are none of `stops`. With `lead` it begins with that byte, or
    /// is missing altogether, as an undefined variable is (§3.2.1).
    Run { lead: Option<u8>, stops: &'static [u8] },
    /// `lead`, then pairs of these names, in any order; or nothing (§3.2.8, §3.2.9).
    Pairs { lead: u8, names: Vec<Box<[u8]>> },
}

/// What a simple expansion escapes (§3.2.2), so that it cannot stand in one.
const SEGMENT_STOPS: &[u8] = b"/?#";

impl Template {
    /// Longest URI that is matched; a longer one matches nothing.
    pub const URI_BYTES_MAX: usize = 8 * 1024;
    /// Parts of a template; one with more is not understood.
    pub const PARTS_MAX: usize = 64;

    /// Compiles a template; `None` if it is not understood.
    pub fn parse(text: &str) -> Option<Template> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let literal = rest.find(['{', '}']).unwrap_or(rest.len());
            if literal > 0 {
                parts.push(Part::Literal(rest.as_bytes()[..literal].into()));
            }
            rest = &rest[literal..];
            if let Some(inside) = rest.strip_prefix('{') {
                let (expression, behind) = inside.split_once('}')?;
                parts.push(expression_part(expression)?);
                rest = behind;
            } else if !rest.is_empty() {
                return None;
            }
        }
        (!parts.is_empty() && parts.len() <= Template::PARTS_MAX).then_some(Template { parts })
    }

    /// Whether `uri` can be an expansion of it.
    ///
    /// Takes time in proportion to parts times bytes, whatever both say.
    pub fn matches(&self, uri: &str) -> bool {
        let uri = uri.as_bytes();
        if uri.len() > Template::URI_BYTES_MAX {
            return false;
        }
        if let Some(Part::Literal(literal)) = self.parts.first()
            && !uri.starts_with(literal)
        {
            return false;
        }
        // All places that the parts so far can end at.
        let mut here = vec![false; uri.len() + 1];
        let mut next = here.clone();
        here[0] = true;
        for part in &self.parts {
            next.fill(false);
            part.step(uri, &here, &mut next);
            std::mem::swap(&mut here, &mut next);
        }
        here[uri.len()]
    }
}

fn expression_part(expression: &str) -> Option<Part> {
    let (operator, variables) = match expression.as_bytes().first()? {
        operator @ (b'+' | b'#' | b'.' | b'/' | b';' | b'?' | b'&') => {
            (Some(*operator), &expression[1..])
        }
        _ => (None, expression),
    };
    let mut names = Vec::new();
    // A list that explodes has no fixed number of segments. Some servers write `{path*}` for any
    // number of segments (RFC 6570 would write `{+path}`).
    let mut explodes = false;
    for variable in variables.split(',') {
        let plain = match variable.split_once(':') {
            Some((name, length)) if length.parse::<u16>().is_ok() => name,
            Some(_) => return None,
            None => variable.strip_suffix('*').inspect(|_| explodes = true).unwrap_or(variable),
        };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-%".contains(&byte);
        if plain.is_empty() || !plain.bytes().all(legal) {
            return None;
        }
        names.push(plain.as_bytes().into());
    }
    let several = explodes || names.len() > 1;
    Some(match operator {
        None if explodes => Part::Run { lead: None, stops: b"" },
        None => Part::Run { lead: None, stops: SEGMENT_STOPS },
        Some(b'+') => Part::Run { lead: None, stops: b"" },
        Some(lead @ b'#') => Part::Run { lead: Some(lead), stops: b"" },
        Some(lead @ b'/') if several => Part::Run { lead: Some(lead), stops: b"?#" },
        Some(lead @ (b'.' | b'/' | b';')) => Part::Run { lead: Some(lead), stops: SEGMENT_STOPS },
        Some(lead) => Part::Pairs { lead, names },
    })
}

impl Part {
    /// Marks in `next` every place where this part can end if it begins at a place of `here`.
    fn step(&self, uri: &[u8], here: &[bool], next: &mut [bool]) {
        match self {
            Part::Literal(literal) => {
                for (at, _) in here.iter().enumerate().filter(|(_, on)| **on) {
                    if uri[at..].starts_with(literal) {
                        next[at + literal.len()] = true;
                    }
                }
            }
            Part::Run { lead, stops } => {
                let mut running = false;
                for at in 0..uri.len() {
                    // A run reaches as far as one from any earlier beginning does: one sweep.
                    let runs = !stops.contains(&uri[at]);
                    match lead {
                        None => {
                            running = (running || here[at]) && runs;
                            next[at + 1] = running;
                        }
                        Some(lead) => {
                            next[at] |= here[at];
                            running &= runs;
                            next[at + 1] |= running;
                            running |= here[at] && uri[at] == *lead;
                        }
                    }
                }
                if lead.is_some() {
                    next[uri.len()] |= here[uri.len()];
                }
            }
            Part::Pairs { lead, names } => {
                for (start, _) in here.iter().enumerate().filter(|(_, on)| **on) {
                    next[start] = true;
                    if uri.get(start) == Some(lead) {
                        pairs(uri, start + 1, names, next);
                    }
                }
            }
        }
    }
}

/// Marks the end of each run of pairs from `at` on.
fn pairs(uri: &[u8], mut at: usize, names: &[Box<[u8]>], next: &mut [bool]) {
    loop {
        let rest = &uri[at..];
        // A second `?` would be escaped; and as it ends the run, no two runs cover the same bytes
        // and the whole stays linear.
        let end = rest.iter().position(|byte| b"&#?".contains(byte)).unwrap_or(rest.len());
        let name = rest[..end].split(|&byte| byte == b'=').next().unwrap_or_default();
        if !names.iter().any(|known| **known == *name) {
            return;
        }
        at += end;
        next[at] = true;
        if uri.get(at) != Some(&b'&') {
            return;
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(template: &str, uri: &str) -> bool {
        Template::parse(template).expect(template).matches(uri)
    }

    #[test]
    fn what_matches() {
        for (template, uri) in [
            ("test://static", "test://static"),
            ("test://template/{id}/data", "test://template/123/data"),
            ("demo://resource/dynamic/text/{resourceId}", "demo://resource/dynamic/text/1"),
            ("file:///{+path}", "file:///a/b/c.txt"),
            ("file:///{path*}", "file:///a/b/c.txt"),
            ("{scheme}://x", "db://x"),
            ("db://{a}-{b}", "db://x-y-z"),
            ("db://{a}{b}", "db://xy"),
            ("db://{name}é", "db://nameé"),
            ("s://q{?a,b}", "s://q"),
            ("s://q{?a,b}", "s://q?a=1"),
            ("s://q{?a,b}", "s://q?b=1&a=2"),
            ("s://q{?a,b}", "s://q?a="),
            ("s://q?x=1{&a}", "s://q?x=1&a=2"),
            ("s://q{?a}{#frag}", "s://q?a=1#top"),
            ("s://a{/seg}", "s://a"),
            ("s://a{/seg}", "s://a/b"),
            ("s://a{/seg*}", "s://a/b/c"),
            ("s://a{/x,y}", "s://a/b/c"),
            ("s://a{.ext}", "s://a.txt"),
            ("s://{v:3}", "s://abc"),
            ("s://{a}/x/{a}", "s://1/x/2"),
        ] {
            assert!(matches(template, uri), "{template} {uri}");
        }
    }

    #[test]
    fn what_does_not() {
        for (template, uri) in [
            ("test://static", "test://static2"),
            ("test://static", "test://stati"),
            ("test://template/{id}/data", "test://template//data"),
            ("test://template/{id}/data", "test://template/1/2/data"),
            ("test://template/{id}", "test://template/1?x"),
            ("test://{id}", "test://"),
            ("file:///{+path}", "file:///"),
            ("db://{a}{b}", "db://x"),
            ("s://q{?a,b}", "s://q?c=1"),
            ("s://q{?a,b}", "s://q?a=1&c=1"),
            ("s://q{?a,b}", "s://q&a=1"),
            ("s://q{?a,b}", "s://q?"),
            ("s://q{?a,b}", "s://q?a=1&"),
            ("s://a{/seg}", "s://a/"),
            ("s://a{/seg}", "s://a/b/c"),
            ("s://a{/seg}", "s://ab"),
            ("test://{id}", "TEST://1"),
        ] {
            assert!(!matches(template, uri), "{template} {uri}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        for template in
            ["", "a{", "a}", "a{}", "a{=x}", "a{!x}", "a{x y}", "a{x:y}", "a{{x}}", "a{x,}"]
        {
            assert_eq!(Template::parse(template), None, "{template}");
        }
        assert_eq!(Template::parse(&"{a}".repeat(Template::PARTS_MAX + 1)), None);
    }

    #[test]
    fn hostile_pairs_end_soon() {
        // Backtracking would need longer than the universe has.
        let many = "{+a}".repeat(Template::PARTS_MAX - 1) + "!";
        assert!(!matches(&many, &"a".repeat(Template::URI_BYTES_MAX)));
        let query = "{+a}{?a}".repeat(31) + "!";
        assert!(!matches(&query, &"?a=1".repeat(Template::URI_BYTES_MAX / 4)));
        assert!(!matches("{+a}", &"a".repeat(Template::URI_BYTES_MAX + 1)));
    }
}
