//! Owns: what makes a signed token good, and what it makes of its bearer.
//! Never: the keys (`keys`); waiting for them (`desk`).
//! Next: `strict`, the JSON in it.
//!
//! RFC 7515 (JWS compact form), RFC 7519 (claims), RFC 8725 (best practice), RFC 9068 §2.2.3.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::keys::{Algorithm, Shelf, decode};
use super::policy::{Rights, Role};
use super::{Caller, Refused, strict};
use crate::limits;

/// `[auth]` with `type = "jwt"`.
#[derive(Debug)]
pub struct Jwt {
    /// `iss` must be exactly this.
    pub issuer: String,
    /// `aud` must name this.
    pub audience: String,
    /// What may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// How far the clocks of issuer and proxy may be apart.
    pub leeway: Duration,
    /// Every token needs all of these.
    pub required_scopes: Vec<String>,
    /// At most 64.
    pub roles: Vec<Arc<Role>>,
    /// Who has which role; `None` = every token opens everything.
    pub mapping: Option<Mapping>,
    /// Where the keys are.
    pub shelf: Arc<Shelf>,
}

/// `[auth.role_mapping]`
#[derive(Debug)]
pub struct Mapping {
    /// The claim that names roles.
    pub claim: String,
    /// What it says, and the index of the role.
    pub roles: HashMap<String, usize>,
    /// Whether a token without a role opens nothing, instead of everything.
    pub default_deny: bool,
}

/// A token that looks right, but is not verified.
#[derive(Debug)]
pub struct Claimed {
    /// What it says it is signed with: one that is accepted.
    pub algorithm: Algorithm,
    /// The key that it names.
    pub kid: Option<String>,
    /// What of the token is signed.
    pub signed: Range<usize>,
    /// The signature of that.
    pub signature: Vec<u8>,
    claims: Map<String, Value>,
    /// Seconds since 1970, from which on it is worth nothing.
    pub ends: u64,
}

impl Jwt {
    /// Takes a token apart and checks all that needs no key; `now` in seconds since 1970.
    ///
    /// # Errors
    /// Why it cannot be good.
    pub fn read(&self, token: &[u8], now: u64) -> Result<Claimed, &'static str> {
        let token = std::str::from_utf8(token).map_err(|_| "not ASCII")?;
        let mut parts = token.split('.');
        let (Some(head), Some(body), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("not three parts");
        };
        let part = |text: &str| decode(text).ok_or("not base64url");
        let (algorithm, kid) = self.head(&part(head)?)?;
        let claims = strict::object(&part(body)?).map_err(|_| "claims that are no object")?;
        let ends = self.claims(&claims, now)?;
        Ok(Claimed {
            algorithm,
            kid,
            signed: 0..head.len() + 1 + body.len(),
            signature: part(signature)?,
            claims,
            ends,
        })
    }

    fn head(&self, json: &[u8]) -> Result<(Algorithm, Option<String>), &'static str> {
        let head = strict::object(json).map_err(|_| "a header that is no object")?;
        // No extension is understood, so none can be critical (RFC 7515 §4.1.11).
        if head.contains_key("crit") {
            return Err("a critical header");
        }
        // Keys come from the issuer's set alone, whatever a token brings or points to.
        if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| head.contains_key(*name)) {
            return Err("a key in the header");
        }
        let algorithm = match head.get("alg") {
            Some(Value::String(name)) => Algorithm::parse(name),
            _ => None,
        };
        let algorithm = algorithm
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or("an algorithm that is not accepted")?;
        let kid = match head.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err("a key id that is no string"),
        };
        Ok((algorithm, kid))
    }

    /// The claims that say whether the token is meant for here and now; when it ends.
    fn claims(&self, claims: &Map<String, Value>, now: u64) -> Result<u64, &'static str> {
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("another issuer");
        }
        let meant = match claims.get("aud") {
            Some(Value::String(one)) => *one == self.audience,
            Some(Value::Array(all)) => all.iter().any(|one| *one == *self.audience),
            _ => false,
        };
        if !meant {
            return Err("another audience");
        }
        let leeway = self.leeway.as_secs();
        let expires = seconds(claims, "exp")?.ok_or("no exp")?;
        let ends = expires.saturating_add(leeway);
        if now >= ends {
            return Err("expired");
        }
        if seconds(claims, "nbf")?.is_some_and(|from| from > now.saturating_add(leeway)) {
            return Err("not valid yet");
        }
        Ok(ends)
    }

    /// What a verified token makes of its bearer.
    ///
    /// # Errors
    /// It names nobody, or lacks a scope or a role.
    pub fn caller(&self, token: &Claimed) -> Result<Caller, Refused> {
        let claims = &token.claims;
        let principal = principal(claims).ok_or(Refused::BadToken("no subject"))?;
        let scopes: Vec<&str> =
            ["scope", "scp"].iter().flat_map(|c| words(claims.get(*c))).collect();
        if !self.required_scopes.iter().all(|scope| scopes.contains(&scope.as_str())) {
            return Err(Refused::Scope);
        }
        let Some(mapping) = &self.mapping else {
            return Ok(Caller { principal, rights: None, admin: false });
        };
        let said = words(at(claims, &mapping.claim));
        let key =
            said.iter().filter_map(|word| mapping.roles.get(*word)).fold(0, |k, r| k | 1 << r);
        if key == 0 {
            return match mapping.default_deny {
                true => Err(Refused::Scope),
                false => Ok(Caller { principal, rights: None, admin: false }),
            };
        }
        let has = |index: usize| key >> index & 1 == 1;
        let mut with = self.roles.iter().enumerate().filter(|(index, _)| has(*index));
        let admin = with.any(|(_, role)| role.admin);
        Ok(Caller { principal, rights: Rights::of(&self.roles, key), admin })
    }
}

