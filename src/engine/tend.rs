//! Looking after the files of modules.
//!
//! Invariant: only artifacts are deleted here; they can be made anew.

use std::collections::HashSet;
use std::io;

use super::Engine;
use crate::domain::Digest;

impl Engine {
    /// Everything that is stored, whether anybody refers to it or not.
    pub async fn digests(&self) -> io::Result<HashSet<Digest>> {
        let artifacts = self.artifacts.clone();
        tokio::task::spawn_blocking(move || artifacts.digests()).await.map_err(io::Error::other)?
    }

    /// Notes the use of what is loaded, and deletes the artifacts used longest ago while all are over their bound. For
    /// whoever looks after things from time to time: writes do it by themselves.
    pub async fn tend_artifacts(&self) {
        let loaded = self.modules.loaded();
        if let Err(error) = self.blocking(move |artifacts| artifacts.make_room(&loaded)).await {
            tracing::warn!(%error, "the artifacts on disk can't be looked through");
        }
    }

    /// After a write.
    pub(super) async fn make_room(&self) {
        if self.artifacts.is_over() {
            self.tend_artifacts().await;
        }
    }
}
