//! Tier overrides, usage, admin tokens, the audit log and the limiter's counters.
//!
//! Invariant: an audit line is written once, under the next number, and never touched again; the oldest go first, so that
//! the numbers have no gap.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde_json::{Map, Value};

use super::copy::behind;
use super::db::fault;
use crate::domain::{KeyHash, Name, OwnerId, Tier, Timestamp, TokenId, UsageDelta, UsageRecord};
use crate::store::entry::{Entry, Exported, no_place, parts};
use crate::store::rules::{self, PRUNE_BATCH, decode, encode};
use crate::store::{AdminToken, AuditEntry, Counter, Result, Retention, StoreError, UsageRow};

const TIERS: TableDefinition<&str, &[u8]> = TableDefinition::new("tiers");
/// By day, owner and key.
const USAGE: TableDefinition<(i64, &str, &str), &[u8]> = TableDefinition::new("usage");
const TOKENS: TableDefinition<&str, &[u8]> = TableDefinition::new("tokens");
const TOKENS_BY_HASH: TableDefinition<&[u8; 32], &str> = TableDefinition::new("token_hashes");
const AUDIT: TableDefinition<u64, &[u8]> = TableDefinition::new("audit");
/// By counter id: start of the window, and what is used.
const COUNTERS: TableDefinition<&str, (i64, u64)> = TableDefinition::new("counters");

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(TIERS).map_err(fault)?;
    tx.open_table(USAGE).map_err(fault)?;
    tx.open_table(TOKENS).map_err(fault)?;
    tx.open_table(TOKENS_BY_HASH).map_err(fault)?;
    tx.open_table(AUDIT).map_err(fault)?;
    tx.open_table(COUNTERS).map_err(fault)?;
    Ok(())
}

pub fn tiers(tx: &ReadTransaction) -> Result<Vec<Tier>> {
    let mut all = Vec::new();
    for row in tx.open_table(TIERS).map_err(fault)?.iter().map_err(fault)? {
        let (name, row) = row.map_err(fault)?;
        all.push(decode(row.value(), name.value())?);
    }
    Ok(all)
}

/// Gives tiers that were stored before there was a bound of storage the usual one.
pub fn bound_storage(tx: &WriteTransaction) -> Result<()> {
    let mut tiers = tx.open_table(TIERS).map_err(fault)?;
    let mut rows: Vec<(String, Map<String, Value>)> = Vec::new();
    for row in tiers.iter().map_err(fault)? {
        let (name, row) = row.map_err(fault)?;
        rows.push((name.value().to_owned(), decode(row.value(), name.value())?));
    }
    for (name, mut tier) in rows {
        let size = tier.get("module_bytes").and_then(Value::as_u64).unwrap_or_default();
        tier.insert("module_storage_bytes".into(), Tier::usual_storage(size).into());
        tiers.insert(name.as_str(), encode(&tier)?.as_slice()).map_err(fault)?;
    }
    Ok(())
}

pub fn put_tier(tx: &WriteTransaction, tier: &Tier) -> Result<()> {
    let mut tiers = tx.open_table(TIERS).map_err(fault)?;
    tiers.insert(tier.name.as_str(), encode(tier)?.as_slice()).map_err(fault)?;
    Ok(())
}

pub fn delete_tier(tx: &WriteTransaction, name: &Name) -> Result<bool> {
    let mut tiers = tx.open_table(TIERS).map_err(fault)?;
    let removed = tiers.remove(name.as_str()).map_err(fault)?;
    Ok(removed.is_some())
}

pub fn add_usage(tx: &WriteTransaction, deltas: &[UsageDelta]) -> Result<()> {
    let mut usage = tx.open_table(USAGE).map_err(fault)?;
    for delta in deltas {
        let key = (delta.day, delta.owner.as_str(), delta.key.as_str());
        let mut sum: UsageRecord = match usage.get(key).map_err(fault)? {
            Some(row) => decode(row.value(), "usage")?,
            None => UsageRecord::default(),
        };
        sum.merge(&delta.add);
        usage.insert(key, encode(&sum)?.as_slice()).map_err(fault)?;
    }
    Ok(())
}

