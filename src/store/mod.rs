//! The record store. One object-safe trait; a write is durable when its future resolves with `Ok`.
//!
//! Module bytes and artifacts are not here: they are files by digest (see `engine`).

pub mod embedded;
pub mod entry;
mod fleet;
pub mod redis;
mod replicas;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{
    ApiKey, Digest, KeyHash, KeyId, LimitsChange, Module, ModuleVersion, Name, OwnerId, Rejection, Tier, Timestamp,
    TokenId, UsageDelta, UsageRecord,
};

use entry::{Entry, Exported, Kind, Mark};
pub use fleet::{ALIVE, LiveNode, NewRoutes, Node, NodeState, ROUTES_KEPT, RefusedRoutes, RoutesInUse, RoutesVersion};
pub use replicas::{Unreplicated, told_apart};
pub use rules::routes::conflict as routes_conflict;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("`{0}` does not exist")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// A cap was met; names it.
    #[error("{0}")]
    Limit(String),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("the store's storage is full")]
    Full,
    #[error("the store can't be reached: {0}")]
    Unavailable(String),
    /// It was done.
    #[error(transparent)]
    Unreplicated(#[from] Unreplicated),
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// It answers, and what it had is gone, or another store's.
    #[error("{0}")]
    Lost(String),
    /// It is not this gateway's.
    #[error("{0}")]
    Foreign(String),
    /// Written by a newer wasmgate.
    #[error("the store has schema {found}, this wasmgate knows up to {known}: use the newer wasmgate")]
    Newer { found: u32, known: u32 },
}

impl StoreError {
    /// The write was not to be made; the storage did not fail.
    pub fn is_refusal(&self) -> bool {
        use StoreError::*;
        match self {
            NotFound(_) | Conflict(_) | Limit(_) | NoRoom(_) => true,
            Full | Unavailable(_) | Unreplicated(_) | Corrupt(_) | Lost(_) | Foreign(_) | Newer { .. } => false,
        }
    }
}

/// What a client sees of it; the text of a fault of the storage stays in the log.
impl From<StoreError> for Rejection {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::NotFound(what) => Rejection::NotFound(format!("`{what}` does not exist")),
            StoreError::Conflict(what) | StoreError::Limit(what) => Rejection::Conflict(what),
            StoreError::NoRoom(why) => Rejection::Conflict(why.to_string()),
            StoreError::Full => Rejection::StorageFull,
            StoreError::Unavailable(_) | StoreError::Lost(_) | StoreError::Foreign(_) | StoreError::Newer { .. } => {
                Rejection::StoreUnavailable
            }
            StoreError::Unreplicated(Unreplicated { have, of }) => Rejection::Unreplicated { have, of },
            StoreError::Corrupt(_) => Rejection::Internal,
        }
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// Versions a module may have: reading a module reads them all.
pub const MAX_VERSIONS: u32 = 100;

/// What an owner's guests may keep together: values, and bytes of keys and values.
pub const MAX_KV_ENTRIES: u64 = 10_000;
pub const MAX_KV_BYTES: u64 = 16 << 20;

/// A named admin token. Its text is kept only as a keyed hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminToken {
    pub id: TokenId,
    pub name: Name,
    pub role: Role,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Ordered: a viewer reads what has no secrets, an operator also changes, an admin also manages tokens and owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Viewer,
    Operator,
    Admin,
}

/// One line of the append-only audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub at: Timestamp,
    /// A token's name, a key's id, or `SIGHUP`.
    pub actor: String,
    /// `key.create`, `module.activate` ...
    pub action: String,
    pub subject: String,
    pub detail: String,
}

/// A persisted limiter counter (calendar windows only).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// What is counted, as the limiter names it.
    pub id: String,
    /// Start of the window, Unix seconds.
    pub window_start: i64,
    pub used: u64,
}

/// A page of a listing: newest names last, `total` over all pages.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub total: u64,
}

/// Who is told of changes that others make to a shared store, on a thread of the store's: nothing here may wait.
pub trait Changes: Send + Sync + 'static {
    /// An API key, or an admin token.
    fn key(&self, hash: &KeyHash);
    /// Modules, tiers or routes.
    fn records(&self);
    /// Nobody tells any more.
    fn lost(&self);
    /// From now on each change is told of; what was read before may be old.
    fn restored(&self);
}

