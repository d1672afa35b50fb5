//! Laws of signed tokens (RFC 7515, 7519, 8725):
//! - a token passes exactly if a plain reading of its two documents says so: algorithm, no key and
//!   nothing critical in the header, issuer, audience, times;
//! - nothing in it stands twice, so that no other reader can take another of two;
//! - its signature holds with the algorithm of its key alone, and not after any change of a bit;
//! - different parties have different principals, none is the administrator's, and a role comes
//!   from the claim that gives roles alone.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use mcp_proxy::auth::Refused;
use mcp_proxy::auth::jwt::{Claimed, Jwt, Mapping};
use mcp_proxy::auth::keys::{Algorithm, KeySet, Shelf};
use mcp_proxy::auth::policy::Role;
use mcp_proxy::limits::PRINCIPAL_BYTES_MAX;
use mcp_proxy_fuzz::{is_private, is_unambiguous};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::Value;

const NOW: u64 = 1_700_000_000;
const LEEWAY: u64 = 60;
const ISSUER: &str = "https://i";
const AUDIENCE: &str = "me";
const ACCEPTED: [Algorithm; 2] = [Algorithm::EdDSA, Algorithm::RS256];
const POINTERS: [&str; 5] = ["crit", "jwk", "jku", "x5u", "x5c"];

struct Setting {
    jwt: Jwt,
    pair: Ed25519KeyPair,
    keys: KeySet,
}

fn setting() -> &'static Setting {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    SETTING.get_or_init(|| {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes");
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let set = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#);
        let role = |admin| Arc::new(Role { admin, ..Role::default() });
        let jwt = Jwt {
            issuer: ISSUER.into(),
            audience: AUDIENCE.into(),
            algorithms: ACCEPTED.to_vec(),
            leeway: Duration::from_secs(LEEWAY),
            required_scopes: vec!["mcp".into()],
            roles: vec![role(false), role(true)],
            mapping: Some(Mapping {
                claim: "realm.roles".into(),
                roles: [("user".to_owned(), 0), ("chief".to_owned(), 1)].into(),
                default_deny: true,
            }),
            shelf: Arc::new(Shelf::new("http://h")),
        };
        Setting { jwt, pair, keys: KeySet::parse(set.as_bytes()).expect("a set") }
    })
}

fuzz_target!(|data: &[u8]| {
    if is_private(data) {
        return;
    }
    let [kind, flip, rest @ ..] = data else { return };
    if kind & 1 == 1 {
        // As it is: mostly no token at all.
        check(rest);
        return;
    }
    let Some(line) = rest.iter().position(|byte| *byte == b'\n') else { return };
    let (head, claims) = (&rest[..line], &rest[line + 1..]);
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
    let signature = setting().pair.sign(signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    let Some(claimed) = check(token.as_bytes()) else { return };
    assert_eq!(&token[claimed.signed.clone()], signed);
    assert_eq!(claimed.signature, signature.as_ref());
    keys(&claimed, signed.as_bytes(), *flip);
    bearer(&claimed, claims);
});

/// The first two laws.
fn check(token: &[u8]) -> Option<Claimed> {
    let ours = setting().jwt.read(token, NOW);
    let theirs = plainly(token);
    assert_eq!(ours.as_ref().ok().map(|claimed| claimed.ends), theirs, "{:?}", ours.as_ref().err());
    ours.ok()
}

/// When it ends, if it is good.
fn plainly(token: &[u8]) -> Option<u64> {
    let token = std::str::from_utf8(token).ok()?;
    let parts: Vec<Vec<u8>> =
        token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part)).collect::<Result<_, _>>().ok()?;
    let [head, claims, _] = parts.as_slice() else { return None };
    let document = |bytes: &[u8]| -> Option<Value> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let text = std::str::from_utf8(bytes).ok()?;
        (value.is_object() && is_unambiguous(text)).then_some(value)
    };
    let (head, claims) = (document(head)?, document(claims)?);
    let accepted = ACCEPTED.iter().any(|accepted| head["alg"] == accepted.name());
    let points = POINTERS.iter().any(|name| head.get(*name).is_some());
    if !accepted || points || !head.get("kid").is_none_or(Value::is_string) {
        return None;
    }
    let meant = match &claims["aud"] {
        Value::Array(all) => all.iter().any(|one| one == AUDIENCE),
        one => one == AUDIENCE,
    };
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => match (value.as_u64(), value.as_f64()) {
            (Some(whole), _) => Ok(Some(whole)),
            (_, Some(part)) if (0.0..1e15).contains(&part) => Ok(Some(part.floor() as u64)),
            _ => Err(()),
        },
    };
    let (ends, begins) = (time("exp").ok()??.saturating_add(LEEWAY), time("nbf").ok()?);
    let now = ends > NOW && begins.is_none_or(|begins| begins <= NOW + LEEWAY);
    (claims["iss"] == ISSUER && meant && now).then_some(ends)
}

