//! A guest between calls, which may go on on another thread.
//!
//! Invariant: what moves is a whole guest that no thread is inside of.

// Wasmer's store is not `Send` since 7.0, because its type now allows an `on_called` handler that is not
// (wasmerio/wasmer#7001). There is no safe way to keep a VM over requests that begin on different workers.
#![allow(unsafe_code)]

use super::guest::Guest;

pub struct AtRest(Guest);

// SAFETY: a guest is a store and handles into it (indices). What the store holds:
// - memories, tables, globals, instances: allocations that it owns alone, with raw pointers among themselves; none is
//   shared with another store (memories come from the pool one by one, and no import is a memory, table or global);
// - host functions: function items without captures (`MakeFn`), and the environment `HostState`, which is `Send` as
//   `FunctionEnv::new` demands;
// - the engine: shared, `Send + Sync`;
// - `on_called`: never set here.
// Thread-locals of Wasmer (the store context, trap handlers) are entered and left within a call. A call needs
// `&mut Guest`, so none is under way when the guest moves.
unsafe impl Send for AtRest {}
// SAFETY: `&AtRest` gives access to nothing of the guest.
unsafe impl Sync for AtRest {}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<super::host::HostState>();
    is_send::<wasmer::Engine>();
};

impl AtRest {
    pub fn new(guest: Guest) -> AtRest {
        AtRest(guest)
    }

    pub fn get(&mut self) -> &mut Guest {
        &mut self.0
    }
}