/// The buckets of a fleet's limits, which all gateways draw from.
#[async_trait]
pub trait Buckets: Send + Sync + 'static {
    /// One call of a lease of this bucket: the arguments and the integers of `redis/lease.lua`. Never sent twice.
    async fn lease(&self, bucket: &str, arguments: Vec<String>) -> Result<Vec<i64>>;
    /// What other nodes have used of this sum, for as long as it lives, and says what this one has.
    async fn add_up(&self, sum: &str, node: &str, used: u64, life: Duration) -> Result<u64>;
    /// Whether a call could be done.
    async fn probe(&self) -> Result<()>;
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Has `changes` told of what others change. A store that has no others does nothing.
    fn follow(&self, _changes: Arc<dyn Changes>) {}

    /// A store that has no others has none: whoever has it counts by itself.
    fn buckets(&self) -> Option<Arc<dyn Buckets>> {
        None
    }

    /// Tells that this gateway lives, and gives all that do ([`ALIVE`], by the store's clock), by their names. A store that
    /// has no others knows of this one alone.
    async fn beat(&self, node: &Node) -> Result<Vec<LiveNode>> {
        Ok(vec![LiveNode { node: node.clone(), silent: Duration::ZERO }])
    }
    async fn leave(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    /// Gateways that use it, without being one. A store that has no others has none beside whoever has opened it.
    async fn nodes(&self) -> Result<Vec<LiveNode>> {
        Ok(Vec::new())
    }

    /// What is known at this moment of why it can't be used, without asking it.
    fn fault(&self) -> Option<StoreError> {
        None
    }

    /// Records found so far that were forged, altered or moved.
    fn forged_records(&self) -> u64 {
        0
    }

    /// Asks it whether it can be used.
    async fn check(&self) -> Result<()> {
        self.tiers().await.map(drop)
    }

    /// `max_live`: refuses with `Limit` when the owner already has so many live keys, those in a grace period not
    /// counted (checked with the write, as of the key's `created_at`). An id or hash that exists is a `Conflict`.
    async fn put_key(&self, hash: KeyHash, key: &ApiKey, max_live: Option<u32>) -> Result<()>;
    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>>;
    async fn key(&self, id: &KeyId) -> Result<Option<(KeyHash, ApiKey)>>;
    /// All, or one owner's; oldest first.
    async fn keys(&self, owner: Option<&OwnerId>) -> Result<Vec<ApiKey>>;
    /// Replaces the record of an existing key (revocation, rotation). A revoked key never becomes live again.
    async fn update_key(&self, key: &ApiKey) -> Result<KeyHash>;
    /// Puts the new key and gives the old one its successor and the end of its grace period, both or neither. Returns
    /// the old key as it is now. Only a live key that has no successor yet can be rotated.
    async fn rotate_key(&self, rotation: Rotation) -> Result<(KeyHash, ApiKey)>;

    /// Overrides of configured tiers.
    async fn tiers(&self) -> Result<Vec<Tier>>;
    async fn put_tier(&self, tier: &Tier) -> Result<()>;
    /// Whether there was an override.
    async fn delete_tier(&self, name: &Name) -> Result<bool>;

    /// Adds a version (the same digest and files with the same ABI again returns the version that has it and `false`), creating
    /// the module at its first one. The first version becomes active; `activate` makes this one active. Whether there is
    /// [room](NewVersion::room) for a new one is checked with the write.
    async fn add_version(&self, new: NewVersion, within: Option<Arc<Tier>>) -> Result<(Module, u32, bool)>;
    async fn stored(&self, owner: &OwnerId) -> Result<Stored>;
    async fn module(&self, owner: &OwnerId, name: &Name) -> Result<Option<Module>>;
    async fn module_by_id(&self, id: &str) -> Result<Option<Module>>;
    /// The owner's own (all owners' when `None`), and public ones of others when asked, by owner and name.
    async fn modules(
        &self,
        owner: Option<&OwnerId>,
        include_public: bool,
        offset: u64,
        limit: u64,
    ) -> Result<Page<Module>>;
    async fn activate(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<Module>;
    /// Replaces the module's own limits.
    async fn set_limits(&self, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> Result<Module>;
    /// Its version numbers are not given again, should a module of that name come back.
    async fn delete_module(&self, owner: &OwnerId, name: &Name) -> Result<Module>;
    /// Deletes one version; the active one is a `Conflict`. Its number is not given again.
    async fn delete_version(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<ModuleVersion>;
    /// Adds to `executions`, sets `last_executed`; unknown modules are skipped. Once for each batch.
    async fn count_executions(&self, batch: &Batch, counts: &[(OwnerId, Name, u64, Timestamp)]) -> Result<()>;

    /// Once for each batch.
    async fn add_usage(&self, batch: &Batch, deltas: &[UsageDelta]) -> Result<()>;
    /// Rows by (day, owner, key), both days included.
    async fn usage(&self, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> Result<Vec<UsageRow>>;

    /// Adds a version of the routes, and lets go of those that are too many ([`ROUTES_KEPT`]). `Conflict` unless the newest is
    /// `expect` (0: there is none).
    async fn push_routes(&self, new: NewRoutes, expect: u64) -> Result<RoutesVersion>;
    /// Newest first.
    async fn routes_versions(&self) -> Result<Vec<RoutesVersion>>;
    async fn routes_text(&self, version: u64) -> Result<Option<String>>;

    async fn put_token(&self, hash: KeyHash, token: &AdminToken) -> Result<()>;
    async fn token_by_hash(&self, hash: &KeyHash) -> Result<Option<AdminToken>>;
    async fn tokens(&self) -> Result<Vec<AdminToken>>;
    async fn revoke_token(&self, id: &TokenId, at: Timestamp) -> Result<AdminToken>;

    /// Keeps bytes by their digest for other gateways. A store that has no others keeps none.
    async fn put_blob(&self, _digest: Digest, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    async fn blob(&self, _digest: Digest) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    async fn delete_blob(&self, _digest: Digest) -> Result<()> {
        Ok(())
    }
    async fn blobs(&self) -> Result<Vec<Digest>> {
        Ok(Vec::new())
    }

    async fn append_audit(&self, entry: &AuditEntry) -> Result<()>;
    /// Newest first.
    async fn audit(&self, limit: u64) -> Result<Vec<AuditEntry>>;

    /// A value of the owner's guests, unless its time is over by `now`.
    async fn kv_get(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<Option<KvValue>>;
    /// Gives the value's number, which no value of the owner had before. `Conflict`: it has another number than was
    /// expected. `Limit`: the owner has no room for it ([`MAX_KV_ENTRIES`], [`MAX_KV_BYTES`]).
    async fn kv_set(&self, owner: &OwnerId, key: &[u8], set: KvSet, now: Timestamp) -> Result<u64>;
    /// Adds to a number, in decimal digits, in one step. `Conflict`: the value is no such number, or the sum is none.
    async fn kv_incr(&self, owner: &OwnerId, key: &[u8], incr: KvIncr, now: Timestamp) -> Result<i64>;
    /// Whether there was a value.
    async fn kv_delete(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<bool>;

    /// Deletes the oldest audit lines and usage rows that are no longer to be kept, and values whose time is over, at most
    /// a batch of each; how many.
    async fn prune(&self, keep: Retention) -> Result<u64>;

    /// Replaces the counters named; drops those whose window began before `expire_before` (Unix seconds). A store that has
    /// [buckets](Self::buckets) keeps none.
    async fn save_counters(&self, _counters: &[Counter], _expire_before: i64) -> Result<()> {
        Ok(())
    }
    async fn load_counters(&self) -> Result<Vec<Counter>> {
        Ok(Vec::new())
    }

    /// A number that no other store has.
    async fn id(&self) -> Result<String>;
    /// Entries of a kind behind a place, which a page before has given. A record that was altered or forged is `Corrupt`, which
    /// names it.
    async fn export(&self, kind: Kind, after: Option<&[u8]>) -> Result<Exported>;
    /// Puts entries as they are into a store that has none like them, and `next` in the place of the `mark` that is there, all
    /// or nothing. `Conflict`: it has another mark.
    async fn import(&self, entries: Vec<Entry>, mark: Option<&Mark>, next: Option<&Mark>) -> Result<()>;
    async fn mark(&self) -> Result<Option<Mark>>;
}

/// What [`Store::prune`] leaves.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Audit lines of this moment or later, and at most so many.
    pub audit_from: Timestamp,
    pub audit_entries: u64,
    /// Usage of this day or later.
    pub usage_from_day: i64,
    /// Values of guests whose time is not over by then.
    pub now: Timestamp,
}

/// Which write of one sender this is. An error may hide that it was done: it is then sent again, the same under the same
/// number and nothing else before, until it is answered, and counts once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    pub sender: String,
    pub number: u64,
}

impl Batch {
    /// The first one of a new sender.
    pub fn first() -> Result<Self> {
        Ok(Self { sender: random_hex::<16>()?, number: 1 })
    }

    /// After an answer.
    pub fn next(&mut self) {
        self.number += 1;
    }
}

/// A value that a guest keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvValue {
    pub value: Vec<u8>,
    /// Another one after every write.
    pub version: u64,
}

/// See [`Store::kv_set`].
#[derive(Clone, Debug, Default)]
pub struct KvSet {
    pub value: Vec<u8>,
    pub expires_at: Option<Timestamp>,
    /// The number that the value there has to have; 0: there has to be none.
    pub expected: Option<u64>,
}

/// See [`Store::kv_incr`].
#[derive(Clone, Copy, Debug)]
pub struct KvIncr {
    pub by: i64,
    /// Of a number that begins with this; one that is there keeps its time.
    pub expires_at: Option<Timestamp>,
}

/// See [`Store::rotate_key`].
#[derive(Clone, Debug)]
pub struct Rotation {
    pub old: KeyId,
    pub new_hash: KeyHash,
    /// Its `created_at` is the moment of the rotation.
    pub new: ApiKey,
    /// End of the old key's grace period, unless it expires earlier.
    pub old_expires_at: Timestamp,
    /// How many keys of the owner may be in a grace period at once.
    pub max_live: Option<u32>,
}

/// `mod_` and 24 hex digits. Not a secret.
fn new_module_id() -> Result<String> {
    Ok(format!("mod_{}", random_hex::<12>()?))
}

/// So many random bytes as hex digits.
fn random_hex<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Unavailable(format!("no random bytes: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[derive(Clone, Debug)]
pub struct NewVersion {
    pub owner: OwnerId,
    pub name: Name,
    /// `None` keeps what the module has.
    pub description: Option<String>,
    pub public: Option<bool>,
    pub limits: Option<LimitsChange>,
    /// Its `version` is set by the store.
    pub version: ModuleVersion,
    pub activate: bool,
}

impl NewVersion {
    /// Whether it may be added, being new, to a module that has so many versions (`None`: there is no such module) of an
    /// owner who has `stored`.
    pub fn room(
        &self,
        versions: Option<u32>,
        stored: Stored,
        within: Option<&Tier>,
    ) -> std::result::Result<(), NoRoom> {
        let owner = self.owner.clone();
        if versions.is_some_and(|held| held >= MAX_VERSIONS) {
            return Err(NoRoom::Versions { owner, name: self.name.clone() });
        }
        let Some(Tier { name, modules, module_storage_bytes, .. }) = within else { return Ok(()) };
        let (tier, held) = (name.clone(), stored.modules);
        if versions.is_none() && held >= u64::from(*modules) {
            return Err(NoRoom::Modules { owner, held, tier, most: *modules });
        }
        let (held, most) = (stored.bytes, *module_storage_bytes);
        let needs = held.saturating_add(self.version.stored_bytes());
        if needs > most { Err(NoRoom::Bytes { owner, held, needs, tier, most }) } else { Ok(()) }
    }
}

/// What there is of an owner's modules together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub modules: u64,
    /// Each version's, also where versions share files.
    pub bytes: u64,
}

/// Why a new version is not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error("`{owner}/{name}` has {MAX_VERSIONS} versions, all that a module may have: delete one first")]
    Versions { owner: OwnerId, name: Name },
    #[error("`{owner}` has {held} modules, the tier `{tier}` allows {most} (`modules`): delete one first")]
    Modules { owner: OwnerId, held: u64, tier: Name, most: u32 },
    #[error(
        "`{owner}` has {held} bytes stored and with this version {needs}, the tier `{tier}` allows {most} \
         (`module_storage`): delete versions or modules first"
    )]
    Bytes { owner: OwnerId, held: u64, needs: u64, tier: Name, most: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    pub day: i64,
    pub owner: OwnerId,
    pub key: KeyId,
    pub usage: UsageRecord,
}
