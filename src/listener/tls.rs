//! Encryption of links to clients.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::cluster::pem::{certificate_and_key, certificates};

/// The files of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, those between it and the authority, and its private key; PEM.
    pub certificate_key_file: PathBuf,
    /// Clients must show a certificate of one of these authorities; PEM.
    pub ca_file: Option<PathBuf>,
}

/// Reads the files.
///
/// # Errors
/// Which file cannot be used and why.
pub fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &files.ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let named = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| named(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| named(&error))?)
        }
    };
    let (chain, key) = certificate_and_key(&files.certificate_key_file)?;
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{}: {error}", files.certificate_key_file.display()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file() {
        let files = TlsFiles { certificate_key_file: "/nowhere/server.pem".into(), ca_file: None };
        assert!(acceptor(&files).err().unwrap().contains("/nowhere/server.pem"));
        let files = TlsFiles { ca_file: Some("/nowhere/ca.pem".into()), ..files };
        assert!(acceptor(&files).err().unwrap().contains("/nowhere/ca.pem"));
    }
}
