//! The tree of files of one run with wasmer-wasix: a folder `/tmp` of its own.
//!
//! Not wasmer's own in-memory file system: that one takes memory first and asks its limit afterwards, so that a file of a
//! terabyte aborts the process.
//!
//! Invariant: what the tree holds (content by pages, names, nodes) is within the quota, and was taken from the owner's
//! part of the guest memory before it was allocated. No path leads out of the tree.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use virtual_fs::{
    AsyncRead, AsyncSeek, AsyncWrite, DirEntry, FileOpener, FileSystem, FileType, FsError, Metadata, OpenOptions,
    OpenOptionsConfig, ReadBuf, ReadDir, Result, VirtualFile,
};

use crate::engine::budget::Reserved;

/// Bytes of a path.
pub const MAX_PATH: usize = 1_024;
/// Files, folders and links: some operations look at all.
const MAX_NODES: usize = 4_096;
/// What a node takes beside its content: here, and as an inode of wasmer-wasix.
const NODE_BYTES: u64 = 1_024;
/// Each path is held in several places.
const PATHS: u64 = 4;
const PAGE: usize = 4_096;
/// What a page takes beside its bytes.
const PAGE_EXTRA: u64 = 64;
/// No file's size says more: sizes are signed.
const MAX_LEN: u64 = 1 << 48;
const TMP: &str = "/tmp";

/// What the tree takes of the memory.
#[derive(Debug)]
struct Quota {
    limit: u64,
    used: Mutex<(u64, Option<Reserved>)>,
}

impl Quota {
    fn take(&self, bytes: u64) -> Result<()> {
        let (used, reserved) = &mut *self.used.lock();
        let sum = used.saturating_add(bytes);
        let granted = sum <= self.limit && reserved.as_mut().is_some_and(|reserved| reserved.raise(sum));
        if !granted {
            return Err(FsError::WriteZero);
        }
        *used = sum;
        Ok(())
    }

    /// What was reserved for it stays the run's.
    fn give_back(&self, bytes: u64) {
        let used = &mut self.used.lock().0;
        *used = used.saturating_sub(bytes);
    }
}

/// A file's content; pages that were never written are zeros and take nothing.
#[derive(Debug)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    modified: u64,
    accessed: u64,
    quota: Arc<Quota>,
}

impl Content {
    fn read(&self, from: u64, to: &mut ReadBuf<'_>) -> usize {
        let n = usize::try_from(self.len.saturating_sub(from)).unwrap_or(usize::MAX).min(to.remaining());
        let mut at = from;
        let end = from + n as u64;
        while at < end {
            let (page, offset) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let part = (PAGE - offset).min((end - at) as usize);
            match self.pages.get(&page) {
                Some(page) => to.put_slice(&page[offset..offset + part]),
                None => to.put_slice(&[0; PAGE][..part]),
            }
            at += part as u64;
        }
        n
    }

    /// As much as the quota allows; nothing of it is an error.
    fn write(&mut self, from: u64, bytes: &[u8]) -> Result<usize> {
        if from.saturating_add(bytes.len() as u64) > MAX_LEN {
            return Err(FsError::InvalidInput);
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = from + done as u64;
            let (page, offset) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let part = (PAGE - offset).min(bytes.len() - done);
            let page = match self.pages.entry(page) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => match self.quota.take(PAGE as u64 + PAGE_EXTRA) {
                    Ok(()) => place.insert(Box::new([0; PAGE])),
                    Err(_) if done > 0 => break,
                    Err(full) => return Err(full),
                },
            };
            page[offset..offset + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
        self.len = self.len.max(from + done as u64);
        Ok(done)
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        if len > MAX_LEN {
            return Err(FsError::InvalidInput);
        }
        if len < self.len {
            let gone = self.pages.split_off(&len.div_ceil(PAGE as u64));
            self.quota.give_back(gone.len() as u64 * (PAGE as u64 + PAGE_EXTRA));
            if let Some(last) = self.pages.get_mut(&(len / PAGE as u64)) {
                last[(len % PAGE as u64) as usize..].fill(0);
            }
        }
        self.len = len;
        Ok(())
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.quota.give_back(self.pages.len() as u64 * (PAGE as u64 + PAGE_EXTRA));
    }
}

#[derive(Clone, Debug)]
enum Node {
    Folder,
    File(Arc<Mutex<Content>>),
    Link(PathBuf),
}

#[derive(Debug)]
struct Tree {
    /// By path; what is in a folder comes right behind it.
    nodes: BTreeMap<PathBuf, Node>,
    quota: Arc<Quota>,
    /// The time of all that happens, as files have it: when the run began.
    now: u64,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    tree: Arc<Mutex<Tree>>,
}

impl Files {
    pub fn new(limit: u64, reserved: Reserved, now: Duration) -> Files {
        Files::with(limit, Some(reserved), now)
    }

    /// A tree that nothing can be written to.
    pub fn none() -> Files {
        Files::with(0, None, Duration::ZERO)
    }

