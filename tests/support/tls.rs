//! Owns: certificates of a test's own authority, and a TLS front before a plain server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
}

/// A certificate and its key, as PEM.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// For these names or addresses.
    pub(crate) fn identity(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let params = CertificateParams::new(names).expect("params");
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }
}

/// Ends TLS and passes the plain bytes on to `behind`, for as long as the test runs.
pub(crate) fn front(behind: SocketAddr, own: &Identity, clients: Option<&Authority>) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM");
            roots.add(root).expect("root");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("verifier"))
        }
    };
    let cert = CertificateDer::from_pem_slice(own.cert.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
    let config = Arc::new(builder.with_single_cert(vec![cert], key).expect("config"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || {
                // A refused handshake is what some tests are about.
                let _ = connection(stream, config, behind);
            });
        }
    });
    addr
}

fn connection(
    mut client: TcpStream,
    config: Arc<ServerConfig>,
    behind: SocketAddr,
) -> std::io::Result<()> {
    let mut tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut client)?;
    }
    let mut plain = TcpStream::connect(behind)?;
    plain.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let tls = Arc::new(Mutex::new(tls));
    let (ours, mut from, mut to) = (tls.clone(), plain.try_clone()?, client.try_clone()?);
    // From the server to the client.
    std::thread::spawn(move || {
        let mut room = [0; 16 * 1024];
        while let Ok(read) = from.read(&mut room) {
            let mut tls = ours.lock().unwrap();
            if read == 0 {
                tls.send_close_notify();
            } else if tls.writer().write_all(&room[..read]).is_err() {
                break;
            }
            while tls.wants_write() {
                if tls.write_tls(&mut to).is_err() {
                    return;
                }
            }
            if read == 0 {
                let _ = to.shutdown(Shutdown::Both);
                break;
            }
        }
    });
    // From the client to the server: the lock is never held while waiting for the network.
    let mut room = vec![0; 16 * 1024];
    loop {
        let mut out = Vec::new();
        {
            let mut tls = tls.lock().unwrap();
            match tls.reader().read_to_end(&mut out) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                other => drop(other?),
            }
        }
        plain.write_all(&out)?;
        let read = client.read(&mut room)?;
        if read == 0 {
            return plain.shutdown(Shutdown::Both);
        }
        let mut tls = tls.lock().unwrap();
        let mut bytes = &room[..read];
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            tls.process_new_packets().map_err(std::io::Error::other)?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut client)?;
        }
    }
}
