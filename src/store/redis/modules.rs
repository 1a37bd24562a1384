//! Modules: one hash each, with the record, the versions and the runs; indexes in the order of owners and names.
//!
//! Invariant: an owner's modules change under one record of the owner's, which has the sums as well.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Names;
use super::copy::members;
use super::seal::At;
use super::tx::{NOTHING, Step, Tx, all};
use crate::domain::{LimitsChange, Module, ModuleVersion, Name, OwnerId, Tier, Timestamp};
use crate::store::entry::{self, Entry, Exported};
use crate::store::rules::decode;
use crate::store::rules::modules::{self as rules, Record};
use crate::store::{NewVersion, Page, StoreError, Stored};

const RECORD: &str = "record";
const RUNS: &str = "runs";

impl Names {
    fn module(&self, owner: &str, name: &str) -> String {
        self.of(&["m", owner, name])
    }

    fn module_by_id(&self, id: &str) -> At {
        At::key(self.of(&["mi", id]))
    }

    fn owned(&self, owner: &OwnerId) -> At {
        At::key(self.of(&["mo", owner.as_str()]))
    }

    fn retired(&self, owner: &OwnerId) -> At {
        At::key(self.of(&["mr", owner.as_str()]))
    }

    /// `owner\0name`, by its letters.
    fn modules(&self) -> String {
        self.of(&["modules"])
    }

    fn public(&self) -> String {
        self.of(&["public"])
    }
}

/// The guard of an owner's modules.
#[derive(Default, Serialize, Deserialize)]
pub struct Owned {
    modules: u64,
    bytes: u64,
    nonce: String,
}

/// See `rules::modules`: the numbers of deleted modules.
#[derive(Default, Serialize, Deserialize)]
struct Retired {
    floor: u32,
    names: BTreeMap<String, u32>,
}

struct Found {
    record: Record,
    versions: Vec<ModuleVersion>,
    runs: Option<(u64, i64)>,
}

impl Found {
    fn module(self) -> Module {
        self.record.module(self.versions, self.runs)
    }
}

fn load(tx: &mut Tx, names: &Names, owner: &str, name: &str) -> Step<Option<Found>> {
    let mut fields = tx.fields(&names.module(owner, name))?;
    let Some(record) = fields.remove(RECORD.as_bytes()) else { return Ok(None) };
    let runs = fields.remove(RUNS.as_bytes()).map(|runs| decode(&runs, name)).transpose()?;
    let mut versions = fields.values().map(|v| decode(v, name)).collect::<Result<Vec<ModuleVersion>, _>>()?;
    versions.sort_unstable_by_key(|version| version.version);
    Ok(Some(Found { record: decode(&record, name)?, versions, runs }))
}

fn existing(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name) -> Step<Found> {
    Ok(load(tx, names, owner.as_str(), name.as_str())?.ok_or_else(|| rules::missing(owner, name))?)
}

fn write(tx: &mut Tx, names: &Names, record: &Record) -> Step<()> {
    let (owner, name) = (record.owner.as_str(), record.name.as_str());
    tx.put(At::field(names.module(owner, name), RECORD), record)?;
    tell(tx, names);
    let member = member(owner, name);
    if record.public {
        tx.write("ZADD", names.public(), &[b"0", member.as_slice()]);
    } else {
        tx.write("ZREM", names.public(), &[member]);
    }
    Ok(())
}

/// Has other gateways look at the modules again.
pub fn tell(tx: &mut Tx, names: &Names) {
    let nonce = tx.nonce();
    tx.write("SET", names.changes(), &[nonce]);
}

fn member(owner: &str, name: &str) -> Vec<u8> {
    format!("{owner}\0{name}").into_bytes()
}

pub fn owned(tx: &mut Tx, names: &Names, owner: &OwnerId) -> Step<Owned> {
    Ok(tx.get(names.owned(owner))?.unwrap_or_default())
}

