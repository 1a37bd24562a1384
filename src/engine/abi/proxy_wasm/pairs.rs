//! Maps on their way to and from guests (ABI, "Serialization": the wire form has 4-byte little-endian integers).
//!
//! Invariant: what is decoded was exactly one map: no NUL is missing and nothing follows.

use super::{Done, Status};

/// Of one map from a guest.
const MAX_BYTES: usize = 1 << 20;
const MAX_PAIRS: usize = 1_024;

pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// An empty map is nothing at all.
pub fn encode(pairs: &[Pair<'_>]) -> Vec<u8> {
    if pairs.is_empty() {
        return Vec::new();
    }
    let size = 4 + pairs.iter().map(|(name, value)| 8 + name.len() + 1 + value.len() + 1).sum::<usize>();
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&len(pairs.len()));
    for (name, value) in pairs {
        out.extend_from_slice(&len(name.len()));
        out.extend_from_slice(&len(value.len()));
    }
    for (name, value) in pairs {
        for text in [name, value] {
            out.extend_from_slice(text);
            out.push(0);
        }
    }
    out
}

/// Header maps are bounded far below 4 GiB.
fn len(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

pub fn decode(bytes: &[u8]) -> Done<Vec<Pair<'_>>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let bad = || Status::BAD_ARGUMENT;
    if bytes.len() > MAX_BYTES {
        return Err(bad().into());
    }
    let word = |at: usize| -> Option<usize> {
        let word = bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(word.try_into().ok()?)).ok()
    };
    let count = word(0).filter(|n| *n <= MAX_PAIRS).ok_or_else(bad)?;
    let mut at = 4 + 8 * count;
    let mut text = |len: usize| -> Option<&[u8]> {
        let end = at.checked_add(len)?;
        let text = bytes.get(at..end)?;
        (*bytes.get(end)? == 0).then(|| at = end + 1)?;
        Some(text)
    };
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        let (name, value) = (word(4 + 8 * i).ok_or_else(bad)?, word(8 + 8 * i).ok_or_else(bad)?);
        pairs.push((text(name).ok_or_else(bad)?, text(value).ok_or_else(bad)?));
    }
    if at == bytes.len() { Ok(pairs) } else { Err(bad().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the Rust SDK's documentation of the format.
    #[test]
    fn the_form_on_the_wire() {
        let pairs: [Pair<'_>; 2] = [(b"key1", b"val1"), (b"key2", b"val22")];
        let wire = b"\x02\0\0\0\x04\0\0\0\x04\0\0\0\x04\0\0\0\x05\0\0\0key1\0val1\0key2\0val22\0";
        assert_eq!(encode(&pairs), wire);
        assert_eq!(decode(wire).unwrap(), pairs);
    }

    #[test]
    fn an_empty_map_has_two_forms_and_nothing_else_is_taken() {
        assert!(encode(&[]).is_empty());
        assert!(decode(b"").unwrap().is_empty());
        assert!(decode(b"\0\0\0\0").unwrap().is_empty());
        let good = encode(&[(b"a", b"b")]);
        for cut in 1..good.len() {
            assert!(decode(&good[..cut]).is_err(), "{cut}");
        }
        assert!(decode(&[&good[..], b"\0"].concat()).is_err(), "something follows");
        let mut without_nul = good.clone();
        *without_nul.last_mut().unwrap() = b'x';
        assert!(decode(&without_nul).is_err());
        assert!(decode(&[0xff; 64]).is_err());
    }
}
