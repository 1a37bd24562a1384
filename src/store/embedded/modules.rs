//! Modules, their versions and their execution counts.
//!
//! Invariant: a module's record, its versions, the indexes and its owner's sums change together, in one transaction.

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::Deserialize;

use super::copy::behind;
use super::db::fault;
use super::retired::Retired;
use super::sums::{self, Sums};
use crate::domain::{Abi, Bundle, Digest, LimitsChange, Module, ModuleVersion, Name, OwnerId, Tier, Timestamp};
use crate::store::entry::{Entry, Exported, parts};
use crate::store::rules::modules::{self as rules, Record};
use crate::store::rules::{decode, encode};
use crate::store::{NewVersion, Page, Result, StoreError, Stored};

type Named = (&'static str, &'static str);
/// By owner and name.
const MODULES: TableDefinition<Named, &[u8]> = TableDefinition::new("modules");
const BY_ID: TableDefinition<&str, Named> = TableDefinition::new("module_ids");
const PUBLIC: TableDefinition<Named, ()> = TableDefinition::new("module_public");
/// By module id and version.
const VERSIONS: TableDefinition<(&str, u32), &[u8]> = TableDefinition::new("module_versions");
/// By module id: runs, and the last one in Unix milliseconds. Apart, because it changes at every flush.
const RUNS: TableDefinition<&str, (u64, i64)> = TableDefinition::new("module_runs");

pub fn create(tx: &WriteTransaction) -> Result<()> {
    tx.open_table(MODULES).map_err(fault)?;
    tx.open_table(BY_ID).map_err(fault)?;
    tx.open_table(PUBLIC).map_err(fault)?;
    tx.open_table(VERSIONS).map_err(fault)?;
    tx.open_table(RUNS).map_err(fault)?;
    Ok(())
}

/// Makes the sums of what is there.
pub fn sum_bytes(tx: &WriteTransaction) -> Result<()> {
    let mut writer = WriterTables::open(tx)?;
    for row in writer.modules.iter().map_err(fault)? {
        let (key, row) = row.map_err(fault)?;
        let (owner, name) = key.value();
        let module = join(decode(row.value(), name)?, &writer.versions, &writer.runs)?;
        writer.sums.add(owner, module.versions.iter().map(ModuleVersion::stored_bytes).sum())?;
    }
    Ok(())
}

pub fn stored(tx: &ReadTransaction, owner: &OwnerId) -> Result<Stored> {
    let modules = tx.open_table(MODULES).map_err(fault)?;
    Ok(Stored { modules: count_of(&modules, owner.as_str())?, bytes: sums::of(tx, owner.as_str())? })
}

pub fn by_name(tx: &ReadTransaction, owner: &OwnerId, name: &Name) -> Result<Option<Module>> {
    let modules = tx.open_table(MODULES).map_err(fault)?;
    let record = record(&modules, owner.as_str(), name.as_str())?;
    record.map(|r| Reader::open(tx)?.module(r)).transpose()
}

pub fn by_id(tx: &ReadTransaction, id: &str) -> Result<Option<Module>> {
    let Some(row) = tx.open_table(BY_ID).map_err(fault)?.get(id).map_err(fault)? else { return Ok(None) };
    let (owner, name) = row.value();
    let modules = tx.open_table(MODULES).map_err(fault)?;
    let record = record(&modules, owner, name)?
        .ok_or_else(|| StoreError::Corrupt(format!("an index names the module `{owner}/{name}`, which is missing")))?;
    Reader::open(tx)?.module(record).map(Some)
}

pub fn list(
    tx: &ReadTransaction,
    owner: Option<&OwnerId>,
    include_public: bool,
    offset: u64,
    limit: u64,
) -> Result<Page<Module>> {
    let modules = tx.open_table(MODULES).map_err(fault)?;
    let mut names: Vec<(String, String)> = Vec::new();
    let mut total = 0;
    let mut take = |owner: &str, name: &str| {
        if total >= offset && total - offset < limit {
            names.push((owner.into(), name.into()));
        }
        total += 1;
    };
    let public = tx.open_table(PUBLIC).map_err(fault)?;
    match owner {
        None if offset >= modules.len().map_err(fault)? => total = modules.len().map_err(fault)?,
        None => {
            for row in modules.iter().map_err(fault)? {
                let key = row.map_err(fault)?.0;
                take(key.value().0, key.value().1);
            }
        }
        Some(own) => {
            let own = own.as_str();
            if include_public {
                for row in public.range(..(own, "")).map_err(fault)? {
                    let key = row.map_err(fault)?.0;
                    take(key.value().0, key.value().1);
                }
            }
            for row in modules.range((own, "")..).map_err(fault)? {
                let key = row.map_err(fault)?.0;
                if key.value().0 != own {
                    break;
                }
                take(key.value().0, key.value().1);
            }
            if include_public {
                for row in public.range((own, "")..).map_err(fault)? {
                    let key = row.map_err(fault)?.0;
                    if key.value().0 != own {
                        take(key.value().0, key.value().1);
                    }
                }
            }
        }
    }
    let reader = Reader::open(tx)?;
    let items = names
        .iter()
        .filter_map(|(owner, name)| record(&modules, owner, name).transpose())
        .map(|record| reader.module(record?))
        .collect::<Result<_>>()?;
    Ok(Page { items, total })
}

