//! Linear memories: pooled reservations, limits per guest, and the host's view of them.
//!
//! Invariant: every byte of a slot that a guest could have touched is zero again before the slot is used anew, and a
//! guest's accessible bytes are exactly its memory's size: everything else of the 8 GiB reservation faults.

// A linear memory is mapped, protected and handed to compiled code as raw pointers; there is no safe form of that.
// Each block says what makes it sound.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use wasmer_types::{MemoryError, MemoryStyle, MemoryType, Pages, WASM_PAGE_SIZE};
use wasmer_vm::{LinearMemory, VMMemoryDefinition};

use super::budget::Reserved;
use super::failure::Halt;

/// What compiled code may address without a bounds check: 4 GiB by its 32-bit index, 4 GiB by a constant offset, and a
/// page for the width of an access (`MemoryStyle::Static`).
const RESERVED: usize = (1 << 32) + MemoryStyle::static_offset_guard_size() as usize;
/// Of a returned slot, this much is cleared by hand and stays mapped; the rest goes back to the system.
const KEPT: usize = 64 << 10;
/// Free slots a thread keeps.
const FREE_SLOTS: usize = 4;

/// What the memory of one guest and its host functions share.
#[derive(Debug, Default)]
struct Shared {
    /// Null while there is no memory.
    base: AtomicPtr<u8>,
    len: AtomicUsize,
    peak: AtomicU64,
    refused: AtomicBool,
}

/// A guest's linear memory as host functions see it. Every access is bounds-checked; a bad pointer is a trap.
/// A module without memory has length 0.
#[derive(Debug, Default)]
pub struct GuestMemory {
    shared: Arc<Shared>,
}

impl GuestMemory {
    pub fn size(&self) -> usize {
        self.shared.len.load(Ordering::Relaxed)
    }

    pub fn peak_bytes(&self) -> u64 {
        self.shared.peak.load(Ordering::Relaxed)
    }

    /// A `memory.grow` was refused since the last call of this.
    pub fn take_refused(&self) -> bool {
        self.shared.refused.swap(false, Ordering::Relaxed)
    }

