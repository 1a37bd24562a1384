//! A run's tree of files as wasmer-wasix sees it: the module's assets and `/tmp`, which the lean WASI has as well, and
//! symbolic links in `/tmp`.
//!
//! Not wasmer's own in-memory file system: that one takes memory first and asks its limit afterwards, so that a file of a
//! terabyte aborts the process.
//!
//! Invariant: what wasmer-wasix remembers of a path was counted here first, and was taken from the owner's part of the
//! guest memory.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use virtual_fs::{
    DirEntry, FileOpener, FileSystem, FileType, FsError, Metadata, OpenOptions, OpenOptionsConfig, ReadDir, Result,
    VirtualFile,
};

use crate::engine::budget::Reserved;
use crate::engine::cancel::Cancel;
use crate::engine::files::tree::{At, Place, Tree};
use crate::engine::files::{Errno, Stop, Times};
use crate::engine::fuel::Fuel;

use super::open::Open;

/// Bytes of a path.
pub const MAX_PATH: usize = 1_024;
/// Files, folders and links that a run has at once in `/tmp`: some of wasmer-wasix's operations look at all of a folder.
const MAX_NODES: usize = 4_096;
/// What an inode of wasmer-wasix takes beside its paths, in round figures, and in how many places each path is.
const INODE_BYTES: u64 = 1_024;
const PATHS: u64 = 4;
/// Of all inodes of a run.
const ALL_INODES_BYTES: u64 = 32 << 20;

#[derive(Debug)]
pub struct Shared {
    pub(super) tree: Tree,
    /// Nodes of `/tmp` that are links; their content is the target.
    links: HashSet<u32>,
    /// Nodes of `/tmp`.
    nodes: usize,
    /// Assets that have an inode.
    seen: HashSet<u32>,
    inode_bytes: u64,
    /// Of the owner's memory, for what wasmer-wasix remembers.
    inodes: Option<Reserved>,
    /// The time of all that happens: when the run began.
    pub(super) now: u64,
    /// Unbounded: calls are charged for, and are small.
    pub(super) fuel: Fuel,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    pub(super) shared: Arc<Mutex<Shared>>,
}

impl Files {
    /// Of the owner that the tree belongs to. Without one, nothing can be looked up.
    pub fn new(tree: Tree, now: Duration) -> Files {
        let begun = Instant::now();
        let fuel = Fuel::new(u64::MAX, begun, begun + Duration::from_secs(86_400), Cancel::default());
        let shared = Shared {
            inodes: tree.tmp.owners(),
            tree,
            links: HashSet::new(),
            nodes: 0,
            seen: HashSet::new(),
            inode_bytes: 0,
            now: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            fuel,
        };
        Files { shared: Arc::new(Mutex::new(shared)) }
    }
}

pub fn refused(errno: Errno) -> FsError {
    match errno {
        Errno::NOENT => FsError::EntryNotFound,
        Errno::EXIST => FsError::AlreadyExists,
        Errno::NOTDIR => FsError::BaseNotDirectory,
        Errno::NOTEMPTY => FsError::DirectoryNotEmpty,
        Errno::NOSPC => FsError::WriteZero,
        Errno::ROFS | Errno::BUSY => FsError::PermissionDenied,
        _ => FsError::InvalidInput,
    }
}

pub fn stopped(stop: Stop) -> FsError {
    match stop {
        Stop::Errno(errno) => refused(errno),
        Stop::Halt(_) => FsError::TimedOut,
    }
}

/// As the tree has paths: below its root.
fn inside(path: &Path) -> Result<&str> {
    let path = path.to_str().filter(|path| path.len() <= MAX_PATH).ok_or(FsError::InvalidInput)?;
    match path.trim_start_matches('/') {
        "" => Ok("."),
        path => Ok(path),
    }
}

