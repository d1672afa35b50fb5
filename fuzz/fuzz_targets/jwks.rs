//! Laws of key sets (RFC 7517, 7518, 8037):
//! - a document is a set exactly if serde_json sees an object with an array of keys, in which
//!   nothing stands twice;
//! - each of its keys is kept or skipped with a reason, and kept exactly if a plain reading says so:
//!   no secret, no short RSA key, no even exponent, no point of the wrong size, nothing bound to an
//!   algorithm of another kind;
//! - a candidate has the name that was asked for and fits the algorithm, and there are few;
//! - no key takes a signature that nobody made.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use mcp_proxy::auth::keys::{Algorithm, KeySet};
use mcp_proxy::limits::{JWKS_KEYS_MAX, JWT_KEYS_TRIED_MAX};
use mcp_proxy_fuzz::{is_private, is_unambiguous};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    if is_private(data) {
        return;
    }
    let ours = KeySet::parse(data);
    let theirs = serde_json::from_slice::<Value>(data)
        .ok()
        .filter(|value| value.is_object() && std::str::from_utf8(data).is_ok_and(is_unambiguous));
    let listed = theirs.as_ref().and_then(|value| value.get("keys")).and_then(Value::as_array);
    let (ours, listed) = match (ours, listed) {
        (Ok(ours), Some(listed)) => (ours, listed),
        (Err(_), None) => return,
        (ours, listed) => panic!("{ours:?} and {listed:?}"),
    };
    assert_eq!(ours.len() + ours.skipped.len(), listed.len());
    let good: Vec<&Value> = listed.iter().filter(|key| kind(key).is_some()).collect();
    assert_eq!(ours.len(), good.len().min(JWKS_KEYS_MAX));
    let good = &good[..ours.len()];

    let names = good.iter().map(|key| key.get("kid").and_then(Value::as_str));
    for name in names.chain([None]) {
        if let Some(name) = name {
            assert!(ours.has(name));
        }
        for algorithm in Algorithm::ALL {
            let fitting = good.iter().filter(|key| {
                let named = name.is_none() || key.get("kid").and_then(Value::as_str) == name;
                named && fits(key, *algorithm)
            });
            let candidates = ours.candidates(name, *algorithm);
            assert_eq!(candidates.len(), fitting.count().min(JWT_KEYS_TRIED_MAX));
            assert!(candidates.iter().all(|key| key.fits(*algorithm)));
            // Verifying takes long; one key stands for all.
            if let (Some(key), true) = (candidates.first(), good.len() < 3) {
                let rubbish = &data[..data.len().min(512)];
                assert!(!key.verify(*algorithm, b"message", rubbish));
            }
        }
    }
});

fn bytes(key: &Value, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(key.get(name)?.as_str()?).ok()
}

/// Of which kind it is; `None` if it is of no use.
fn kind(key: &Value) -> Option<&'static str> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let signs = text("use").is_none_or(|usage| usage == "sig");
    let verifies = match key.get("key_ops") {
        None => true,
        Some(operations) => operations.as_array()?.iter().any(|one| one == "verify"),
    };
    let number = |name: &str| -> Option<Vec<u8>> {
        let bytes = bytes(key, name)?;
        Some(bytes.into_iter().skip_while(|byte| *byte == 0).collect())
    };
    let of_length = |name: &str, length| bytes(key, name).is_some_and(|b| b.len() == length);
    let kind = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let (n, e) = (number("n")?, number("e")?);
            let bits = n.len() as u32 * 8 - n.first().map_or(0, |first| first.leading_zeros());
            let e = e.iter().fold(0u128, |e, byte| (e << 8 | u128::from(*byte)) & (1 << 100) - 1);
            let small = e <= u128::from(u32::MAX) && number("e")?.len() <= 4;
            ((2048..=8192).contains(&bits) && e % 2 == 1 && e >= 3 && small).then_some("RSA")?
        }
        ("EC", Some("P-256")) => (of_length("x", 32) && of_length("y", 32)).then_some("P-256")?,
        ("EC", Some("P-384")) => (of_length("x", 48) && of_length("y", 48)).then_some("P-384")?,
        ("OKP", Some("Ed25519")) => of_length("x", 32).then_some("Ed25519")?,
        _ => return None,
    };
    let bound = match text("alg") {
        None => true,
        Some("Ed25519") => kind == "Ed25519",
        Some(name) => Algorithm::parse(name).is_some_and(|algorithm| of_kind(kind, algorithm)),
    };
    (signs && verifies && bound).then_some(kind)
}

fn of_kind(kind: &str, algorithm: Algorithm) -> bool {
    match algorithm.name() {
        "ES256" => kind == "P-256",
        "ES384" => kind == "P-384",
        "EdDSA" => kind == "Ed25519",
        _ => kind == "RSA",
    }
}

fn fits(key: &Value, algorithm: Algorithm) -> bool {
    let bound = match key.get("alg").and_then(Value::as_str) {
        None => true,
        Some("Ed25519") => algorithm == Algorithm::EdDSA,
        Some(name) => name == algorithm.name(),
    };
    bound && kind(key).is_some_and(|kind| of_kind(kind, algorithm))
}
