//! The embedded store: one redb file, one writer thread.
//!
//! Invariant: `Ok` of a write means that the transaction which holds it was committed with fsync.
//!
//! Point reads run in place on the caller's thread: they are a few B-tree pages out of redb's cache (2 to 4 us measured,
//! less than the hand-over to another thread costs), and redb's readers never wait for a commit. Whatever walks a range
//! goes to the blocking pool.

mod copy;
mod db;
mod keys;
mod modules;
mod records;
mod retired;
mod routes;
mod sums;
mod values;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use redb::{ReadTransaction, WriteTransaction};
use tokio::sync::Semaphore;

use super::entry::{Entry, Exported, Kind, Mark};
use super::rules::PRUNE_BATCH;
use super::{
    AdminToken, AuditEntry, Batch, Counter, KvIncr, KvSet, KvValue, NewRoutes, NewVersion, Page, Result, Retention,
    Rotation, RoutesVersion, Store, StoreError, Stored, UsageRow,
};
use crate::domain::{
    ApiKey, KeyHash, KeyId, LimitsChange, Module, ModuleVersion, Name, OwnerId, Tier, Timestamp, TokenId, UsageDelta,
};
use db::Db;
use writer::Writer;

/// Range reads at once; further ones wait.
const MAX_SCANS: usize = 4;

pub struct EmbeddedStore {
    db: Arc<Db>,
    writer: Writer,
    scans: Semaphore,
}

impl EmbeddedStore {
    /// Creates the file (mode 0600) when it is missing; refuses one of a newer schema, and one that another process
    /// has open.
    pub fn open(file: &Path) -> Result<Self> {
        let db = Arc::new(Db::open(file)?);
        let writer = Writer::start(db.clone())?;
        Ok(Self { db, writer, scans: Semaphore::new(MAX_SCANS) })
    }

    async fn write<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    {
        self.writer.submit(job).await
    }

