//! The content of one file in memory.
//!
//! Invariant: what is beyond the end is zero when the file grows over it, and pages are there only where something was
//! written.

use crate::engine::failure::Halt;
use crate::engine::fuel::Fuel;

pub const PAGE: usize = 4_096;
/// Pages moved between two looks at the deadline.
const PIECE: usize = 256;

type Page = Box<[u8; PAGE]>;

#[derive(Debug, Default)]
pub struct Data {
    size: u64,
    /// Where there is none, there are zeros.
    pages: Vec<Option<Page>>,
}

/// What a file of this size counts for.
pub fn cost(size: u64) -> u64 {
    size.checked_next_multiple_of(PAGE as u64).unwrap_or(u64::MAX)
}

impl Data {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whoever calls this has seen to it that there is room.
    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            let pages = usize::try_from(size.div_ceil(PAGE as u64)).unwrap_or(usize::MAX);
            self.pages.truncate(pages);
            let within = (size % PAGE as u64) as usize;
            if within > 0
                && let Some(Some(last)) = self.pages.get_mut((size / PAGE as u64) as usize)
            {
                last[within..].fill(0);
            }
            self.pages.shrink_to(pages.saturating_mul(2));
        }
        self.size = size;
    }

    /// As much as there is from `at` on.
    pub fn read(&self, fuel: &Fuel, at: u64, to: &mut [u8]) -> Result<usize, Halt> {
        let there = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(to.len());
        let mut done = 0;
        for (n, (page, within, len)) in spans(at, there).enumerate() {
            pause(fuel, n)?;
            let to = &mut to[done..done + len];
            match self.pages.get(page) {
                Some(Some(page)) => to.copy_from_slice(&page[within..within + len]),
                _ => to.fill(0),
            }
            done += len;
        }
        Ok(there)
    }

    /// As [`Data::set_size`], for `at + bytes.len()`.
    pub fn write(&mut self, fuel: &Fuel, at: u64, bytes: &[u8]) -> Result<(), Halt> {
        let mut done = 0;
        for (n, (page, within, len)) in spans(at, bytes.len()).enumerate() {
            pause(fuel, n)?;
            if self.pages.len() <= page {
                self.pages.resize_with(page + 1, || None);
            }
            let page = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        if done > 0 {
            self.size = self.size.max(at + done as u64);
        }
        Ok(())
    }
}

fn pause(fuel: &Fuel, n: usize) -> Result<(), Halt> {
    if n > 0 && n.is_multiple_of(PIECE) { fuel.check() } else { Ok(()) }
}

/// The pages that so many bytes from `at` on lie in: which one, from where in it, how many.
fn spans(at: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut at = usize::try_from(at).unwrap_or(usize::MAX);
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let within = at % PAGE;
        let span = (at / PAGE, within, left.min(PAGE - within));
        at = at.saturating_add(span.2);
        left -= span.2;
        Some(span)
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::engine::cancel::Cancel;

    #[test]
    fn holes_and_cut_ends_read_as_zeros() {
        let now = Instant::now();
        let fuel = Fuel::new(u64::MAX, now, now + Duration::from_secs(60), Cancel::default());
        let mut data = Data::default();
        data.write(&fuel, 10_000, b"abc").unwrap();
        assert_eq!(data.size(), 10_003);
        assert_eq!(data.pages.iter().flatten().count(), 1);
        let mut all = vec![1u8; 20_000];
        assert_eq!(data.read(&fuel, 0, &mut all).unwrap(), 10_003);
        assert!(all[..10_000].iter().all(|b| *b == 0) && &all[10_000..10_003] == b"abc" && all[10_003] == 1);
        data.set_size(10_001);
        data.set_size(12_000);
        let mut tail = [1u8; 4];
        assert_eq!(data.read(&fuel, 9_999, &mut tail).unwrap(), 4);
        assert_eq!(&tail, b"\0a\0\0");
        assert_eq!(data.read(&fuel, 12_000, &mut tail).unwrap(), 0);
        assert_eq!(data.read(&fuel, u64::MAX, &mut tail).unwrap(), 0);
    }
}
