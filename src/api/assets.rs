//! The bundle beside a module: read and checked before anything is kept of it.
//!
//! Invariant: a bundle is unpacked off the async workers, by as few at once as modules are inspected.

use bytes::Bytes;

use super::{Api, upload};
use crate::domain::{Bundle, Digest, OwnerId, Rejection, Tier};
use crate::engine::Assets;

/// An archive, and what is in it.
pub(super) struct Uploaded {
    pub archive: Bytes,
    pub bundle: Bundle,
}

/// Unpacks an archive whose files fit with a module of so many bytes into the tier.
pub(super) async fn read(
    api: &Api,
    owner: Option<&OwnerId>,
    archive: Option<Bytes>,
    module_bytes: u64,
    tier: &Tier,
) -> Result<Option<Uploaded>, Rejection> {
    let Some(archive) = archive else { return Ok(None) };
    let Some(left) = tier.module_bytes.checked_sub(module_bytes) else {
        return Err(upload::module_too_large(api, tier, Some(module_bytes)));
    };
    let bytes = archive.clone();
    let look = move || {
        let assets = Assets::read(&bytes, left)?;
        let archive_bytes = bytes.len() as u64;
        Ok(Bundle { digest: Digest::of(&bytes), bytes: assets.bytes(), files: assets.files(), archive_bytes })
    };
    Ok(Some(Uploaded { bundle: api.inspecting(owner, look).await?, archive }))
}