impl Shared {
    fn find<'p>(&mut self, path: &'p Path) -> Result<Place<'p>> {
        self.tree.find(At::ROOT, inside(path)?, self.now).map_err(refused)
    }

    fn take_inode(&mut self, bytes: u64) -> Result<()> {
        let sum = self.inode_bytes + bytes;
        let granted = sum <= ALL_INODES_BYTES && self.inodes.as_mut().is_some_and(|inodes| inodes.raise(sum));
        if !granted {
            return Err(FsError::WriteZero);
        }
        self.inode_bytes = sum;
        Ok(())
    }

    /// For a node that can be renamed, so that its paths may get longer.
    const NODE_BYTES: u64 = INODE_BYTES + PATHS * MAX_PATH as u64;

    /// Before a node is made in `/tmp`.
    fn take_node(&mut self) -> Result<()> {
        if self.nodes >= MAX_NODES {
            return Err(FsError::WriteZero);
        }
        self.take_inode(Self::NODE_BYTES)?;
        self.nodes += 1;
        Ok(())
    }

    /// After a node went, or was not made.
    fn give_node(&mut self) {
        self.nodes = self.nodes.saturating_sub(1);
        self.inode_bytes = self.inode_bytes.saturating_sub(Self::NODE_BYTES);
    }

    fn created<T>(&mut self, made: std::result::Result<T, Errno>) -> Result<T> {
        made.map_err(|errno| {
            self.give_node();
            refused(errno)
        })
    }

    fn link(&self, at: At) -> Option<u32> {
        match at {
            At::Tmp(node) if self.links.contains(&node) => Some(node),
            _ => None,
        }
    }

    fn target(&self, link: u32) -> Result<PathBuf> {
        let mut target = vec![0; MAX_PATH];
        let len = self.tree.tmp.read(&self.fuel, link, 0, &mut target).map_err(stopped)?;
        target.truncate(len);
        String::from_utf8(target).map(PathBuf::from).map_err(|_| FsError::InvalidInput)
    }

    fn metadata(&self, at: At) -> Metadata {
        let stat = self.tree.stat(at);
        let Times { accessed, modified, changed } = stat.times;
        Metadata { ft: self.file_type(at), accessed, created: changed, modified, len: stat.size }
    }

    fn file_type(&self, at: At) -> FileType {
        match self.link(at) {
            Some(_) => FileType { symlink: true, ..FileType::default() },
            None if self.tree.is_folder(at) => FileType::new_dir(),
            None => FileType::new_file(),
        }
    }

    /// Bytes of the longest path below a node of `/tmp`.
    fn longest_below(&self, at: At) -> usize {
        let mut longest = 0;
        let mut folders = vec![(at, 0)];
        while let Some((folder, above)) = folders.pop() {
            // Behind `.` and `..`.
            let mut cookie = 2;
            while let Some(entry) = self.tree.entry(folder, cookie).filter(|_| self.tree.is_folder(folder)) {
                cookie = entry.next;
                let len = above + 1 + entry.name.len();
                longest = longest.max(len);
                if entry.is_folder {
                    folders.push((entry.at, len));
                }
            }
        }
        longest
    }

    fn remove(&mut self, place: &Place<'_>) -> Result<()> {
        let now = self.now;
        self.tree.remove_file(place, now).map_err(refused)?;
        self.forget(place.node);
        Ok(())
    }

    /// A node of `/tmp` that has no name any more.
    pub(super) fn forget(&mut self, at: Option<At>) {
        if let Some(At::Tmp(node)) = at {
            self.links.remove(&node);
            self.give_node();
        }
    }
}

impl FileSystem for Files {
    fn readlink(&self, path: &Path) -> Result<PathBuf> {
        let mut shared = self.shared.lock();
        let at = shared.find(path)?.node.ok_or(FsError::EntryNotFound)?;
        shared.target(shared.link(at).ok_or(FsError::InvalidInput)?)
    }

    fn read_dir(&self, path: &Path) -> Result<ReadDir> {
        let mut shared = self.shared.lock();
        let folder = shared.find(path)?.node.ok_or(FsError::EntryNotFound)?;
        if !shared.tree.is_folder(folder) {
            return Err(FsError::BaseNotDirectory);
        }
        let mut entries = Vec::new();
        // The first two are `.` and `..`, which wasmer-wasix adds.
        let mut cookie = 2;
        while let Some(entry) = shared.tree.entry(folder, cookie) {
            cookie = entry.next;
            let metadata = Metadata { ft: shared.file_type(entry.at), ..Metadata::default() };
            entries.push(DirEntry { path: path.join(entry.name), metadata: Ok(metadata) });
        }
        Ok(ReadDir::new(entries))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        let mut shared = self.shared.lock();
        let (place, now) = (shared.find(path)?, shared.now);
        shared.take_node()?;
        let made = shared.tree.create_folder(&place, now);
        shared.created(made)
    }

