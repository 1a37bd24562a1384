//! Files of a guest: its module's assets at `/`, read-only, and a `/tmp` in memory for the time of its run.
//!
//! Invariant: no guest's file is a file of the host, no run sees another one's `/tmp`, and a guest that never touches a
//! file costs nothing here.

pub mod assets;
mod bundle;
mod data;
pub mod errno;
pub mod table;
mod tmp;
pub mod tree;

pub use assets::Assets;
pub use errno::{Errno, Stop};
pub use tmp::Times;

use crate::domain::NotLoadable;

use super::budget::Reserved;
use super::fuel::Fuel;
use table::{Descriptor, Open, Table, rights};
use tmp::Tmp;
use tree::{At, Entry, Place, Stat, Tree};

/// `oflags`.
pub const CREATE: u16 = 1;
const DIRECTORY: u16 = 2;
pub const EXCLUSIVE: u16 = 4;
pub const TRUNCATE: u16 = 8;
const OFLAGS: u16 = 15;
/// `fdflags`.
const APPEND: u16 = 1;
const FDFLAGS: u16 = 31;

impl Assets {
    /// Reads a zip or tar archive whose files have at most so many bytes together. Takes as long as unpacking: not for
    /// async workers.
    pub fn read(bundle: &[u8], max_bytes: u64) -> Result<Assets, NotLoadable> {
        bundle::read(bundle, max_bytes)
    }
}

/// What one guest sees.
#[derive(Debug, Default)]
pub struct Files {
    tree: Tree,
    pub table: Table,
}

/// Where to read or write.
#[derive(Clone, Copy, Debug)]
pub enum Offset {
    /// Where the descriptor is, which moves on.
    Current,
    At(u64),
}

/// What a guest asks of `path_open`.
pub struct Opening {
    pub oflags: u16,
    pub rights: u64,
    pub inheriting: u64,
    pub flags: u16,
}

impl Files {
    /// `tmp_bytes`: what may be kept in `/tmp`, paid from `reserved`; 0: there is none. Without it and assets there is no
    /// root either.
    pub fn new(assets: Option<Assets>, tmp_bytes: u64, reserved: Reserved) -> Files {
        let table = Table::new(assets.is_some() || tmp_bytes > 0);
        let tmp = Tmp::new(tmp_bytes, Some(reserved));
        Files { tree: Tree { assets, tmp }, table }
    }

    /// For who has descriptors of its own.
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// An open file or folder, if its holder may do this with it.
    fn node(&self, fd: i32, right: u64) -> Result<Open, Errno> {
        match self.table.get(fd)? {
            Descriptor::Node(open) if open.rights & right == right => Ok(open),
            Descriptor::Node(_) => Err(Errno::NOTCAPABLE),
            Descriptor::Stream(_) => Err(Errno::BADF),
        }
    }

    fn file(&self, fd: i32, right: u64) -> Result<Open, Errno> {
        match self.node(fd, 0)? {
            open if self.tree.is_folder(open.at) => Err(Errno::ISDIR),
            _ => self.node(fd, right),
        }
    }

    fn folder(&self, fd: i32, right: u64) -> Result<Open, Errno> {
        match self.node(fd, 0)? {
            open if !self.tree.is_folder(open.at) => Err(Errno::NOTDIR),
            _ => self.node(fd, right),
        }
    }

