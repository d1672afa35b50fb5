//! Owns: an issuer's public keys, what each may verify, and the shelf on which the newest set lies.
//! Never: fetching them (`control::jwks`); claims (`jwt`).
//! Next: `policy`.
//!
//! RFC 7517 (JWK), RFC 7518 §3 and §6, RFC 8037 (EdDSA), RFC 8725 §3.1-§3.3: an algorithm belongs
//! to a key, not to a token.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

use super::strict;
use crate::limits;

macro_rules! algorithms {
    ($($name:ident)*) => {
        /// A signature algorithm of RFC 7518 or RFC 8037, asymmetric ones alone.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Algorithm { $($name,)* }

        impl Algorithm {
            /// All of them.
            pub const ALL: &'static [Algorithm] = &[$(Algorithm::$name,)*];

            /// As tokens and keys name it.
            pub const fn name(self) -> &'static str {
                match self { $(Algorithm::$name => stringify!($name),)* }
            }

            /// By its name, which has case.
            pub fn parse(name: &str) -> Option<Algorithm> {
                match name { $(stringify!($name) => Some(Algorithm::$name),)* _ => None }
            }
        }
    };
}

algorithms!(RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 EdDSA);

/// A public key.
#[derive(Debug, PartialEq)]
pub struct Key {
    kid: Option<String>,
    /// The only algorithm it is for, if it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Debug, PartialEq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Key {
    /// Reads one key; an error says why it is of no use here.
    fn read(jwk: &Map<String, Value>) -> Result<Key, &'static str> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(decode).ok_or("a parameter is missing");
        if text("use").is_some_and(|usage| usage != "sig") {
            return Err("it is not for signatures");
        }
        if let Some(operations) = jwk.get("key_ops") {
            let operations = operations.as_array().ok_or("key_ops is no array")?;
            if !operations.iter().any(|operation| operation == "verify") {
                return Err("it is not for verifying");
            }
        }
        let material = match (text("kty").ok_or("it has no kty")?, text("crv")) {
            ("RSA", _) => {
                let n = without_zeros(bytes("n")?);
                let e = without_zeros(bytes("e")?);
                let bits = (n.len() * 8)
                    .saturating_sub(n.first().map_or(0, |first| first.leading_zeros() as usize));
                if !(2048..=8192).contains(&bits) {
                    return Err("an RSA key must have 2048 to 8192 bits");
                }
                let odd = e.last().is_some_and(|last| last % 2 == 1);
                if !odd || e.len() > 4 || e == [1] {
                    return Err("an RSA exponent must be odd and at least 3");
                }
                Material::Rsa { n, e }
            }
            ("EC", Some("P-256")) => Material::P256(point(bytes("x")?, bytes("y")?, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(bytes("x")?, bytes("y")?, 48)?),
            ("OKP", Some("Ed25519")) => {
                let x = bytes("x")?;
                if x.len() != 32 {
                    return Err("an Ed25519 key must have 32 bytes");
                }
                Material::Ed25519(x)
            }
            // `oct` above all: a secret that is published is none.
            _ => return Err("of a kind that is not used"),
        };
        let algorithm = match text("alg") {
            None => None,
            // RFC 9864 gives EdDSA on this curve the name of the curve.
            Some("Ed25519") => Some(Algorithm::EdDSA),
            Some(name) => Some(Algorithm::parse(name).ok_or("for an algorithm that is not used")?),
        };
        let key = Key { kid: text("kid").map(str::to_owned), algorithm, material };
        match algorithm {
            Some(algorithm) if !key.fits(algorithm) => Err("its kind contradicts its algorithm"),
            _ => Ok(key),
        }
    }

    /// Whether it may verify signatures of this algorithm.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let kind = match self.material {
            Material::Rsa { .. } => {
                matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
            }
            Material::P256(_) => algorithm == ES256,
            Material::P384(_) => algorithm == ES384,
            Material::Ed25519(_) => algorithm == EdDSA,
        };
        kind && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Whether verifying takes so long that an event loop must not do it. Measured with ring 0.17 on
    /// a busy machine: RSA 2048 21 µs, P-256 92, Ed25519 108, RSA 3072 127, RSA 4096 225, P-384 1,324.
    pub fn is_slow(&self) -> bool {
        match &self.material {
            Material::P384(_) => true,
            Material::Rsa { n, .. } => n.len() > 384,
            _ => false,
        }
    }

    /// Whether the signature of `message` is by this key.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signed: &[u8]) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        let rsa = |parameters: &'static RsaParameters| match &self.material {
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signed).is_ok()
            }
            _ => false,
        };
        let other = |kind: &'static dyn signature::VerificationAlgorithm| match &self.material {
            Material::P256(key) | Material::P384(key) | Material::Ed25519(key) => {
                UnparsedPublicKey::new(kind, key).verify(message, signed).is_ok()
            }
            Material::Rsa { .. } => false,
        };
        match algorithm {
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => other(&signature::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => other(&signature::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => other(&signature::ED25519),
        }
    }
}