    pub fn bytes(&self) -> &[u8] {
        let base = self.shared.base.load(Ordering::Relaxed);
        if base.is_null() {
            return &[];
        }
        // SAFETY: `base` and `len` describe the accessible part of a live slot: `PooledMemory` sets them, and clears
        // them before the slot goes away. Nobody writes meanwhile: the guest's thread is in this host function, the
        // memory isn't shared, and `bytes_mut` takes `&mut self` of the only `GuestMemory` of this guest.
        unsafe { std::slice::from_raw_parts(base, self.size()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let base = self.shared.base.load(Ordering::Relaxed);
        if base.is_null() {
            return &mut [];
        }
        // SAFETY: as in `bytes`; `&mut self` excludes other views.
        unsafe { std::slice::from_raw_parts_mut(base, self.size()) }
    }

    pub fn slice(&self, ptr: u32, len: u32) -> Result<&[u8], Halt> {
        let start = ptr as usize;
        self.bytes().get(start..start + len as usize).ok_or_else(|| out_of_bounds(ptr, len))
    }

    pub fn slice_mut(&mut self, ptr: u32, len: u32) -> Result<&mut [u8], Halt> {
        let start = ptr as usize;
        self.bytes_mut().get_mut(start..start + len as usize).ok_or_else(|| out_of_bounds(ptr, len))
    }

    pub fn write(&mut self, ptr: u32, bytes: &[u8]) -> Result<(), Halt> {
        let len = u32::try_from(bytes.len()).map_err(|_| out_of_bounds(ptr, u32::MAX))?;
        self.slice_mut(ptr, len)?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn write_u32(&mut self, ptr: u32, value: u32) -> Result<(), Halt> {
        self.write(ptr, &value.to_le_bytes())
    }

    pub fn write_u64(&mut self, ptr: u32, value: u64) -> Result<(), Halt> {
        self.write(ptr, &value.to_le_bytes())
    }

    pub fn read_u32(&self, ptr: u32) -> Result<u32, Halt> {
        let b = self.slice(ptr, 4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn read_u64(&self, ptr: u32) -> Result<u64, Halt> {
        let low = self.read_u32(ptr)?;
        let high = self.read_u32(ptr.checked_add(4).ok_or_else(|| out_of_bounds(ptr, 8))?)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }
}

fn out_of_bounds(ptr: u32, len: u32) -> Halt {
    Halt::Trap(format!("host call with {len} bytes at {ptr:#x}, out of the memory's bounds"))
}

/// What a guest about to be instantiated on this thread may have. Tunables have no other way to learn it.
pub struct Grant {
    pub memory_bytes: u64,
    pub table_elements: u32,
    /// Of the budget; the memory that is made takes it over.
    reserved: Option<Reserved>,
    shared: Arc<Shared>,
}

impl Grant {
    pub fn new(memory: &GuestMemory, memory_bytes: u64, table_elements: u32, reserved: Reserved) -> Grant {
        Grant { memory_bytes, table_elements, reserved: Some(reserved), shared: memory.shared.clone() }
    }
}

thread_local! {
    static GRANT: RefCell<Option<Grant>> = const { RefCell::new(None) };
    static FREE: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// Runs `instantiate` with the grant in force on this thread.
pub fn with_grant<R>(grant: Grant, instantiate: impl FnOnce() -> R) -> R {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            GRANT.with(|g| g.borrow_mut().take());
        }
    }
    GRANT.with(|g| *g.borrow_mut() = Some(grant));
    let _clear = Clear;
    instantiate()
}

/// The table limit of the grant in force.
pub fn granted_table_elements() -> Option<u32> {
    GRANT.with(|g| g.borrow().as_ref().map(|grant| grant.table_elements))
}

/// A reservation of address space whose first `accessible` bytes can be read and written.
#[derive(Debug)]
struct Slot {
    base: NonNull<u8>,
    accessible: usize,
}

// SAFETY: a slot owns its mapping; nothing in it belongs to a thread.
unsafe impl Send for Slot {}
// SAFETY: shared references to a slot give no access to its bytes.
unsafe impl Sync for Slot {}

impl Slot {
    fn take() -> Result<Slot, MemoryError> {
        let free = FREE.try_with(|f| f.borrow_mut().pop()).ok().flatten();
        free.map_or_else(Slot::reserve, Ok)
    }

    fn reserve() -> Result<Slot, MemoryError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the system chooses touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), RESERVED, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(MemoryError::Region(std::io::Error::last_os_error().to_string()));
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| MemoryError::Region("mapped at zero".into()))?;
        Ok(Slot { base, accessible: 0 })
    }

    /// Makes exactly the first `len` bytes accessible.
    fn resize(&mut self, len: usize) -> Result<(), MemoryError> {
        let (from, to, protection) = match len.cmp(&self.accessible) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => (self.accessible, len, libc::PROT_READ | libc::PROT_WRITE),
            std::cmp::Ordering::Less => (len, self.accessible, libc::PROT_NONE),
        };
        debug_assert!(to <= RESERVED);
        // SAFETY: `from..to` lies within this slot's own mapping: sizes are at most 4 GiB.
        let rc = unsafe { libc::mprotect(self.base.as_ptr().add(from).cast(), to - from, protection) };
        if rc != 0 {
            return Err(MemoryError::Region(std::io::Error::last_os_error().to_string()));
        }
        self.accessible = len;
        Ok(())
    }

    /// Zeroes what a guest could have written. False when the system refuses, and the slot must not be used again.
    fn clear(&mut self) -> bool {
        let kept = self.accessible.min(KEPT);
        // SAFETY: the first `accessible` bytes of the slot are mapped for writing, and no guest uses them any more.
        unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, kept) };
        if self.accessible == kept {
            return true;
        }
        // SAFETY: `kept..accessible` lies within this slot's own private anonymous mapping; pages given back this way
        // read as zero (madvise(2), MADV_DONTNEED).
        let rc =
            unsafe { libc::madvise(self.base.as_ptr().add(kept).cast(), self.accessible - kept, libc::MADV_DONTNEED) };
        rc == 0
    }

    fn give_back(mut self) {
        if !self.clear() {
            return;
        }
        // Where the thread is ending its list is gone, and the slot is unmapped.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < FREE_SLOTS {
                free.push(self);
            }
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the slot owns the whole mapping, and whoever used it is gone.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), RESERVED);
        }
    }
}

/// A linear memory in a pooled slot.
#[derive(Debug)]
pub struct PooledMemory {
    ty: MemoryType,
    maximum: Pages,
    size: Pages,
    /// `None` only while dropping.
    slot: Option<Slot>,
    definition: NonNull<VMMemoryDefinition>,
    shared: Arc<Shared>,
    /// Goes after the slot.
    reserved: Reserved,
}

// SAFETY: `definition` points into the instance that owns this memory and moves between threads with it.
unsafe impl Send for PooledMemory {}
// SAFETY: `&PooledMemory` only reads sizes and the pointer's value.
unsafe impl Sync for PooledMemory {}

