//! Owns: fetching an issuer's keys, on a thread of its own.
//! Never: a worker's time; what the keys are for (`auth`); addresses other than the configured one.
//! Next: `reload`.
//!
//! At the start, hourly, and when a token names an unknown key, but then at most every 30 seconds.
//! What cannot be fetched or read changes nothing: the last good keys stay in force.

use std::io::Read;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::tls::{RootCerts, TlsConfig};

use crate::auth::keys::{KeySet, Shelf};
use crate::limits;

/// How often the thread looks whether the proxy is still there.
const TICK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the last holder of the shelf.
///
/// # Errors
/// The system starts no thread.
pub(super) fn start(shelf: &Arc<Shelf>) -> std::io::Result<()> {
    let held = Arc::downgrade(shelf);
    let thread =
        std::thread::Builder::new().name("mcp-jwks".to_owned()).spawn(move || run(&held))?;
    shelf.adopt(thread.thread().clone());
    Ok(())
}

fn run(held: &Weak<Shelf>) {
    let mut due = Instant::now();
    let mut pause = limits::JWKS_RETRY_INITIAL;
    let mut agent = None;
    loop {
        let Some(shelf) = held.upgrade() else { return };
        if Instant::now() >= due || shelf.is_wanted() {
            shelf.begin();
            match fetch(&shelf.uri, &mut agent) {
                Ok(keys) => {
                    tracing::debug!(keys = keys.len(), "signing keys fetched");
                    if keys.is_empty() {
                        tracing::warn!("the issuer publishes no key that can be used");
                    }
                    for reason in &keys.skipped {
                        tracing::debug!(reason, "a signing key is not used");
                    }
                    shelf.end(Some(keys));
                    due = Instant::now() + limits::JWKS_INTERVAL;
                    pause = limits::JWKS_RETRY_INITIAL;
                }
                Err(error) => {
                    tracing::warn!(%error, "signing keys not fetched; the last ones stay in force");
                    shelf.end(None);
                    due = Instant::now() + pause;
                    pause = (pause * 2).min(limits::JWKS_REFETCH_PAUSE);
                }
            }
        }
        drop(shelf);
        std::thread::park_timeout(TICK.min(due.saturating_duration_since(Instant::now())));
    }
}

fn fetch(uri: &str, agent: &mut Option<ureq::Agent>) -> Result<KeySet, String> {
    let agent = agent.get_or_insert_with(|| {
        let mut tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        // Read from disk, which is for an issuer that needs them alone.
        if uri.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:")) {
            let found = rustls_native_certs::load_native_certs().certs;
            let certs = found.iter().map(|cert| ureq::tls::Certificate::from_der(cert).to_owned());
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certs.collect())));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(limits::JWKS_TIMEOUT))
            // Whoever could redirect this would decide whose tokens are good.
            .max_redirects(0)
            .max_redirects_will_error(true)
            .max_response_header_size(limits::HEAD_BYTES_MAX)
            .proxy(None)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        ureq::Agent::new_with_config(config)
    });
    let answer = agent.get(uri).header("Accept", "application/json").call();
    let mut answer = answer.map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(format!("the issuer answered with status {}", answer.status()));
    }
    let mut body = Vec::new();
    let mut reader = answer.body_mut().as_reader().take(limits::JWKS_BYTES_MAX as u64 + 1);
    reader.read_to_end(&mut body).map_err(|error| error.to_string())?;
    if body.len() > limits::JWKS_BYTES_MAX {
        return Err(format!("the issuer's keys are over {} bytes", limits::JWKS_BYTES_MAX));
    }
    KeySet::parse(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers one request with these bytes.
    fn once(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut room = [0; 4096];
            let _ = stream.read(&mut room);
            let _ = stream.write_all(&answer);
        });
        format!("http://{addr}/keys")
    }

    fn body(text: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
    }

    #[test]
    fn only_a_bounded_set_that_was_asked_for() {
        assert!(fetch(&once(body(r#"{"keys":[]}"#)), &mut None).unwrap().is_empty());
        let target = once(body(r#"{"keys":[]}"#));
        for (answer, expected) in [
            (body("nonsense"), "not a JWK set"),
            (b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n".to_vec(), "404"),
            (
                format!("HTTP/1.1 302 F\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n").into(),
                "302",
            ),
            (body(&" ".repeat(limits::JWKS_BYTES_MAX + 1)), "over"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec(), ""),
        ] {
            let error = fetch(&once(answer), &mut None).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(fetch("http://127.0.0.1:1/", &mut None).is_err());
    }

    #[test]
    fn the_thread_ends_with_the_shelf() {
        let shelf = Arc::new(Shelf::new(&once(body(r#"{"keys":[]}"#))));
        start(&shelf).unwrap();
        while shelf.attempts() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(shelf.keys().is_some());
        let held = Arc::downgrade(&shelf);
        drop(shelf);
        while held.upgrade().is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
