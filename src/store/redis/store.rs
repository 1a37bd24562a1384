//! The trait, call by call: which records, in which lane.

use std::sync::Arc;

use async_trait::async_trait;

use super::leases::SharedBuckets;
use super::link::Channel;
use super::{RedisStore, batches, copy, keys, modules, records, routes, values};
use crate::domain::{
    ApiKey, Digest, KeyHash, KeyId, LimitsChange, Module, ModuleVersion, Name, OwnerId, Tier, Timestamp, TokenId,
    UsageDelta,
};
use crate::store::entry::{Entry, Exported, Kind, Mark};
use crate::store::rules::{self, PRUNE_BATCH};
use crate::store::{
    AdminToken, AuditEntry, Batch, Buckets, Changes, KvIncr, KvSet, KvValue, LiveNode, NewRoutes, NewVersion, Node,
    Page, Result, Retention, Rotation, RoutesVersion, Store, StoreError, Stored, UsageRow, new_module_id,
};

/// Audit lines read at once.
const LINES: u64 = 1_000;

#[async_trait]
impl Store for RedisStore {
    fn follow(&self, changes: Arc<dyn Changes>) {
        self.begin_following(changes);
    }

    fn buckets(&self) -> Option<Arc<dyn Buckets>> {
        Some(Arc::new(SharedBuckets::new(self.core.clone())))
    }

    async fn beat(&self, node: &Node) -> Result<Vec<LiveNode>> {
        self.tell_of(&node.id, Some(node)).await
    }

    async fn leave(&self, id: &str) -> Result<()> {
        self.tell_of(id, None).await.map(drop)
    }

    async fn nodes(&self) -> Result<Vec<LiveNode>> {
        // Nobody has this name.
        self.tell_of("", None).await
    }

    fn fault(&self) -> Option<StoreError> {
        self.core.fault()
    }

    fn forged_records(&self) -> u64 {
        self.core.forged()
    }

    async fn check(&self) -> Result<()> {
        self.core.confirm(true).await
    }

    async fn put_key(&self, hash: KeyHash, key: &ApiKey, max_live: Option<u32>) -> Result<()> {
        let key = key.clone();
        let lane = key.owner.clone();
        self.write(&["keys", lane.as_str()], move |tx, names| keys::put(tx, names, &hash, &key, max_live)).await
    }

