//! Certificates of a test's own, TLS clients and a TLS origin.
//!
//! Invariant: certificates name `localhost` or what the test says; nothing skips verification.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto,
};

use super::http1::{Conn, Stream};
use super::{DEADLINE, upstream};

/// A self-signed certificate, which is also its own authority.
pub struct Certificate {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Certificate {
    pub fn for_name(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a valid name");
        Self { cert_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    /// As `openssl req -x509` makes it by default: an authority's.
    pub fn authority(name: &str) -> Self {
        Self::with(name, |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained))
    }

    pub fn expired(name: &str) -> Self {
        Self::with(name, |params| params.not_after = rcgen::date_time_ymd(2001, 2, 3))
    }

    fn with(name: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).expect("a valid name");
        change(&mut params);
        let key = rcgen::KeyPair::generate().expect("a key");
        Self { cert_pem: params.self_signed(&key).expect("a certificate").pem(), key_pem: key.serialize_pem() }
    }

    pub fn write(&self, cert_file: &Path, key_file: &Path) {
        std::fs::write(cert_file, &self.cert_pem).expect("the folder is writable");
        std::fs::write(key_file, &self.key_pem).expect("the folder is writable");
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert_pem.as_bytes()).expect("it was just made")
    }
}

fn provider() -> Arc<crypto::CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

/// What a client takes up that has no provider of its own.
pub fn install_provider() {
    // Another test may have been first.
    let _ = crypto::ring::default_provider().install_default();
}

/// Trusts this certificate alone and offers these protocols.
pub fn client_config(trusted: &Certificate, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der()).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().expect("the defaults fit the provider");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn shutdown_write(&mut self) {
        self.conn.send_close_notify();
        self.conn.complete_io(&mut self.sock).ok();
    }
}

/// An HTTP/1.1 connection over TLS to `localhost`; the error when the handshake fails.
pub fn connect(addr: SocketAddr, trusted: &Certificate) -> Result<Conn, std::io::Error> {
    let name = ServerName::try_from("localhost").expect("a name");
    let client = ClientConnection::new(client_config(trusted, &["http/1.1"]), name).expect("a valid configuration");
    let tcp = TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    let mut stream = StreamOwned::new(client, tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Conn::over(stream))
}

/// An HTTP/1.1 origin over TLS that answers one request a connection with `body`.
pub fn origin(certificate: &Certificate, body: &'static str) -> SocketAddr {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from_pem_slice(certificate.key_pem.as_bytes()).expect("a key"));
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().expect("the defaults fit the provider");
    let config = builder.with_no_client_auth().with_single_cert(vec![certificate.der()], key).expect("they match");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            tcp.set_read_timeout(Some(DEADLINE)).ok();
            let server = ServerConnection::new(config.clone()).expect("a valid configuration");
            std::thread::spawn(move || answer_one(StreamOwned::new(server, tcp), body));
        }
    });
    addr
}

fn answer_one(mut stream: StreamOwned<ServerConnection, TcpStream>, body: &str) {
    use std::io::{Read as _, Write as _};
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).ok();
    stream.conn.send_close_notify();
    stream.flush().ok();
    // The other side closes once it has everything.
    upstream::hang(&mut stream.sock);
}
