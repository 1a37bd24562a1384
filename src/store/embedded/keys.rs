//! API keys: by id, by hash, by owner.
//!
//! Invariant: the three tables change together, in one transaction; a revoked record never becomes live again.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::copy::behind;
use super::db::fault;
use crate::domain::{ApiKey, KeyHash, KeyId, OwnerId, Timestamp};
use crate::store::entry::{Entry, Exported, parts};
use crate::store::rules::{self, decode, encode};
use crate::store::{Result, Rotation, StoreError};

type Row = (&'static [u8; 32], &'static [u8]);
const KEYS: TableDefinition<&str, Row> = TableDefinition::new("keys");
const BY_HASH: TableDefinition<&[u8; 32], &str> = TableDefinition::new("key_hashes");
const BY_OWNER: TableDefinition<(&str, &str), ()> = TableDefinition::new("key_owners");

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(KEYS).map_err(fault)?;
    tx.open_table(BY_HASH).map_err(fault)?;
    tx.open_table(BY_OWNER).map_err(fault)?;
    Ok(())
}

pub fn by_hash(tx: &ReadTransaction, hash: &KeyHash) -> Result<Option<ApiKey>> {
    let Some(id) = tx.open_table(BY_HASH).map_err(fault)?.get(&hash.0).map_err(fault)? else { return Ok(None) };
    let keys = tx.open_table(KEYS).map_err(fault)?;
    let row = load(&keys, id.value())?;
    row.map(|(_, key)| key).map(Some).ok_or_else(|| dangling(id.value()))
}

pub fn by_id(tx: &ReadTransaction, id: &KeyId) -> Result<Option<(KeyHash, ApiKey)>> {
    load(&tx.open_table(KEYS).map_err(fault)?, id.as_str())
}

pub fn list(tx: &ReadTransaction, owner: Option<&OwnerId>) -> Result<Vec<ApiKey>> {
    let keys = tx.open_table(KEYS).map_err(fault)?;
    let mut found = match owner {
        Some(owner) => of_owner(&tx.open_table(BY_OWNER).map_err(fault)?, &keys, owner)?,
        None => {
            let mut all = Vec::new();
            for row in keys.iter().map_err(fault)? {
                let (id, row) = row.map_err(fault)?;
                all.push(decode::<ApiKey>(row.value().1, id.value())?);
            }
            all
        }
    };
    rules::keys::sort(&mut found);
    Ok(found)
}

pub fn put(tx: &WriteTransaction, hash: KeyHash, key: &ApiKey, max_live: Option<u32>) -> Result<()> {
    let mut tables = Tables::open(tx)?;
    let owned = tables.of_owner(&key.owner)?;
    rules::keys::check_new(&owned, key, max_live)?;
    tables.check_new(&hash, key)?;
    tables.insert(&hash, key)?;
    tables.forget_oldest_dead(owned, key.created_at)
}

pub fn update(tx: &WriteTransaction, key: &ApiKey) -> Result<KeyHash> {
    let mut tables = Tables::open(tx)?;
    let (hash, old) = load(&tables.keys, key.id.as_str())?.ok_or_else(|| StoreError::NotFound(key.id.to_string()))?;
    rules::keys::check_update(&old, key)?;
    tables.write(&hash, key)?;
    Ok(hash)
}

pub fn rotate(tx: &WriteTransaction, rotation: &Rotation) -> Result<(KeyHash, ApiKey)> {
    let Rotation { old, new_hash, new, .. } = rotation;
    let mut tables = Tables::open(tx)?;
    let (old_hash, old) = load(&tables.keys, old.as_str())?.ok_or_else(|| StoreError::NotFound(old.to_string()))?;
    let owned = tables.of_owner(&new.owner)?;
    let old = rules::keys::rotate(&owned, old, rotation)?;
    tables.check_new(new_hash, new)?;
    tables.insert(new_hash, new)?;
    tables.write(&old_hash, &old)?;
    tables.forget_oldest_dead(owned, new.created_at)?;
    Ok((old_hash, old))
}

