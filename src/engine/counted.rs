//! How many are in a queue or under way, kept by what each of them holds.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One of them; it leaves by dropping this, as a request does whose client goes away.
pub struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    /// `None` when there are so many already.
    pub fn enter(counter: &'a AtomicUsize, max: usize) -> Option<Counted<'a>> {
        let entered = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        entered.is_ok().then_some(Counted(counter))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
