//! Where the bytes of stored modules and bundles are when they are not on this gateway's disk.
//!
//! Invariant: what is fetched has its digest, and stays on the disk from then on.

use std::sync::Arc;

use async_trait::async_trait;

use super::artifacts::Upload;
use super::{Engine, InstallError};
use crate::domain::Digest;

#[async_trait]
pub trait Origin: Send + Sync + 'static {
    /// `None`: it is not there either.
    async fn fetch(&self, digest: Digest) -> Result<Option<Vec<u8>>, String>;
}

impl Engine {
    /// Once, before anything is loaded.
    pub fn set_origin(&self, origin: Arc<dyn Origin>) {
        let _ = self.origin.set(origin);
    }

    /// The bytes of what was uploaded here or elsewhere. Whoever calls it has the digest's turn.
    pub(super) async fn uploaded(&self, what: Upload, digest: Digest) -> Result<Vec<u8>, InstallError> {
        let here = self.blocking(move |artifacts| artifacts.read(what, digest)).await;
        let (Err(error), Some(origin)) = (&here, self.origin.get()) else { return here };
        match origin.fetch(digest).await {
            Ok(Some(bytes)) if Digest::of(&bytes) == digest => {
                let stored = bytes.clone();
                self.blocking(move |artifacts| artifacts.replace(what, digest, &stored)).await?;
                tracing::info!(%digest, what = what.as_str(), "fetched from the store");
                Ok(bytes)
            }
            Ok(_) => {
                tracing::error!(%digest, %error, "neither on the disk nor in the store");
                here
            }
            Err(why) => {
                tracing::warn!(%digest, error = why, "not on the disk, and can't be fetched from the store now");
                Err(InstallError::Unread)
            }
        }
    }
}
