//! The modules that are recorded against the files that are stored.
//!
//! Invariant: a file goes only when no version refers to it, and that is looked up while no upload is between storing its
//! bytes and recording them.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::App;
use crate::domain::Digest;
use crate::engine::Origin;
use crate::store::{Store, StoreError};

/// Records read at a time.
const SCAN: u64 = 500;

/// The files in a shared store.
pub struct Blobs(pub Arc<dyn Store>);

#[async_trait]
impl Origin for Blobs {
    async fn fetch(&self, digest: Digest) -> Result<Option<Vec<u8>>, String> {
        self.0.blob(digest).await.map_err(|e| e.to_string())
    }
}

impl App {
    /// Deletes what no version refers to, as a killed upload or a failed delete leaves it.
    pub async fn sweep(&self) {
        let swept = async {
            // A look that holds nobody up. Nearly always there is nothing to do.
            let stored = self.shared.engine.digests().await.map_err(|e| StoreError::Unavailable(e.to_string()))?;
            let orphans = self.unreferenced(stored).await?;
            if orphans.is_empty() {
                return Ok(0);
            }
            if self.store.modules(None, false, 0, 1).await?.total == 0 {
                // The store was lost, rather than every upload cut off; it may be put back.
                let files = orphans.len();
                tracing::warn!(files, "the store refers to no module: the files of modules that there are stay");
                return Ok(0);
            }
            let _alone = self.catalogue.write().await;
            self.remove_unused(orphans).await
        };
        match swept.await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "stored modules that nothing referred to deleted"),
            Err(error) => tracing::warn!(%error, "stored modules that nothing refers to stay for now"),
        }
        if let Err(error) = self.sweep_blobs().await {
            tracing::warn!(%error, "modules in the store that nothing refers to stay for now");
        }
    }

    /// Deletes from a shared store what nothing referred to at the last sweep either: an upload elsewhere, which puts its bytes
    /// there before their record, has had its time.
    async fn sweep_blobs(&self) -> Result<(), StoreError> {
        let blobs: HashSet<Digest> = self.store.blobs().await?.into_iter().collect();
        if blobs.is_empty() || self.store.modules(None, false, 0, 1).await?.total == 0 {
            return Ok(());
        }
        let orphans = self.unreferenced(blobs).await?;
        let before = std::mem::replace(&mut *self.orphans.lock(), orphans.clone());
        for digest in orphans.intersection(&before) {
            self.store.delete_blob(*digest).await?;
            tracing::info!(%digest, "a module that nothing referred to deleted from the store");
        }
        Ok(())
    }

    /// Deletes the files of those that no version refers to; how many. Who calls it has the catalogue alone.
    pub async fn remove_unused(&self, digests: HashSet<Digest>) -> Result<usize, StoreError> {
        let unused = self.unreferenced(digests).await?;
        let mut removed = 0;
        for digest in unused {
            match self.shared.engine.remove(digest).await {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%error, %digest, "the files of a module stay on disk for now"),
            }
        }
        Ok(removed)
    }

    async fn unreferenced(&self, mut digests: HashSet<Digest>) -> Result<HashSet<Digest>, StoreError> {
        let mut offset = 0;
        while !digests.is_empty() {
            let page = self.store.modules(None, false, offset, SCAN).await?;
            for version in page.items.iter().flat_map(|m| &m.versions) {
                for digest in version.digests() {
                    digests.remove(&digest);
                }
            }
            offset += SCAN;
            if offset >= page.total {
                break;
            }
        }
        Ok(digests)
    }
}