    fn with(limit: u64, reserved: Option<Reserved>, now: Duration) -> Files {
        let nodes = [("/", Node::Folder), (TMP, Node::Folder)].map(|(path, node)| (path.into(), node));
        let quota = Arc::new(Quota { limit, used: Mutex::new((0, reserved)) });
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Files { tree: Arc::new(Mutex::new(Tree { nodes: nodes.into(), quota, now })) }
    }
}

/// As the tree has paths: from the root, plain names only.
fn plain(path: &Path) -> Result<PathBuf> {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            Component::Prefix(_) => return Err(FsError::InvalidInput),
        }
    }
    if plain.as_os_str().len() > MAX_PATH { Err(FsError::InvalidInput) } else { Ok(plain) }
}

fn cost(path: &Path) -> u64 {
    NODE_BYTES + PATHS * path.as_os_str().len() as u64
}

impl Tree {
    fn get(&self, path: &Path) -> Result<&Node> {
        self.nodes.get(path).ok_or(FsError::EntryNotFound)
    }

    /// Everything below a folder, however deep.
    fn below<'t>(&'t self, folder: &'t Path) -> impl Iterator<Item = (&'t PathBuf, &'t Node)> {
        let behind = (Bound::Excluded(folder), Bound::Unbounded);
        self.nodes.range::<Path, _>(behind).take_while(move |(path, _)| path.starts_with(folder))
    }

    /// Where the guest may change something.
    fn writable(&self, path: &Path) -> Result<()> {
        match path.parent() {
            Some(folder) if folder.starts_with(TMP) => match self.nodes.get(folder) {
                Some(Node::Folder) => Ok(()),
                Some(_) => Err(FsError::BaseNotDirectory),
                None => Err(FsError::EntryNotFound),
            },
            _ => Err(FsError::PermissionDenied),
        }
    }

    fn insert(&mut self, path: PathBuf, node: impl FnOnce(&Tree) -> Node) -> Result<()> {
        self.writable(&path)?;
        if self.nodes.contains_key(&path) {
            return Err(FsError::AlreadyExists);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(FsError::WriteZero);
        }
        self.quota.take(cost(&path))?;
        let node = node(self);
        self.nodes.insert(path, node);
        Ok(())
    }

    fn remove(&mut self, path: &Path) {
        if self.nodes.remove(path).is_some() {
            self.quota.give_back(cost(path));
        }
    }

    fn metadata(&self, node: &Node) -> Metadata {
        let (ft, len, accessed, modified) = match node {
            Node::Folder => (FileType::new_dir(), 0, self.now, self.now),
            Node::Link(target) => {
                (FileType { symlink: true, ..FileType::default() }, target.as_os_str().len() as u64, self.now, self.now)
            }
            Node::File(content) => {
                let content = content.lock();
                (FileType::new_file(), content.len, content.accessed, content.modified)
            }
        };
        Metadata { ft, accessed, created: self.now, modified, len }
    }

    fn rename(&mut self, from: &Path, to: PathBuf) -> Result<()> {
        self.writable(from)?;
        self.writable(&to)?;
        let moved = self.get(from)?.clone();
        if from == to {
            return Ok(());
        }
        if to.starts_with(from) {
            return Err(FsError::InvalidInput);
        }
        match (&moved, self.nodes.get(&to)) {
            (_, None) => {}
            (Node::Folder, Some(Node::Folder)) if self.below(&to).next().is_none() => {}
            (Node::Folder, Some(Node::Folder)) => return Err(FsError::DirectoryNotEmpty),
            (Node::Folder, Some(_)) => return Err(FsError::BaseNotDirectory),
            (_, Some(Node::Folder)) => return Err(FsError::NotAFile),
            (_, Some(_)) => {}
        }
        let paths: Vec<PathBuf> = self.below(from).map(|(path, _)| path.clone()).collect();
        let longer = to.as_os_str().len().saturating_sub(from.as_os_str().len());
        if paths.iter().any(|path| path.as_os_str().len() + longer > MAX_PATH) {
            return Err(FsError::InvalidInput);
        }
        self.quota.take(PATHS * longer as u64 * (paths.len() as u64 + 1))?;
        self.remove(&to);
        for path in paths.into_iter().chain([from.to_owned()]) {
            if let (Some(node), Ok(rest)) = (self.nodes.remove(&path), path.strip_prefix(from)) {
                // Joining an empty rest would add a slash.
                let path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                self.nodes.insert(path, node);
            }
        }
        Ok(())
    }
}

impl FileSystem for Files {
    fn readlink(&self, path: &Path) -> Result<PathBuf> {
        match self.tree.lock().get(&plain(path)?)? {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(FsError::InvalidInput),
        }
    }

    fn read_dir(&self, path: &Path) -> Result<ReadDir> {
        let (tree, path) = (self.tree.lock(), plain(path)?);
        if !matches!(tree.get(&path)?, Node::Folder) {
            return Err(FsError::BaseNotDirectory);
        }
        let inside = tree.below(&path).filter(|(inside, _)| inside.parent() == Some(&path));
        let entries = inside.map(|(path, node)| DirEntry { path: path.clone(), metadata: Ok(tree.metadata(node)) });
        Ok(ReadDir::new(entries.collect()))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        self.tree.lock().insert(plain(path)?, |_| Node::Folder)
    }