/// The third law.
fn keys(claimed: &Claimed, signed: &[u8], flip: u8) {
    let keys = &setting().keys;
    let kid = claimed.kid.as_deref();
    let candidates = keys.candidates(kid, claimed.algorithm);
    let fits = claimed.algorithm == Algorithm::EdDSA && kid.is_none_or(|kid| kid == "k");
    assert_eq!(candidates.len(), usize::from(fits));
    for key in candidates {
        for algorithm in Algorithm::ALL {
            let good = key.verify(*algorithm, signed, &claimed.signature);
            assert_eq!(good, *algorithm == Algorithm::EdDSA);
        }
        let mut other = signed.to_vec();
        let at = usize::from(flip) * other.len() / 256;
        other[at] ^= 1 << (flip & 7);
        assert!(!key.verify(Algorithm::EdDSA, &other, &claimed.signature));
        let mut signature = claimed.signature.clone();
        let at = usize::from(flip) % signature.len();
        signature[at] ^= 1 << (flip & 7);
        assert!(!key.verify(Algorithm::EdDSA, signed, &signature));
    }
}

/// The fourth law.
fn bearer(claimed: &Claimed, claims: &[u8]) {
    let claims: Value = serde_json::from_slice(claims).expect("it was read before");
    let words = |value: Option<&Value>| -> Vec<String> {
        match value {
            Some(Value::String(text)) => text.split_ascii_whitespace().map(str::to_owned).collect(),
            Some(Value::Array(items)) => {
                items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    };
    let named = |names: &[&str]| {
        names.iter().any(|name| {
            let text = claims.get(*name).and_then(Value::as_str).unwrap_or_default();
            (1..=PRINCIPAL_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
        })
    };
    let known = match claims.get("sub") {
        Some(_) => named(&["sub"]),
        None => named(&["client_id", "azp"]),
    };
    let scoped =
        ["scope", "scp"].iter().any(|name| words(claims.get(*name)).contains(&"mcp".into()));
    let given = match claims.get("realm.roles") {
        Some(flat) => words(Some(flat)),
        None => words(claims.get("realm").and_then(|realm| realm.get("roles"))),
    };
    let roles = ["user", "chief"].map(|role| given.iter().any(|word| word == role));
    match setting().jwt.caller(claimed) {
        Ok(caller) => {
            assert!(known && scoped && roles.contains(&true));
            assert_eq!(caller.admin, roles[1]);
            let principal: &str = &caller.principal;
            assert_ne!(principal, "admin_token");
            match claims.get("sub").and_then(Value::as_str) {
                Some(subject) => {
                    assert!(!principal.starts_with("client_id="));
                    let marked = principal.strip_prefix("sub=").unwrap_or(principal);
                    assert_eq!(marked, subject);
                }
                None => assert!(principal.starts_with("client_id=")),
            }
        }
        Err(Refused::BadToken(_)) => assert!(!known),
        Err(Refused::Scope) => assert!(known && (!scoped || !roles.contains(&true))),
        Err(other) => panic!("{other:?}"),
    }
}
