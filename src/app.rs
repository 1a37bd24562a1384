//! Wires the layers into one running gateway, and holds what changes while it runs: the snapshot.
//!
//! Invariant: a new snapshot is taken whole or not at all; requests under way keep theirs.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Config, ConfigErrors};
use crate::domain::{Name, OwnerId, Tier};
use crate::gateway::{Shared, Snapshot};
use crate::store::{Store, StoreError};
use crate::telemetry::LogControl;

/// Why the gateway can't start or reload; the message names the setting to change.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A setting's key, and what is wrong with its value on this machine.
    #[error("`{key}`: {message}")]
    Setting { key: &'static str, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub struct App {
    pub shared: Arc<Shared>,
    pub store: Arc<dyn Store>,
    pub logs: LogControl,
    /// `None`: the quickstart, which has no file.
    pub config_file: Option<PathBuf>,
}

impl App {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    pub fn config(&self) -> Arc<Config> {
        self.snapshot().config.clone()
    }

    pub fn tier(&self, name: &Name) -> Option<Arc<Tier>> {
        self.snapshot().tier(name).cloned()
    }

    /// Reads the configuration file again and swaps the snapshot; on an error nothing changes.
    pub async fn reload(&self) -> Result<(), AppError> {
        unimplemented!()
    }

    /// Builds the snapshot anew from the same configuration: after a module was activated or a tier changed.
    pub async fn refresh(&self) -> Result<(), AppError> {
        unimplemented!()
    }

    /// The route that uses a module, if one does.
    pub fn route_using(&self, _owner: &OwnerId, _name: &Name) -> Option<Name> {
        unimplemented!()
    }
}
