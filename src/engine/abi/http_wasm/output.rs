//! How results reach a guest's buffers (ABI, "Numeric types" and "Memory"): `len`, `count_len`, `eof_len`.
//!
//! Invariant: a buffer that is too small is left as it was, and the true length is returned; nothing is ever cut.

use crate::engine::failure::Halt;
use crate::engine::memory::GuestMemory;

/// A `len` result: the bytes if they fit into `cap`, their length in any case.
pub fn len(memory: &mut GuestMemory, bytes: &[u8], buf: i32, cap: i32) -> Result<i32, Halt> {
    let length = u32::try_from(bytes.len()).map_err(|_| Halt::OutputTooLarge)?;
    if length <= cap as u32 && length > 0 {
        memory.write(buf as u32, bytes)?;
    }
    Ok(length as i32)
}

/// A `count_len` result: items, each behind it a NUL, if all fit; how many and their bytes in any case.
pub fn count_len<'a, I: Iterator<Item = &'a [u8]>>(
    memory: &mut GuestMemory,
    items: impl Fn() -> I,
    buf: i32,
    cap: i32,
) -> Result<i64, Halt> {
    let (mut count, mut bytes) = (0u64, 0usize);
    for item in items() {
        count += 1;
        bytes += item.len() + 1;
    }
    let length = u32::try_from(bytes).map_err(|_| Halt::OutputTooLarge)?;
    if length > 0 && length <= cap as u32 {
        let mut rest = memory.slice_mut(buf as u32, length)?;
        for item in items() {
            let (this, behind) = rest.split_at_mut(item.len() + 1);
            this[..item.len()].copy_from_slice(item);
            this[item.len()] = 0;
            rest = behind;
        }
    }
    Ok((count << 32 | u64::from(length)) as i64)
}

/// An `eof_len` result.
pub fn eof_len(eof: bool, length: u32) -> i64 {
    (u64::from(eof) << 32 | u64::from(length)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_true_where_nothing_fits() {
        let mut none = GuestMemory::default();
        assert_eq!(len(&mut none, b"GET", 0, 0), Ok(3));
        assert_eq!(len(&mut none, b"GET", 0, 2), Ok(3));
        assert!(matches!(len(&mut none, b"GET", 0, 3), Err(Halt::Trap(_))), "no memory to write to");
        assert_eq!(len(&mut none, b"", -1, 0), Ok(0));
        let items = [b"a".as_slice(), b"bc"];
        assert_eq!(count_len(&mut none, || items.into_iter(), 0, 4), Ok(2 << 32 | 5));
        assert_eq!(count_len(&mut none, std::iter::empty, 0, 4), Ok(0));
        assert_eq!(eof_len(true, 7), 1 << 32 | 7);
    }
}
