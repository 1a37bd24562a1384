//! An open file of a run's tree, for wasmer-wasix.
//!
//! Invariant: whatever it is asked is answered at once, and only files of `/tmp` change.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use virtual_fs::{AsyncRead, AsyncSeek, AsyncWrite, FsError, ReadBuf, Result, VirtualFile};

use crate::engine::files::Times;
use crate::engine::files::tree::{At, Tree};

use super::files::{Files, refused, stopped};

/// The tree keeps the node for as long as this is there.
#[derive(Debug)]
pub struct Open {
    pub files: Files,
    pub node: At,
    pub at: u64,
    pub writable: bool,
}

impl Open {
    fn to_write(&self) -> Result<u32> {
        if self.writable { Tree::writable(self.node).map_err(refused) } else { Err(FsError::PermissionDenied) }
    }

    fn times(&self) -> Times {
        self.files.shared.lock().tree.stat(self.node).times
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let At::Tmp(node) = self.node {
            self.files.shared.lock().tree.tmp.close(node);
        }
    }
}

impl AsyncRead for Open {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let files = self.files.clone();
        let shared = files.shared.lock();
        let to = buffer.initialize_unfilled();
        let read = shared.tree.read(&shared.fuel, self.node, self.at, to).map_err(stopped)?;
        buffer.advance(read);
        self.at += read as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Open {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let node = self.to_write()?;
        let files = self.files.clone();
        let shared = &mut *files.shared.lock();
        shared.tree.tmp.write(&shared.fuel, node, self.at, bytes, shared.now).map_err(stopped)?;
        self.at += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Open {
    fn start_seek(mut self: Pin<&mut Self>, to: io::SeekFrom) -> io::Result<()> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.size().checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.filter(|at| i64::try_from(*at).is_ok()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

impl VirtualFile for Open {
    fn last_accessed(&self) -> u64 {
        self.times().accessed
    }

    fn last_modified(&self) -> u64 {
        self.times().modified
    }

    fn created_time(&self) -> u64 {
        self.times().changed
    }

    fn set_times(&mut self, accessed: Option<u64>, modified: Option<u64>) -> Result<()> {
        let (node, times) = (Tree::writable(self.node).map_err(refused)?, self.times());
        let times = Times {
            accessed: accessed.unwrap_or(times.accessed),
            modified: modified.unwrap_or(times.modified),
            changed: times.changed,
        };
        self.files.shared.lock().tree.tmp.set_times(node, times).map_err(refused)
    }

    fn size(&self) -> u64 {
        self.files.shared.lock().tree.stat(self.node).size
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        let node = self.to_write()?;
        let shared = &mut *self.files.shared.lock();
        shared.tree.tmp.set_size(node, len, shared.now).map_err(refused)
    }

    fn unlink(&mut self) -> Result<()> {
        let node = Tree::writable(self.node).map_err(refused)?;
        let shared = &mut *self.files.shared.lock();
        // Something was renamed over it: its name is another one's, and wasmer-wasix has not noticed.
        if shared.tree.tmp.links(node) == 0 {
            return Ok(());
        }
        shared.tree.tmp.remove_file(node, shared.now).map_err(refused)?;
        shared.forget(Some(self.node));
        Ok(())
    }

    fn poll_read_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(usize::try_from(self.size().saturating_sub(self.at)).unwrap_or(usize::MAX)))
    }

    fn poll_write_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(1))
    }
}