    fn create_symlink(&self, source: &Path, target: &Path) -> Result<()> {
        self.tree.lock().insert(plain(target)?, |_| Node::Link(source.to_owned()))
    }

    fn hard_link(&self, _source: &Path, _target: &Path) -> Result<()> {
        Err(FsError::PermissionDenied)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let (mut tree, path) = (self.tree.lock(), plain(path)?);
        tree.writable(&path)?;
        match tree.get(&path)? {
            Node::Folder if tree.below(&path).next().is_some() => Err(FsError::DirectoryNotEmpty),
            Node::Folder => {
                tree.remove(&path);
                Ok(())
            }
            _ => Err(FsError::BaseNotDirectory),
        }
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<()>> {
        let renamed = plain(from).and_then(|from| self.tree.lock().rename(&from, plain(to)?));
        Box::pin(std::future::ready(renamed))
    }

    /// Wasmer-wasix follows links itself, name by name.
    fn metadata(&self, path: &Path) -> Result<Metadata> {
        self.symlink_metadata(path)
    }

    fn symlink_metadata(&self, path: &Path) -> Result<Metadata> {
        let (tree, path) = (self.tree.lock(), plain(path)?);
        let metadata = tree.metadata(tree.get(&path)?);
        Ok(metadata)
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let (mut tree, path) = (self.tree.lock(), plain(path)?);
        tree.writable(&path)?;
        match tree.get(&path)? {
            Node::Folder => Err(FsError::NotAFile),
            _ => {
                tree.remove(&path);
                Ok(())
            }
        }
    }

    fn new_open_options(&self) -> OpenOptions<'_> {
        OpenOptions::new(self)
    }
}

impl FileOpener for Files {
    fn open(&self, path: &Path, options: &OpenOptionsConfig) -> Result<Box<dyn VirtualFile + Send + Sync + 'static>> {
        let (mut tree, path) = (self.tree.lock(), plain(path)?);
        if options.would_mutate() {
            tree.writable(&path)?;
        }
        match tree.nodes.get(&path) {
            Some(_) if options.create_new => return Err(FsError::AlreadyExists),
            Some(_) => {}
            None if options.create || options.create_new => tree.insert(path.clone(), |tree| {
                let (now, quota) = (tree.now, tree.quota.clone());
                let content = Content { len: 0, pages: BTreeMap::new(), modified: now, accessed: now, quota };
                Node::File(Arc::new(Mutex::new(content)))
            })?,
            None => return Err(FsError::EntryNotFound),
        }
        let Node::File(content) = tree.get(&path)? else { return Err(FsError::NotAFile) };
        if options.truncate {
            content.lock().set_len(0)?;
        }
        let (content, created) = (content.clone(), tree.now);
        drop(tree);
        let writable = options.write || options.append;
        Ok(Box::new(Open { content, files: self.clone(), at: 0, writable, created }))
    }
}

/// An open file.
#[derive(Debug)]
struct Open {
    content: Arc<Mutex<Content>>,
    files: Files,
    at: u64,
    writable: bool,
    created: u64,
}

impl AsyncRead for Open {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.content.lock().read(self.at, buffer);
        self.at += n as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Open {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.writable {
            return Poll::Ready(Err(FsError::PermissionDenied.into()));
        }
        let written = self.content.lock().write(self.at, bytes)?;
        self.at += written as u64;
        Poll::Ready(Ok(written))
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
            io::SeekFrom::End(by) => self.content.lock().len.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.filter(|at| *at <= MAX_LEN).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

impl VirtualFile for Open {
    fn last_accessed(&self) -> u64 {
        self.content.lock().accessed
    }

    fn last_modified(&self) -> u64 {
        self.content.lock().modified
    }

    fn created_time(&self) -> u64 {
        self.created
    }

    fn set_times(&mut self, accessed: Option<u64>, modified: Option<u64>) -> Result<()> {
        let mut content = self.content.lock();
        content.accessed = accessed.unwrap_or(content.accessed);
        content.modified = modified.unwrap_or(content.modified);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.content.lock().len
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        if self.writable { self.content.lock().set_len(len) } else { Err(FsError::PermissionDenied) }
    }

    fn unlink(&mut self) -> Result<()> {
        let mut tree = self.files.tree.lock();
        // It may have been renamed since.
        let own = |node: &Node| matches!(node, Node::File(content) if Arc::ptr_eq(content, &self.content));
        let path = tree.nodes.iter().find(|(_, node)| own(node)).map(|(path, _)| path.clone());
        tree.remove(&path.ok_or(FsError::EntryNotFound)?);
        Ok(())
    }

    fn poll_read_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(usize::try_from(self.size().saturating_sub(self.at)).unwrap_or(usize::MAX)))
    }

    fn poll_write_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(PAGE))
    }
}
