//! What a guest finds below `/`: its module's assets, and `/tmp`.
//!
//! Invariant: a path never leads above the folder that it begins in, and assets never change.

use smallvec::{SmallVec, smallvec};

use crate::engine::fuel::Fuel;

use super::assets::{self, Assets, MAX_NAME};
use super::errno::{Errno, Stop};
use super::tmp::{self, Times, Tmp};

/// Bytes of a path.
pub const MAX_PATH: usize = 4_096;

/// Devices, so that inodes of the two trees differ.
const ASSETS: u64 = 1;
const TMP: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Asset(assets::NodeId),
    Tmp(tmp::NodeId),
}

impl At {
    pub const ROOT: At = At::Asset(assets::ROOT);
    const TMP: At = At::Tmp(tmp::ROOT);

    /// 0 means that there is none.
    pub fn inode(self) -> u64 {
        let (At::Asset(node) | At::Tmp(node)) = self;
        u64::from(node) + 1
    }
}

#[derive(Debug, Default)]
pub struct Tree {
    pub assets: Option<Assets>,
    pub tmp: Tmp,
}

/// Where a path leads.
#[derive(Debug)]
pub struct Place<'p> {
    pub parent: At,
    /// `.` and `..` where the path ends so.
    pub name: &'p str,
    pub node: Option<At>,
    /// The path ends with `/`.
    slash: bool,
}

impl Place<'_> {
    /// The name that something may be made under.
    pub fn new_name(&self) -> Result<&str, Errno> {
        if self.node.is_some() { Err(Errno::EXIST) } else { Ok(self.name) }
    }

    pub fn ends_with_slash(&self) -> bool {
        self.slash
    }

    fn is_dots(&self) -> bool {
        matches!(self.name, "." | "..")
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub device: u64,
    pub inode: u64,
    pub is_folder: bool,
    pub links: u64,
    pub size: u64,
    pub times: Times,
}

/// An entry of a folder.
pub struct Entry<'a> {
    /// The cookie of what comes next.
    pub next: u64,
    pub at: At,
    pub is_folder: bool,
    pub name: &'a str,
}

impl Tree {
    pub fn is_folder(&self, at: At) -> bool {
        match at {
            At::Asset(node) => self.content(node).is_none(),
            At::Tmp(node) => self.tmp.is_folder(node),
        }
    }

    /// `None`: a folder.
    pub fn content(&self, node: assets::NodeId) -> Option<&bytes::Bytes> {
        self.assets.as_ref()?.content(node)
    }

    /// Of a folder.
    fn parent(&self, folder: At) -> At {
        match folder {
            At::TMP => At::ROOT,
            At::Tmp(node) => At::Tmp(self.tmp.parent(node)),
            At::Asset(node) => At::Asset(self.assets.as_ref().map_or(assets::ROOT, |assets| assets.parent(node))),
        }
    }

    fn child(&mut self, folder: At, name: &str, now: u64) -> Option<At> {
        match folder {
            At::ROOT if name == assets::TMP && self.tmp.exists() => {
                self.tmp.begin(now);
                Some(At::TMP)
            }
            At::Asset(node) => self.assets.as_ref()?.child(node, name).map(At::Asset),
            At::Tmp(node) => self.tmp.child(node, name).map(At::Tmp),
        }
    }

