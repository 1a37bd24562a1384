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

use super::{pem, sys};
use crate::config::{Config, Listener, Tls};

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
    acceptor: ArcSwap<Acceptor>,
    read: Mutex<(Tls, Stamp)>,
}

type Stamp = (Option<SystemTime>, Option<SystemTime>);

impl Certificate {
    fn load(files: &Tls) -> Result<Self, String> {
        let stamp = stamp(files);
        Ok(Self { acceptor: ArcSwap::from_pointee(acceptor(files)?), read: Mutex::new((files.clone(), stamp)) })
    }

    pub fn acceptor(&self) -> Arc<Acceptor> {
        self.acceptor.load_full()
    }

    /// Reads the files again when they are newer than what is in use. On an error nothing changes.
    pub fn refresh(&self) -> Result<bool, String> {
        let mut read = self.read.lock();
        let (files, read_at) = &mut *read;
        let now = stamp(files);
        if *read_at == now {
            return Ok(false);
        }
        // Also on an error: the same broken file is reported once.
        *read_at = now;
        self.acceptor.store(Arc::new(acceptor(files)?));
        Ok(true)
    }
}

/// The certificates of all listeners in the order of the configuration, the admin listener's last; `None`: no TLS.
pub struct Certificates(Vec<Option<Arc<Certificate>>>);

/// Read again and not in use yet.
#[derive(Default)]
pub struct Fresh(Vec<(Arc<Certificate>, Tls, Stamp, Acceptor)>);

impl Certificates {
    pub fn of<'a>(listeners: impl Iterator<Item = &'a Arc<Bound>>) -> Self {
        Self(listeners.map(|bound| bound.tls.clone()).collect())
    }

    /// Reads all files: those that `config` names, if its listeners are the ones that were bound.
    pub fn read(&self, config: &Config) -> Result<Fresh, Vec<String>> {
        let named = config.server.listeners.iter().map(|l| l.tls.as_ref()).chain([config.admin.tls.as_ref()]);
        let named: Vec<_> = named.collect();
        let same = named.len() == self.0.len() && named.iter().zip(&self.0).all(|(n, c)| n.is_some() == c.is_some());
        let (mut fresh, mut errors) = (Vec::new(), Vec::new());
        for (i, certificate) in self.0.iter().enumerate() {
            let Some(certificate) = certificate else { continue };
            let files = named.get(i).copied().flatten().filter(|_| same).cloned();
            let files = files.unwrap_or_else(|| certificate.read.lock().0.clone());
            let stamp = stamp(&files);
            match acceptor(&files) {
                Ok(acceptor) => fresh.push((certificate.clone(), files, stamp, acceptor)),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Fresh(fresh)) } else { Err(errors) }
    }
}

impl Fresh {
    pub fn take_up(self) {
        for (certificate, files, stamp, acceptor) in self.0 {
            *certificate.read.lock() = (files, stamp);
            certificate.acceptor.store(Arc::new(acceptor));
        }
    }
}

fn stamp(files: &Tls) -> Stamp {
    let modified = |path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    (modified(&files.cert_file), modified(&files.key_file))
}

fn acceptor(files: &Tls) -> Result<Acceptor, String> {
    Ok(Acceptor::from_server_config(Arc::new(pem::server_config(files)?)))
}
