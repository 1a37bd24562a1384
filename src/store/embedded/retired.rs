//! Version numbers that outlive their module.
//!
//! Invariant: what is kept of an owner's deleted modules is bounded, and no number of theirs comes again.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::db::fault;
use crate::store::entry::{self, Entry, Exported};
use crate::store::{Result, StoreError, rules};

/// The highest number that a deleted module had given, by its owner and name; under the name `""` the floor of the
/// owner, which stands for all that have no row of their own.
const RETIRED: TableDefinition<(&str, &str), u32> = TableDefinition::new("module_retired");

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(RETIRED).map_err(fault)?;
    Ok(())
}

/// By owner.
pub fn export(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(entry::parts::<1>).transpose()?;
    let mut page = Exported::default();
    let mut owned: Option<entry::Retired> = None;
    for row in tx.open_table(RETIRED).map_err(fault)?.range((after.map_or("", |[owner]| owner), "")..).map_err(fault)? {
        let (row, last) = row.map_err(fault)?;
        let (owner, name) = row.value();
        if after.is_some_and(|[after]| after == owner) {
            continue;
        }
        if let Some(whole) = owned.take_if(|owned| owned.owner.as_str() != owner) {
            let next = whole.owner.as_str().as_bytes().to_vec();
            page.entries.push(Entry::Retired(whole));
            if page.is_full() {
                page.next = Some(next);
                return Ok(page);
            }
        }
        let of = match &mut owned {
            Some(of) => of,
            None => {
                let owner =
                    owner.parse().map_err(|e: crate::domain::InvalidName| StoreError::Corrupt(e.to_string()))?;
                owned.insert(entry::Retired { owner, floor: 0, names: std::collections::BTreeMap::new() })
            }
        };
        match name {
            "" => of.floor = last.value(),
            name => drop(of.names.insert(name.to_owned(), last.value())),
        }
    }
    page.entries.extend(owned.map(Entry::Retired));
    Ok(page)
}

pub fn import(tx: &WriteTransaction, retired: &entry::Retired) -> Result<()> {
    let mut table = tx.open_table(RETIRED).map_err(fault)?;
    let owner = retired.owner.as_str();
    if retired.floor > 0 {
        table.insert((owner, ""), retired.floor).map_err(fault)?;
    }
    for (name, last) in &retired.names {
        table.insert((owner, name.as_str()), last).map_err(fault)?;
    }
    Ok(())
}

pub struct Retired<'tx>(redb::Table<'tx, (&'static str, &'static str), u32>);

impl<'tx> Retired<'tx> {
    pub fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        Ok(Self(tx.open_table(RETIRED).map_err(fault)?))
    }

    /// The number that a module of this name goes on from.
    pub fn take(&mut self, owner: &str, name: &str) -> Result<u32> {
        let own = self.0.remove((owner, name)).map_err(fault)?.map(|row| row.value());
        match own {
            Some(last) => Ok(last),
            None => Ok(self.0.get((owner, "")).map_err(fault)?.map_or(0, |row| row.value())),
        }
    }

    /// Keeps the last number of a module that is deleted.
    pub fn put(&mut self, owner: &str, name: &str, last: u32) -> Result<()> {
        self.0.insert((owner, name), last).map_err(fault)?;
        let (mut floor, mut rows) = (0, Vec::new());
        for row in self.0.range((owner, "")..).map_err(fault)? {
            let (key, last) = row.map_err(fault)?;
            match key.value() {
                (of, _) if of != owner => break,
                (_, "") => floor = last.value(),
                (_, name) => rows.push((name.to_owned(), last.value())),
            }
        }
        let Some(floor) = rules::modules::raised_floor(rows.iter().map(|(_, last)| last), floor) else { return Ok(()) };
        self.0.insert((owner, ""), floor).map_err(fault)?;
        for (name, _) in rows.iter().filter(|(_, last)| *last <= floor) {
            self.0.remove((owner, name.as_str())).map_err(fault)?;
        }
        Ok(())
    }
}