pub fn add_version(
    tx: &WriteTransaction,
    new: &NewVersion,
    within: Option<&Tier>,
    fresh_id: &str,
) -> Result<(Module, u32, bool)> {
    let (owner, name) = (new.owner.as_str(), new.name.as_str());
    let mut writer = WriterTables::open(tx)?;
    let existing = record(&writer.modules, owner, name)?;
    let (known, held) = match &existing {
        Some(record) => {
            let (known, held) = writer.find_version(&record.id, &new.version)?;
            (known, Some(held))
        }
        None => (None, None),
    };
    // Before anything is changed: what is refused leaves nothing in the transaction, which others share.
    if known.is_none() {
        let stored = Stored { modules: count_of(&writer.modules, owner)?, bytes: writer.sums.get(owner)? };
        new.room(held, stored, within)?;
    }
    let is_first = existing.is_none();
    let mut record = match existing {
        Some(record) => record,
        None => Record::new(new, fresh_id, writer.retired.take(owner, name)?),
    };
    let (number, added) = (record.take_up(new, known), known.is_none());
    if added {
        let version = ModuleVersion { version: number, ..new.version.clone() };
        writer.versions.insert((record.id.as_str(), number), encode(&version)?.as_slice()).map_err(fault)?;
        writer.sums.add(owner, version.stored_bytes())?;
    }
    if is_first {
        writer.by_id.insert(record.id.as_str(), (owner, name)).map_err(fault)?;
    }
    writer.write(&record)?;
    Ok((writer.module(record)?, number, added))
}

pub fn activate(tx: &WriteTransaction, owner: &OwnerId, name: &Name, version: u32) -> Result<Module> {
    let mut writer = WriterTables::open(tx)?;
    let mut record = writer.existing(owner, name)?;
    if writer.versions.get((record.id.as_str(), version)).map_err(fault)?.is_none() {
        return Err(rules::missing_version(owner, name, version));
    }
    record.activate(version);
    writer.write(&record)?;
    writer.module(record)
}

