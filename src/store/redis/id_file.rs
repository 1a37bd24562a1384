//! The number of the store that this gateway uses, in a file: so that a restart takes no empty store for the one that was lost.
//!
//! Invariant: the file is whole or missing.

use std::io::ErrorKind;
use std::path::Path;

use crate::store::{Result, StoreError};

pub fn read(file: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(id) => Ok(Some(id.trim().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unusable(file, &e)),
    }
}

pub fn write(file: &Path, id: &str) -> Result<()> {
    let aside = file.with_extension("id-new");
    let written = std::fs::write(&aside, format!("{id}\n")).and_then(|()| std::fs::rename(&aside, file));
    written.map_err(|e| unusable(file, &e))
}

fn unusable(file: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("the number of the store is kept in `{}`: {error}", file.display()))
}
