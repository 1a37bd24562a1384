//! Bundles of stored modules: kept as files by digest beside the modules, unpacked when one is first needed.
//!
//! Invariant: what a run finds in its assets is what was uploaded, to the byte: an archive that no longer has its digest
//! is not unpacked. In memory there is one tree of each bundle, and those that nobody uses are within a bound.

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::domain::{Bundle, Digest, GuestFailure};

use super::artifacts::Upload;
use super::files::assets::{Assets, Tree};
use super::shared::OneOfEach;
use super::{Engine, InstallError, RunError};

/// The trees may take this share of what the engine's cache of code may, on top of it.
const SHARE: u64 = 4;
/// Archives that are unpacked at once, whoever asks for it.
const UNPACKING: usize = 2;

pub struct Bundles {
    trees: OneOfEach<Digest, Tree>,
    unpacking: Semaphore,
}

impl Bundles {
    pub fn new(code_bytes: u64) -> Bundles {
        Bundles { trees: OneOfEach::new(code_bytes / SHARE, Tree::memory), unpacking: Semaphore::new(UNPACKING) }
    }

    fn get(&self, digest: Digest) -> Option<Assets> {
        self.trees.get(digest).map(Assets)
    }

    pub fn forget(&self, digest: Digest) {
        self.trees.forget(digest);
    }
}

impl Engine {
    /// Stores an archive by its digest (fsynced, renamed into place), where it is not stored already.
    pub async fn store_bundle(&self, digest: Digest, archive: Bytes) -> Result<(), InstallError> {
        let _turn = self.modules.turn(digest).await;
        self.blocking(move |artifacts| artifacts.keep(Upload::Bundle, digest, &archive)).await
    }

    /// The files of a stored version: from memory, else unpacked anew.
    pub async fn assets(&self, bundle: &Bundle) -> Result<Assets, RunError> {
        let Bundle { digest, bytes, .. } = *bundle;
        if let Some(assets) = self.bundles.get(digest) {
            return Ok(assets);
        }
        let _turn = self.modules.turn(digest).await;
        if let Some(assets) = self.bundles.get(digest) {
            return Ok(assets);
        }
        let gone = |_| RunError::Guest(GuestFailure::NotLoadable("the gateway is shutting down".into()));
        let _one_of_few = self.bundles.unpacking.acquire().await.map_err(gone)?;
        let unreadable = |e| match e {
            InstallError::Unread => RunError::Unread,
            e => GuestFailure::NotLoadable(format!("its assets: {e}")).into(),
        };
        let archive = self.uploaded(Upload::Bundle, digest).await.map_err(unreadable)?;
        let unpacked = self.blocking(move |_| Ok(Assets::read(&archive, bytes))).await.map_err(unreadable)?;
        let assets = unpacked.map_err(|e| GuestFailure::NotLoadable(e.detail))?;
        self.bundles.trees.put(digest, assets.0.clone());
        Ok(assets)
    }
}
