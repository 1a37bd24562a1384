//! The embedded store: one redb file.

use std::path::Path;

use super::Result;

pub struct EmbeddedStore {}

impl EmbeddedStore {
    /// Creates the file when it is missing; refuses one of a newer schema.
    pub fn open(_file: &Path) -> Result<Self> {
        unimplemented!()
    }
}
