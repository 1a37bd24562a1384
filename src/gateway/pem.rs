//! Certificate authorities from a PEM file, in the form that Pingora's peers take.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use pingora::protocols::tls::CaType;
use pingora::tls::{CertificateDer, RootCertStore};
use pingora::utils::tls::{WrappedX509, parse_x509};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

pub fn authorities(file: &Path) -> Result<Arc<CaType>, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| format!("`{name}` can't be read: {e}"))?;
    let mut store = RootCertStore::empty();
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, behind)) = rest.split_once(BEGIN) {
        let (body, after) = behind.split_once(END).ok_or_else(|| format!("`{name}` ends within a certificate"))?;
        rest = after;
        let compact: String = body.split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map_err(|e| format!("`{name}` holds a certificate that is not base64: {e}"))?;
        // Checked here, because Pingora would panic or fail every connection.
        store.add(CertificateDer::from(der.clone())).map_err(|e| format!("`{name}` can't be used: {e}"))?;
        found.push(der);
    }
    if found.is_empty() {
        return Err(format!("`{name}` holds no certificate"));
    }
    let parsed =
        std::panic::catch_unwind(|| found.into_iter().map(|der| WrappedX509::new(der, parse_x509)).collect::<Vec<_>>());
    // Pingora parses a second time with another parser, which panics where it is stricter.
    parsed.map(|list| Arc::from(list.into_boxed_slice())).map_err(|_| format!("`{name}` can't be used as an authority"))
}
