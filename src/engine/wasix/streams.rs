//! Standard input, output and error of a run with wasmer-wasix.
//!
//! Invariant: a stream is always ready, and what is written is held here only until the call that wrote it returns.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use virtual_fs::{AsyncRead, AsyncSeek, AsyncWrite, FsError, ReadBuf, VirtualFile};

/// What the streams and the host functions share.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    input: Bytes,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Streams {
    pub fn new(input: Bytes) -> Streams {
        Streams(Arc::new(Mutex::new(Held { input, ..Held::default() })))
    }

    /// Output and errors.
    pub fn take_written(&self) -> (Vec<u8>, Vec<u8>) {
        let mut held = self.0.lock();
        (std::mem::take(&mut held.output), std::mem::take(&mut held.errors))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Input,
    Output,
    Errors,
}

#[derive(Debug)]
pub struct Stream {
    which: Which,
    streams: Streams,
}

impl Stream {
    pub fn input(streams: &Streams) -> Stream {
        Stream { which: Which::Input, streams: streams.clone() }
    }

    pub fn output(streams: &Streams) -> Stream {
        Stream { which: Which::Output, streams: streams.clone() }
    }

    pub fn errors(streams: &Streams) -> Stream {
        Stream { which: Which::Errors, streams: streams.clone() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.which == Which::Input {
            let mut held = self.streams.0.lock();
            let n = held.input.len().min(buffer.remaining());
            buffer.put_slice(&held.input.split_to(n));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut held = self.streams.0.lock();
        match self.which {
            Which::Input => return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into())),
            Which::Output => held.output.extend_from_slice(bytes),
            Which::Errors => held.errors.extend_from_slice(bytes),
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Stream {
    fn start_seek(self: Pin<&mut Self>, _: io::SeekFrom) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(0))
    }
}

impl VirtualFile for Stream {
    fn last_accessed(&self) -> u64 {
        0
    }

    fn last_modified(&self) -> u64 {
        0
    }

    fn created_time(&self) -> u64 {
        0
    }

    fn size(&self) -> u64 {
        0
    }

    fn set_len(&mut self, _: u64) -> Result<(), FsError> {
        Err(FsError::PermissionDenied)
    }

    fn unlink(&mut self) -> Result<(), FsError> {
        Err(FsError::PermissionDenied)
    }

    fn poll_read_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(self.streams.0.lock().input.len()))
    }

    fn poll_write_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(1))
    }
}