    async fn scan<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction) -> Result<T> + Send + 'static,
    {
        let _permit = self.scans.acquire().await.map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let db = self.db.clone();
        tokio::task::spawn_blocking(move || db.read_waiting(read))
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("a read failed: {e}"))))
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn put_key(&self, hash: KeyHash, key: &ApiKey, max_live: Option<u32>) -> Result<()> {
        let key = key.clone();
        self.write(move |tx| keys::put(tx, hash, &key, max_live)).await
    }

    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.db.read(|tx| keys::by_hash(tx, hash))
    }

    async fn key(&self, id: &KeyId) -> Result<Option<(KeyHash, ApiKey)>> {
        self.db.read(|tx| keys::by_id(tx, id))
    }

    async fn keys(&self, owner: Option<&OwnerId>) -> Result<Vec<ApiKey>> {
        let owner = owner.cloned();
        self.scan(move |tx| keys::list(tx, owner.as_ref())).await
    }

    async fn update_key(&self, key: &ApiKey) -> Result<KeyHash> {
        let key = key.clone();
        self.write(move |tx| keys::update(tx, &key)).await
    }

    async fn rotate_key(&self, rotation: Rotation) -> Result<(KeyHash, ApiKey)> {
        self.write(move |tx| keys::rotate(tx, &rotation)).await
    }

    async fn tiers(&self) -> Result<Vec<Tier>> {
        self.scan(records::tiers).await
    }

    async fn put_tier(&self, tier: &Tier) -> Result<()> {
        let tier = tier.clone();
        self.write(move |tx| records::put_tier(tx, &tier)).await
    }

    async fn add_version(&self, new: NewVersion, within: Option<Arc<Tier>>) -> Result<(Module, u32, bool)> {
        let id = super::new_module_id()?;
        self.write(move |tx| modules::add_version(tx, &new, within.as_deref(), &id)).await
    }

    async fn stored(&self, owner: &OwnerId) -> Result<Stored> {
        let owner = owner.clone();
        self.scan(move |tx| modules::stored(tx, &owner)).await
    }

    async fn module(&self, owner: &OwnerId, name: &Name) -> Result<Option<Module>> {
        self.db.read(|tx| modules::by_name(tx, owner, name))
    }

    async fn module_by_id(&self, id: &str) -> Result<Option<Module>> {
        self.db.read(|tx| modules::by_id(tx, id))
    }

    async fn modules(
        &self,
        owner: Option<&OwnerId>,
        include_public: bool,
        offset: u64,
        limit: u64,
    ) -> Result<Page<Module>> {
        let owner = owner.cloned();
        self.scan(move |tx| modules::list(tx, owner.as_ref(), include_public, offset, limit)).await
    }

    async fn activate(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<Module> {
        let (owner, name) = (owner.clone(), name.clone());
        self.write(move |tx| modules::activate(tx, &owner, &name, version)).await
    }

    async fn set_limits(&self, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> Result<Module> {
        let (owner, name, limits) = (owner.clone(), name.clone(), limits.clone());
        self.write(move |tx| modules::set_limits(tx, &owner, &name, &limits)).await
    }

    async fn delete_module(&self, owner: &OwnerId, name: &Name) -> Result<Module> {
        let (owner, name) = (owner.clone(), name.clone());
        self.write(move |tx| modules::delete(tx, &owner, &name)).await
    }

    async fn delete_version(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<ModuleVersion> {
        let (owner, name) = (owner.clone(), name.clone());
        self.write(move |tx| modules::delete_version(tx, &owner, &name, version)).await
    }

    // Its errors hide nothing: what was not answered with `Ok` was not written.
    async fn count_executions(&self, _: &Batch, counts: &[(OwnerId, Name, u64, Timestamp)]) -> Result<()> {
        let counts = counts.to_vec();
        self.write(move |tx| modules::count_executions(tx, &counts)).await
    }

    async fn add_usage(&self, _: &Batch, deltas: &[UsageDelta]) -> Result<()> {
        let deltas = deltas.to_vec();
        self.write(move |tx| records::add_usage(tx, &deltas)).await
    }

    async fn usage(&self, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> Result<Vec<UsageRow>> {
        let owner = owner.cloned();
        self.scan(move |tx| records::usage(tx, owner.as_ref(), from_day, to_day)).await
    }

    async fn push_routes(&self, new: NewRoutes, expect: u64) -> Result<RoutesVersion> {
        self.write(move |tx| routes::push(tx, &new, expect)).await
    }

    async fn routes_versions(&self) -> Result<Vec<RoutesVersion>> {
        self.scan(routes::versions).await
    }

    async fn routes_text(&self, version: u64) -> Result<Option<String>> {
        self.scan(move |tx| routes::text(tx, version)).await
    }

    async fn put_token(&self, hash: KeyHash, token: &AdminToken) -> Result<()> {
        let token = token.clone();
        self.write(move |tx| records::put_token(tx, hash, &token)).await
    }

    async fn token_by_hash(&self, hash: &KeyHash) -> Result<Option<AdminToken>> {
        self.db.read(|tx| records::token_by_hash(tx, hash))
    }

    async fn tokens(&self) -> Result<Vec<AdminToken>> {
        self.scan(records::tokens).await
    }

    async fn revoke_token(&self, id: &TokenId, at: Timestamp) -> Result<AdminToken> {
        let id = id.clone();
        self.write(move |tx| records::revoke_token(tx, &id, at)).await
    }

    async fn delete_tier(&self, name: &Name) -> Result<bool> {
        let name = name.clone();
        self.write(move |tx| records::delete_tier(tx, &name)).await
    }

    async fn prune(&self, keep: Retention) -> Result<u64> {
        // A look costs no commit, and nearly always there is nothing to do.
        if self.scan(move |tx| Ok(records::can_prune(tx, &keep)? || values::can_sweep(tx, keep.now)?)).await? {
            self.write(move |tx| Ok(records::prune(tx, &keep)? + values::sweep(tx, keep.now, PRUNE_BATCH)?)).await
        } else {
            Ok(0)
        }
    }

    async fn kv_get(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<Option<KvValue>> {
        self.db.read(|tx| values::get(tx, owner, key, now))
    }

    async fn kv_set(&self, owner: &OwnerId, key: &[u8], set: KvSet, now: Timestamp) -> Result<u64> {
        let (owner, key) = (owner.clone(), key.to_vec());
        self.write(move |tx| values::set(tx, &owner, &key, &set, now)).await
    }

    async fn kv_incr(&self, owner: &OwnerId, key: &[u8], incr: KvIncr, now: Timestamp) -> Result<i64> {
        let (owner, key) = (owner.clone(), key.to_vec());
        self.write(move |tx| values::incr(tx, &owner, &key, &incr, now)).await
    }

    async fn kv_delete(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<bool> {
        let (owner, key) = (owner.clone(), key.to_vec());
        self.write(move |tx| values::delete(tx, &owner, &key, now)).await
    }

    async fn append_audit(&self, entry: &AuditEntry) -> Result<()> {
        let entry = entry.clone();
        self.write(move |tx| records::append_audit(tx, &entry)).await
    }

    async fn audit(&self, limit: u64) -> Result<Vec<AuditEntry>> {
        self.scan(move |tx| records::audit(tx, limit)).await
    }

    async fn save_counters(&self, counters: &[Counter], expire_before: i64) -> Result<()> {
        let counters = counters.to_vec();
        self.write(move |tx| records::save_counters(tx, &counters, expire_before)).await
    }

    async fn load_counters(&self) -> Result<Vec<Counter>> {
        self.scan(records::load_counters).await
    }

    async fn id(&self) -> Result<String> {
        self.scan(copy::id).await
    }

    async fn export(&self, kind: Kind, after: Option<&[u8]>) -> Result<Exported> {
        let after = after.map(<[u8]>::to_vec);
        self.scan(move |tx| copy::export(tx, kind, after.as_deref())).await
    }

    async fn import(&self, entries: Vec<Entry>, mark: Option<&Mark>, next: Option<&Mark>) -> Result<()> {
        let (mark, next) = (mark.cloned(), next.cloned());
        self.write(move |tx| copy::import(tx, &entries, mark.as_ref(), next.as_ref())).await
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        self.scan(copy::mark).await
    }
}
