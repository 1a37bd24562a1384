//! One run's `/tmp`: a tree in memory.
//!
//! Invariant: everything that a guest can make costs part of the cap and of its owner's memory before it is there, names
//! and empty files too; what is removed but still open stays until it is closed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::budget::Reserved;
use crate::engine::failure::Halt;
use crate::engine::fuel::Fuel;

use super::data::{self, Data};
use super::errno::{Errno, Stop};

/// What a file or folder costs beside its name and content, in round figures.
const NODE_BYTES: u64 = 512;
/// The owner's memory is taken in steps of this.
const STEP: u64 = 64 << 10;

/// An index into the tree.
pub type NodeId = u32;
pub const ROOT: NodeId = 0;

/// The root comes with the first look at it: a run that never looks has nothing to make or free.
#[derive(Debug, Default)]
pub struct Tmp {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    used: u64,
    cap: u64,
    reserved: Option<Reserved>,
}

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub accessed: u64,
    pub modified: u64,
    pub changed: u64,
}

#[derive(Debug)]
struct Node {
    name: Arc<str>,
    parent: NodeId,
    /// Its place in the parent's order.
    place: u64,
    /// Still has a name.
    linked: bool,
    /// Descriptors of it.
    open: u32,
    times: Times,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File(Data),
    Folder(Folder),
}

#[derive(Debug, Default)]
struct Folder {
    names: BTreeMap<Arc<str>, NodeId>,
    /// In the order of being made, which stays as it is when others come and go: a listing goes on by it.
    order: BTreeMap<u64, NodeId>,
    next: u64,
}

impl Tmp {
    pub fn new(cap: u64, reserved: Option<Reserved>) -> Tmp {
        Tmp { cap, reserved, ..Tmp::default() }
    }

    /// For more of the owner's memory, beside what is taken here.
    pub fn owners(&self) -> Option<Reserved> {
        self.reserved.as_ref().map(Reserved::none_yet)
    }

    pub fn exists(&self) -> bool {
        self.cap > 0
    }

    /// Has the root from now on.
    pub fn begin(&mut self, now: u64) {
        if self.nodes.is_empty() {
            let times = Times { accessed: now, modified: now, changed: now };
            let kind = Kind::Folder(Folder::default());
            let root = Node { name: "".into(), parent: ROOT, place: 0, linked: true, open: 0, times, kind };
            self.nodes.push(Some(root));
        }
    }

    fn node(&self, id: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(id as usize).and_then(Option::as_ref).ok_or(Errno::NOENT)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(id as usize).and_then(Option::as_mut).ok_or(Errno::NOENT)
    }

    fn folder(&self, id: NodeId) -> Result<&Folder, Errno> {
        match &self.node(id)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn folder_mut(&mut self, id: NodeId) -> Result<&mut Folder, Errno> {
        match &mut self.node_mut(id)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn data(&self, id: NodeId) -> Result<&Data, Errno> {
        match &self.node(id)?.kind {
            Kind::File(data) => Ok(data),
            Kind::Folder(_) => Err(Errno::ISDIR),
        }
    }

    pub fn is_folder(&self, id: NodeId) -> bool {
        self.folder(id).is_ok()
    }

    pub fn child(&self, folder: NodeId, name: &str) -> Option<NodeId> {
        self.folder(folder).ok()?.names.get(name).copied()
    }

    /// 0 for a folder.
    pub fn size(&self, id: NodeId) -> u64 {
        self.data(id).map_or(0, Data::size)
    }

    pub fn times(&self, id: NodeId) -> Times {
        self.node(id).map(|node| node.times).unwrap_or_default()
    }

    pub fn links(&self, id: NodeId) -> u64 {
        self.node(id).map_or(0, |node| u64::from(node.linked))
    }

    pub fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).map_or(ROOT, |node| node.parent)
    }

