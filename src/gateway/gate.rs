//! Lets through exactly the bytes of one HTTP/1 request at a time, so that what a client pipelines behind it meets the
//! head guard and not the middle of Pingora's body reader (RFC 9112 section 9.3.2).
//!
//! Invariant: bytes behind a request's end stay here until [`Gate::next`]; their order never changes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::listeners::ALPN;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunked::Chunked;

/// Bytes of pipelined requests held while one is being served.
const MAX_AHEAD: usize = 16 << 10;

/// How much of the stream still belongs to the request.
#[derive(Clone, Debug)]
pub enum Rest {
    Bytes(u64),
    Chunks(Chunked),
    /// All of it: after an upgrade there is no next request.
    Everything,
}

#[derive(Debug)]
pub struct Gate {
    inner: Stream,
    rest: Rest,
    ahead: BytesMut,
}

impl Gate {
    pub fn new(inner: Stream, ahead: BytesMut) -> Self {
        Self { inner, rest: Rest::Everything, ahead }
    }

    /// The stream of a finished request, for the next one's head.
    pub fn next(stream: Stream) -> Option<Box<Self>> {
        let mut gate = stream.into_any().downcast::<Self>().ok()?;
        gate.rest = Rest::Everything;
        Some(gate)
    }

    /// Takes what was read as a head together with bytes behind it; leaves in `buf` what belongs to the request.
    pub fn shut_behind(&mut self, buf: &mut BytesMut, head: usize, mut rest: Rest) {
        let own = rest.take(&buf[head..]);
        let excess = buf.split_off(head + own);
        self.push_front(&excess);
        self.rest = rest;
    }

    fn push_front(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut joined = BytesMut::with_capacity(bytes.len() + self.ahead.len());
        joined.extend_from_slice(bytes);
        joined.extend_from_slice(&self.ahead);
        self.ahead = joined;
    }

    fn poll_source(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        Poll::Ready(Ok(()))
    }

    /// Nothing more belongs to the request: only the connection's end is passed on.
    fn poll_beyond(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while self.ahead.len() < MAX_AHEAD {
            let mut chunk = [0u8; 1024];
            let mut buf = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.ahead.extend_from_slice(buf.filled()),
                other => return other,
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        if matches!(this.rest, Rest::Bytes(0)) {
            return this.poll_beyond(cx);
        }
        let before = buf.filled().len();
        let polled = this.poll_source(cx, buf);
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            let own = this.rest.take(came);
            if own < came.len() {
                let excess = BytesMut::from(&came[own..]);
                buf.set_filled(before + own);
                this.push_front(&excess);
            }
        }
        polled
    }
}

impl Rest {
    /// How many of the bytes belong to the request; what is left of it follows.
    fn take(&mut self, bytes: &[u8]) -> usize {
        match self {
            Rest::Everything => bytes.len(),
            Rest::Bytes(left) => {
                let own = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= own as u64;
                own
            }
            Rest::Chunks(chunks) => match chunks.feed(bytes) {
                Some(end) => {
                    *self = Rest::Bytes(0);
                    end
                }
                None => bytes.len(),
            },
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

impl UniqueID for Gate {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Gate {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl Peek for Gate {}

impl GetTimingDigest for Gate {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Gate {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Gate {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_behind_a_request_wait_for_the_next() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut gate = Gate::new(Box::new(server), BytesMut::new());
        let mut buf = BytesMut::from(&b"HEADab"[..]);
        gate.shut_behind(&mut buf, 4, Rest::Bytes(4));
        assert_eq!(&buf[..], b"HEADab");
        client.write_all(b"cdNEXT").await.unwrap();
        let mut body = [0u8; 64];
        assert_eq!(gate.read(&mut body).await.unwrap(), 2);
        assert_eq!(&body[..2], b"cd");
        let beyond = tokio::time::timeout(std::time::Duration::from_millis(20), gate.read(&mut body)).await;
        assert!(beyond.is_err(), "nothing more belongs to the request");
        client.write_all(b"MORE").await.unwrap();
        drop(client);
        let mut gate = Gate::next(Box::new(gate)).unwrap();
        let mut rest = String::new();
        gate.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "NEXTMORE");
    }

    #[tokio::test]
    async fn a_chunked_body_ends_at_its_last_chunk() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut gate = Gate::new(Box::new(server), BytesMut::new());
        let mut buf = BytesMut::from(&b"HEAD3\r\nab"[..]);
        gate.shut_behind(&mut buf, 4, Rest::Chunks(Chunked::default()));
        client.write_all(b"c\r\n0\r\n\r\nNEXT").await.unwrap();
        let mut body = [0u8; 64];
        let n = gate.read(&mut body).await.unwrap();
        assert_eq!(&body[..n], b"c\r\n0\r\n\r\n");
        drop(client);
        assert_eq!(gate.read(&mut body).await.unwrap(), 0, "the end is passed on");
    }
}