/// base64url without padding and without bits that nobody reads (RFC 7515 §2).
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}

fn without_zeros(mut number: Vec<u8>) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.drain(..zeros);
    number
}

/// The uncompressed form (SEC 1 §2.3.3).
fn point(x: Vec<u8>, y: Vec<u8>, bytes: usize) -> Result<Vec<u8>, &'static str> {
    if x.len() != bytes || y.len() != bytes {
        return Err("a coordinate of the wrong length");
    }
    Ok([&[4], &x[..], &y[..]].concat())
}

/// The usable keys of a JWK set.
#[derive(Debug, Default, PartialEq)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
    /// Keys that are of no use here, each with the reason.
    pub skipped: Vec<&'static str>,
}

impl KeySet {
    /// Reads a set (RFC 7517 §5); keys of unknown kinds are passed over, as that section asks.
    ///
    /// # Errors
    /// It is no set.
    pub fn parse(json: &[u8]) -> Result<KeySet, String> {
        let document = strict::object(json).map_err(|error| format!("not a JWK set: {error}"))?;
        let Some(Value::Array(keys)) = document.get("keys") else {
            return Err("not a JWK set: no array of keys".to_owned());
        };
        let mut set = KeySet::default();
        for key in keys {
            let read = match key {
                Value::Object(_) if set.keys.len() >= limits::JWKS_KEYS_MAX => {
                    Err("more keys than are kept")
                }
                Value::Object(jwk) => Key::read(jwk),
                _ => Err("it is no object"),
            };
            match read {
                Ok(key) => set.keys.push(Arc::new(key)),
                Err(reason) => set.skipped.push(reason),
            }
        }
        Ok(set)
    }

    /// The keys that may have signed a token: those with its key id, if it names one.
    pub fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
        let named = |key: &&Arc<Key>| kid.is_none() || key.kid.as_deref() == kid;
        let fitting = self.keys.iter().filter(named).filter(|key| key.fits(algorithm));
        fitting.take(limits::JWT_KEYS_TRIED_MAX).cloned().collect()
    }

    /// Whether a key of that id is in it, for whatever algorithm.
    pub fn has(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Where the newest keys lie: one thread puts them there, workers take them.
pub struct Shelf {
    /// Where they come from.
    pub uri: String,
    set: ArcSwapOption<KeySet>,
    /// Attempts to fetch that have ended.
    attempts: AtomicU64,
    /// Whether one is wanted or under way.
    wanted: AtomicBool,
    /// When the last one began, in milliseconds since `born`.
    began: AtomicU64,
    born: Instant,
    /// Who fetches.
    fetcher: OnceLock<Thread>,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}

impl Shelf {
    /// An empty one, for which a fetch is wanted.
    pub fn new(uri: &str) -> Shelf {
        Shelf {
            uri: uri.to_owned(),
            set: ArcSwapOption::empty(),
            attempts: AtomicU64::new(0),
            wanted: AtomicBool::new(true),
            began: AtomicU64::new(0),
            born: Instant::now(),
            fetcher: OnceLock::new(),
        }
    }

    /// The newest keys; `None` before the first ones came.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// Attempts to fetch that have ended.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Acquire)
    }

    /// Asks for newer keys; false if the last attempt was too short ago to make another one.
    pub fn want(&self) -> bool {
        if self.wanted.load(Ordering::Acquire) {
            return true;
        }
        let since = self.born.elapsed().as_millis() as u64 - self.began.load(Ordering::Acquire);
        if since < limits::JWKS_REFETCH_PAUSE.as_millis() as u64 {
            return false;
        }
        if !self.wanted.swap(true, Ordering::AcqRel)
            && let Some(fetcher) = self.fetcher.get()
        {
            fetcher.unpark();
        }
        true
    }

    /// For the fetcher: from now on it is the thread to wake.
    pub fn adopt(&self, fetcher: Thread) {
        let _ = self.fetcher.set(fetcher);
    }

    /// For the fetcher: whether somebody wants newer keys.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// For the fetcher: an attempt begins.
    pub fn begin(&self) {
        self.wanted.store(true, Ordering::Release);
        self.began.store(self.born.elapsed().as_millis() as u64, Ordering::Release);
    }

    /// For the fetcher: it has ended; without keys the last good ones stay.
    pub fn end(&self, keys: Option<KeySet>) {
        if let Some(keys) = keys
            // A set that is as it was stays: tokens that it verified need no second look.
            && self.keys().is_none_or(|old| *old != keys)
        {
            self.set.store(Some(Arc::new(keys)));
        }
        self.wanted.store(false, Ordering::Release);
        self.attempts.fetch_add(1, Ordering::AcqRel);
    }
}