    /// The first entry of a folder at `place` or behind it.
    pub fn entry(&self, folder: NodeId, place: u64) -> Option<(u64, NodeId, &str)> {
        let (place, id) = self.folder(folder).ok()?.order.range(place..).next()?;
        Some((*place, *id, &self.node(*id).ok()?.name))
    }

    pub fn set_times(&mut self, id: NodeId, times: Times) -> Result<(), Errno> {
        self.node_mut(id)?.times = times;
        Ok(())
    }

    fn touch(&mut self, id: NodeId, now: u64) {
        if let Ok(node) = self.node_mut(id) {
            node.times.modified = now;
            node.times.changed = now;
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), Errno> {
        let used = self.used.checked_add(bytes).filter(|used| *used <= self.cap).ok_or(Errno::NOSPC)?;
        if let Some(reserved) = &mut self.reserved
            && !reserved.raise(used.checked_next_multiple_of(STEP).unwrap_or(used))
        {
            return Err(Errno::NOSPC);
        }
        self.used = used;
        Ok(())
    }

    /// The run's to use again; its owner gets it back when the run ends.
    fn give_back(&mut self, bytes: u64) {
        self.used -= bytes;
    }

    pub fn create_file(&mut self, parent: NodeId, name: &str, now: u64) -> Result<NodeId, Errno> {
        self.create(parent, name, now, Kind::File(Data::default()))
    }

    pub fn create_folder(&mut self, parent: NodeId, name: &str, now: u64) -> Result<NodeId, Errno> {
        self.create(parent, name, now, Kind::Folder(Folder::default()))
    }

    fn create(&mut self, parent: NodeId, name: &str, now: u64, kind: Kind) -> Result<NodeId, Errno> {
        if !self.node(parent)?.linked {
            return Err(Errno::NOENT);
        }
        if self.folder(parent)?.names.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.take(NODE_BYTES + name.len() as u64)?;
        let name: Arc<str> = name.into();
        let times = Times { accessed: now, modified: now, changed: now };
        let node = Node { name: name.clone(), parent, place: 0, linked: true, open: 0, times, kind };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as NodeId
            }
        };
        self.link(parent, name, id, now)?;
        Ok(id)
    }

    fn link(&mut self, parent: NodeId, name: Arc<str>, id: NodeId, now: u64) -> Result<(), Errno> {
        let folder = self.folder_mut(parent)?;
        let place = folder.next;
        folder.next += 1;
        folder.order.insert(place, id);
        folder.names.insert(name.clone(), id);
        self.touch(parent, now);
        let node = self.node_mut(id)?;
        node.name = name;
        node.parent = parent;
        node.place = place;
        Ok(())
    }

    /// Takes its name away, not yet the node.
    fn unlink(&mut self, id: NodeId, now: u64) -> Result<(), Errno> {
        let Node { name, parent, place, .. } = self.node(id)?;
        let (name, parent, place) = (name.clone(), *parent, *place);
        let folder = self.folder_mut(parent)?;
        folder.names.remove(&name);
        folder.order.remove(&place);
        self.touch(parent, now);
        Ok(())
    }

    pub fn remove_file(&mut self, id: NodeId, now: u64) -> Result<(), Errno> {
        self.data(id)?;
        self.remove(id, now)
    }

    pub fn remove_folder(&mut self, id: NodeId, now: u64) -> Result<(), Errno> {
        match self.folder(id)? {
            _ if id == ROOT => Err(Errno::BUSY),
            folder if folder.names.is_empty() => self.remove(id, now),
            _ => Err(Errno::NOTEMPTY),
        }
    }

    fn remove(&mut self, id: NodeId, now: u64) -> Result<(), Errno> {
        self.unlink(id, now)?;
        let node = self.node_mut(id)?;
        node.linked = false;
        node.times.changed = now;
        self.free_unused(id);
        Ok(())
    }

    pub fn open(&mut self, id: NodeId) {
        if let Ok(node) = self.node_mut(id) {
            node.open += 1;
        }
    }

    pub fn close(&mut self, id: NodeId) {
        if let Ok(node) = self.node_mut(id) {
            node.open = node.open.saturating_sub(1);
            self.free_unused(id);
        }
    }

    fn free_unused(&mut self, id: NodeId) {
        let Some(slot) = self.nodes.get_mut(id as usize) else { return };
        let Some(node) = slot.take_if(|node| !node.linked && node.open == 0) else { return };
        let content = match &node.kind {
            Kind::File(data) => data::cost(data.size()),
            Kind::Folder(_) => 0,
        };
        self.give_back(NODE_BYTES + node.name.len() as u64 + content);
        self.free.push(id);
    }

    /// Moves `id` to `name` in `parent`, in place of what has that name. Fuel: for each folder above it.
    pub fn rename(&mut self, fuel: &mut Fuel, id: NodeId, parent: NodeId, name: &str, now: u64) -> Result<(), Stop> {
        if !self.node(parent)?.linked {
            return Err(Errno::NOENT.into());
        }
        if id == ROOT {
            return Err(Errno::BUSY.into());
        }
        let there = self.folder(parent)?.names.get(name).copied();
        if there == Some(id) {
            return Ok(());
        }
        if self.is_folder(id) {
            self.not_below(fuel, parent, id)?;
        }
        if let Some(there) = there {
            match (self.is_folder(id), self.is_folder(there)) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) if !self.folder(there)?.names.is_empty() => return Err(Errno::NOTEMPTY.into()),
                _ => {}
            }
        }
        self.take(name.len() as u64)?;
        if let Some(there) = there {
            self.remove(there, now)?;
        }
        let before = self.node(id)?.name.len() as u64;
        self.unlink(id, now)?;
        self.give_back(before);
        self.link(parent, name.into(), id, now)?;
        self.node_mut(id)?.times.changed = now;
        Ok(())
    }

    /// `folder` is neither `id` nor below it.
    fn not_below(&self, fuel: &mut Fuel, folder: NodeId, id: NodeId) -> Result<(), Stop> {
        let mut at = folder;
        for n in 1u32.. {
            if at == id {
                return Err(Errno::INVAL.into());
            }
            if at == ROOT {
                break;
            }
            at = self.parent(at);
            fuel.charge(1);
            if n.is_multiple_of(1_024) {
                fuel.check()?;
            }
        }
        Ok(())
    }

    pub fn read(&self, fuel: &Fuel, id: NodeId, at: u64, to: &mut [u8]) -> Result<usize, Stop> {
        Ok(self.data(id)?.read(fuel, at, to)?)
    }

    /// All of it or nothing.
    pub fn write(&mut self, fuel: &Fuel, id: NodeId, at: u64, bytes: &[u8], now: u64) -> Result<(), Stop> {
        let before = self.data(id)?.size();
        if bytes.is_empty() {
            return Ok(());
        }
        let end = at.checked_add(bytes.len() as u64).ok_or(Errno::FBIG)?;
        if end > before {
            self.resized(before, end)?;
        }
        let node = self.node_mut(id)?;
        node.times.modified = now;
        node.times.changed = now;
        let written = match &mut node.kind {
            Kind::File(data) => {
                // First, so that what a halted write leaves is what was paid for.
                data.set_size(end.max(before));
                data.write(fuel, at, bytes)
            }
            Kind::Folder(_) => Err(Halt::Trap("a folder has no content".into())),
        };
        Ok(written?)
    }

    pub fn set_size(&mut self, id: NodeId, size: u64, now: u64) -> Result<(), Errno> {
        let before = self.data(id)?.size();
        self.resized(before, size)?;
        self.touch(id, now);
        if let Kind::File(data) = &mut self.node_mut(id)?.kind {
            data.set_size(size);
        }
        Ok(())
    }

    fn resized(&mut self, before: u64, after: u64) -> Result<(), Errno> {
        let (before, after) = (data::cost(before), data::cost(after));
        match after.checked_sub(before) {
            Some(more) => self.take(more),
            None => {
                self.give_back(before - after);
                Ok(())
            }
        }
    }
}