    fn create_symlink(&self, source: &Path, target: &Path) -> Result<()> {
        let shared = &mut *self.shared.lock();
        let content = source.to_str().filter(|source| source.len() <= MAX_PATH).ok_or(FsError::InvalidInput)?;
        let (place, now) = (shared.find(target)?, shared.now);
        shared.take_node()?;
        let made = shared.tree.create_file(&place, now);
        let At::Tmp(node) = shared.created(made)? else { return Err(FsError::PermissionDenied) };
        let written = shared.tree.tmp.write(&shared.fuel, node, 0, content.as_bytes(), now);
        if let Err(stop) = written {
            let place = shared.find(target)?;
            shared.remove(&place)?;
            return Err(stopped(stop));
        }
        shared.links.insert(node);
        Ok(())
    }

    /// Said to exist, so that wasmer-wasix does not make one of its own, of which nobody counts the names.
    fn hard_link(&self, _source: &Path, _target: &Path) -> Result<()> {
        Err(FsError::PermissionDenied)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let mut shared = self.shared.lock();
        let (place, now) = (shared.find(path)?, shared.now);
        shared.tree.remove_folder(&place, now).map_err(refused)?;
        shared.forget(place.node);
        Ok(())
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<()>> {
        let rename = || {
            let shared = &mut *self.shared.lock();
            let (old, new) = (shared.find(from)?, shared.find(to)?);
            let below = old.node.filter(|at| matches!(at, At::Tmp(_))).map_or(0, |at| shared.longest_below(at));
            if to.as_os_str().len() + below > MAX_PATH {
                return Err(FsError::InvalidInput);
            }
            shared.tree.rename(&mut shared.fuel, &old, &new, shared.now).map_err(stopped)?;
            if old.node != new.node {
                shared.forget(new.node);
            }
            Ok(())
        };
        Box::pin(std::future::ready(rename()))
    }

    /// Wasmer-wasix follows links itself, name by name.
    fn metadata(&self, path: &Path) -> Result<Metadata> {
        self.symlink_metadata(path)
    }

    /// What wasmer-wasix asks before it makes an inode.
    fn symlink_metadata(&self, path: &Path) -> Result<Metadata> {
        let mut shared = self.shared.lock();
        let at = shared.find(path)?.node.ok_or(FsError::EntryNotFound)?;
        if let At::Asset(node) = at
            && at != At::ROOT
            && !shared.seen.contains(&node)
        {
            shared.take_inode(INODE_BYTES + PATHS * path.as_os_str().len() as u64)?;
            shared.seen.insert(node);
        }
        Ok(shared.metadata(at))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let mut shared = self.shared.lock();
        let place = shared.find(path)?;
        shared.remove(&place)
    }

    fn new_open_options(&self) -> OpenOptions<'_> {
        OpenOptions::new(self)
    }
}

impl FileOpener for Files {
    fn open(&self, path: &Path, options: &OpenOptionsConfig) -> Result<Box<dyn VirtualFile + Send + Sync + 'static>> {
        let mut shared = self.shared.lock();
        let (place, now) = (shared.find(path)?, shared.now);
        let at = match place.node {
            Some(_) if options.create_new => return Err(FsError::AlreadyExists),
            Some(at) => at,
            None if options.create || options.create_new => {
                shared.take_node()?;
                let made = shared.tree.create_file(&place, now);
                shared.created(made)?
            }
            None => return Err(FsError::EntryNotFound),
        };
        if shared.tree.is_folder(at) || shared.link(at).is_some() {
            return Err(FsError::NotAFile);
        }
        if options.would_mutate() {
            let node = Tree::writable(at).map_err(refused)?;
            if options.truncate {
                shared.tree.tmp.set_size(node, 0, now).map_err(refused)?;
            }
        }
        if let At::Tmp(node) = at {
            shared.tree.tmp.open(node);
        }
        let writable = options.write || options.append;
        Ok(Box::new(Open { files: self.clone(), node: at, at: 0, writable }))
    }
}
