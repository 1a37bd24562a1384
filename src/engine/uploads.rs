//! What was uploaded, in the data directory of a gateway that does not run.

use std::io;
use std::path::Path;

use super::artifacts::{Artifacts, Upload};
use crate::domain::{Digest, ModuleVersion};

pub struct Uploads(Artifacts);

impl Uploads {
    /// Makes nothing.
    pub fn of(data_dir: &Path) -> Self {
        Self(Artifacts::of(data_dir, [0; 32], 0))
    }

    /// All that a version has.
    pub fn named(version: &ModuleVersion) -> impl Iterator<Item = (Upload, Digest)> {
        let bundle = version.assets.map(|bundle| (Upload::Bundle, bundle.digest));
        std::iter::once((Upload::Module, version.digest)).chain(bundle)
    }

    /// An error when the bytes no longer have their digest.
    pub fn read(&self, (what, digest): (Upload, Digest)) -> io::Result<Vec<u8>> {
        self.0.read(what, digest)
    }

    /// Durable when it returns, also where a damaged file was in the place.
    pub fn keep(&self, (what, digest): (Upload, Digest), bytes: &[u8]) -> io::Result<()> {
        if self.0.read(what, digest).is_ok() {
            return Ok(());
        }
        self.0.make_folder()?;
        self.0.replace(what, digest, bytes)
    }
}