/// How often a caller looks whether the keys that he waits for have come.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#"{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    fn rsa(n_bytes: usize, e: &str, more: &str) -> String {
        use base64::Engine;
        let n = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(vec![0xff; n_bytes]);
        format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"{more}}}"#)
    }

    fn set(keys: &[&str]) -> KeySet {
        KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes()).unwrap()
    }

    #[test]
    fn what_is_of_no_use_is_skipped() {
        let good = set(&[EC, &rsa(256, "AQAB", ""), r#"{"kty":"nonsense"}"#, "1"]);
        assert_eq!((good.len(), good.skipped.len()), (2, 2));
        for bad in [
            rsa(255, "AQAB", ""),
            rsa(1025, "AQAB", ""),
            rsa(256, "AQ", ""),
            rsa(256, "AQAA", ""),
            rsa(256, "", ""),
            rsa(256, "AQAB", r#","use":"enc""#),
            rsa(256, "AQAB", r#","key_ops":["sign"]"#),
            rsa(256, "AQAB", r#","alg":"ES256""#),
            rsa(256, "AQAB", r#","alg":"HS256""#),
            rsa(256, "AQAB", r#","alg":"RSA-OAEP""#),
            r#"{"kty":"oct","k":"AAAA"}"#.to_owned(),
            EC.replace("P-256", "P-384"),
            EC.replace("P-256", "secp256k1"),
            EC.replace(r#""y""#, r#""z""#),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.to_owned(),
        ] {
            assert_eq!(set(&[&bad]).len(), 0, "{bad}");
        }
        for none in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(KeySet::parse(none.as_bytes()).is_err(), "{none}");
        }
    }

    #[test]
    fn the_algorithm_belongs_to_the_key() {
        let bound = rsa(256, "AQAB", r#","kid":"b","alg":"PS256""#);
        let set = set(&[EC, &rsa(256, "AQAB", ""), &bound]);
        let count = |kid: Option<&str>, algorithm| set.candidates(kid, algorithm).len();
        assert_eq!(count(None, Algorithm::RS256), 1);
        assert_eq!(count(None, Algorithm::PS256), 2);
        assert_eq!(count(Some("b"), Algorithm::PS256), 1);
        assert_eq!(count(Some("b"), Algorithm::RS256), 0);
        assert_eq!(count(Some("a"), Algorithm::ES256), 1);
        assert_eq!(count(Some("a"), Algorithm::ES384), 0);
        assert_eq!(count(Some("c"), Algorithm::ES256), 0);
        assert!(set.has("a") && !set.has("c"));
    }

    #[test]
    fn names_of_algorithms() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::parse(algorithm.name()), Some(*algorithm));
        }
        for none in ["none", "None", "HS256", "rs256", "ES512", "EdDSA "] {
            assert_eq!(Algorithm::parse(none), None);
        }
    }

    #[test]
    fn the_shelf_keeps_the_last_good_keys() {
        let shelf = Shelf::new("http://h");
        assert!(shelf.is_wanted() && shelf.want() && shelf.keys().is_none());
        shelf.begin();
        shelf.end(Some(set(&[EC])));
        let first = shelf.keys().unwrap();
        assert_eq!((first.len(), shelf.attempts()), (1, 1));
        // Just fetched: not again for a while.
        assert!(!shelf.want() && !shelf.is_wanted());
        shelf.begin();
        shelf.end(None);
        assert!(Arc::ptr_eq(&first, &shelf.keys().unwrap()));
        shelf.end(Some(set(&[EC])));
        assert!(Arc::ptr_eq(&first, &shelf.keys().unwrap()), "nothing changed");
        shelf.end(Some(set(&[])));
        assert!(shelf.keys().unwrap().is_empty());
    }
}