fn keep(tx: &mut Tx, names: &Names, owner: &OwnerId, owned: Owned) -> Step<()> {
    let owned = Owned { nonce: tx.nonce().to_owned(), ..owned };
    tell(tx, names);
    tx.put(names.owned(owner), &owned)
}

pub fn stored(tx: &mut Tx, names: &Names, owner: &OwnerId) -> Step<Stored> {
    let Owned { modules, bytes, .. } = owned(tx, names, owner)?;
    Ok(Stored { modules, bytes })
}

pub fn by_name(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name) -> Step<Option<Module>> {
    Ok(load(tx, names, owner.as_str(), name.as_str())?.map(Found::module))
}

pub fn by_id(tx: &mut Tx, names: &Names, id: &str) -> Step<Option<Module>> {
    let Some((owner, name)) = tx.get::<(String, String)>(names.module_by_id(id))? else { return Ok(None) };
    let found = load(tx, names, &owner, &name)?;
    Ok(found.filter(|found| found.record.id == id).map(Found::module))
}

/// A part of an index.
struct Range {
    index: String,
    from: Vec<u8>,
    to: Vec<u8>,
}

/// The whole listing as parts of indexes, one behind the other.
fn ranges(names: &Names, owner: Option<&OwnerId>, include_public: bool) -> Vec<Range> {
    let range = |index, from: &[u8], to: &[u8]| Range { index, from: from.to_vec(), to: to.to_vec() };
    let Some(owner) = owner else { return vec![range(names.modules(), b"-", b"+")] };
    let [from, to] = Names::of_owner(owner);
    let own = range(names.modules(), &from, &to);
    if !include_public {
        return vec![own];
    }
    let (before, after) = ([b"(", &from[1..]].concat(), [b"[", &to[1..]].concat());
    vec![range(names.public(), b"-", &before), own, range(names.public(), &after, b"+")]
}

pub fn list(
    tx: &mut Tx,
    names: &Names,
    owner: Option<&OwnerId>,
    include_public: bool,
    mut offset: u64,
    mut limit: u64,
) -> Step<Page<Module>> {
    let ranges = ranges(names, owner, include_public);
    let counts = all(ranges.iter().map(|r| tx.ask::<u64>("ZLEXCOUNT", &r.index, &[&r.from, &r.to])))?;
    let mut pages = Vec::new();
    for (range, &count) in ranges.iter().zip(&counts) {
        let here = count.saturating_sub(offset).min(limit);
        if here > 0 {
            let (skip, most) = (offset.to_string(), here.to_string());
            let arguments: [&[u8]; 5] = [&range.from, &range.to, b"LIMIT", skip.as_bytes(), most.as_bytes()];
            pages.push(tx.ask::<Vec<Vec<u8>>>("ZRANGEBYLEX", &range.index, &arguments));
        }
        offset = offset.saturating_sub(count);
        limit -= here;
    }
    let members = all(pages)?.concat();
    let parts = members.iter().filter_map(|m| std::str::from_utf8(m).ok()?.split_once('\0'));
    let found = all(parts.map(|(owner, name)| load(tx, names, owner, name)))?;
    Ok(Page { items: found.into_iter().flatten().map(Found::module).collect(), total: counts.iter().sum() })
}

pub fn add_version(
    tx: &mut Tx,
    names: &Names,
    new: &NewVersion,
    within: Option<&Tier>,
    fresh_id: &str,
) -> Step<(Module, u32, bool)> {
    let (owner, name) = (new.owner.as_str(), new.name.as_str());
    let sums = owned(tx, names, &new.owner);
    let retired = tx.get::<Retired>(names.retired(&new.owner));
    let found = load(tx, names, owner, name);
    let (mut sums, retired, found) = (sums?, retired?.unwrap_or_default(), found?);
    let known = found.as_ref().and_then(|found| {
        let same = |version: &&ModuleVersion| version.identity() == new.version.identity();
        found.versions.iter().rev().find(same).map(|version| version.version)
    });
    if known.is_none() {
        let held = found.as_ref().map(|found| found.versions.len() as u32);
        let stored = Stored { modules: sums.modules, bytes: sums.bytes };
        new.room(held, stored, within).map_err(StoreError::from)?;
    }
    let mut found = match found {
        Some(found) => found,
        None => begin(tx, names, new, fresh_id, &mut sums, retired)?,
    };
    let number = found.record.take_up(new, known);
    if known.is_none() {
        let version = ModuleVersion { version: number, ..new.version.clone() };
        tx.put(At::field(names.module(owner, name), version_field(number)), &version)?;
        sums.bytes = sums.bytes.saturating_add(version.stored_bytes());
        found.versions.push(version);
    }
    write(tx, names, &found.record)?;
    keep(tx, names, &new.owner, sums)?;
    Ok((found.module(), number, known.is_none()))
}