/// By owner and id.
pub fn export(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let (keys, by_owner) = (tx.open_table(KEYS).map_err(fault)?, tx.open_table(BY_OWNER).map_err(fault)?);
    let after = after.map(parts::<2>).transpose()?.map(|[owner, id]| (owner, id));
    let mut page = Exported::default();
    for row in by_owner.range(behind(after)).map_err(fault)? {
        let row = row.map_err(fault)?.0;
        let (owner, id) = row.value();
        let (hash, key) = load(&keys, id)?.ok_or_else(|| dangling(id))?;
        page.entries.push(Entry::Key(hash, key));
        if page.is_full() {
            page.next = Some(format!("{owner}\0{id}").into_bytes());
            break;
        }
    }
    Ok(page)
}

pub fn import(tx: &WriteTransaction, hash: &KeyHash, key: &ApiKey) -> Result<()> {
    Tables::open(tx)?.insert(hash, key)
}

struct Tables<'tx> {
    keys: Table<'tx, &'static str, Row>,
    by_hash: Table<'tx, &'static [u8; 32], &'static str>,
    by_owner: Table<'tx, (&'static str, &'static str), ()>,
}

impl<'tx> Tables<'tx> {
    fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        Ok(Self {
            keys: tx.open_table(KEYS).map_err(fault)?,
            by_hash: tx.open_table(BY_HASH).map_err(fault)?,
            by_owner: tx.open_table(BY_OWNER).map_err(fault)?,
        })
    }

    fn of_owner(&self, owner: &OwnerId) -> Result<Vec<ApiKey>> {
        of_owner(&self.by_owner, &self.keys, owner)
    }

    fn check_new(&self, hash: &KeyHash, key: &ApiKey) -> Result<()> {
        let taken = self.keys.get(key.id.as_str()).map_err(fault)?.is_some()
            || self.by_hash.get(&hash.0).map_err(fault)?.is_some();
        if taken { Err(rules::keys::taken(key)) } else { Ok(()) }
    }

    fn insert(&mut self, hash: &KeyHash, key: &ApiKey) -> Result<()> {
        self.by_hash.insert(&hash.0, key.id.as_str()).map_err(fault)?;
        self.by_owner.insert((key.owner.as_str(), key.id.as_str()), ()).map_err(fault)?;
        self.write(hash, key)
    }

    fn write(&mut self, hash: &KeyHash, key: &ApiKey) -> Result<()> {
        self.keys.insert(key.id.as_str(), (&hash.0, encode(key)?.as_slice())).map_err(fault)?;
        Ok(())
    }

    fn forget_oldest_dead(&mut self, owned: Vec<ApiKey>, now: Timestamp) -> Result<()> {
        for key in rules::keys::surplus(owned, now) {
            let hash = self.keys.remove(key.id.as_str()).map_err(fault)?.map(|row| *row.value().0);
            if let Some(hash) = hash {
                self.by_hash.remove(&hash).map_err(fault)?;
            }
            self.by_owner.remove((key.owner.as_str(), key.id.as_str())).map_err(fault)?;
        }
        Ok(())
    }
}

fn load(keys: &impl ReadableTable<&'static str, Row>, id: &str) -> Result<Option<(KeyHash, ApiKey)>> {
    let Some(row) = keys.get(id).map_err(fault)? else { return Ok(None) };
    let (hash, record) = row.value();
    Ok(Some((KeyHash(*hash), decode(record, id)?)))
}

fn of_owner(
    by_owner: &impl ReadableTable<(&'static str, &'static str), ()>,
    keys: &impl ReadableTable<&'static str, Row>,
    owner: &OwnerId,
) -> Result<Vec<ApiKey>> {
    let mut found = Vec::new();
    for row in by_owner.range((owner.as_str(), "")..).map_err(fault)? {
        let (pair, ()) = { row.map(|(k, v)| (k, v.value())).map_err(fault)? };
        let (of, id) = pair.value();
        if of != owner.as_str() {
            break;
        }
        found.push(load(keys, id)?.ok_or_else(|| dangling(id))?.1);
    }
    Ok(found)
}

fn dangling(id: &str) -> StoreError {
    StoreError::Corrupt(format!("an index names the key `{id}`, which is missing"))
}
