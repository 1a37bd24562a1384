//! Listening sockets and their certificates.
//!
//! Invariant: every socket is bound and every certificate read before the first connection is accepted; a
//! certificate that can't be read later leaves the one in use.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::listeners::tls::Acceptor;
use pingora::tls::{ServerConfig, load_certs_and_key_files, version};

use super::sys;
use crate::config::{Listener, Tls};

/// Why the gateway can't listen.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {message}")]
pub struct BindError {
    /// The setting to change: `server.listeners[0].address`.
    pub key: String,
    pub message: String,
}

/// A bound listener; each worker accepts on a clone of the same socket.
pub struct Bound {
    pub socket: TcpListener,
    pub address: SocketAddr,
    pub tls: Option<Arc<Certificate>>,
    pub h2c: bool,
}

impl Bound {
    pub fn bind(listener: &Listener, key: &str) -> Result<Self, BindError> {
        let fail = |what: &str, message: String| BindError { key: format!("{key}.{what}"), message };
        let tls = listener
            .tls
            .as_ref()
            .map(|files| Certificate::load(files).map_err(|e| fail("tls", e)))
            .transpose()?
            .map(Arc::new);
        // The standard library sets SO_REUSEADDR, and not SO_REUSEPORT: a second gateway on the port is an error.
        let bind = || {
            let socket = TcpListener::bind(listener.address)?;
            sys::deepen_listen_queue(&socket)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok::<_, std::io::Error>((socket, address))
        };
        let (socket, address) = bind().map_err(|e| {
            fail("address", format!("can't listen on `{}` ({e}): use another address, or port 0", listener.address))
        })?;
        Ok(Self { socket, address, tls, h2c: listener.h2c })
    }
}

/// A certificate and its key, read again when a file changes.
pub struct Certificate {
    files: Tls,
    acceptor: ArcSwap<Acceptor>,
    read_at: Mutex<Stamp>,
}

type Stamp = (Option<SystemTime>, Option<SystemTime>);

impl Certificate {
    fn load(files: &Tls) -> Result<Self, String> {
        let stamp = stamp(files);
        Ok(Self { files: files.clone(), acceptor: ArcSwap::from_pointee(acceptor(files)?), read_at: Mutex::new(stamp) })
    }

    pub fn acceptor(&self) -> Arc<Acceptor> {
        self.acceptor.load_full()
    }

    /// Reads the files again when they are newer than what is in use. On an error nothing changes.
    pub fn refresh(&self) -> Result<bool, String> {
        let now = stamp(&self.files);
        let mut read_at = self.read_at.lock();
        if *read_at == now {
            return Ok(false);
        }
        // Also on an error: the same broken file is reported once.
        *read_at = now;
        self.acceptor.store(Arc::new(acceptor(&self.files)?));
        Ok(true)
    }
}

/// The certificates of all listeners.
#[derive(Default)]
pub struct Certificates(Vec<Arc<Certificate>>);

impl Certificates {
    pub fn of(listeners: impl Iterator<Item = Arc<Certificate>>) -> Self {
        Self(listeners.collect())
    }

    /// Reads all files and takes all of them into use, or none.
    pub fn reload(&self) -> Result<(), Vec<String>> {
        let (read, errors): (Vec<_>, Vec<_>) = self.0.iter().map(|c| acceptor(&c.files)).partition(Result::is_ok);
        if !errors.is_empty() {
            return Err(errors.into_iter().filter_map(Result::err).collect());
        }
        for (certificate, acceptor) in self.0.iter().zip(read.into_iter().flatten()) {
            *certificate.read_at.lock() = stamp(&certificate.files);
            certificate.acceptor.store(Arc::new(acceptor));
        }
        Ok(())
    }
}

fn stamp(files: &Tls) -> Stamp {
    let modified = |path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    (modified(&files.cert_file), modified(&files.key_file))
}

/// TLS 1.2 and 1.3, `h2` and `http/1.1` by ALPN.
fn acceptor(files: &Tls) -> Result<Acceptor, String> {
    pingora::tls::install_default_crypto_provider();
    let (cert, key) = (files.cert_file.to_string_lossy(), files.key_file.to_string_lossy());
    let (certs, key) = load_certs_and_key_files(&cert, &key)
        .map_err(|e| format!("can't read the certificate `{cert}` and its key: {e}"))?
        .filter(|(certs, _)| !certs.is_empty())
        .ok_or_else(|| format!("`{cert}` holds no certificate, or `{key}` no private key"))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&version::TLS12, &version::TLS13])
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(|e| format!("the certificate `{cert}` and its key can't be used: {e}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Acceptor::from_server_config(Arc::new(config)))
}
