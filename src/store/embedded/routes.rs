//! Routes that were pushed: a row for each version's text, and one for what is known of them.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::db::fault;
use crate::store::entry::{Entry, Exported, no_place};
use crate::store::rules::{self, decode, encode};
use crate::store::{NewRoutes, Result, RoutesVersion, StoreError};

/// By version; the versions themselves are at 0.
const ROUTES: TableDefinition<u64, &[u8]> = TableDefinition::new("routes");
const VERSIONS: u64 = 0;

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(ROUTES).map_err(fault)?;
    Ok(())
}

pub fn push(tx: &WriteTransaction, new: &NewRoutes, expect: u64) -> Result<RoutesVersion> {
    let mut table = tx.open_table(ROUTES).map_err(fault)?;
    let mut versions = read(&table)?;
    let (version, over) = rules::routes::push(&mut versions, new, expect)?;
    table.insert(VERSIONS, encode(&versions)?.as_slice()).map_err(fault)?;
    table.insert(version.version, new.text.as_bytes()).map_err(fault)?;
    for old in over {
        table.remove(old).map_err(fault)?;
    }
    Ok(version)
}

pub fn versions(tx: &ReadTransaction) -> Result<Vec<RoutesVersion>> {
    read(&tx.open_table(ROUTES).map_err(fault)?)
}

fn read(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Vec<RoutesVersion>> {
    let row = table.get(VERSIONS).map_err(fault)?;
    row.map_or_else(|| Ok(Vec::new()), |row| decode(row.value(), "routes"))
}

/// Oldest first, one at a time.
pub fn export(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let versions = versions(tx)?;
    let (version, next) = rules::routes::after(&versions, after).ok_or_else(no_place)?;
    let Some(version) = version else { return Ok(Exported::default()) };
    let text = text(tx, version.version)?.ok_or_else(|| rules::routes::no_text(version.version))?;
    Ok(Exported { entries: vec![Entry::Routes(version.clone(), text)], next })
}

pub fn import(tx: &WriteTransaction, version: &RoutesVersion, text: &str) -> Result<()> {
    let mut table = tx.open_table(ROUTES).map_err(fault)?;
    let mut versions = read(&table)?;
    versions.insert(0, version.clone());
    table.insert(VERSIONS, encode(&versions)?.as_slice()).map_err(fault)?;
    table.insert(version.version, text.as_bytes()).map_err(fault)?;
    Ok(())
}

pub fn text(tx: &ReadTransaction, version: u64) -> Result<Option<String>> {
    if version == VERSIONS {
        return Ok(None);
    }
    let row = tx.open_table(ROUTES).map_err(fault)?.get(version).map_err(fault)?;
    let text = row.map(|row| String::from_utf8(row.value().to_vec())).transpose();
    text.map_err(|_| StoreError::Corrupt(format!("version {version} of the routes is no text")))
}