/// A module that gets its first version.
fn begin(
    tx: &mut Tx,
    names: &Names,
    new: &NewVersion,
    id: &str,
    sums: &mut Owned,
    mut retired: Retired,
) -> Step<Found> {
    let last = match retired.names.remove(new.name.as_str()) {
        Some(last) => {
            tx.put(names.retired(&new.owner), &retired)?;
            last
        }
        None => retired.floor,
    };
    sums.modules += 1;
    tx.put(names.module_by_id(id), &(new.owner.as_str(), new.name.as_str()))?;
    tx.write("ZADD", names.modules(), &[b"0", member(new.owner.as_str(), new.name.as_str()).as_slice()]);
    Ok(Found { record: Record::new(new, id, last), versions: Vec::new(), runs: None })
}

fn version_field(version: u32) -> String {
    format!("v{version}")
}

/// A change of the record alone.
fn change(
    tx: &mut Tx,
    names: &Names,
    (owner, name): (&OwnerId, &Name),
    change: impl FnOnce(&mut Found) -> Step<()>,
) -> Step<Module> {
    let sums = owned(tx, names, owner);
    let found = existing(tx, names, owner, name);
    let (sums, mut found) = (sums?, found?);
    change(&mut found)?;
    write(tx, names, &found.record)?;
    keep(tx, names, owner, sums)?;
    Ok(found.module())
}

pub fn activate(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name, version: u32) -> Step<Module> {
    change(tx, names, (owner, name), |found| {
        if !found.versions.iter().any(|held| held.version == version) {
            return Err(rules::missing_version(owner, name, version).into());
        }
        found.record.activate(version);
        Ok(())
    })
}

