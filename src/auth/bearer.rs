//! Owns: tokens that are written in the configuration, and how a request shows one.
//! Never: the tokens themselves once they are compiled: only what tells them apart.
//! Next: `jwt`, tokens that an issuer has signed.
//!
//! RFC 6750 §2.1; RFC 9110 §11.1: the name of the scheme has no case.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ring::hmac;
use ring::rand::SystemRandom;

use super::Caller;
use crate::limits;

/// The principal of `security.admin_token`.
pub const ADMIN: &str = "admin_token";

/// Tokens and whose they are.
///
/// They are found by their tags under a key that is made at the start and leaves no thread: how
/// long a comparison of tags takes says nothing about a token.
pub struct Tokens {
    key: hmac::Key,
    known: HashMap<[u8; 32], Arc<Caller>, ahash::RandomState>,
}

impl Tokens {
    /// Of two equal tokens the first counts.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn new<'t>(
        tokens: impl IntoIterator<Item = (&'t str, Caller)>,
    ) -> Result<Tokens, ring::error::Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        let mut known = HashMap::default();
        for (token, caller) in tokens {
            known.entry(tag(&key, token.as_bytes())).or_insert_with(|| Arc::new(caller));
        }
        Ok(Tokens { key, known })
    }

    /// Whose token it is.
    pub fn find(&self, token: &[u8]) -> Option<Arc<Caller>> {
        self.known.get(&tag(&self.key, token)).cloned()
    }
}

fn tag(key: &hmac::Key, token: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hmac::sign(key, token).as_ref());
    bytes
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.known.len())
    }
}

/// The token that a request shows in its `Authorization` fields.
///
/// # Errors
/// There are several, it is of another scheme, or it is no token.
pub fn shown<'h>(
    mut fields: impl Iterator<Item = &'h [u8]>,
) -> Result<Option<&'h [u8]>, &'static str> {
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err("several Authorization fields");
    }
    const SCHEME: &[u8] = b"bearer";
    let (scheme, token) = field.split_at_checked(SCHEME.len()).unwrap_or((field, b""));
    let token = match token {
        [b' ', ..] if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_ascii_start(),
        _ => return Err("another scheme than Bearer"),
    };
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err("no token behind Bearer");
    }
    if token.len() > limits::TOKEN_BYTES_MAX {
        return Err("a token that is too long");
    }
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        Caller { principal: name.into(), rights: None, admin: false }
    }

    #[test]
    fn a_token_is_found_whole_or_not_at_all() {
        let tokens =
            Tokens::new([("one", caller("a")), ("two", caller("b")), ("one", caller("c"))]);
        let tokens = tokens.unwrap();
        let find = |token: &str| tokens.find(token.as_bytes()).map(|c| c.principal.to_string());
        assert_eq!(find("one").as_deref(), Some("a"));
        assert_eq!(find("two").as_deref(), Some("b"));
        for wrong in ["", "on", "onee", "One", "three"] {
            assert_eq!(find(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn how_a_token_is_shown() {
        let of = |fields: &[&'static str]| {
            let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
            shown(fields.into_iter()).map(|token| token.map(|t| String::from_utf8_lossy(t).into()))
        };
        let some = |text: &str| Ok(Some(String::from(text)));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["Bearer x"]), some("x"));
        assert_eq!(of(&["bEARER   x.y-z_~+/=="]), some("x.y-z_~+/=="));
        let long: &'static str = Box::leak(
            format!("Bearer {}", "x".repeat(limits::TOKEN_BYTES_MAX + 1)).into_boxed_str(),
        );
        for wrong in [
            &["Bearer"][..],
            &["Bearer "],
            &["Bearerx"],
            &["Basic x"],
            &["x"],
            &[""],
            &["Bearer x y"],
            &["Bearer x, Bearer y"],
            &["Bearer\tx"],
            &["Bearer x", "Bearer x"],
            &[long],
        ] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
