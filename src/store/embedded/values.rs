//! Values that guests keep, by owner and key.
//!
//! Invariant: the three tables change together, and an owner's sums count every row there is of it, so that nothing gets
//! beyond the bounds. A value whose time is over is as good as gone, whether or not its row has been swept.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::copy::behind;
use super::db::fault;
use crate::domain::{OwnerId, Timestamp};
use crate::store::entry::{self, Entry, Exported, no_place, parts};
use crate::store::rules::values::{self, NEVER, Sums};
use crate::store::{KvIncr, KvSet, KvValue, Result, StoreError};

type Key = (&'static str, &'static [u8]);
/// Its number, when it expires (Unix milliseconds), and the value.
type Row = (u64, i64, &'static [u8]);
const VALUES: TableDefinition<Key, Row> = TableDefinition::new("kv");
/// Of values that expire: owner, when, key.
const EXPIRING: TableDefinition<(&str, i64, &[u8]), ()> = TableDefinition::new("kv_expiring");
/// By owner: rows, bytes of keys and values, and the number given last. Kept when all values are gone, so that no number
/// comes again.
const OWNERS: TableDefinition<&str, (u64, u64, u64)> = TableDefinition::new("kv_owners");

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(VALUES).map_err(fault)?;
    tx.open_table(EXPIRING).map_err(fault)?;
    tx.open_table(OWNERS).map_err(fault)?;
    Ok(())
}

