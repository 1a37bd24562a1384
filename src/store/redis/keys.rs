//! API keys: the record under its hash, the hash under the id, an index in the order of owners.
//!
//! Invariant: what is decided by an owner's other keys is guarded by one record of the owner's.

use super::Names;
use super::copy::members;
use super::seal::At;
use super::tx::{Step, Tx, all};
use crate::domain::{ApiKey, Digest, KeyHash, KeyId, OwnerId};
use crate::store::entry::{Entry, Exported};
use crate::store::rules::keys as rules;
use crate::store::{Rotation, StoreError};

/// Members of one step through the index.
pub const STEP: u64 = 500;

impl Names {
    pub fn key(&self, hash: &KeyHash) -> At {
        At::key(self.of(&["kh", &hash_text(hash)]))
    }

    fn key_hash(&self, id: &KeyId) -> At {
        At::key(self.of(&["ki", id.as_str()]))
    }

    /// `owner\0id\0hash`, by its letters.
    fn keys(&self) -> String {
        self.of(&["keys"])
    }

    fn keys_guard(&self, owner: &OwnerId) -> String {
        self.of(&["kg", owner.as_str()])
    }
}

pub fn by_hash(tx: &mut Tx, names: &Names, hash: &KeyHash) -> Step<Option<ApiKey>> {
    tx.get(names.key(hash))
}

pub fn by_id(tx: &mut Tx, names: &Names, id: &KeyId) -> Step<Option<(KeyHash, ApiKey)>> {
    let Some(hash) = tx.get::<String>(names.key_hash(id))? else { return Ok(None) };
    let Some(hash) = hash_of(&hash) else { return Ok(None) };
    let key = tx.get::<ApiKey>(names.key(&hash))?;
    Ok(key.filter(|key| key.id == *id).map(|key| (hash, key)))
}

/// Those behind `after`, and where to go on; nowhere at the end.
type Found = Vec<(KeyHash, ApiKey)>;

pub fn step(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<(Found, Option<Vec<u8>>)> {
    let (members, next) = members(tx, &names.keys(), after, STEP)?;
    Ok((load(tx, names, members)?, next))
}

/// By owner and id.
pub fn export(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let (found, next) = step(tx, names, after)?;
    Ok(Exported { entries: found.into_iter().map(|(hash, key)| Entry::Key(hash, key)).collect(), next })
}

pub fn of_owner(tx: &mut Tx, names: &Names, owner: &OwnerId) -> Step<Vec<(KeyHash, ApiKey)>> {
    let members: Vec<Vec<u8>> = tx.ask("ZRANGEBYLEX", &names.keys(), &Names::of_owner(owner))?;
    load(tx, names, members)
}

/// The index is not sealed: what it says holds where a record says the same.
fn load(tx: &mut Tx, names: &Names, members: Vec<Vec<u8>>) -> Step<Vec<(KeyHash, ApiKey)>> {
    let parsed = members.iter().filter_map(|member| {
        let (owner, id, hash) = parts(member)?;
        Some((owner, id, hash_of(hash)?))
    });
    let found = all(parsed.map(|(owner, id, hash)| {
        let key = tx.peek::<ApiKey>(names.key(&hash))?;
        Ok(key.filter(|key| key.id.as_str() == id && key.owner.as_str() == owner).map(|key| (hash, key)))
    }))?;
    Ok(found.into_iter().flatten().collect())
}

fn parts(member: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = std::str::from_utf8(member).ok()?.split('\0');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

pub fn put(tx: &mut Tx, names: &Names, hash: &KeyHash, key: &ApiKey, max_live: Option<u32>) -> Step<()> {
    let guarded = tx.guard(names.keys_guard(&key.owner));
    let is_new = check_new(tx, names, hash, key);
    let owned = of_owner(tx, names, &key.owner);
    let (_, owned, ()) = (guarded?, owned?, is_new?);
    let owned: Vec<ApiKey> = owned.into_iter().map(|(_, key)| key).collect();
    rules::check_new(&owned, key, max_live)?;
    insert(tx, names, hash, key)?;
    forget_surplus(tx, names, owned, key)
}

pub fn update(tx: &mut Tx, names: &Names, key: &ApiKey) -> Step<KeyHash> {
    let guarded = tx.guard(names.keys_guard(&key.owner));
    let old = by_id(tx, names, &key.id);
    guarded?;
    let (hash, old) = old?.ok_or_else(|| StoreError::NotFound(key.id.to_string()))?;
    rules::check_update(&old, key)?;
    tx.put(names.key(&hash), key)?;
    Ok(hash)
}

pub fn rotate(tx: &mut Tx, names: &Names, rotation: &Rotation) -> Step<(KeyHash, ApiKey)> {
    let Rotation { old: id, new_hash, new, .. } = rotation;
    let guarded = tx.guard(names.keys_guard(&new.owner));
    let old = by_id(tx, names, id);
    let is_new = check_new(tx, names, new_hash, new);
    let owned = of_owner(tx, names, &new.owner);
    guarded?;
    let (old_hash, old) = old?.ok_or_else(|| StoreError::NotFound(id.to_string()))?;
    let owned: Vec<ApiKey> = owned?.into_iter().map(|(_, key)| key).collect();
    let old = rules::rotate(&owned, old, rotation)?;
    is_new?;
    insert(tx, names, new_hash, new)?;
    tx.put(names.key(&old_hash), &old)?;
    forget_surplus(tx, names, owned, new)?;
    Ok((old_hash, old))
}

fn check_new(tx: &mut Tx, names: &Names, hash: &KeyHash, key: &ApiKey) -> Step<()> {
    let there = tx.get::<ApiKey>(names.key(hash)).map(|found| found.is_some());
    let named = tx.get::<String>(names.key_hash(&key.id)).map(|found| found.is_some());
    if there? | named? { Err(rules::taken(key).into()) } else { Ok(()) }
}

pub fn insert(tx: &mut Tx, names: &Names, hash: &KeyHash, key: &ApiKey) -> Step<()> {
    tx.put(names.key(hash), key)?;
    tx.put(names.key_hash(&key.id), &hash_text(hash))?;
    tx.write("ZADD", names.keys(), &[b"0", member(key, hash).as_slice()]);
    Ok(())
}

fn forget_surplus(tx: &mut Tx, names: &Names, owned: Vec<ApiKey>, new: &ApiKey) -> Step<()> {
    let surplus: Vec<ApiKey> = rules::surplus(owned, new.created_at).collect();
    let found = all(surplus.iter().map(|key| by_id(tx, names, &key.id)))?;
    for (hash, key) in found.into_iter().flatten() {
        tx.delete(names.key(&hash));
        tx.delete(names.key_hash(&key.id));
        tx.write("ZREM", names.keys(), &[member(&key, &hash)]);
    }
    Ok(())
}

fn member(key: &ApiKey, hash: &KeyHash) -> Vec<u8> {
    format!("{}\0{}\0{}", key.owner, key.id, hash_text(hash)).into_bytes()
}

pub fn hash_text(hash: &KeyHash) -> String {
    Digest(hash.0).hex()
}

pub fn hash_of(text: &str) -> Option<KeyHash> {
    text.parse::<Digest>().ok().map(|digest| KeyHash(digest.0))
}
