//! Owns: TLS towards backends and clients: what is trusted, and a session as a state machine.
//! Never: sockets, clocks or files; bytes go in and out through buffers.
//! Next: `client`, the same wire from the other side.
//!
//! RFC 8446, RFC 5246 through rustls.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use std::fmt;
use std::io::{BufRead, Write};
use std::sync::Arc;

/// What a client trusts and shows; everything in PEM.
#[derive(Clone, Copy, Default)]
pub struct Trust<'a> {
    /// Certificate authorities to trust *instead of* the host's own.
    pub ca: Option<&'a [u8]>,
    /// Certificate chain and private key to show when asked.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Takes any certificate: no protection against anybody on the way.
    pub insecure_skip_verify: bool,
}

/// Why TLS settings cannot be used.
#[derive(Debug)]
pub enum TrustFault {
    /// No certificate that can be used in the given authorities.
    Ca(String),
    /// The host has no certificate authorities.
    NoSystemRoots(String),
    /// The own certificate or key cannot be used.
    Identity(String),
    /// The cryptography library refuses its own defaults.
    Library(rustls::Error),
}

impl fmt::Display for TrustFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustFault::Ca(why) => write!(f, "unusable certificate authority: {why}"),
            TrustFault::NoSystemRoots(why) => {
                write!(f, "the host has no usable certificate authorities: {why}")
            }
            TrustFault::Identity(why) => write!(f, "unusable certificate or key: {why}"),
            TrustFault::Library(error) => write!(f, "TLS is not available: {error}"),
        }
    }
}

impl std::error::Error for TrustFault {}

/// Compiles TLS settings. Reads the host's authorities from disk unless `trust` makes that needless,
/// so it is for the control thread. Sessions that share the result resume each other.
///
/// # Errors
/// Says which of the inputs cannot be used; never shows a key.
pub fn client_config(trust: Trust<'_>) -> Result<Arc<ClientConfig>, TrustFault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TrustFault::Library)?;
    let builder = if trust.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(trust.ca)?)
    };
    let mut config = match trust.identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let (chain, key) = identity(chain, key)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| TrustFault::Identity(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Compiles the settings of a listener; everything in PEM. With `client_ca`, clients must show a
/// certificate by one of these authorities.
///
/// # Errors
/// Says which of the inputs cannot be used; never shows a key.
pub fn server_config(
    chain: &[u8],
    key: &[u8],
    client_ca: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TrustFault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TrustFault::Library)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(Some(ca))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|error| TrustFault::Ca(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity(chain, key)?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| TrustFault::Identity(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions are resumed by tickets that clients keep: a table of them would be shared, behind a
    // lock. That of the ticket keys is held for writing once in six hours.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TrustFault::Library)?;
    Ok(Arc::new(config))
}

fn identity(
    chain: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TrustFault> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| TrustFault::Identity(format!("certificate: {error}")))?;
    if chain.is_empty() {
        return Err(TrustFault::Identity("no certificate in the file".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| TrustFault::Identity(format!("key: {error}")))?;
    Ok((chain, key))
}

fn roots(ca: Option<&[u8]>) -> Result<RootCertStore, TrustFault> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| TrustFault::Ca(error.to_string()))?;
                roots.add(certificate).map_err(|error| TrustFault::Ca(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(TrustFault::Ca("no certificate in the file".to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // A host may carry a few that nobody can read; the others count.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
                return Err(TrustFault::NoSystemRoots(why.join("; ")));
            }
        }
    }
    Ok(roots)
}

/// `insecure_skip_verify`: any certificate will do, though its owner must still hold its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// One side of one TLS session.
pub(crate) struct Session {
    tls: Connection,
    /// The peer said that nothing more comes.
    ended: bool,
}

impl Session {
    /// The client's side of a session that has still to shake hands; its first message is in `out` afterwards.
    pub(crate) fn new(
        config: Arc<ClientConfig>,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<Session, rustls::Error> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| rustls::Error::General("not a server name".to_owned()))?;
        let mut session = Session::of(ClientConnection::new(config, name)?.into());
        session.collect(out)?;
        Ok(session)
    }

    /// The server's side of a session in which the client has the first word.
    pub(crate) fn accept(config: Arc<ServerConfig>) -> Result<Session, rustls::Error> {
        Ok(Session::of(ServerConnection::new(config)?.into()))
    }

    fn of(mut tls: Connection) -> Session {
        // What is encrypted is bounded by whoever made it, and goes out at once.
        tls.set_buffer_limit(None);
        Session { tls, ended: false }
    }

    /// Says that nothing more comes, so that the peer can tell an end from a cut.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        self.tls.send_close_notify();
        self.collect(out)
    }

    /// Whether the handshake goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether the peer ended the session properly, so that what came before is whole.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Appends the ciphertext of `plain` to `out`.
    pub(crate) fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let written = self.tls.writer().write_all(plain);
        written.map_err(|error| rustls::Error::General(error.to_string()))?;
        self.collect(out)
    }

    /// Takes received ciphertext, appends what it says to `plain`, and what has to be said in turn
    /// to `out`; after an error, that is the alert.
    pub(crate) fn decrypt(
        &mut self,
        mut cipher: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        while !cipher.is_empty() {
            // Takes from memory what fits into its buffers, and fails only if nothing does: then
            // `reader` below was not emptied, which it is each time around.
            let taken = self.tls.read_tls(&mut cipher);
            let taken = taken.map_err(|error| rustls::Error::General(error.to_string()))?;
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    self.collect(out)?;
                    return Err(error);
                }
            };
            self.ended |= state.peer_has_closed();
            let mut left = state.plaintext_bytes_to_read();
            plain.reserve(left);
            let mut reader = self.tls.reader();
            while left > 0 {
                let Ok(piece) = reader.fill_buf() else { break };
                let length = piece.len();
                plain.extend_from_slice(piece);
                reader.consume(length);
                left = left.saturating_sub(length.max(1));
            }
            if taken == 0 {
                // Nothing follows the end of a session.
                break;
            }
        }
        self.collect(out)
    }

    fn collect(&mut self, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        while self.tls.wants_write() {
            let written = self.tls.write_tls(out);
            written.map_err(|error| rustls::Error::General(error.to_string()))?;
        }
        Ok(())
    }
}