pub fn get(tx: &ReadTransaction, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<Option<KvValue>> {
    let values = tx.open_table(VALUES).map_err(fault)?;
    Ok(live(&values, owner, key, now)?.map(|(value, _)| value))
}

pub fn set(tx: &WriteTransaction, owner: &OwnerId, key: &[u8], set: &KvSet, now: Timestamp) -> Result<u64> {
    let mut tables = Tables::open(tx)?;
    let found = live(&tables.values, owner, key, now)?.map(|(value, _)| value.version);
    values::check_expected(found, set.expected)?;
    tables.put(owner, key, &set.value, set.expires_at.map_or(NEVER, Timestamp::unix_millis), now)
}

pub fn incr(tx: &WriteTransaction, owner: &OwnerId, key: &[u8], incr: &KvIncr, now: Timestamp) -> Result<i64> {
    let mut tables = Tables::open(tx)?;
    let (found, expires) = match live(&tables.values, owner, key, now)? {
        Some((found, expires)) => (Some(found.value), expires),
        None => (None, incr.expires_at.map_or(NEVER, Timestamp::unix_millis)),
    };
    let after = values::add(found.as_deref(), incr.by)?;
    tables.put(owner, key, after.to_string().as_bytes(), expires, now)?;
    Ok(after)
}

pub fn delete(tx: &WriteTransaction, owner: &OwnerId, key: &[u8], now: Timestamp) -> Result<bool> {
    let mut tables = Tables::open(tx)?;
    let was_live = live(&tables.values, owner, key, now)?.is_some();
    let mut sums = tables.sums(owner)?;
    tables.remove(owner, key, &mut sums)?;
    tables.keep(owner, sums)?;
    Ok(was_live)
}

/// Whether some value's time is over.
pub fn can_sweep(tx: &ReadTransaction, now: Timestamp) -> Result<bool> {
    let (owners, expiring) = (tx.open_table(OWNERS).map_err(fault)?, tx.open_table(EXPIRING).map_err(fault)?);
    for owner in owners.iter().map_err(fault)? {
        let owner = owner.map_err(fault)?.0;
        if first_expired(&expiring, owner.value(), now)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes rows whose time is over, at most `most`; how many.
pub fn sweep(tx: &WriteTransaction, now: Timestamp, most: u64) -> Result<u64> {
    let mut tables = Tables::open(tx)?;
    let mut owners: Vec<OwnerId> = Vec::new();
    for owner in tables.owners.iter().map_err(fault)? {
        let owner = owner.map_err(fault)?.0.value().parse::<OwnerId>();
        owners.push(owner.map_err(|e| StoreError::Corrupt(e.to_string()))?);
    }
    let mut swept = 0;
    for owner in owners {
        let mut sums = tables.sums(&owner)?;
        let before = swept;
        while swept < most && tables.remove_expired(&owner, &mut sums, now)? {
            swept += 1;
        }
        if swept > before {
            tables.keep(&owner, sums)?;
        }
    }
    Ok(swept)
}

/// By owner and key, also those whose time is over.
pub fn export(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(|after| entry::split(after).ok_or_else(no_place)).transpose()?;
    let mut page = Exported::default();
    for row in tx.open_table(VALUES).map_err(fault)?.range(behind(after)).map_err(fault)? {
        let (place, row) = row.map_err(fault)?;
        let ((owner, key), (version, expires, value)) = (place.value(), row.value());
        let of = owner.parse().map_err(|e: crate::domain::InvalidName| StoreError::Corrupt(e.to_string()))?;
        let value = entry::Value { owner: of, key: key.to_vec(), version, expires, value: value.to_vec() };
        page.entries.push(Entry::Value(value));
        if page.is_full() {
            page.next = Some([owner.as_bytes(), b"\0", key].concat());
            break;
        }
    }
    Ok(page)
}

/// By owner.
pub fn export_numbers(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(parts::<1>).transpose()?.map(|[owner]| owner);
    let mut page = Exported::default();
    for row in tx.open_table(OWNERS).map_err(fault)?.range::<&str>(behind(after)).map_err(fault)? {
        let (owner, row) = row.map_err(fault)?;
        let (_, _, last) = row.value();
        if last > 0 {
            let of = owner.value().parse::<OwnerId>().map_err(|e| StoreError::Corrupt(e.to_string()))?;
            page.entries.push(Entry::Number(of, last));
        }
        if page.is_full() {
            page.next = Some(owner.value().as_bytes().to_vec());
            break;
        }
    }
    Ok(page)
}

pub fn import(tx: &WriteTransaction, value: &entry::Value) -> Result<()> {
    let entry::Value { owner, key, version, expires, value } = value;
    let mut tables = Tables::open(tx)?;
    let mut sums = tables.sums(owner)?;
    sums.take_up((key.len() + value.len()) as u64, *version);
    tables.insert(owner, key, value, *expires, *version)?;
    tables.keep(owner, sums)
}

pub fn import_number(tx: &WriteTransaction, owner: &OwnerId, last: u64) -> Result<()> {
    let mut tables = Tables::open(tx)?;
    let sums = tables.sums(owner)?;
    tables.keep(owner, Sums { last, ..sums })
}

/// The value with when it expires, unless that is over.
fn live(
    values: &impl ReadableTable<Key, Row>,
    owner: &OwnerId,
    key: &[u8],
    now: Timestamp,
) -> Result<Option<(KvValue, i64)>> {
    let Some(row) = values.get((owner.as_str(), key)).map_err(fault)? else { return Ok(None) };
    let (version, expires, value) = row.value();
    let live = expires > now.unix_millis();
    Ok(live.then(|| (KvValue { value: value.to_vec(), version }, expires)))
}

fn first_expired(
    expiring: &impl ReadableTable<(&'static str, i64, &'static [u8]), ()>,
    owner: &str,
    now: Timestamp,
) -> Result<Option<Vec<u8>>> {
    let over = (owner, i64::MIN, &[][..])..(owner, now.unix_millis().saturating_add(1), &[][..]);
    let first = expiring.range(over).map_err(fault)?.next().transpose().map_err(fault)?;
    Ok(first.map(|(row, _)| row.value().2.to_vec()))
}

struct Tables<'tx> {
    values: Table<'tx, Key, Row>,
    expiring: Table<'tx, (&'static str, i64, &'static [u8]), ()>,
    owners: Table<'tx, &'static str, (u64, u64, u64)>,
}

impl<'tx> Tables<'tx> {
    fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        Ok(Self {
            values: tx.open_table(VALUES).map_err(fault)?,
            expiring: tx.open_table(EXPIRING).map_err(fault)?,
            owners: tx.open_table(OWNERS).map_err(fault)?,
        })
    }

    fn sums(&self, owner: &OwnerId) -> Result<Sums> {
        let row = self.owners.get(owner.as_str()).map_err(fault)?;
        Ok(row.map_or_else(Sums::default, |row| {
            let (entries, bytes, last) = row.value();
            Sums { entries, bytes, last }
        }))
    }

    fn keep(&mut self, owner: &OwnerId, sums: Sums) -> Result<()> {
        self.owners.insert(owner.as_str(), (sums.entries, sums.bytes, sums.last)).map_err(fault)?;
        Ok(())
    }

    /// In the place of what the key had. Where there is no room, what has expired makes some.
    fn put(&mut self, owner: &OwnerId, key: &[u8], value: &[u8], expires: i64, now: Timestamp) -> Result<u64> {
        let mut sums = self.sums(owner)?;
        let before = self.size(owner, key)?;
        let needs = (key.len() + value.len()) as u64;
        if !sums.fits(before, needs) {
            while self.remove_expired(owner, &mut sums, now)? {}
            // What was there under this key may be among it.
            if !sums.fits(self.size(owner, key)?, needs) {
                return Err(values::no_room(owner));
            }
        }
        self.remove(owner, key, &mut sums)?;
        let number = sums.add(needs);
        self.insert(owner, key, value, expires, number)?;
        self.keep(owner, sums)?;
        Ok(number)
    }

    fn insert(&mut self, owner: &OwnerId, key: &[u8], value: &[u8], expires: i64, number: u64) -> Result<()> {
        self.values.insert((owner.as_str(), key), (number, expires, value)).map_err(fault)?;
        if expires != NEVER {
            self.expiring.insert((owner.as_str(), expires, key), ()).map_err(fault)?;
        }
        Ok(())
    }

    /// Of the row under this key, whether or not its time is over.
    fn size(&self, owner: &OwnerId, key: &[u8]) -> Result<Option<u64>> {
        let row = self.values.get((owner.as_str(), key)).map_err(fault)?;
        Ok(row.map(|row| (key.len() + row.value().2.len()) as u64))
    }

    fn remove(&mut self, owner: &OwnerId, key: &[u8], sums: &mut Sums) -> Result<()> {
        let removed = self.values.remove((owner.as_str(), key)).map_err(fault)?.map(|row| {
            let (_, expires, value) = row.value();
            (expires, (key.len() + value.len()) as u64)
        });
        let Some((expires, bytes)) = removed else { return Ok(()) };
        sums.take(bytes);
        if expires != NEVER {
            self.expiring.remove((owner.as_str(), expires, key)).map_err(fault)?;
        }
        Ok(())
    }

    fn remove_expired(&mut self, owner: &OwnerId, sums: &mut Sums, now: Timestamp) -> Result<bool> {
        match first_expired(&self.expiring, owner.as_str(), now)? {
            Some(key) => self.remove(owner, &key, sums).map(|()| true),
            None => Ok(false),
        }
    }
}
