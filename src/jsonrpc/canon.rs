//! Owns: one spelling for all JSON texts that mean the same.
//! Never: a meaning of numbers: their text is kept, since a server may tell `1` from `1.0`.
//! Next: `write`, what is made with all of these.

use super::message::Span;
use super::{quote, unquote, walk};
use crate::limits::JSON_DEPTH_MAX;

/// Appends `value`, a JSON value that was checked: without blanks, members by name, strings
/// without needless escapes. Two values that it writes alike differ for no reader.
///
/// `None` for what has no such spelling: an object that says a name twice, half a surrogate pair.
pub fn canonical(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    write(value.trim_ascii(), out, 0)
}

fn write(value: &[u8], out: &mut Vec<u8>, depth: usize) -> Option<()> {
    if depth > JSON_DEPTH_MAX {
        return None;
    }
    match value.first()? {
        b'{' => {
            let of = |span: Span| span.of(value);
            let mut members = Vec::new();
            for (key, member) in walk::members_of_checked(value)? {
                members.push((unquote(of(key))?, of(member)));
            }
            members.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return None;
            }
            out.push(b'{');
            for (index, (key, member)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                quote(key, out);
                out.push(b':');
                write(member, out, depth + 1)?;
            }
            out.push(b'}');
        }
        b'[' => {
            out.push(b'[');
            for (index, element) in walk::elements_of_checked(value)?.enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(element.of(value), out, depth + 1)?;
            }
            out.push(b']');
        }
        b'"' => quote(&unquote(value)?, out),
        _ => out.extend_from_slice(value),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        super::super::walk::members(text.as_bytes()).expect("an object");
        let mut out = Vec::new();
        canonical(text.as_bytes(), &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_same_is_written_alike_and_nothing_else_is() {
        let plain = of(r#"{"a":[1,{"x":"é/","y":null}],"b":1.0}"#);
        assert_eq!(plain.as_deref(), Some(r#"{"a":[1,{"x":"é/","y":null}],"b":1.0}"#));
        for same in [
            r#" { "b" : 1.0 , "a" : [ 1 , { "y" : null , "x" : "\u00e9\/" } ] } "#,
            r#"{"\u0062":1.0,"a":[1,{"x":"é/","y":null}]}"#,
        ] {
            assert_eq!(of(same), plain, "{same}");
        }
        for other in [
            r#"{"a":[1,{"x":"é/","y":null}],"b":1}"#,
            r#"{"a":[1,{"x":"é/","y":null}],"b":"1.0"}"#,
            r#"{"a":[{"x":"é/","y":null},1],"b":1.0}"#,
            r#"{"a":[1,{"x":"é/"}],"b":1.0}"#,
            r#"{"a":[1.0,{"x":"é/","y":null}],"b":1.0}"#,
        ] {
            assert_ne!(of(other), plain, "{other}");
        }
        // A name that ends a string must not look like the end of one.
        assert_ne!(of(r#"{"a\":1,\"b":2}"#), of(r#"{"a":1,"b":2}"#));
        assert_eq!(of(r#"{"a":1,"\u0061":2}"#), None);
    }
}
