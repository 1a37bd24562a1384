//! A guest's file descriptors.
//!
//! Invariant: bounded, and nothing is allocated for a guest that has the descriptors it began with.

use super::errno::Errno;
use super::tree::At;

/// Descriptors that a guest may have.
const MAX_OPEN: usize = 1_024;
/// The root folder, which guests look for from here on.
const ROOT: i32 = 3;

/// Rights of WASI preview1 (`rights`).
pub mod rights {
    pub const FD_DATASYNC: u64 = 1 << 0;
    pub const FD_READ: u64 = 1 << 1;
    pub const FD_SEEK: u64 = 1 << 2;
    pub const FD_FDSTAT_SET_FLAGS: u64 = 1 << 3;
    pub const FD_SYNC: u64 = 1 << 4;
    pub const FD_TELL: u64 = 1 << 5;
    pub const FD_WRITE: u64 = 1 << 6;
    pub const FD_ADVISE: u64 = 1 << 7;
    pub const FD_ALLOCATE: u64 = 1 << 8;
    pub const PATH_CREATE_DIRECTORY: u64 = 1 << 9;
    pub const PATH_CREATE_FILE: u64 = 1 << 10;
    pub const PATH_OPEN: u64 = 1 << 13;
    pub const FD_READDIR: u64 = 1 << 14;
    pub const PATH_READLINK: u64 = 1 << 15;
    pub const PATH_RENAME_SOURCE: u64 = 1 << 16;
    pub const PATH_RENAME_TARGET: u64 = 1 << 17;
    pub const PATH_FILESTAT_GET: u64 = 1 << 18;
    pub const PATH_FILESTAT_SET_SIZE: u64 = 1 << 19;
    pub const PATH_FILESTAT_SET_TIMES: u64 = 1 << 20;
    pub const FD_FILESTAT_GET: u64 = 1 << 21;
    pub const FD_FILESTAT_SET_SIZE: u64 = 1 << 22;
    pub const FD_FILESTAT_SET_TIMES: u64 = 1 << 23;
    pub const PATH_REMOVE_DIRECTORY: u64 = 1 << 25;
    pub const PATH_UNLINK_FILE: u64 = 1 << 26;
    const POLL_FD_READWRITE: u64 = 1 << 27;
    /// Every right that there is.
    pub const ALL: u64 = (1 << 30) - 1;
    const BOTH: u64 = FD_DATASYNC
        | FD_FDSTAT_SET_FLAGS
        | FD_SYNC
        | FD_ADVISE
        | FD_FILESTAT_GET
        | FD_FILESTAT_SET_TIMES
        | POLL_FD_READWRITE;
    /// Those that mean something for a file.
    pub const FILE: u64 = BOTH | FD_READ | FD_SEEK | FD_TELL | FD_WRITE | FD_ALLOCATE | FD_FILESTAT_SET_SIZE;
    /// Those that mean something for a folder.
    pub const FOLDER: u64 = BOTH
        | PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_OPEN
        | FD_READDIR
        | PATH_READLINK
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_FILESTAT_GET
        | PATH_FILESTAT_SET_SIZE
        | PATH_FILESTAT_SET_TIMES
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    In,
    Out,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    Stream(Stream),
    Node(Open),
}

/// An open file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub at: At,
    pub offset: u64,
    pub rights: u64,
    pub inheriting: u64,
    /// `fdflags`.
    pub flags: u16,
    /// Given to the guest at its start.
    pub preopened: bool,
}

#[derive(Debug, Default)]
pub struct Table {
    /// `None` until the first change.
    slots: Option<Vec<Option<Descriptor>>>,
    has_root: bool,
}

impl Table {
    pub fn new(has_root: bool) -> Table {
        Table { slots: None, has_root }
    }

    /// What a guest begins with.
    fn initial(&self, fd: i32) -> Option<Descriptor> {
        Some(match fd {
            0 => Descriptor::Stream(Stream::In),
            1 => Descriptor::Stream(Stream::Out),
            2 => Descriptor::Stream(Stream::Error),
            ROOT if self.has_root => Descriptor::Node(Open {
                at: At::ROOT,
                offset: 0,
                rights: rights::FOLDER,
                inheriting: rights::ALL,
                flags: 0,
                preopened: true,
            }),
            _ => return None,
        })
    }

    fn slots(&mut self) -> &mut Vec<Option<Descriptor>> {
        let initial = || (0..=ROOT).map(|fd| Table::new(self.has_root).initial(fd)).collect();
        self.slots.get_or_insert_with(initial)
    }

    pub fn get(&self, fd: i32) -> Result<Descriptor, Errno> {
        let found = match &self.slots {
            None => self.initial(fd),
            Some(slots) => usize::try_from(fd).ok().and_then(|fd| slots.get(fd).copied().flatten()),
        };
        found.ok_or(Errno::BADF)
    }

    /// An open file or folder, to be changed.
    pub fn open_mut(&mut self, fd: i32) -> Result<&mut Open, Errno> {
        let slot = usize::try_from(fd).ok().and_then(|fd| self.slots().get_mut(fd));
        match slot {
            Some(Some(Descriptor::Node(open))) => Ok(open),
            _ => Err(Errno::BADF),
        }
    }

    pub fn close(&mut self, fd: i32) -> Result<Descriptor, Errno> {
        let slot = usize::try_from(fd).ok().and_then(|fd| self.slots().get_mut(fd));
        slot.and_then(Option::take).ok_or(Errno::BADF)
    }

    /// Whether [`Table::insert`] will find a place.
    pub fn has_place(&self) -> bool {
        match &self.slots {
            None => true,
            Some(slots) => slots.len() < MAX_OPEN || slots.iter().any(Option::is_none),
        }
    }

    /// Under the lowest number that is free.
    pub fn insert(&mut self, descriptor: Descriptor) -> Result<i32, Errno> {
        let slots = self.slots();
        let free = slots.iter().position(Option::is_none);
        let fd = free.or_else(|| {
            slots.push(None);
            Some(slots.len() - 1).filter(|fd| *fd < MAX_OPEN)
        });
        let Some(fd) = fd else {
            slots.truncate(MAX_OPEN);
            return Err(Errno::MFILE);
        };
        slots[fd] = Some(descriptor);
        Ok(fd as i32)
    }

    /// Both are open. Gives what was `to` before.
    pub fn renumber(&mut self, from: i32, to: i32) -> Result<Descriptor, Errno> {
        let before = self.get(to)?;
        let moved = self.close(from)?;
        if let Some(slot) = usize::try_from(to).ok().and_then(|to| self.slots().get_mut(to)) {
            *slot = Some(moved);
        }
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_bounded_and_the_lowest_is_taken() {
        let mut table = Table::new(true);
        let root = table.get(3).unwrap();
        assert!(table.slots.is_none() && table.get(4) == Err(Errno::BADF) && table.get(-1) == Err(Errno::BADF));
        for fd in 4..MAX_OPEN as i32 {
            assert!(table.has_place());
            assert_eq!(table.insert(root), Ok(fd));
        }
        assert!(!table.has_place());
        assert_eq!(table.insert(root), Err(Errno::MFILE));
        table.close(7).unwrap();
        assert_eq!(table.close(7), Err(Errno::BADF));
        assert_eq!(table.insert(root), Ok(7));
        assert_eq!(table.renumber(7, 1), Ok(Descriptor::Stream(Stream::Out)));
        assert_eq!((table.get(1), table.get(7)), (Ok(root), Err(Errno::BADF)));
        assert_eq!(Table::new(false).get(3), Err(Errno::BADF));
    }
}