    async fn key_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.core.read(Channel::LookUps, |tx| keys::by_hash(tx, self.names(), hash)).await
    }

    async fn key(&self, id: &KeyId) -> Result<Option<(KeyHash, ApiKey)>> {
        self.look(|tx, names| keys::by_id(tx, names, id)).await
    }

    async fn keys(&self, owner: Option<&OwnerId>) -> Result<Vec<ApiKey>> {
        let mut found = Vec::new();
        if let Some(owner) = owner {
            let owned = self.look(|tx, names| keys::of_owner(tx, names, owner)).await?;
            found.extend(owned.into_iter().map(|(_, key)| key));
        } else {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let (some, next) = self.look(|tx, names| keys::step(tx, names, after.as_deref())).await?;
                found.extend(some.into_iter().map(|(_, key)| key));
                match next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
        }
        rules::keys::sort(&mut found);
        Ok(found)
    }

    async fn update_key(&self, key: &ApiKey) -> Result<KeyHash> {
        let key = key.clone();
        let lane = key.owner.clone();
        self.write(&["keys", lane.as_str()], move |tx, names| keys::update(tx, names, &key)).await
    }

    async fn rotate_key(&self, rotation: Rotation) -> Result<(KeyHash, ApiKey)> {
        let lane = rotation.new.owner.clone();
        self.write(&["keys", lane.as_str()], move |tx, names| keys::rotate(tx, names, &rotation)).await
    }

    async fn tiers(&self) -> Result<Vec<Tier>> {
        self.look(records::tiers).await
    }

    async fn put_tier(&self, tier: &Tier) -> Result<()> {
        let tier = tier.clone();
        self.write(&["tiers"], move |tx, names| records::put_tier(tx, names, &tier)).await
    }

    async fn delete_tier(&self, name: &Name) -> Result<bool> {
        let name = name.clone();
        self.write(&["tiers"], move |tx, names| records::delete_tier(tx, names, &name)).await
    }

    async fn add_version(&self, new: NewVersion, within: Option<Arc<Tier>>) -> Result<(Module, u32, bool)> {
        let (id, lane) = (new_module_id()?, new.owner.clone());
        self.write(&["modules", lane.as_str()], move |tx, names| {
            modules::add_version(tx, names, &new, within.as_deref(), &id)
        })
        .await
    }

    async fn stored(&self, owner: &OwnerId) -> Result<Stored> {
        self.look(|tx, names| modules::stored(tx, names, owner)).await
    }

    async fn module(&self, owner: &OwnerId, name: &Name) -> Result<Option<Module>> {
        self.look(|tx, names| modules::by_name(tx, names, owner, name)).await
    }

    async fn module_by_id(&self, id: &str) -> Result<Option<Module>> {
        self.look(|tx, names| modules::by_id(tx, names, id)).await
    }

    async fn modules(
        &self,
        owner: Option<&OwnerId>,
        include_public: bool,
        offset: u64,
        limit: u64,
    ) -> Result<Page<Module>> {
        self.look(|tx, names| modules::list(tx, names, owner, include_public, offset, limit)).await
    }

    async fn activate(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<Module> {
        let (owner, name, lane) = (owner.clone(), name.clone(), owner.as_str());
        self.write(&["modules", lane], move |tx, names| modules::activate(tx, names, &owner, &name, version)).await
    }

    async fn set_limits(&self, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> Result<Module> {
        let (owner, name, limits, lane) = (owner.clone(), name.clone(), limits.clone(), owner.as_str());
        self.write(&["modules", lane], move |tx, names| modules::set_limits(tx, names, &owner, &name, &limits)).await
    }

    async fn delete_module(&self, owner: &OwnerId, name: &Name) -> Result<Module> {
        let (owner, name, lane) = (owner.clone(), name.clone(), owner.as_str());
        self.write(&["modules", lane], move |tx, names| modules::delete(tx, names, &owner, &name)).await
    }

    async fn delete_version(&self, owner: &OwnerId, name: &Name, version: u32) -> Result<ModuleVersion> {
        let (owner, name, lane) = (owner.clone(), name.clone(), owner.as_str());
        self.write(&["modules", lane], move |tx, names| modules::delete_version(tx, names, &owner, &name, version))
            .await
    }

    async fn count_executions(&self, batch: &Batch, counts: &[(OwnerId, Name, u64, Timestamp)]) -> Result<()> {
        let (batch, counts) = (batch.clone(), counts.to_vec());
        self.write(&["executions"], move |tx, names| {
            batches::once(tx, names, &batch, |tx| modules::count_executions(tx, names, &counts))
        })
        .await
    }

    async fn add_usage(&self, batch: &Batch, deltas: &[UsageDelta]) -> Result<()> {
        let (batch, deltas) = (batch.clone(), deltas.to_vec());
        self.write(&["usage"], move |tx, names| {
            batches::once(tx, names, &batch, |tx| records::add_usage(tx, names, &deltas))
        })
        .await
    }

    async fn usage(&self, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> Result<Vec<UsageRow>> {
        let mut rows = self.look(|tx, names| records::usage(tx, names, owner, from_day, to_day)).await?;
        rows.sort_by(|a, b| (a.day, &a.owner, &a.key).cmp(&(b.day, &b.owner, &b.key)));
        Ok(rows)
    }

    async fn push_routes(&self, new: NewRoutes, expect: u64) -> Result<RoutesVersion> {
        self.write(&["routes"], move |tx, names| routes::push(tx, names, &new, expect)).await
    }

    async fn routes_versions(&self) -> Result<Vec<RoutesVersion>> {
        self.look(routes::versions).await
    }

    async fn routes_text(&self, version: u64) -> Result<Option<String>> {
        self.look(|tx, names| routes::text(tx, names, version)).await
    }

    async fn put_token(&self, hash: KeyHash, token: &AdminToken) -> Result<()> {
        let token = token.clone();
        self.write(&["tokens"], move |tx, names| records::put_token(tx, names, &hash, &token)).await
    }

    async fn token_by_hash(&self, hash: &KeyHash) -> Result<Option<AdminToken>> {
        self.core.read(Channel::LookUps, |tx| records::token_by_hash(tx, self.names(), hash)).await
    }

    async fn tokens(&self) -> Result<Vec<AdminToken>> {
        self.look(records::tokens).await
    }

    async fn revoke_token(&self, id: &TokenId, at: Timestamp) -> Result<AdminToken> {
        let id = id.clone();
        self.write(&["tokens"], move |tx, names| records::revoke_token(tx, names, &id, at)).await
    }

    async fn put_blob(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        RedisStore::put_blob(self, digest, bytes).await.map(drop)
    }

    async fn blob(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        self.get_blob(digest).await
    }

    async fn delete_blob(&self, digest: Digest) -> Result<()> {
        RedisStore::delete_blob(self, digest).await.map(drop)
    }

    async fn blobs(&self) -> Result<Vec<Digest>> {
        RedisStore::blobs(self).await
    }

    async fn append_audit(&self, entry: &AuditEntry) -> Result<()> {
        let entry = entry.clone();
        self.write(&["audit"], move |tx, names| records::append_audit(tx, names, &entry)).await
    }

    async fn audit(&self, limit: u64) -> Result<Vec<AuditEntry>> {
        let mut end = self.look(records::audit_length).await?;
        let first = end.saturating_sub(limit);
        let mut lines = Vec::new();
        while end > first {
            let from = end.saturating_sub(LINES).max(first);
            lines.extend(self.look(|tx, names| records::audit(tx, names, from, end - 1)).await?);
            end = from;
        }
        Ok(lines)
    }

    async fn kv_get(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<Option<KvValue>> {
        self.look(|tx, names| values::get(tx, names, owner, key, now)).await
    }

    async fn kv_set(&self, owner: &OwnerId, key: &[u8], set: KvSet, now: Timestamp) -> Result<u64> {
        let (owner, key, lane) = (owner.clone(), key.to_vec(), owner.as_str());
        self.write(&["values", lane], move |tx, names| values::set(tx, names, &owner, &key, &set, now)).await
    }

    async fn kv_incr(&self, owner: &OwnerId, key: &[u8], incr: KvIncr, now: Timestamp) -> Result<i64> {
        let (owner, key, lane) = (owner.clone(), key.to_vec(), owner.as_str());
        self.write(&["values", lane], move |tx, names| values::incr(tx, names, &owner, &key, &incr, now)).await
    }

    async fn kv_delete(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<bool> {
        let (owner, key, lane) = (owner.clone(), key.to_vec(), owner.as_str());
        self.write(&["values", lane], move |tx, names| values::delete(tx, names, &owner, &key, now)).await
    }

    async fn prune(&self, keep: Retention) -> Result<u64> {
        let lines = self.write(&["audit"], move |tx, names| records::prune_audit(tx, names, &keep)).await?;
        let rows = self.write(&["usage"], move |tx, names| records::prune_usage(tx, names, &keep)).await?;
        let (now, mut swept) = (keep.now, 0);
        for owner in self.look(|tx, names| values::due(tx, names, now)).await? {
            let (lane, most) = (owner.clone(), PRUNE_BATCH - swept);
            swept += self
                .write(&["values", lane.as_str()], move |tx, names| values::sweep(tx, names, &owner, now, most))
                .await?;
            if swept >= PRUNE_BATCH {
                break;
            }
        }
        Ok(lines + rows + swept)
    }

    async fn id(&self) -> Result<String> {
        Ok(self.core.known().await?.id().to_owned())
    }

    async fn export(&self, kind: Kind, after: Option<&[u8]>) -> Result<Exported> {
        self.look(|tx, names| copy::export(tx, names, kind, after)).await
    }

    async fn import(&self, entries: Vec<Entry>, mark: Option<&Mark>, next: Option<&Mark>) -> Result<()> {
        let (mark, next) = (mark.cloned(), next.cloned());
        self.write(&["copy"], move |tx, names| copy::import(tx, names, &entries, mark.as_ref(), next.as_ref())).await
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        self.look(copy::mark).await
    }
}
