//! Owns: TLS clients towards backends: their files, and one client for all that have the same.
//! Never: what is done with one.
//! Next: `access`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::control::config::{TlsTable, read_bounded};
use crate::http::tls::{self, Trust, TrustFault};
use crate::limits;

/// A key of `[backends.tls]` and what is wrong with it.
pub(in crate::control) type TlsFault = (&'static str, String);

/// What a TLS client is made of.
#[derive(Hash)]
pub(in crate::control) struct TlsFiles {
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    insecure_skip_verify: bool,
}

impl TlsFiles {
    pub(in crate::control) fn read(table: &TlsTable, folder: &Path) -> Result<TlsFiles, TlsFault> {
        let read = |key: &'static str, path: &Option<String>| -> Result<_, TlsFault> {
            let Some(path) = path else { return Ok(None) };
            let path = folder.join(path);
            read_bounded(&path, limits::SECRET_BYTES_MAX)
                .map(Some)
                .map_err(|message| (key, format!("the file {} {message}", path.display())))
        };
        Ok(TlsFiles {
            ca: read("ca", &table.ca)?,
            cert: read("cert", &table.cert)?,
            key: read("key", &table.key)?,
            insecure_skip_verify: table.insecure_skip_verify,
        })
    }

    /// The client for these settings; one for all backends and reloads that have the same: TLS
    /// sessions are resumed across them, and the host's authorities are read once.
    pub(in crate::control) fn client(&self) -> Result<Arc<rustls::ClientConfig>, TlsFault> {
        static CLIENTS: Mutex<Vec<(u64, Weak<rustls::ClientConfig>)>> = Mutex::new(Vec::new());
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        let wanted = hasher.finish();
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|(_, client)| client.strong_count() > 0);
        let known = clients.iter().find(|(key, _)| *key == wanted);
        if let Some(client) = known.and_then(|(_, client)| client.upgrade()) {
            return Ok(client);
        }
        let trust = Trust {
            ca: self.ca.as_deref(),
            identity: self.cert.as_deref().zip(self.key.as_deref()),
            insecure_skip_verify: self.insecure_skip_verify,
        };
        let client = tls::client_config(trust).map_err(|fault| match fault {
            TrustFault::Identity(_) => ("cert", fault.to_string()),
            _ => ("ca", fault.to_string()),
        })?;
        clients.push((wanted, Arc::downgrade(&client)));
        Ok(client)
    }
}
