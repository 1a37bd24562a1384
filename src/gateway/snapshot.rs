//! What a request sees of the configuration: immutable, swapped whole, kept by a request until its end.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Config;
use crate::domain::{ModuleVersion, Name, OwnerId, Tier};

/// Resolved before a snapshot is built: which version each handler's selector means now. `None`: not stored (yet);
/// the route answers 500 `handler-not-loadable` until a module of that name is uploaded.
pub type ResolvedModules = HashMap<(OwnerId, String), Option<ModuleVersion>>;

pub struct Snapshot {
    pub config: Arc<Config>,
    pub tiers: HashMap<Name, Arc<Tier>>,
    /// Counts up with every swap.
    pub generation: u64,
}

impl Snapshot {
    pub fn tier(&self, name: &Name) -> Option<&Arc<Tier>> {
        self.tiers.get(name)
    }
}
