//! A worker's pool of upstream connections.
//!
//! Invariant: taking a kept connection, which nearly every request does, makes no future that could also connect:
//! Pingora's combined one has 100 KB of state, and moving that about costs more than the rest of an exchange.

use std::time::Duration;

use pingora::Result;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::{v1, v2};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{ALPN, HttpPeer};

/// Idle connections that a worker keeps.
const KEPT: usize = 256;

pub type Client = HttpSession<()>;

pub struct Pool {
    h1: v1::Connector,
    h2: v2::Connector,
}

impl Pool {
    pub fn new() -> Self {
        let options = || Some(ConnectorOptions::new(KEPT));
        Self { h1: v1::Connector::new(options()), h2: v2::Connector::new(options()) }
    }

    /// A connection, and whether it was kept from an earlier request.
    pub async fn connect(&self, peer: &HttpPeer) -> Result<(Client, bool)> {
        let alpn = &peer.options.alpn;
        if *alpn == ALPN::H1 {
            if let Some(h1) = self.h1.reused_http_session(peer).await {
                return Ok((HttpSession::H1(h1), true));
            }
            let (h1, reused) = Box::pin(self.h1.get_http_session(peer)).await?;
            return Ok((HttpSession::H1(h1), reused));
        }
        if let Some(h2) = self.h2.reused_http_session(peer).await? {
            return Ok((HttpSession::H2(h2), true));
        }
        // A server that may choose could have chosen HTTP/1 for all its connections.
        if *alpn == ALPN::H2H1
            && let Some(h1) = self.h1.reused_http_session(peer).await
        {
            return Ok((HttpSession::H1(h1), true));
        }
        Ok((Box::pin(self.h2.new_http_session(peer)).await?, false))
    }

    /// Keeps a connection whose answer was read to its end; closes one that can't be used again. Boxed: Pingora's future
    /// has the connection in it four times, and so would all that await it.
    pub fn release<'a>(
        &'a self,
        client: Client,
        peer: &'a HttpPeer,
        idle: Option<Duration>,
    ) -> impl Future<Output = ()> + 'a {
        let h1 = match client {
            HttpSession::H1(h1) => Some(Box::pin(self.h1.release_http_session(h1, peer, idle))),
            HttpSession::H2(h2) => {
                self.h2.release_http_session(h2, peer, idle);
                None
            }
            HttpSession::Custom(()) => None,
        };
        async move {
            if let Some(h1) = h1 {
                h1.await;
            }
        }
    }

    /// Offers this peer HTTP/1 only from now on.
    pub fn prefer_h1(&self, peer: &HttpPeer) {
        self.h2.prefer_h1(peer);
    }
}