pub fn set_limits(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> Step<Module> {
    change(tx, names, (owner, name), |found| {
        found.record.limits.clone_from(limits);
        Ok(())
    })
}

pub fn delete(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name) -> Step<Module> {
    let sums = owned(tx, names, owner);
    let retired = tx.get::<Retired>(names.retired(owner));
    let found = existing(tx, names, owner, name);
    let (mut sums, mut retired, found) = (sums?, retired?.unwrap_or_default(), found?);
    retired.names.insert(name.to_string(), found.record.last);
    if let Some(floor) = rules::raised_floor(retired.names.values(), retired.floor) {
        retired.floor = floor;
        retired.names.retain(|_, last| *last > floor);
    }
    tx.put(names.retired(owner), &retired)?;
    tx.write("ZADD", names.owners(), &["0", owner.as_str()]);
    sums.modules = sums.modules.saturating_sub(1);
    let bytes = found.versions.iter().map(ModuleVersion::stored_bytes).fold(0, u64::saturating_add);
    sums.bytes = sums.bytes.saturating_sub(bytes);
    keep(tx, names, owner, sums)?;
    let member = member(owner.as_str(), name.as_str());
    tx.delete(names.module_by_id(&found.record.id));
    tx.write("ZREM", names.modules(), &[&member]);
    tx.write("ZREM", names.public(), &[&member]);
    // With what others may have counted in it meanwhile.
    tx.write("DEL", names.module(owner.as_str(), name.as_str()), NOTHING);
    Ok(found.module())
}

pub fn delete_version(tx: &mut Tx, names: &Names, owner: &OwnerId, name: &Name, version: u32) -> Step<ModuleVersion> {
    let sums = owned(tx, names, owner);
    let found = existing(tx, names, owner, name);
    let (mut sums, Found { mut record, versions, .. }) = (sums?, found?);
    record.forget(version)?;
    let removed = versions.into_iter().find(|held| held.version == version);
    let removed = removed.ok_or_else(|| rules::missing_version(owner, name, version))?;
    tx.delete(At::field(names.module(owner.as_str(), name.as_str()), version_field(version)));
    sums.bytes = sums.bytes.saturating_sub(removed.stored_bytes());
    write(tx, names, &record)?;
    keep(tx, names, owner, sums)?;
    Ok(removed)
}

/// Modules read in one step.
const STEP: u64 = 20;

/// By owner and name.
pub fn export(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let (members, next) = members(tx, &names.modules(), after, STEP)?;
    let parts = members.iter().filter_map(|member| std::str::from_utf8(member).ok()?.split_once('\0'));
    let found = all(parts.map(|(owner, name)| load(tx, names, owner, name)))?;
    let entry = |found: Found| {
        let last = found.record.last;
        Entry::Module(found.module(), last)
    };
    Ok(Exported { entries: found.into_iter().flatten().map(entry).collect(), next })
}

pub fn import(tx: &mut Tx, names: &Names, module: &Module, last: u32) -> Step<()> {
    let (owner, name) = (module.owner.as_str(), module.name.as_str());
    let mut sums = owned(tx, names, &module.owner)?;
    sums.modules += 1;
    for version in &module.versions {
        sums.bytes = sums.bytes.saturating_add(version.stored_bytes());
        tx.put(At::field(names.module(owner, name), version_field(version.version)), version)?;
    }
    if let Some(runs) = rules::runs(module) {
        tx.put(At::field(names.module(owner, name), RUNS), &runs)?;
    }
    tx.put(names.module_by_id(&module.id), &(owner, name))?;
    tx.write("ZADD", names.modules(), &[b"0", member(owner, name).as_slice()]);
    write(tx, names, &Record::of(module, last))?;
    keep(tx, names, &module.owner, sums)
}

pub fn export_retired(tx: &mut Tx, names: &Names, owner: &str) -> Step<Option<Entry>> {
    let Ok(owner) = owner.parse::<OwnerId>() else { return Ok(None) };
    let found = tx.peek::<Retired>(names.retired(&owner))?.filter(|found| found.floor > 0 || !found.names.is_empty());
    Ok(found.map(|Retired { floor, names }| Entry::Retired(entry::Retired { owner, floor, names })))
}

pub fn import_retired(tx: &mut Tx, names: &Names, retired: &entry::Retired) -> Step<()> {
    let entry::Retired { owner, floor, names: numbers } = retired;
    tx.put(names.retired(owner), &Retired { floor: *floor, names: numbers.clone() })?;
    tx.write("ZADD", names.owners(), &["0", owner.as_str()]);
    Ok(())
}

/// Beside the guard: what counts is that the module is still the same one.
pub fn count_executions(tx: &mut Tx, names: &Names, counts: &[(OwnerId, Name, u64, Timestamp)]) -> Step<()> {
    let asked = counts.iter().map(|(owner, name, ..)| {
        let key = names.module(owner.as_str(), name.as_str());
        let there = tx.content(&At::field(&key, RECORD)).map(|record| record.is_some());
        let runs = tx.get::<(u64, i64)>(At::field(key, RUNS)).map(drop);
        runs.and(there)
    });
    let there = all(asked)?;
    for ((owner, name, add, at), _) in counts.iter().zip(there).filter(|(_, there)| *there) {
        let place = At::field(names.module(owner.as_str(), name.as_str()), RUNS);
        let runs = rules::add_runs(tx.get(place.clone())?, *add, *at);
        tx.put(place, &runs)?;
    }
    Ok(())
}
