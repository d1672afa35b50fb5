//! Tokens that an issuer has signed: which are good, which are not, where their keys come from and
//! what becomes of it when that fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::reload::reload_unseen;
use crate::support::client::{ACCEPT, Client, JSON, call_params, message};
use crate::support::http::{Answer, Conn, once};
use crate::support::process::{Journal, Proxy, Setup, scratch, stdio_backend};
use crate::support::{wait_for, wait_until};

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key that signs.
enum Signer {
    Rsa(Box<RsaKeyPair>),
    Ec(&'static signature::EcdsaSigningAlgorithm, Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

impl Signer {
    fn rsa() -> Signer {
        let pem = include_str!("fixtures/issuer-rsa.pem");
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        Signer::Rsa(Box::new(RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("key")))
    }

    fn ec(kind: &'static signature::EcdsaSigningAlgorithm) -> Signer {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("key");
        let pair = EcdsaKeyPair::from_pkcs8(kind, der.as_ref(), &random).expect("key");
        Signer::Ec(kind, Box::new(pair))
    }

    fn p256() -> Signer {
        Signer::ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn p384() -> Signer {
        Signer::ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    fn ed() -> Signer {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
        Signer::Ed(Box::new(Ed25519KeyPair::from_pkcs8(der.as_ref()).expect("key")))
    }

    /// The public key as an issuer publishes it.
    fn jwk(&self, kid: &str) -> Value {
        match self {
            Signer::Rsa(pair) => {
                let public: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                let (n, e) = (public.n, public.e);
                json!({"kty": "RSA", "kid": kid, "use": "sig", "n": encode(n), "e": encode(e)})
            }
            Signer::Ec(kind, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let p256 = *kind == &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let curve = if p256 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "kid": kid, "x": encode(x), "y": encode(y)})
            }
            Signer::Ed(pair) => {
                let x = encode(pair.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x, "alg": "EdDSA"})
            }
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Signer::Rsa(pair) => {
                let padding: &'static dyn signature::RsaEncoding = match algorithm {
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, message, &mut signed).expect("signature");
                signed
            }
            Signer::Ec(_, pair) => {
                pair.sign(&random, message).expect("signature").as_ref().to_vec()
            }
            Signer::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims.
    fn token(&self, head: &Value, claims: &Value) -> String {
        let algorithm = head["alg"].as_str().unwrap_or_default();
        let message = format!("{}.{}", encode(head.to_string()), encode(claims.to_string()));
        let signed = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", encode(signed))
    }
}

const ISSUER: &str = "https://issuer.example.com";

fn claims(subject: &str, more: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": "the-proxy", "exp": now() + 600, "sub": subject,
    });
    for (name, value) in more.as_object().expect("an object") {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// An issuer's server of keys.
#[derive(Clone)]
struct Keys {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    status: u16,
    body: String,
    asked: usize,
}

impl Keys {
    fn serve(keys: &[Value]) -> Keys {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let state = State { status: 200, body: json!({ "keys": keys }).to_string(), asked: 0 };
        let served = Keys { addr, state: Arc::new(Mutex::new(state)) };
        let keys = served.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keys = keys.clone();
                std::thread::spawn(move || keys.answer(stream));
            }
        });
        served
    }

    fn answer(&self, mut stream: std::net::TcpStream) {
        let mut got = Vec::new();
        let mut room = [0; 1024];
        while let Ok(read @ 1..) = stream.read(&mut room) {
            got.extend_from_slice(&room[..read]);
            if !got.ends_with(b"\r\n\r\n") {
                continue;
            }
            got.clear();
            let answer = {
                let mut state = self.state.lock().unwrap();
                state.asked += 1;
                let (status, body) = (state.status, &state.body);
                let length = body.len();
                format!(
                    "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\n\r\n{body}"
                )
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn set(&self, status: u16, keys: &[Value]) {
        let mut state = self.state.lock().unwrap();
        state.status = status;
        state.body = json!({ "keys": keys }).to_string();
    }

    fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    /// The lines of an issuer with these keys.
    fn auth(&self, issuer: &str, audience: &str) -> String {
        format!(
            "[auth]\ntype = \"jwt\"\nissuer = \"{issuer}\"\naudience = \"{audience}\"\n\
             jwks_uri = \"http://{}/keys\"\n",
            self.addr
        )
    }

    fn proxy(&self, more: &str) -> Proxy {
        let auth = self.auth(ISSUER, "the-proxy") + more + "\n";
        let backends = [stdio_backend("a", &[]), stdio_backend("b", &[])].concat();
        Setup { backends, proxy: auth, ..Setup::default() }.start()
    }
}

const HELLO: &str =
    r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}"#;

fn hello(proxy: &Proxy, token: &str) -> Answer {
    let mut conn = Conn::open(proxy.addr);
    let body = message("1", "initialize", HELLO);
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\n{ACCEPT}{JSON}Authorization: Bearer {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        proxy.addr,
        body.len()
    );
    conn.send(head.as_bytes());
    conn.answer()
}

#[test]
fn every_algorithm_that_is_offered() {
    let (rsa, p256, p384, ed) = (Signer::rsa(), Signer::p256(), Signer::p384(), Signer::ed());
    let keys = [
        json!({"kty": "oct", "kid": "secret", "k": encode("secret")}),
        json!({"kty": "from the future", "kid": "f"}),
        rsa.jwk("rsa"),
        p256.jwk("p256"),
        p384.jwk("p384"),
        ed.jwk("ed"),
    ];
    let keys = Keys::serve(&keys);
    let proxy = keys.proxy("");
    for (signer, algorithm, kid) in [
        (&rsa, "RS256", "rsa"),
        (&rsa, "RS512", "rsa"),
        (&rsa, "PS256", "rsa"),
        (&p256, "ES256", "p256"),
        (&p384, "ES384", "p384"),
        (&ed, "EdDSA", "ed"),
    ] {
        for head in [json!({"alg": algorithm, "kid": kid}), json!({"alg": algorithm})] {
            let token = signer.token(&head, &claims("alice", json!({})));
            // Again and again, by both workers: known the second time.
            for _ in 0..6 {
                let mut client = Client::connect_as(proxy.addr, &token);
                client.wait_for_tools(&["a__echo", "b__echo"]);
                assert_eq!(client.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
            }
            // One bit of it.
            let mut forged = token.clone().into_bytes();
            let at = token.find('.').unwrap() + 10;
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(hello(&proxy, std::str::from_utf8(&forged).unwrap()).status, 401);
        }
    }
    assert_eq!(keys.asked(), 1, "the keys were fetched once");
}

#[test]
fn tokens_that_are_worth_nothing() {
    let (rsa, ec, stranger) = (Signer::rsa(), Signer::p256(), Signer::p256());
    let published = [rsa.jwk("rsa"), ec.jwk("ec")];
    let keys = Keys::serve(&published);
    let proxy = keys.proxy("");
    let head = json!({"alg": "ES256", "kid": "ec"});
    let good = ec.token(&head, &claims("alice", json!({})));
    assert_eq!(hello(&proxy, &good).status, 200);

    let part = |token: &str, at: usize| token.split('.').nth(at).unwrap().to_owned();
    let (body, signed) = (part(&good, 1), part(&good, 2));
    let mut bad: Vec<(&str, String)> = vec![
        ("nonsense", "nonsense".into()),
        ("two parts", good.rsplit_once('.').unwrap().0.into()),
        ("an empty signature", format!("{}.", good.rsplit_once('.').unwrap().0)),
        ("a fourth part", format!("{good}.x")),
        ("padding", format!("{good}=")),
        ("zeros as a signature", format!("{}.{body}.{}", part(&good, 0), encode([0; 64]))),
        ("a signature by somebody else", stranger.token(&head, &claims("alice", json!({})))),
        ("alg none", format!("{}.{body}.", encode(r#"{"alg":"none"}"#))),
        ("alg none, signed", format!("{}.{body}.{signed}", encode(r#"{"alg":"nOnE"}"#))),
        ("too long", ec.token(&head, &claims("a", json!({"x": "y".repeat(9000)})))),
    ];
    // A public key as a shared secret: what a verifier that trusts `alg` would compute.
    let message = format!("{}.{body}", encode(r#"{"alg":"HS256","kid":"ec"}"#));
    for secret in [published[1].to_string(), published[1]["x"].as_str().unwrap().to_owned()] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = ring::hmac::sign(&key, message.as_bytes());
        bad.push(("HS256 with a public key", format!("{message}.{}", encode(tag))));
    }
    let mut with_head = |what: &'static str, head: Value| {
        let signer = if head["alg"] == "RS256" { &rsa } else { &ec };
        bad.push((what, signer.token(&head, &claims("alice", json!({})))));
    };
    with_head("another key's algorithm", json!({"alg": "RS256", "kid": "ec"}));
    with_head("an extension", json!({"alg": "ES256", "kid": "ec", "crit": ["x"], "x": 1}));
    with_head("b64", json!({"alg": "ES256", "kid": "ec", "crit": ["b64"], "b64": false}));
    let url = format!("http://{}/evil", keys.addr);
    with_head("jku", json!({"alg": "ES256", "kid": "ec", "jku": url}));
    with_head("x5u", json!({"alg": "ES256", "kid": "ec", "x5u": url}));
    with_head("a kid that is a path", json!({"alg": "ES256", "kid": "../../etc/passwd"}));
    with_head("a kid that is a number", json!({"alg": "ES256", "kid": 1}));
    let own = stranger.jwk("ec");
    bad.push((
        "its own key",
        stranger
            .token(&json!({"alg": "ES256", "kid": "ec", "jwk": own}), &claims("alice", json!({}))),
    ));
    for (what, more) in [
        ("expired", json!({"exp": now() - 70})),
        ("no exp", json!({"exp": null})),
        ("exp as a text", json!({"exp": (now() + 600).to_string()})),
        ("not yet", json!({"nbf": now() + 600})),
        ("nbf as a text", json!({"nbf": "0"})),
        ("another issuer", json!({"iss": "https://issuer.example.com/"})),
        ("no issuer", json!({"iss": null})),
        ("another audience", json!({"aud": "the-proxy-2"})),
        ("other audiences", json!({"aud": ["a", "b"]})),
        ("no audience", json!({"aud": null})),
        ("nobody's", json!({"sub": null})),
    ] {
        bad.push((what, ec.token(&head, &claims("alice", more))));
    }
    // Members that stand twice: signed by the right key, and still not to be understood.
    for text in [
        format!(
            r#"{{"iss":"{ISSUER}","aud":"the-proxy","exp":{0},"sub":"a","sub":"b"}}"#,
            now() + 60
        ),
        format!(
            r#"{{"iss":"{ISSUER}","aud":"x","aud":"the-proxy","exp":{0},"sub":"a"}}"#,
            now() + 60
        ),
    ] {
        let message = format!("{}.{}", encode(head.to_string()), encode(text));
        let signed = ec.sign("ES256", message.as_bytes());
        bad.push(("a claim twice", format!("{message}.{}", encode(signed))));
    }
    let twice = format!("{}.{body}", encode(r#"{"alg":"none","alg":"ES256","kid":"ec"}"#));
    bad.push(("a header twice", format!("{twice}.{}", encode(ec.sign("ES256", twice.as_bytes())))));

    for (what, token) in bad {
        let answer = hello(&proxy, &token);
        assert_eq!(answer.status, 401, "{what}");
        let challenge = answer.head.field("www-authenticate").expect("a challenge");
        assert!(challenge.starts_with("Bearer error=\"invalid_token\""), "{challenge}");
        assert!(challenge.contains("resource_metadata=\"http://"), "{challenge}");
    }
    // Good within the leeway, and several audiences.
    for more in
        [json!({"exp": now() - 20}), json!({"nbf": now() + 20}), json!({"aud": ["a", "the-proxy"]})]
    {
        assert_eq!(hello(&proxy, &ec.token(&head, &claims("alice", more))).status, 200);
    }
    // Only the configured address was asked, and unknown keys did not make it be asked again.
    assert_eq!(keys.asked(), 1);
}

#[test]
fn the_algorithms_can_be_fewer() {
    let (rsa, ec) = (Signer::rsa(), Signer::p256());
    let keys = Keys::serve(&[rsa.jwk("rsa"), ec.jwk("ec")]);
    let proxy = keys.proxy("algorithms = [\"ES256\"]\nleeway_seconds = 0");
    let token = |signer: &Signer, alg: &str, kid: &str, more: Value| {
        signer.token(&json!({"alg": alg, "kid": kid}), &claims("alice", more))
    };
    assert_eq!(hello(&proxy, &token(&ec, "ES256", "ec", json!({}))).status, 200);
    assert_eq!(hello(&proxy, &token(&rsa, "RS256", "rsa", json!({}))).status, 401);
    let late = token(&ec, "ES256", "ec", json!({"exp": now() - 1}));
    assert_eq!(hello(&proxy, &late).status, 401);
    // What was good ends, also where it is remembered.
    let short = token(&ec, "ES256", "ec", json!({"exp": now() + 2}));
    let mut client = Client::connect_as(proxy.addr, &short);
    assert_eq!(client.ask("ping", "{}").status, 200);
    wait_until("its end", || client.ask("ping", "{}").status == 401);
}

#[test]
fn scopes_and_roles() {
    let ec = Signer::p256();
    let keys = Keys::serve(&[ec.jwk("ec")]);
    let proxy = keys.proxy(
        r#"required_scopes = ["mcp", "use"]
        [[auth.roles]]
        name = "echoes"
        allow_tools = ["*__echo"]
        [[auth.roles]]
        name = "stats"
        allow_tools = ["*__stats"]
        deny_tools = ["b__*"]
        [[auth.roles]]
        name = "chief"
        admin = true
        [[auth.roles]]
        name = "none"
        allow_tools = []
        [auth.role_mapping]
        claim = "groups"
        mapping = { e = "echoes", s = "stats", c = "chief", n = "none" }"#,
    );
    let token = |subject: &str, scope: Value, groups: Value| {
        let more = json!({"scope": scope, "groups": groups});
        ec.token(&json!({"alg": "ES256", "kid": "ec"}), &claims(subject, more))
    };
    for (scope, groups) in [
        (json!("mcp"), json!("e")),
        (json!(null), json!("e")),
        (json!("mcp use2"), json!("e")),
        (json!("mcp use"), json!(null)),
        (json!("mcp use"), json!("x y")),
    ] {
        let answer = hello(&proxy, &token("alice", scope, groups));
        assert_eq!(answer.status, 403);
        let challenge = answer.head.field("www-authenticate").expect("a challenge");
        let all = "Bearer error=\"insufficient_scope\", scope=\"mcp use\", resource_metadata=\"";
        assert!(challenge.starts_with(all), "{challenge}");
    }
    let client = |scope: Value, groups: Value| {
        Client::connect_as(proxy.addr, &token("alice", scope, groups))
    };
    let mut chief = client(json!("mcp use"), json!("c"));
    chief.wait_for_tools(&["a__echo", "b__echo"]);
    let tools = |groups: Value| client(json!(["use", "mcp"]), groups).names("tools/list");
    assert_eq!(tools(json!("e")), ["a__echo", "b__echo"]);
    assert_eq!(tools(json!(["s"])), ["a__stats"]);
    // A union, less what one of them denies.
    assert_eq!(tools(json!("e s x")), ["a__echo", "a__stats"]);
    assert_eq!(tools(json!("n")), Vec::<String>::new());
    assert_eq!(tools(json!("n e")), ["a__echo", "b__echo"]);
    assert_eq!(tools(json!("c")), chief.names("tools/list"));
    let mut echoes = client(json!("mcp use"), json!("e"));
    assert_eq!(echoes.call("b__echo", r#"{"payload":"x"}"#).said(), "x");
    assert_eq!(echoes.call("b__stats", "{}").error(), (-32602, "Unknown tool: b__stats".into()));
    // The rights are those of the token that a request shows, not those of its session.
    echoes.extra =
        format!("Authorization: Bearer {}\r\n", token("alice", json!("mcp use"), json!("s")));
    assert_eq!(echoes.names("tools/list"), ["a__stats"]);
    // And a session is its subject's.
    echoes.extra =
        format!("Authorization: Bearer {}\r\n", token("bob", json!("mcp use"), json!("e")));
    assert_eq!(echoes.ask("tools/list", "{}").status, 404);

    let admin = |groups: &str| {
        let line = format!(
            "Authorization: Bearer {}\r\n",
            token("alice", json!("mcp use"), json!(groups))
        );
        once(proxy.addr, "GET", "/admin/backends", &line).status
    };
    assert_eq!(admin("e"), 403);
    assert!(!matches!(admin("e c"), 401 | 403));
    let document = once(proxy.addr, "GET", "/.well-known/oauth-protected-resource/mcp", "").json();
    assert_eq!(document["authorization_servers"], json!([ISSUER]));
    assert_eq!(document["scopes_supported"], json!(["mcp", "use"]));
    assert_eq!(document["resource"], format!("http://{}/mcp", proxy.addr));
}

#[test]
fn keys_come_late_go_and_stay() {
    let (one, two) = (Signer::p256(), Signer::ed());
    let keys = Keys::serve(&[]);
    keys.set(500, &[]);
    let proxy = keys.proxy("");
    let first = one.token(&json!({"alg": "ES256", "kid": "1"}), &claims("alice", json!({})));
    wait_for("an attempt", || (keys.asked() > 0).then_some(()));
    // The start did not wait for them, and does not give up.
    assert_eq!(once(proxy.addr, "GET", "/livez", "").status, 200);
    assert_eq!(hello(&proxy, &first).status, 401);
    keys.set(200, &[one.jwk("1")]);
    wait_until("the keys", || hello(&proxy, &first).status == 200);
    // What the issuer cannot serve any more goes on to be known.
    keys.set(500, &[]);
    let asked = keys.asked();
    assert_eq!(hello(&proxy, &first).status, 200);
    // A flood of unknown keys asks at most once.
    for n in 0..20 {
        let head = json!({"alg": "EdDSA", "kid": format!("unknown {n}")});
        assert_eq!(hello(&proxy, &two.token(&head, &claims("alice", json!({})))).status, 401);
    }
    assert!(keys.asked() <= asked + 1, "{} after {asked}", keys.asked());
    assert_eq!(hello(&proxy, &first).status, 200);
}

/// As long as the pause between two fetches that unknown keys may cause.
#[test]
fn a_new_key_is_fetched_when_it_is_shown() {
    let (one, two) = (Signer::p256(), Signer::ed());
    let keys = Keys::serve(&[one.jwk("1")]);
    let proxy = keys.proxy("");
    let first = one.token(&json!({"alg": "ES256", "kid": "1"}), &claims("alice", json!({})));
    let second = two.token(&json!({"alg": "EdDSA", "kid": "2"}), &claims("alice", json!({})));
    assert_eq!(hello(&proxy, &first).status, 200);
    keys.set(200, &[two.jwk("2")]);
    wait_until("the new key", || hello(&proxy, &second).status == 200);
    assert_eq!(keys.asked(), 2);
    // A key that was withdrawn is worth nothing, also to those who were known by it.
    assert_eq!(hello(&proxy, &first).status, 401);
}

/// Another issuer, with other keys and for another audience, is put in the place of the first.
#[test]
fn a_reload_switches_the_issuer() {
    const OTHER: &str = "https://other.example.com";
    let scratch = scratch();
    let journal = Journal::new(&scratch, "a");
    let (one, two) = (Signer::p256(), Signer::p256());
    // The same name for both keys: it is the issuer that tells them apart.
    let (first, second) = (Keys::serve(&[one.jwk("k")]), Keys::serve(&[two.jwk("k")]));
    let head = json!({"alg": "ES256", "kid": "k"});
    let old = |subject: &str| one.token(&head, &claims(subject, json!({})));
    let there = json!({"iss": OTHER, "aud": "elsewhere"});
    let new = |subject: &str| two.token(&head, &claims(subject, there.clone()));
    let backends = [stdio_backend("a", &["--journal", journal.path()])];
    let before = first.auth(ISSUER, "the-proxy");
    let setup = Setup { backends: backends.concat(), proxy: before.clone(), ..Setup::default() };
    let proxy = setup.start();
    // Of four connections at least one is on either worker, as a rule: each knows the token.
    let mut alices: Vec<Client> =
        (0..4).map(|_| Client::connect_as(proxy.addr, &old("alice"))).collect();
    for alice in &mut alices {
        alice.wait_for_tools(&["a__echo"]);
    }
    assert_eq!(hello(&proxy, &new("bob")).status, 401);
    let listening = alices[0].listen();
    let mut slow = alices[1].again();
    slow.send(&message("7", "tools/call", &call_params("a__sleep", r#"{"ms":1500}"#)));
    journal.wait_count("call sleep", 1);

    reload_unseen(&proxy, &second.auth(OTHER, "elsewhere"), &backends);
    for alice in &mut alices {
        let told = alice.post(&message("1", "tools/list", "{}"));
        assert_eq!(told.status, 401, "{told:?}");
        assert_eq!(hello(&proxy, &old("alice")).status, 401);
    }
    // What was let in ends well; who only listens has to show a token of the new one.
    assert_eq!(slow.told().said(), "slept");
    listening.until_end();
    wait_until("the new keys", || hello(&proxy, &new("bob")).status == 200);
    let mut bob = Client::connect_as(proxy.addr, &new("bob"));
    assert_eq!(bob.call("a__echo", r#"{"payload":"x"}"#).said(), "x");
    for alice in &mut alices {
        alice.extra.clone_from(&bob.extra);
        assert_eq!(alice.post(&message("2", "tools/list", "{}")).status, 404);
        assert_eq!(bob.again().call("a__echo", r#"{"payload":"y"}"#).said(), "y");
    }
    // Half of the one and half of the other are neither's.
    for (what, token) in [
        ("the old key", one.token(&head, &claims("bob", there.clone()))),
        ("the old issuer", two.token(&head, &claims("bob", json!({"aud": "elsewhere"})))),
        ("the old audience", two.token(&head, &claims("bob", json!({"iss": OTHER})))),
    ] {
        assert_eq!(hello(&proxy, &token).status, 401, "{what}");
    }
    let document = once(proxy.addr, "GET", "/.well-known/oauth-protected-resource/mcp", "").json();
    assert_eq!(document["authorization_servers"], json!([OTHER]));

    // The audience alone; then back: the sessions are still there, each for its own.
    reload_unseen(&proxy, &second.auth(OTHER, "third"), &backends);
    for _ in 0..8 {
        assert_eq!(hello(&proxy, &new("bob")).status, 401);
    }
    reload_unseen(&proxy, &before, &backends);
    assert_eq!(hello(&proxy, &new("bob")).status, 401);
    for alice in &mut alices {
        alice.extra = format!("Authorization: Bearer {}\r\n", old("alice"));
        wait_until("the old keys", || alice.ask("ping", "{}").status == 200);
        assert_eq!(alice.call("a__echo", r#"{"payload":"z"}"#).said(), "z");
    }
    assert_eq!((journal.count("start "), journal.count("call sleep")), (1, 1));
}
