//! Certificates, authorities and private keys from PEM files; one place says what can be wrong with them.
//!
//! Invariant: what is read here without an error can be used, by a listener or for an upstream.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use pingora::protocols::tls::CaType;
use pingora::tls::{CertificateDer, RootCertStore, ServerConfig, load_certs_and_key_files, version};
use pingora::utils::tls::{WrappedX509, parse_x509};

use crate::config::Tls;
use crate::domain::Timestamp;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|e| format!("`{}` can't be read: {e}", file.display()))
}

/// The certificates of a file, at least one.
fn certificates(file: &Path) -> Result<Vec<WrappedX509>, String> {
    let name = file.display();
    let text = read(file)?;
    let mut found = Vec::new();
    // Parses, and unlike Pingora's parser says what is wrong instead of panicking.
    let mut parser = RootCertStore::empty();
    let mut rest = text.as_str();
    while let Some((_, behind)) = rest.split_once(BEGIN) {
        let (body, after) = behind.split_once(END).ok_or_else(|| format!("`{name}` ends within a certificate"))?;
        rest = after;
        let compact: String = body.split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map_err(|e| format!("`{name}` holds a certificate that is not base64: {e}"))?;
        parser
            .add(CertificateDer::from(der.clone()))
            .map_err(|e| format!("`{name}` holds a certificate that can't be used: {e}"))?;
        found.push(der);
    }
    if found.is_empty() {
        return Err(format!("`{name}` holds no certificate; it has to be PEM, with `{BEGIN}`"));
    }
    // The second parser may be stricter.
    let parsed =
        std::panic::catch_unwind(|| found.into_iter().map(|der| WrappedX509::new(der, parse_x509)).collect::<Vec<_>>());
    parsed.map_err(|_| format!("`{name}` holds a certificate that can't be parsed"))
}

/// For an upstream's connections.
pub fn authorities(file: &Path) -> Result<Arc<CaType>, String> {
    Ok(Arc::from(certificates(file)?.into_boxed_slice()))
}

/// That the file holds certificates; `Some` tells when the first of them was, or will be, out of its time.
pub fn validity(file: &Path, now: Timestamp) -> Result<Option<String>, String> {
    let certificates = certificates(file)?;
    let validity = &certificates[0].borrow_cert().validity;
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let at = |seconds: i64| {
        Timestamp::from_unix_millis(seconds.saturating_mul(1000)).map_or_else(String::new, |t| format!(" {t}"))
    };
    let now = now.unix_seconds();
    Ok(if until < now {
        Some(format!("the certificate in `{}` expired{}; renew it", file.display(), at(until)))
    } else if from > now {
        Some(format!("the certificate in `{}` is not valid before{}", file.display(), at(from)))
    } else {
        None
    })
}

/// That the file holds a private key of a kind that can be used. Nothing of it is in the error.
pub fn private_key(file: &Path) -> Result<(), String> {
    let name = file.display();
    let text = read(file)?;
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(format!("the private key in `{name}` is encrypted; use one that `openssl pkey` has decrypted"));
    }
    let kinds = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
    if kinds.iter().any(|kind| text.contains(&format!("-----BEGIN {kind}-----"))) {
        return Ok(());
    }
    Err(format!("`{name}` holds no private key; it has to be PEM, with `-----BEGIN PRIVATE KEY-----`"))
}

/// What TLS computes with, for whoever speaks it beside Pingora. Once is enough.
pub fn install_cryptography() {
    pingora::tls::install_default_crypto_provider();
}

/// A listener's certificate and key, which have to belong together. TLS 1.2 and 1.3, `h2` and `http/1.1` by ALPN.
pub fn server_config(files: &Tls) -> Result<ServerConfig, String> {
    certificates(&files.cert_file)?;
    private_key(&files.key_file)?;
    install_cryptography();
    let (cert, key) = (files.cert_file.to_string_lossy(), files.key_file.to_string_lossy());
    let (certs, der) = load_certs_and_key_files(&cert, &key)
        .map_err(|e| format!("`{cert}` and `{key}` can't be read: {e}"))?
        .ok_or_else(|| format!("`{key}` holds no private key that can be used"))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&version::TLS12, &version::TLS13])
        .with_no_client_auth()
        .with_single_cert(certs, der)
        .map_err(|e| format!("the key in `{key}` can't be used with the certificate in `{cert}`: {e}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