impl PooledMemory {
    /// # Safety
    /// `definition` must stay valid for writes as long as the memory lives (it lies in the instance's `VMContext`).
    pub unsafe fn create(ty: &MemoryType, definition: NonNull<VMMemoryDefinition>) -> Result<Self, MemoryError> {
        GRANT.with(|grant| {
            let mut grant = grant.borrow_mut();
            let grant = grant.as_mut().ok_or_else(|| MemoryError::Generic("no grant is in force".into()))?;
            let allowed = u32::try_from(grant.memory_bytes / WASM_PAGE_SIZE as u64).unwrap_or(u32::MAX);
            let maximum = Pages(allowed.min(ty.maximum.unwrap_or(Pages::max_value()).0).min(Pages::max_value().0));
            if ty.shared || ty.minimum > maximum {
                return Err(MemoryError::MinimumMemoryTooLarge { min_requested: ty.minimum, max_allowed: maximum });
            }
            let reserved = grant.reserved.take();
            let mut memory = PooledMemory {
                ty: *ty,
                maximum,
                size: Pages(0),
                slot: Some(Slot::take()?),
                definition,
                shared: grant.shared.clone(),
                reserved: reserved.ok_or_else(|| MemoryError::Generic("a guest has one memory".into()))?,
            };
            memory.set_size(ty.minimum)?;
            Ok(memory)
        })
    }

    fn set_size(&mut self, pages: Pages) -> Result<(), MemoryError> {
        let refused = MemoryError::CouldNotGrow { current: self.size, attempted_delta: Pages(pages.0 - self.size.0) };
        // What the system then refuses stays reserved: it is this guest's until it ends.
        if !self.reserved.raise(pages.bytes().0 as u64) {
            return Err(refused);
        }
        self.slot.as_mut().ok_or(refused)?.resize(pages.bytes().0)?;
        self.size = pages;
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        let Some(slot) = &self.slot else { return };
        let len = self.size.bytes().0;
        // SAFETY: `create`'s contract: the definition is valid as long as the memory lives, and only this memory
        // writes it.
        unsafe {
            let definition = self.definition.as_mut();
            definition.base = slot.base.as_ptr();
            definition.current_length = len;
        }
        self.shared.base.store(slot.base.as_ptr(), Ordering::Relaxed);
        self.shared.len.store(len, Ordering::Relaxed);
        self.shared.peak.fetch_max(len as u64, Ordering::Relaxed);
    }
}

impl Drop for PooledMemory {
    fn drop(&mut self) {
        self.shared.len.store(0, Ordering::Relaxed);
        self.shared.base.store(std::ptr::null_mut(), Ordering::Relaxed);
        if let Some(slot) = self.slot.take() {
            slot.give_back();
        }
    }
}

impl LinearMemory for PooledMemory {
    fn ty(&self) -> MemoryType {
        MemoryType { minimum: self.size, ..self.ty }
    }

    fn size(&self) -> Pages {
        self.size
    }

    fn style(&self) -> MemoryStyle {
        MemoryStyle::Static
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let before = self.size;
        if delta.0 == 0 {
            return Ok(before);
        }
        let refused = MemoryError::CouldNotGrow { current: before, attempted_delta: delta };
        let grown = match before.checked_add(delta) {
            Some(pages) if pages <= self.maximum => self.set_size(pages),
            _ => Err(refused),
        };
        if grown.is_err() {
            self.shared.refused.store(true, Ordering::Relaxed);
        }
        grown.map(|()| before)
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.definition
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::UnsupportedOperation { message: "a guest's memory is its own".into() })
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync + 'static>, MemoryError> {
        Err(MemoryError::UnsupportedOperation { message: "a guest's memory is its own".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_zero_when_it_comes_again() {
        let mut slot = Slot::reserve().unwrap();
        slot.resize(256 << 10).unwrap();
        // SAFETY: 256 KiB were just made accessible.
        let bytes = unsafe { std::slice::from_raw_parts_mut(slot.base.as_ptr(), 256 << 10) };
        bytes.fill(0xAA);
        let base = slot.base;
        slot.give_back();
        let again = Slot::take().unwrap();
        assert_eq!(again.base, base, "the thread's own slot is used again");
        // SAFETY: the slot still has its 256 KiB.
        let bytes = unsafe { std::slice::from_raw_parts(again.base.as_ptr(), again.accessible) };
        assert!(bytes.iter().all(|b| *b == 0));
    }

    #[test]
    fn no_memory_means_every_pointer_is_bad() {
        let mut memory = GuestMemory::default();
        assert!(memory.slice(0, 0).is_ok());
        assert!(memory.slice(0, 1).is_err());
        assert!(memory.write_u32(u32::MAX, 1).is_err());
    }
}
