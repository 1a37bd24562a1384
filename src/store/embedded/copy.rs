//! Entries out of the file and into it, and what is known of the store itself.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::db::fault;
use super::{keys, modules, records, retired, routes, values};
use crate::store::entry::{Entry, Exported, Kind, Mark};
use crate::store::rules::{self, decode, encode};
use crate::store::{Result, StoreError, random_hex};

const STORE: TableDefinition<&str, &[u8]> = TableDefinition::new("store");
const ID: &str = "id";
const MARK: &str = "copy";

pub fn create(tx: &WriteTransaction) -> Result<()> {
    let id = random_hex::<16>()?;
    tx.open_table(STORE).map_err(fault)?.insert(ID, id.as_bytes()).map_err(fault)?;
    Ok(())
}

pub fn id(tx: &ReadTransaction) -> Result<String> {
    let row = tx.open_table(STORE).map_err(fault)?.get(ID).map_err(fault)?;
    let id = row.and_then(|row| String::from_utf8(row.value().to_vec()).ok());
    id.ok_or_else(|| StoreError::Corrupt("the file has no number".into()))
}

pub fn mark(tx: &ReadTransaction) -> Result<Option<Mark>> {
    read_mark(&tx.open_table(STORE).map_err(fault)?)
}

fn read_mark(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Option<Mark>> {
    let row = table.get(MARK).map_err(fault)?;
    row.map(|row| decode(row.value(), "copy")).transpose()
}

pub fn export(tx: &ReadTransaction, kind: Kind, after: Option<&[u8]>) -> Result<Exported> {
    match kind {
        Kind::Tiers => Ok(Exported::whole(records::tiers(tx)?.into_iter().map(Entry::Tier).collect())),
        Kind::Tokens => records::export_tokens(tx),
        Kind::Keys => keys::export(tx, after),
        Kind::Retired => retired::export(tx, after),
        Kind::Modules => modules::export(tx, after),
        Kind::Numbers => values::export_numbers(tx, after),
        Kind::Values => values::export(tx, after),
        Kind::Usage => records::export_usage(tx, after),
        Kind::Routes => routes::export(tx, after),
        Kind::Audit => records::export_audit(tx, after),
    }
}

pub fn import(tx: &WriteTransaction, entries: &[Entry], mark: Option<&Mark>, next: Option<&Mark>) -> Result<()> {
    let mut store = tx.open_table(STORE).map_err(fault)?;
    // Before anything is changed: what is refused leaves nothing in the transaction, which others share.
    if read_mark(&store)?.as_ref() != mark {
        return Err(rules::other_copy());
    }
    match next {
        Some(next) => store.insert(MARK, encode(next)?.as_slice()).map_err(fault)?,
        None => store.remove(MARK).map_err(fault)?,
    };
    for entry in entries {
        match entry {
            Entry::Tier(tier) => records::put_tier(tx, tier)?,
            Entry::Token(hash, token) => records::insert_token(tx, hash, token)?,
            Entry::Key(hash, key) => keys::import(tx, hash, key)?,
            Entry::Retired(retired) => retired::import(tx, retired)?,
            Entry::Module(module, last) => modules::import(tx, module, *last)?,
            Entry::Number(owner, last) => values::import_number(tx, owner, *last)?,
            Entry::Value(value) => values::import(tx, value)?,
            Entry::Usage(row) => records::import_usage(tx, row)?,
            Entry::Routes(version, text) => routes::import(tx, version, text)?,
            Entry::Audit(line) => records::append_audit(tx, line)?,
        }
    }
    Ok(())
}

/// All that is behind a place of a table.
pub fn behind<T>(after: Option<T>) -> (Bound<T>, Bound<T>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}