    fn find<'p>(&mut self, fd: i32, right: u64, path: &'p str, now: u64) -> Result<Place<'p>, Errno> {
        let folder = self.folder(fd, right)?;
        self.tree.find(folder.at, path, now)
    }

    pub fn open(&mut self, fd: i32, path: &str, asked: &Opening, now: u64) -> Result<i32, Errno> {
        let has = |flag| asked.oflags & flag != 0;
        if asked.oflags & !OFLAGS != 0 || asked.flags & !FDFLAGS != 0 || (has(CREATE) && has(DIRECTORY)) {
            return Err(Errno::INVAL);
        }
        let mut right = rights::PATH_OPEN;
        right |= if has(CREATE) { rights::PATH_CREATE_FILE } else { 0 };
        right |= if has(TRUNCATE) { rights::PATH_FILESTAT_SET_SIZE } else { 0 };
        let folder = self.folder(fd, right)?;
        let wanted = asked.rights & rights::ALL;
        if wanted & !folder.inheriting != 0 {
            return Err(Errno::NOTCAPABLE);
        }
        let place = self.tree.find(folder.at, path, now)?;
        if !self.table.has_place() {
            return Err(Errno::MFILE);
        }
        let at = match place.node {
            Some(_) if has(CREATE) && has(EXCLUSIVE) => return Err(Errno::EXIST),
            Some(at) => self.existing(at, asked, now)?,
            None if has(CREATE) => self.tree.create_file(&place, now)?,
            None => return Err(Errno::NOENT),
        };
        let (rights, inheriting) = if self.tree.is_folder(at) {
            (wanted & rights::FOLDER, asked.inheriting & folder.inheriting)
        } else {
            (wanted & rights::FILE, 0)
        };
        if let At::Tmp(node) = at {
            self.tree.tmp.open(node);
        }
        let open = Open { at, offset: 0, rights, inheriting, flags: asked.flags, preopened: false };
        self.table.insert(Descriptor::Node(open))
    }

    fn existing(&mut self, at: At, asked: &Opening, now: u64) -> Result<At, Errno> {
        let has = |flag| asked.oflags & flag != 0;
        let changes = asked.rights & rights::FD_WRITE != 0 || has(TRUNCATE);
        match self.tree.is_folder(at) {
            // Who says that it is a folder gets one, less the rights that mean nothing for it.
            true if has(CREATE) || has(TRUNCATE) || (changes && !has(DIRECTORY)) => return Err(Errno::ISDIR),
            false if has(DIRECTORY) => return Err(Errno::NOTDIR),
            false if changes => drop(Tree::writable(at)?),
            _ => {}
        }
        if has(TRUNCATE) {
            self.tree.tmp.set_size(Tree::writable(at)?, 0, now)?;
        }
        Ok(at)
    }

    fn closed(&mut self, descriptor: Descriptor) {
        if let Descriptor::Node(Open { at: At::Tmp(node), .. }) = descriptor {
            self.tree.tmp.close(node);
        }
    }

    pub fn close(&mut self, fd: i32) -> Result<(), Errno> {
        let closed = self.table.close(fd)?;
        self.closed(closed);
        Ok(())
    }

    pub fn renumber(&mut self, from: i32, to: i32) -> Result<(), Errno> {
        if from == to {
            return self.table.get(from).map(drop);
        }
        let closed = self.table.renumber(from, to)?;
        self.closed(closed);
        Ok(())
    }

    /// 0 at the end.
    pub fn read(&mut self, fuel: &Fuel, fd: i32, offset: Offset, to: &mut [u8]) -> Result<usize, Stop> {
        let open = self.file(fd, rights::FD_READ)?;
        let at = match offset {
            Offset::Current => open.offset,
            Offset::At(_) if open.rights & rights::FD_SEEK == 0 => return Err(Errno::NOTCAPABLE.into()),
            Offset::At(at) => at,
        };
        let read = self.tree.read(fuel, open.at, at, to)?;
        if matches!(offset, Offset::Current) && read > 0 {
            self.table.open_mut(fd)?.offset = at + read as u64;
        }
        Ok(read)
    }

    /// All of it or nothing.
    pub fn write(&mut self, fuel: &Fuel, fd: i32, offset: Offset, bytes: &[u8], now: u64) -> Result<(), Stop> {
        let open = self.file(fd, rights::FD_WRITE)?;
        let node = Tree::writable(open.at)?;
        let at = match offset {
            Offset::Current if open.flags & APPEND != 0 => self.tree.tmp.size(node),
            Offset::Current => open.offset,
            Offset::At(_) if open.rights & rights::FD_SEEK == 0 => return Err(Errno::NOTCAPABLE.into()),
            Offset::At(at) if i64::try_from(at).is_err() => return Err(Errno::INVAL.into()),
            Offset::At(at) => at,
        };
        self.tree.tmp.write(fuel, node, at, bytes, now)?;
        if matches!(offset, Offset::Current) {
            self.table.open_mut(fd)?.offset = at + bytes.len() as u64;
        }
        Ok(())
    }

    /// `whence`: from the start, from here, from the end.
    pub fn seek(&mut self, fd: i32, by: i64, whence: i32) -> Result<u64, Errno> {
        let only_tells = by == 0 && whence == 1;
        let open = self.file(fd, 0)?;
        let enough = if only_tells { rights::FD_TELL | rights::FD_SEEK } else { rights::FD_SEEK };
        if open.rights & enough == 0 {
            return Err(Errno::NOTCAPABLE);
        }
        let from = match whence {
            0 => 0,
            1 => open.offset,
            2 => self.tree.stat(open.at).size,
            _ => return Err(Errno::INVAL),
        };
        let to = from.checked_add_signed(by).filter(|to| i64::try_from(*to).is_ok()).ok_or(Errno::INVAL)?;
        if to != open.offset {
            self.table.open_mut(fd)?.offset = to;
        }
        Ok(to)
    }

    pub fn set_size(&mut self, fd: i32, size: u64, now: u64) -> Result<(), Errno> {
        let open = self.file(fd, rights::FD_FILESTAT_SET_SIZE)?;
        if i64::try_from(size).is_err() {
            return Err(Errno::INVAL);
        }
        self.tree.tmp.set_size(Tree::writable(open.at)?, size, now)
    }

    /// Makes the file at least so long.
    pub fn allocate(&mut self, fd: i32, offset: u64, len: u64, now: u64) -> Result<(), Errno> {
        let open = self.file(fd, rights::FD_ALLOCATE)?;
        let node = Tree::writable(open.at)?;
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::FBIG)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        if end > self.tree.tmp.size(node) { self.tree.tmp.set_size(node, end, now) } else { Ok(()) }
    }

    /// Whether a file may be advised upon or synced, which there is nothing to do for.
    pub fn allows(&self, fd: i32, right: u64) -> Result<(), Errno> {
        self.node(fd, right).map(drop)
    }

    pub fn set_flags(&mut self, fd: i32, flags: u16) -> Result<(), Errno> {
        self.node(fd, rights::FD_FDSTAT_SET_FLAGS)?;
        if flags & !FDFLAGS != 0 {
            return Err(Errno::INVAL);
        }
        self.table.open_mut(fd)?.flags = flags;
        Ok(())
    }

    /// Rights only become fewer.
    pub fn set_rights(&mut self, fd: i32, rights: u64, inheriting: u64) -> Result<(), Errno> {
        let open = self.node(fd, 0)?;
        if rights & !open.rights != 0 || inheriting & !open.inheriting != 0 {
            return Err(Errno::NOTCAPABLE);
        }
        let open = self.table.open_mut(fd)?;
        open.rights = rights;
        open.inheriting = inheriting;
        Ok(())
    }

    pub fn is_folder(&self, open: &Open) -> bool {
        self.tree.is_folder(open.at)
    }

    pub fn stat(&self, fd: i32) -> Result<Stat, Errno> {
        Ok(self.tree.stat(self.node(fd, rights::FD_FILESTAT_GET)?.at))
    }

    pub fn stat_at(&mut self, fd: i32, path: &str, now: u64) -> Result<Stat, Errno> {
        let place = self.find(fd, rights::PATH_FILESTAT_GET, path, now)?;
        place.node.map(|node| self.tree.stat(node)).ok_or(Errno::NOENT)
    }

    /// There are no links: what exists is none.
    pub fn read_link(&mut self, fd: i32, path: &str, now: u64) -> Result<(), Errno> {
        let place = self.find(fd, rights::PATH_READLINK, path, now)?;
        Err(if place.node.is_some() { Errno::INVAL } else { Errno::NOENT })
    }

    pub fn set_times(&mut self, fd: i32, new: impl Fn(Times) -> Times) -> Result<(), Errno> {
        let open = self.node(fd, rights::FD_FILESTAT_SET_TIMES)?;
        self.set_node_times(open.at, new)
    }

    pub fn set_times_at(&mut self, fd: i32, path: &str, new: impl Fn(Times) -> Times, now: u64) -> Result<(), Errno> {
        let place = self.find(fd, rights::PATH_FILESTAT_SET_TIMES, path, now)?;
        self.set_node_times(place.node.ok_or(Errno::NOENT)?, new)
    }

    fn set_node_times(&mut self, at: At, new: impl Fn(Times) -> Times) -> Result<(), Errno> {
        let node = Tree::writable(at)?;
        self.tree.tmp.set_times(node, new(self.tree.tmp.times(node)))
    }

    /// The first entry of a folder at this cookie or behind it.
    pub fn entry(&self, fd: i32, cookie: u64) -> Result<Option<Entry<'_>>, Errno> {
        let folder = self.folder(fd, rights::FD_READDIR)?;
        Ok(self.tree.entry(folder.at, cookie))
    }

    pub fn create_folder(&mut self, fd: i32, path: &str, now: u64) -> Result<(), Errno> {
        let place = self.find(fd, rights::PATH_CREATE_DIRECTORY, path, now)?;
        self.tree.create_folder(&place, now)
    }

    pub fn remove_folder(&mut self, fd: i32, path: &str, now: u64) -> Result<(), Errno> {
        let place = self.find(fd, rights::PATH_REMOVE_DIRECTORY, path, now)?;
        self.tree.remove_folder(&place, now)
    }

    pub fn remove_file(&mut self, fd: i32, path: &str, now: u64) -> Result<(), Errno> {
        let place = self.find(fd, rights::PATH_UNLINK_FILE, path, now)?;
        self.tree.remove_file(&place, now)
    }

    pub fn rename(
        &mut self,
        fuel: &mut Fuel,
        (from, old): (i32, &str),
        (to, new): (i32, &str),
        now: u64,
    ) -> Result<(), Stop> {
        let old = self.find(from, rights::PATH_RENAME_SOURCE, old, now)?;
        let new = self.find(to, rights::PATH_RENAME_TARGET, new, now)?;
        self.tree.rename(fuel, &old, &new, now)
    }
}
