//! A client's TCP connection as Pingora's stream type: writes are gathered until a flush, so that an answer's head
//! and a short body leave in one system call, and bytes read too early can be given back.
//!
//! Invariant: bytes reach the socket in the order in which they were written, whatever is gathered.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Bytes gathered before they are written without a flush.
const WRITE_BUFFER: usize = 4096;

#[derive(Debug)]
pub struct Conn {
    tcp: TcpStream,
    given_back: BytesMut,
    /// Allocated by the first write: idle and hostile connections cost nothing.
    gathered: BytesMut,
    digest: Arc<SocketDigest>,
}

impl Conn {
    pub fn new(tcp: TcpStream, peer: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Known from accept; saves a getpeername on every connection.
        let _ = digest.peer_addr.set(Some(pingora::protocols::l4::socket::SocketAddr::Inet(peer)));
        Self { tcp, given_back: BytesMut::new(), gathered: BytesMut::new(), digest: Arc::new(digest) }
    }

    /// `bytes` are what the next reads return.
    pub fn give_back(&mut self, bytes: BytesMut) {
        debug_assert!(self.given_back.is_empty(), "bytes are given back once, before anybody reads on");
        self.given_back = bytes;
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.gathered.is_empty() {
            let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.gathered))?;
            if n == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.given_back.is_empty() {
            let n = self.given_back.len().min(buf.remaining());
            buf.put_slice(&self.given_back.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if read.is_pending() && !self.gathered.is_empty() {
            // Whoever waits for the client, or for its end while an upstream is slow, has no more to write now.
            // An error comes up again with the next write.
            let _ = self.poll_write_out(cx);
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = &mut *self;
        loop {
            if this.gathered.len() + data.len() <= WRITE_BUFFER {
                if this.gathered.capacity() == 0 {
                    this.gathered.reserve(WRITE_BUFFER);
                }
                this.gathered.extend_from_slice(data);
                return Poll::Ready(Ok(data.len()));
            }
            // Too much to gather: what there is and the new data in one vectored write.
            let held = this.gathered.len();
            let slices = [std::io::IoSlice::new(&this.gathered), std::io::IoSlice::new(data)];
            let n = ready!(Pin::new(&mut this.tcp).poll_write_vectored(cx, &slices[usize::from(held == 0)..]))?;
            if n == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            this.gathered.advance(n.min(held));
            if n > held {
                return Poll::Ready(Ok(n - held));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.poll_write_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Conn {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody left to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Conn {
    fn id(&self) -> UniqueIDType {
        self.tcp.as_raw_fd()
    }
}

impl Ssl for Conn {}

#[async_trait]
impl Peek for Conn {
    /// Pingora looks for the HTTP/2 preface with this.
    async fn try_peek(&mut self, buf: &mut [u8]) -> std::io::Result<bool> {
        while self.given_back.len() < buf.len() {
            if self.tcp.read_buf(&mut self.given_back).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        buf.copy_from_slice(&self.given_back[..buf.len()]);
        Ok(true)
    }
}

impl GetTimingDigest for Conn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Conn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Conn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.digest = Arc::new(digest);
    }
}
