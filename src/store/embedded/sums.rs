//! What each owner's versions take together, so that no upload has to read them all.
//!
//! Invariant: a sum changes in the transaction that changes the versions.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::db::fault;
use crate::store::Result;

/// Bytes by owner; one without any has no row.
const BYTES: TableDefinition<&str, u64> = TableDefinition::new("module_bytes");

pub fn of(tx: &ReadTransaction, owner: &str) -> Result<u64> {
    get(&tx.open_table(BYTES).map_err(fault)?, owner)
}

fn get(bytes: &impl ReadableTable<&'static str, u64>, owner: &str) -> Result<u64> {
    Ok(bytes.get(owner).map_err(fault)?.map_or(0, |row| row.value()))
}

pub struct Sums<'tx>(redb::Table<'tx, &'static str, u64>);

impl<'tx> Sums<'tx> {
    pub fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        Ok(Self(tx.open_table(BYTES).map_err(fault)?))
    }

    pub fn get(&self, owner: &str) -> Result<u64> {
        get(&self.0, owner)
    }

    pub fn add(&mut self, owner: &str, bytes: u64) -> Result<()> {
        let sum = self.get(owner)?.saturating_add(bytes);
        self.0.insert(owner, sum).map_err(fault)?;
        Ok(())
    }

    pub fn take(&mut self, owner: &str, bytes: u64) -> Result<()> {
        match self.get(owner)?.saturating_sub(bytes) {
            0 => self.0.remove(owner).map_err(fault)?,
            sum => self.0.insert(owner, sum).map_err(fault)?,
        };
        Ok(())
    }
}