/// Whose token it is: the subject, else the client that it was given to. Different parties have
/// different principals, whatever an issuer lets them be called.
fn principal(claims: &Map<String, Value>) -> Option<Arc<str>> {
    let text = |name: &str| {
        let text = claims.get(name)?.as_str()?;
        let fit = (1..=limits::PRINCIPAL_BYTES_MAX).contains(&text.len());
        (fit && !text.chars().any(char::is_control)).then_some(text)
    };
    if claims.contains_key("sub") {
        let subject = text("sub")?;
        let taken = ["sub=", "client_id="].iter().any(|start| subject.starts_with(start));
        return Some(match taken || subject == super::bearer::ADMIN {
            true => format!("sub={subject}").into(),
            false => subject.into(),
        });
    }
    let client = text("client_id").or_else(|| text("azp"))?;
    Some(format!("client_id={client}").into())
}

/// A time in seconds since 1970 (RFC 7519 §2, NumericDate).
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, &'static str> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => Ok(Some(whole)),
            (None, Some(part)) if (0.0..1e15).contains(&part) => Ok(Some(part as u64)),
            _ => Err("a time that is none"),
        },
        Some(_) => Err("a time that is no number"),
    }
}

/// A claim by its name, or by the names on the way to it with dots between.
fn at<'c>(claims: &'c Map<String, Value>, path: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    at(claims.get(first)?.as_object()?, rest)
}