pub fn set_limits(tx: &WriteTransaction, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> Result<Module> {
    let mut writer = WriterTables::open(tx)?;
    let mut record = writer.existing(owner, name)?;
    record.limits.clone_from(limits);
    writer.write(&record)?;
    writer.module(record)
}

pub fn delete(tx: &WriteTransaction, owner: &OwnerId, name: &Name) -> Result<Module> {
    let mut writer = WriterTables::open(tx)?;
    let record = writer.existing(owner, name)?;
    let key = (owner.as_str(), name.as_str());
    let id = record.id.clone();
    writer.retired.put(owner.as_str(), name.as_str(), record.last)?;
    let module = writer.module(record)?;
    writer.modules.remove(key).map_err(fault)?;
    writer.public.remove(key).map_err(fault)?;
    writer.by_id.remove(id.as_str()).map_err(fault)?;
    writer.runs.remove(id.as_str()).map_err(fault)?;
    for version in &module.versions {
        writer.versions.remove((id.as_str(), version.version)).map_err(fault)?;
        writer.sums.take(owner.as_str(), version.stored_bytes())?;
    }
    Ok(module)
}

pub fn delete_version(tx: &WriteTransaction, owner: &OwnerId, name: &Name, version: u32) -> Result<ModuleVersion> {
    let mut writer = WriterTables::open(tx)?;
    let mut record = writer.existing(owner, name)?;
    record.forget(version)?;
    let removed: ModuleVersion = match writer.versions.remove((record.id.as_str(), version)).map_err(fault)? {
        Some(row) => decode(row.value(), &record.id)?,
        None => return Err(rules::missing_version(owner, name, version)),
    };
    writer.sums.take(owner.as_str(), removed.stored_bytes())?;
    writer.write(&record)?;
    Ok(removed)
}

pub fn count_executions(tx: &WriteTransaction, counts: &[(OwnerId, Name, u64, Timestamp)]) -> Result<()> {
    let mut writer = WriterTables::open(tx)?;
    for (owner, name, add, at) in counts {
        let Some(record) = record(&writer.modules, owner.as_str(), name.as_str())? else { continue };
        let before = writer.runs.get(record.id.as_str()).map_err(fault)?.map(|row| row.value());
        let row = rules::add_runs(before, *add, *at);
        writer.runs.insert(record.id.as_str(), row).map_err(fault)?;
    }
    Ok(())
}

/// By owner and name.
pub fn export(tx: &ReadTransaction, after: Option<&[u8]>) -> Result<Exported> {
    let after = after.map(parts::<2>).transpose()?.map(|[owner, name]| (owner, name));
    let reader = Reader::open(tx)?;
    let mut page = Exported::default();
    for row in tx.open_table(MODULES).map_err(fault)?.range(behind(after)).map_err(fault)? {
        let (key, row) = row.map_err(fault)?;
        let (owner, name) = key.value();
        let record: Record = decode(row.value(), name)?;
        let last = record.last;
        page.entries.push(Entry::Module(reader.module(record)?, last));
        if page.is_full() {
            page.next = Some(format!("{owner}\0{name}").into_bytes());
            break;
        }
    }
    Ok(page)
}

pub fn import(tx: &WriteTransaction, module: &Module, last: u32) -> Result<()> {
    let mut writer = WriterTables::open(tx)?;
    let (id, owner) = (module.id.as_str(), module.owner.as_str());
    for version in &module.versions {
        writer.versions.insert((id, version.version), encode(version)?.as_slice()).map_err(fault)?;
        writer.sums.add(owner, version.stored_bytes())?;
    }
    if let Some(runs) = rules::runs(module) {
        writer.runs.insert(id, runs).map_err(fault)?;
    }
    writer.by_id.insert(id, (owner, module.name.as_str())).map_err(fault)?;
    writer.write(&Record::of(module, last))
}

fn record(modules: &impl ReadableTable<Named, &'static [u8]>, owner: &str, name: &str) -> Result<Option<Record>> {
    let Some(row) = modules.get((owner, name)).map_err(fault)? else { return Ok(None) };
    decode(row.value(), &format!("{owner}/{name}")).map(Some)
}

fn count_of(modules: &impl ReadableTable<Named, &'static [u8]>, owner: &str) -> Result<u64> {
    let mut held = 0;
    for row in modules.range((owner, "")..).map_err(fault)? {
        if row.map_err(fault)?.0.value().0 != owner {
            break;
        }
        held += 1;
    }
    Ok(held)
}

fn join(
    record: Record,
    versions: &impl ReadableTable<(&'static str, u32), &'static [u8]>,
    runs: &impl ReadableTable<&'static str, (u64, i64)>,
) -> Result<Module> {
    let id = record.id.as_str();
    let mut all = Vec::new();
    for row in versions.range((id, 0)..=(id, u32::MAX)).map_err(fault)? {
        let row = row.map_err(fault)?.1;
        all.push(decode::<ModuleVersion>(row.value(), id)?);
    }
    let runs = runs.get(id).map_err(fault)?.map(|row| row.value());
    Ok(record.module(all, runs))
}

struct Reader {
    versions: redb::ReadOnlyTable<(&'static str, u32), &'static [u8]>,
    runs: redb::ReadOnlyTable<&'static str, (u64, i64)>,
}

impl Reader {
    fn open(tx: &ReadTransaction) -> Result<Self> {
        Ok(Self { versions: tx.open_table(VERSIONS).map_err(fault)?, runs: tx.open_table(RUNS).map_err(fault)? })
    }

    fn module(&self, record: Record) -> Result<Module> {
        join(record, &self.versions, &self.runs)
    }
}

struct WriterTables<'tx> {
    modules: redb::Table<'tx, Named, &'static [u8]>,
    by_id: redb::Table<'tx, &'static str, Named>,
    public: redb::Table<'tx, Named, ()>,
    versions: redb::Table<'tx, (&'static str, u32), &'static [u8]>,
    runs: redb::Table<'tx, &'static str, (u64, i64)>,
    retired: Retired<'tx>,
    sums: Sums<'tx>,
}

impl<'tx> WriterTables<'tx> {
    fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        Ok(Self {
            modules: tx.open_table(MODULES).map_err(fault)?,
            by_id: tx.open_table(BY_ID).map_err(fault)?,
            public: tx.open_table(PUBLIC).map_err(fault)?,
            versions: tx.open_table(VERSIONS).map_err(fault)?,
            runs: tx.open_table(RUNS).map_err(fault)?,
            retired: Retired::open(tx)?,
            sums: Sums::open(tx)?,
        })
    }

    fn existing(&self, owner: &OwnerId, name: &Name) -> Result<Record> {
        record(&self.modules, owner.as_str(), name.as_str())?.ok_or_else(|| rules::missing(owner, name))
    }

    fn module(&self, record: Record) -> Result<Module> {
        join(record, &self.versions, &self.runs)
    }

    /// The version that has these bytes and files with this ABI, and how many there are.
    fn find_version(&self, id: &str, new: &ModuleVersion) -> Result<(Option<u32>, u32)> {
        #[derive(Deserialize)]
        struct Head {
            digest: Digest,
            abi: Abi,
            #[serde(default)]
            assets: Option<Bundle>,
        }
        let (mut known, mut held) = (None, 0);
        for row in self.versions.range((id, 0)..=(id, u32::MAX)).map_err(fault)? {
            let (key, value) = row.map_err(fault)?;
            held += 1;
            let head = decode::<Head>(value.value(), id)?;
            if (head.digest, head.abi, head.assets.map(|bundle| bundle.digest)) == new.identity() {
                known = Some(key.value().1);
            }
        }
        Ok((known, held))
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let key = (record.owner.as_str(), record.name.as_str());
        self.modules.insert(key, encode(record)?.as_slice()).map_err(fault)?;
        if record.public {
            self.public.insert(key, ()).map_err(fault)?;
        } else {
            self.public.remove(key).map_err(fault)?;
        }
        Ok(())
    }
}