pub fn usage(tx: &ReadTransaction, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> Result<Vec<UsageRow>> {
    let mut rows = Vec::new();
    let table = tx.open_table(USAGE).map_err(fault)?;
    for row in table.range((from_day, "", "")..).map_err(fault)? {
        let (key, value) = row.map_err(fault)?;
        let (day, of, id) = key.value();
        if day > to_day {
            break;
        }
        if owner.is_some_and(|o| o.as_str() != of) {
            continue;
        }
        let owner = of.parse::<OwnerId>().map_err(|e| StoreError::Corrupt(e.to_string()))?;
        rows.push(UsageRow { day, owner, key: id.into(), usage: decode(value.value(), "usage")? });
    }
    Ok(rows)
}

/// By day, owner and key.
pub fn export_usage(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(parts::<3>).transpose()?.map(|[day, owner, key]| Some((day.parse().ok()?, owner, key)));
    let after = after.map(|after| after.ok_or_else(no_place)).transpose()?;
    let mut page = Exported::default();
    for row in tx.open_table(USAGE).map_err(fault)?.range(behind(after)).map_err(fault)? {
        let (place, usage) = row.map_err(fault)?;
        let (day, of, key) = place.value();
        let owner = of.parse::<OwnerId>().map_err(|e| StoreError::Corrupt(e.to_string()))?;
        page.entries.push(Entry::Usage(UsageRow {
            day,
            owner,
            key: key.into(),
            usage: decode(usage.value(), "usage")?,
        }));
        if page.is_full() {
            page.next = Some(format!("{day}\0{of}\0{key}").into_bytes());
            break;
        }
    }
    Ok(page)
}

pub fn import_usage(tx: &WriteTransaction, row: &UsageRow) -> Result<()> {
    let mut usage = tx.open_table(USAGE).map_err(fault)?;
    let place = (row.day, row.owner.as_str(), row.key.as_str());
    usage.insert(place, encode(&row.usage)?.as_slice()).map_err(fault)?;
    Ok(())
}

pub fn put_token(tx: &WriteTransaction, hash: KeyHash, token: &AdminToken) -> Result<()> {
    let tokens = tx.open_table(TOKENS).map_err(fault)?;
    let by_hash = tx.open_table(TOKENS_BY_HASH).map_err(fault)?;
    let mut taken = by_hash.get(&hash.0).map_err(fault)?.is_some();
    for row in tokens.iter().map_err(fault)? {
        let (id, row) = row.map_err(fault)?;
        let other: AdminToken = decode(row.value(), id.value())?;
        taken |= rules::token_is_taken(&other, token);
    }
    if taken {
        return Err(rules::token_taken(token));
    }
    drop((tokens, by_hash));
    insert_token(tx, &hash, token)
}

pub fn insert_token(tx: &WriteTransaction, hash: &KeyHash, token: &AdminToken) -> Result<()> {
    let mut by_hash = tx.open_table(TOKENS_BY_HASH).map_err(fault)?;
    by_hash.insert(&hash.0, token.id.as_str()).map_err(fault)?;
    let mut tokens = tx.open_table(TOKENS).map_err(fault)?;
    tokens.insert(token.id.as_str(), encode(token)?.as_slice()).map_err(fault)?;
    Ok(())
}

/// By id.
pub fn export_tokens(tx: &ReadTransaction) -> Result<Exported> {
    let tokens = tx.open_table(TOKENS).map_err(fault)?;
    let mut all = BTreeMap::new();
    for row in tx.open_table(TOKENS_BY_HASH).map_err(fault)?.iter().map_err(fault)? {
        let (hash, id) = row.map_err(fault)?;
        if let Some(token) = tokens.get(id.value()).map_err(fault)? {
            let token = decode(token.value(), id.value())?;
            all.insert(id.value().to_owned(), Entry::Token(KeyHash(*hash.value()), token));
        }
    }
    Ok(Exported::whole(all.into_values().collect()))
}

pub fn token_by_hash(tx: &ReadTransaction, hash: &KeyHash) -> Result<Option<AdminToken>> {
    let Some(id) = tx.open_table(TOKENS_BY_HASH).map_err(fault)?.get(&hash.0).map_err(fault)? else {
        return Ok(None);
    };
    let tokens = tx.open_table(TOKENS).map_err(fault)?;
    let row = tokens.get(id.value()).map_err(fault)?;
    row.map(|row| decode(row.value(), id.value())).transpose()
}

pub fn tokens(tx: &ReadTransaction) -> Result<Vec<AdminToken>> {
    let mut all: Vec<AdminToken> = Vec::new();
    for row in tx.open_table(TOKENS).map_err(fault)?.iter().map_err(fault)? {
        let (id, row) = row.map_err(fault)?;
        all.push(decode(row.value(), id.value())?);
    }
    all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(all)
}

pub fn revoke_token(tx: &WriteTransaction, id: &TokenId, at: Timestamp) -> Result<AdminToken> {
    let mut tokens = tx.open_table(TOKENS).map_err(fault)?;
    let mut token: AdminToken = match tokens.get(id.as_str()).map_err(fault)? {
        Some(row) => decode(row.value(), id.as_str())?,
        None => return Err(StoreError::NotFound(id.to_string())),
    };
    token.revoked_at.get_or_insert(at);
    tokens.insert(id.as_str(), encode(&token)?.as_slice()).map_err(fault)?;
    Ok(token)
}

pub fn append_audit(tx: &WriteTransaction, entry: &AuditEntry) -> Result<()> {
    let mut audit = tx.open_table(AUDIT).map_err(fault)?;
    let next = audit.last().map_err(fault)?.map_or(1, |(number, _)| number.value() + 1);
    audit.insert(next, encode(entry)?.as_slice()).map_err(fault)?;
    Ok(())
}

pub fn audit(tx: &ReadTransaction, limit: u64) -> Result<Vec<AuditEntry>> {
    let table = tx.open_table(AUDIT).map_err(fault)?;
    let newest_first = table.iter().map_err(fault)?.rev();
    newest_first
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .map(|row| decode(row.map_err(fault)?.1.value(), "audit"))
        .collect()
}

/// Oldest first.
pub fn export_audit(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(|after| after.try_into().map(u64::from_be_bytes).map_err(|_| no_place())).transpose()?;
    let mut page = Exported::default();
    for row in tx.open_table(AUDIT).map_err(fault)?.range(behind(after)).map_err(fault)? {
        let (number, line) = row.map_err(fault)?;
        page.entries.push(Entry::Audit(decode(line.value(), "audit")?));
        if page.is_full() {
            page.next = Some(number.value().to_be_bytes().to_vec());
            break;
        }
    }
    Ok(page)
}

pub fn can_prune(tx: &ReadTransaction, keep: &Retention) -> Result<bool> {
    let (audit, usage) = (tx.open_table(AUDIT).map_err(fault)?, tx.open_table(USAGE).map_err(fault)?);
    Ok(audit_is_over(&audit, keep)? || usage_is_over(&usage, keep)?)
}

pub fn prune(tx: &WriteTransaction, keep: &Retention) -> Result<u64> {
    let mut audit = tx.open_table(AUDIT).map_err(fault)?;
    let mut usage = tx.open_table(USAGE).map_err(fault)?;
    let (mut lines, mut rows) = (0, 0);
    while lines < PRUNE_BATCH && audit_is_over(&audit, keep)? {
        audit.pop_first().map_err(fault)?;
        lines += 1;
    }
    while rows < PRUNE_BATCH && usage_is_over(&usage, keep)? {
        usage.pop_first().map_err(fault)?;
        rows += 1;
    }
    Ok(lines + rows)
}

fn audit_is_over(audit: &impl ReadableTable<u64, &'static [u8]>, keep: &Retention) -> Result<bool> {
    let (Some((first, line)), Some((last, _))) = (audit.first().map_err(fault)?, audit.last().map_err(fault)?) else {
        return Ok(false);
    };
    rules::audit_is_over(last.value() - first.value() + 1, || decode(line.value(), "audit"), keep)
}

fn usage_is_over(
    usage: &impl ReadableTable<(i64, &'static str, &'static str), &'static [u8]>,
    keep: &Retention,
) -> Result<bool> {
    Ok(usage.first().map_err(fault)?.is_some_and(|(key, _)| key.value().0 < keep.usage_from_day))
}

pub fn save_counters(tx: &WriteTransaction, counters: &[Counter], expire_before: i64) -> Result<()> {
    let mut table = tx.open_table(COUNTERS).map_err(fault)?;
    for counter in counters {
        table.insert(counter.id.as_str(), (counter.window_start, counter.used)).map_err(fault)?;
    }
    table.retain(|_, (start, _)| start >= expire_before).map_err(fault)?;
    Ok(())
}

pub fn load_counters(tx: &ReadTransaction) -> Result<Vec<Counter>> {
    let mut all = Vec::new();
    for row in tx.open_table(COUNTERS).map_err(fault)?.iter().map_err(fault)? {
        let (id, row) = row.map_err(fault)?;
        let (window_start, used) = row.value();
        all.push(Counter { id: id.value().to_owned(), window_start, used });
    }
    Ok(all)
}