    /// Follows a path down from a folder.
    pub fn find<'p>(&mut self, base: At, path: &'p str, now: u64) -> Result<Place<'p>, Errno> {
        if path.starts_with('/') {
            return Err(Errno::NOTCAPABLE);
        }
        if path.contains('\0') {
            return Err(Errno::INVAL);
        }
        let slash = path.ends_with('/');
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let mut above: SmallVec<[At; 8]> = smallvec![base];
        while let Some(name) = names.next() {
            let folder = *above.last().ok_or(Errno::NOTCAPABLE)?;
            if name.len() > MAX_NAME {
                return Err(Errno::NAMETOOLONG);
            }
            if !self.is_folder(folder) {
                return Err(Errno::NOTDIR);
            }
            let node = match name {
                "." => Some(folder),
                ".." => {
                    above.pop();
                    Some(*above.last().ok_or(Errno::NOTCAPABLE)?)
                }
                name => self.child(folder, name, now),
            };
            if names.peek().is_none() {
                return match node {
                    Some(node) if slash && !self.is_folder(node) => Err(Errno::NOTDIR),
                    node => Ok(Place { parent: folder, name, node, slash }),
                };
            }
            match node {
                None => return Err(Errno::NOENT),
                Some(node) if !matches!(name, "." | "..") => above.push(node),
                Some(_) => {}
            }
        }
        Err(Errno::NOENT)
    }

    pub fn stat(&self, at: At) -> Stat {
        let is_folder = self.is_folder(at);
        match at {
            At::Asset(node) => Stat {
                device: ASSETS,
                inode: at.inode(),
                is_folder,
                links: 1,
                size: self.content(node).map_or(0, |content| content.len() as u64),
                times: Times::default(),
            },
            At::Tmp(node) => Stat {
                device: TMP,
                inode: at.inode(),
                is_folder,
                links: self.tmp.links(node),
                size: self.tmp.size(node),
                times: self.tmp.times(node),
            },
        }
    }

    /// The first entry of a folder at this cookie or behind it. 0 is `.`, 1 is `..`.
    pub fn entry(&self, folder: At, cookie: u64) -> Option<Entry<'_>> {
        let known = |at, name| Some(Entry { next: cookie + 1, at, is_folder: true, name });
        let Some(place) = cookie.checked_sub(2) else {
            return if cookie == 0 { known(folder, ".") } else { known(self.parent(folder), "..") };
        };
        match folder {
            At::Asset(node) => {
                let entries = self.assets.as_ref().map_or(0, |assets| assets.entries(node)) as u64;
                if folder == At::ROOT && place == entries && self.tmp.exists() {
                    return known(At::TMP, assets::TMP);
                }
                let assets = self.assets.as_ref().filter(|_| place < entries)?;
                let (child, name) = assets.entry(node, usize::try_from(place).ok()?)?;
                let is_folder = assets.content(child).is_none();
                Some(Entry { next: cookie + 1, at: At::Asset(child), is_folder, name })
            }
            At::Tmp(node) => {
                let (place, child, name) = self.tmp.entry(node, place)?;
                let is_folder = self.tmp.is_folder(child);
                Some(Entry { next: place + 3, at: At::Tmp(child), is_folder, name })
            }
        }
    }

    /// What a file has from `from` on; 0 at its end.
    pub fn read(&self, fuel: &Fuel, at: At, from: u64, to: &mut [u8]) -> Result<usize, Stop> {
        match at {
            At::Tmp(node) => self.tmp.read(fuel, node, from, to),
            At::Asset(node) => {
                let content = self.content(node).map_or(&[][..], |content| content);
                let rest = usize::try_from(from).ok().and_then(|from| content.get(from..)).unwrap_or_default();
                let there = rest.len().min(to.len());
                fuel.copy(&mut to[..there], &rest[..there])?;
                Ok(there)
            }
        }
    }

    /// Of what can be changed.
    pub fn writable(at: At) -> Result<tmp::NodeId, Errno> {
        match at {
            At::Tmp(node) => Ok(node),
            At::Asset(_) => Err(Errno::ROFS),
        }
    }

    pub fn create_file(&mut self, place: &Place<'_>, now: u64) -> Result<At, Errno> {
        let name = place.new_name()?;
        if place.slash {
            return Err(Errno::ISDIR);
        }
        self.tmp.create_file(Self::writable(place.parent)?, name, now).map(At::Tmp)
    }

    pub fn create_folder(&mut self, place: &Place<'_>, now: u64) -> Result<(), Errno> {
        let name = place.new_name()?;
        self.tmp.create_folder(Self::writable(place.parent)?, name, now).map(drop)
    }

    pub fn remove_file(&mut self, place: &Place<'_>, now: u64) -> Result<(), Errno> {
        let node = place.node.ok_or(Errno::NOENT)?;
        if self.is_folder(node) {
            return Err(Errno::ISDIR);
        }
        self.tmp.remove_file(Self::writable(node)?, now)
    }

    pub fn remove_folder(&mut self, place: &Place<'_>, now: u64) -> Result<(), Errno> {
        let node = place.node.ok_or(Errno::NOENT)?;
        if !self.is_folder(node) {
            return Err(Errno::NOTDIR);
        }
        if place.is_dots() {
            return Err(Errno::INVAL);
        }
        self.tmp.remove_folder(Self::writable(node)?, now)
    }

    pub fn rename(&mut self, fuel: &mut Fuel, old: &Place<'_>, new: &Place<'_>, now: u64) -> Result<(), Stop> {
        let node = old.node.ok_or(Errno::NOENT)?;
        if old.is_dots() || new.is_dots() {
            return Err(Errno::BUSY.into());
        }
        if new.slash && !self.is_folder(node) {
            return Err(Errno::NOTDIR.into());
        }
        let node = Self::writable(node)?;
        // `/tmp` itself is an entry of the root.
        if new.node == Some(At::TMP) {
            return Err(Errno::BUSY.into());
        }
        self.tmp.rename(fuel, node, Self::writable(new.parent)?, new.name, now)
    }
}
