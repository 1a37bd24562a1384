//! What a record looks like in Redis: a format byte, a MAC over its place and its content, the content.
//!
//! Invariant: content is seen only after its MAC was found right, for this place in this store. So whoever can write to
//! Redis but has no record key can delete, and put back what a record was before, but make up nothing and move nothing.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const FORMAT: u8 = 1;
/// Format and MAC, by which a record is told from another one of the same place.
pub const HEAD: usize = 33;

/// Where a record is: a Redis key, and the field if that is a hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    pub key: String,
    pub field: Option<Vec<u8>>,
}

impl At {
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: key.into(), field: None }
    }

    pub fn field(key: impl Into<String>, field: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), field: Some(field.into()) }
    }
}

pub struct Seal(Hmac<Sha256>);

impl Seal {
    /// For records of one purpose, or of one store.
    pub fn new(record_key: &[u8; 32], purpose: &str) -> Self {
        let mut mac = keyed(record_key);
        mac.update(purpose.as_bytes());
        Self(keyed(&mac.finalize().into_bytes()))
    }

    pub fn seal(&self, at: &At, content: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEAD + content.len());
        record.push(FORMAT);
        record.extend_from_slice(&self.mac(at, content).finalize().into_bytes());
        record.extend_from_slice(content);
        record
    }

    /// The content of a record, if it was sealed for this place.
    pub fn open<'a>(&self, at: &At, record: &'a [u8]) -> Option<&'a [u8]> {
        let (head, content) = record.split_at_checked(HEAD)?;
        let (format, tag) = head.split_first()?;
        // In constant time.
        let right = self.mac(at, content).verify_slice(tag).is_ok();
        (*format == FORMAT && right).then_some(content)
    }

    fn mac(&self, at: &At, content: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // Lengths keep the parts apart, and a key without a field from one with an empty one.
        for part in [Some(at.key.as_bytes()), at.field.as_deref()] {
            mac.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            mac.update(part.unwrap_or_default());
        }
        mac.update(content);
        mac
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// The part of a record that says which one it is.
pub fn head(record: &[u8]) -> &[u8] {
    &record[..record.len().min(HEAD)]
}
