//! Bundles of stored modules: kept as files by digest beside the modules, unpacked when one is first needed.
//!
//! Invariant: what a run finds in its assets is what was uploaded, to the byte: an archive that no longer has its digest
//! is not unpacked. In memory there is one tree of each bundle, and those that nobody uses are within a bound.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::domain::{Bundle, Digest, GuestFailure};

use super::files::assets::{Assets, WeakAssets};
use super::{Engine, InstallError};

/// The trees may take this share of what the engine's cache of code may, on top of it.
const SHARE: u64 = 4;
/// Archives that are unpacked at once, whoever asks for it.
const UNPACKING: usize = 2;

pub struct Bundles {
    cache: moka::sync::Cache<Digest, Assets>,
    /// Those that somebody holds, in the cache or not.
    alive: Mutex<HashMap<Digest, WeakAssets>>,
    unpacking: Semaphore,
}

impl Bundles {
    pub fn new(code_bytes: u64) -> Bundles {
        let cache = moka::sync::Cache::builder()
            .max_capacity(code_bytes / SHARE)
            .weigher(|_, assets: &Assets| u32::try_from(assets.memory()).unwrap_or(u32::MAX))
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        Bundles { cache, alive: Mutex::default(), unpacking: Semaphore::new(UNPACKING) }
    }

    fn get(&self, digest: Digest) -> Option<Assets> {
        self.cache.get(&digest).or_else(|| {
            let alive = self.alive.lock().get(&digest).and_then(WeakAssets::upgrade)?;
            self.cache.insert(digest, alive.clone());
            Some(alive)
        })
    }

    fn put(&self, digest: Digest, assets: &Assets) {
        let mut alive = self.alive.lock();
        alive.retain(|_, assets| assets.upgrade().is_some());
        alive.insert(digest, assets.downgrade());
        drop(alive);
        self.cache.insert(digest, assets.clone());
    }

    pub fn forget(&self, digest: Digest) {
        self.alive.lock().remove(&digest);
        self.cache.invalidate(&digest);
    }
}

impl Engine {
    /// Stores an archive by its digest (fsynced, renamed into place), where it is not stored already.
    pub async fn store_bundle(&self, digest: Digest, archive: Bytes) -> Result<(), InstallError> {
        let _turn = self.modules.turn(digest).await;
        self.blocking(
            move |artifacts| {
                if artifacts.has_bundle(digest) { Ok(()) } else { artifacts.write_bundle(digest, &archive) }
            },
        )
        .await
    }

    /// The files of a stored version: from memory, else unpacked anew.
    pub async fn assets(&self, bundle: &Bundle) -> Result<Assets, GuestFailure> {
        let Bundle { digest, bytes, .. } = *bundle;
        if let Some(assets) = self.bundles.get(digest) {
            return Ok(assets);
        }
        let _turn = self.modules.turn(digest).await;
        if let Some(assets) = self.bundles.get(digest) {
            return Ok(assets);
        }
        let gone = |_| GuestFailure::NotLoadable("the gateway is shutting down".into());
        let _one_of_few = self.bundles.unpacking.acquire().await.map_err(gone)?;
        let unpacked = self.blocking(move |artifacts| Ok(Assets::read(&artifacts.read_bundle(digest)?, bytes))).await;
        let unpacked = unpacked.map_err(|e| GuestFailure::NotLoadable(format!("its assets: {e}")))?;
        let assets = unpacked.map_err(|e| GuestFailure::NotLoadable(e.detail))?;
        self.bundles.put(digest, &assets);
        Ok(assets)
    }
}
