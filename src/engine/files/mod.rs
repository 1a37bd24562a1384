//! Files of guests: read-only assets out of a module's bundle.
//!
//! Invariant: no guest's file is a file of the host.

pub mod assets;
mod bundle;

pub use assets::Assets;

use crate::domain::NotLoadable;

impl Assets {
    /// Reads a zip or tar archive whose files have at most so many bytes together. Takes as long as unpacking: not for
    /// async workers.
    pub fn read(bundle: &[u8], max_bytes: u64) -> Result<Assets, NotLoadable> {
        bundle::read(bundle, max_bytes)
    }
}
