//! How deep a guest may call.
//!
//! Wasmer runs guests on stacks of their own, and keeps a stack for its thread's next guest, whatever the size that one
//! asks for: all that it looks at is that the stack is not too small. So a guest with little would run on what one
//! with much has left. Where the sizes differ, the kept stack is let go first, at the price of making
//! another.
//!
//! Invariant: a guest runs on a stack that was made for its own limit, in whole pages.

use std::cell::Cell;

thread_local! {
    /// Bytes of the stack that Wasmer keeps for this thread; 0: it is not known that it has any.
    static KEPT: Cell<u64> = const { Cell::new(0) };
}

/// Runs what enters a guest.
pub fn with<R>(bytes: u64, enter: impl FnOnce() -> R) -> R {
    if KEPT.replace(bytes) != bytes {
        // This thread's, and those that ended threads have left for all.
        wasmer_vm::drain_stack_pool();
    }
    enter()
}

/// Lets a thread's stack go with it; Wasmer would keep it for another thread, for ever and whatever its size.
pub struct OfThread;

impl Drop for OfThread {
    fn drop(&mut self) {
        wasmer_vm::drain_stack_pool();
    }
}
