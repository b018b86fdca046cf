//! Certificates and keys in files.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate with those between it and the authority, and its private key.
pub type CertificateAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// All certificates of a PEM file.
///
/// # Errors
/// Names the file, and says what is wrong with it.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = read(file)?;
    let found: Result<Vec<_>, _> = rustls_pemfile::certs(&mut content.as_slice()).collect();
    let found = found.map_err(|error| format!("{}: {error}", file.display()))?;
    if found.is_empty() { Err(format!("{}: no PEM certificate", file.display())) } else { Ok(found) }
}

/// Certificates and the private key of one PEM file, as MongoDB's `certificateKeyFile` has them.
///
/// # Errors
/// Names the file, and says what is wrong with it.
pub fn certificate_and_key(file: &Path) -> Result<CertificateAndKey, String> {
    let content = read(file)?;
    let key = rustls_pemfile::private_key(&mut content.as_slice())
        .map_err(|error| format!("{}: {error}", file.display()))?
        .ok_or_else(|| format!("{}: no PEM private key (without password)", file.display()))?;
    Ok((certificates(file)?, key))
}