/// Words between blanks, or the texts of an array.
fn words(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    const NOW: u64 = 1_700_000_000;

    fn jwt() -> Jwt {
        let role =
            |name: &str, admin| Arc::new(Role { name: name.into(), admin, ..Role::default() });
        Jwt {
            issuer: "https://i".into(),
            audience: "me".into(),
            algorithms: vec![Algorithm::ES256, Algorithm::RS256],
            leeway: Duration::from_secs(60),
            required_scopes: Vec::new(),
            roles: vec![role("user", false), role("chief", true)],
            mapping: None,
            shelf: Arc::new(Shelf::new("http://h")),
        }
    }

    fn encode(text: &str) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }

    fn token(head: &str, claims: &str) -> String {
        format!("{}.{}.{}", encode(head), encode(claims), encode("signature"))
    }

    const HEAD: &str = r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#;

    fn claims(more: &str) -> String {
        format!(r#"{{"iss":"https://i","aud":"me","exp":{},"sub":"s"{more}}}"#, NOW + 10)
    }

    #[test]
    fn a_token_is_taken_apart() {
        let token = token(HEAD, &claims(""));
        let read = jwt().read(token.as_bytes(), NOW).unwrap();
        assert_eq!((read.algorithm, read.kid.as_deref()), (Algorithm::ES256, Some("k")));
        assert_eq!(&token[read.signed], token.rsplit_once('.').unwrap().0);
        assert_eq!(read.signature, b"signature");
        assert_eq!(read.ends, NOW + 70);
    }

    #[test]
    fn headers_that_are_refused() {
        for head in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"PS256"}"#,
            r#"{"alg":["ES256"]}"#,
            r#"{}"#,
            r#"{"alg":"ES256","alg":"none"}"#,
            r#"{"alg":"ES256","crit":["exp"]}"#,
            r#"{"alg":"ES256","crit":[]}"#,
            r#"{"alg":"ES256","kid":1}"#,
            r#"{"alg":"ES256","jwk":{}}"#,
            r#"{"alg":"ES256","jku":"http://evil"}"#,
            r#"{"alg":"ES256","x5u":"http://evil"}"#,
            r#"{"alg":"ES256","x5c":[]}"#,
            "ES256",
        ] {
            let token = token(head, &claims(""));
            assert!(jwt().read(token.as_bytes(), NOW).is_err(), "{head}");
        }
    }

    #[test]
    fn claims_that_are_refused() {
        let exp = NOW + 10;
        for claims in [
            format!(r#"{{"aud":"me","exp":{exp}}}"#),
            format!(r#"{{"iss":"https://i/","aud":"me","exp":{exp}}}"#),
            format!(r#"{{"iss":["https://i"],"aud":"me","exp":{exp}}}"#),
            format!(r#"{{"iss":"https://i","exp":{exp}}}"#),
            format!(r#"{{"iss":"https://i","aud":"you","exp":{exp}}}"#),
            format!(r#"{{"iss":"https://i","aud":["you"],"exp":{exp}}}"#),
            format!(r#"{{"iss":"https://i","aud":[],"exp":{exp}}}"#),
            r#"{"iss":"https://i","aud":"me"}"#.to_owned(),
            format!(r#"{{"iss":"https://i","aud":"me","exp":"{exp}"}}"#),
            format!(r#"{{"iss":"https://i","aud":"me","exp":{}}}"#, NOW - 61),
            r#"{"iss":"https://i","aud":"me","exp":-1}"#.to_owned(),
            r#"{"iss":"https://i","aud":"me","exp":1e300}"#.to_owned(),
            claims(&format!(r#","nbf":{}"#, NOW + 61)),
            claims(r#","nbf":"soon""#),
            claims(r#","nbf":null"#),
            claims(r#","iss":"https://i""#),
            "[]".to_owned(),
        ] {
            let token = token(HEAD, &claims);
            assert!(jwt().read(token.as_bytes(), NOW).is_err(), "{claims}");
        }
        for claims in [
            claims(&format!(r#","nbf":{}"#, NOW + 60)),
            format!(r#"{{"iss":"https://i","aud":["you","me"],"exp":{}.5}}"#, NOW - 50),
        ] {
            let token = token(HEAD, &claims);
            assert!(jwt().read(token.as_bytes(), NOW).is_ok(), "{claims}");
        }
    }

    #[test]
    fn forms_that_are_refused() {
        let good = token(HEAD, &claims(""));
        let (start, signature) = good.rsplit_once('.').unwrap();
        for bad in [
            "",
            ".",
            "..",
            start,
            &format!("{good}."),
            &format!("{good}.x.y"),
            &format!("{good}="),
            &format!("{start}.+{signature}"),
            &format!(" {good}"),
            // Bits behind the last byte.
            &format!("{start}.AB"),
        ] {
            assert!(jwt().read(bad.as_bytes(), NOW).is_err(), "{bad}");
        }
        assert!(jwt().read(&[0xff; 10], NOW).is_err());
    }

    fn caller(jwt: &Jwt, more: &str) -> Result<Caller, Refused> {
        let text = format!(r#"{{"iss":"https://i","aud":"me","exp":{}{more}}}"#, NOW + 10);
        jwt.caller(&jwt.read(token(HEAD, &text).as_bytes(), NOW).unwrap())
    }

    #[test]
    fn principals_are_apart() {
        let name = |more: &str| caller(&jwt(), more).map(|caller| caller.principal.to_string());
        assert_eq!(name(r#","sub":"alice""#).as_deref(), Ok("alice"));
        assert_eq!(name(r#","sub":"admin_token""#).as_deref(), Ok("sub=admin_token"));
        assert_eq!(name(r#","sub":"client_id=x""#).as_deref(), Ok("sub=client_id=x"));
        assert_eq!(name(r#","client_id":"x""#).as_deref(), Ok("client_id=x"));
        for bad in ["", r#","sub":"""#, r#","sub":1,"client_id":"x""#, r#","sub":"a\u0000""#] {
            assert_eq!(name(bad), Err(Refused::BadToken("no subject")), "{bad}");
        }
    }

    #[test]
    fn scopes_and_roles() {
        let mut jwt = jwt();
        jwt.required_scopes = vec!["a".into(), "b".into()];
        assert_eq!(caller(&jwt, r#","sub":"s","scope":"a""#).unwrap_err(), Refused::Scope);
        assert_eq!(caller(&jwt, r#","sub":"s","scope":"a bb""#).unwrap_err(), Refused::Scope);
        for good in [r#","scope":"b c a""#, r#","scope":["a","b"]"#, r#","scp":["a","b"]"#] {
            let caller = caller(&jwt, &format!(r#","sub":"s"{good}"#)).unwrap();
            assert!(caller.rights.is_none() && !caller.admin);
        }
        jwt.required_scopes.clear();
        let roles = [("u".to_owned(), 0), ("c".to_owned(), 1)].into();
        jwt.mapping = Some(Mapping { claim: "realm.roles".into(), roles, default_deny: true });
        assert_eq!(caller(&jwt, r#","sub":"s""#).unwrap_err(), Refused::Scope);
        assert_eq!(caller(&jwt, r#","sub":"s","realm.roles":"x""#).unwrap_err(), Refused::Scope);
        let both = caller(&jwt, r#","sub":"s","realm":{"roles":["u","c"]}"#).unwrap();
        assert!(both.admin);
        assert!(!caller(&jwt, r#","sub":"s","realm.roles":"u x""#).unwrap().admin);
        jwt.mapping.as_mut().unwrap().default_deny = false;
        assert!(caller(&jwt, r#","sub":"s""#).unwrap().rights.is_none());
    }
}
