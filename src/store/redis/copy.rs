//! Entries out of Redis and into it, and the mark of a copy that is under way.
//!
//! Invariant: what goes into an index and what it names are written together; nothing is told of, as nobody uses the store yet.

use redis::{FromRedisValue, Value};

use super::core::Core;
use super::link::Channel;
use super::seal::{At, Seal};
use super::tx::{Step, Stop, Tx, all};
use super::{Names, keys, modules, records, routes, values};
use crate::store::entry::{Entry, Exported, Kind, Mark};
use crate::store::rules::{self, decode};
use crate::store::{Result, StoreError};

/// Members of an index in one step.
const STEP: u64 = 500;

impl Names {
    pub fn mark(&self) -> At {
        At::key(self.of(&["copy"]))
    }

    /// Of whom there are numbers of versions or values that are not given again, by their letters.
    pub fn owners(&self) -> String {
        self.of(&["owners"])
    }
}

pub fn mark(tx: &mut Tx, names: &Names) -> Step<Option<Mark>> {
    tx.get(names.mark())
}

/// Nobody is copying into the store.
pub async fn check_whole(core: &Core, seal: &Seal) -> Result<()> {
    let at = core.names.mark();
    let answer = core.link.send(Channel::Rest, &[redis::cmd("GET").arg(&at.key).take()]).await?;
    let record = Option::<Vec<u8>>::from_redis_value(answer.into_iter().next().unwrap_or(Value::Nil));
    let record = record.map_err(|_| StoreError::Corrupt("the mark of a copy is no record".into()))?;
    match record.as_deref().and_then(|record| seal.open(&at, record)) {
        Some(mark) => Err(decode::<Mark>(mark, &at.key)?.half_copied()),
        None => Ok(()),
    }
}

pub fn export(tx: &mut Tx, names: &Names, kind: Kind, after: Option<&[u8]>) -> Step<Exported> {
    let page = match kind {
        Kind::Tiers => Exported::whole(records::tiers(tx, names)?.into_iter().map(Entry::Tier).collect()),
        Kind::Tokens => records::export_tokens(tx, names)?,
        Kind::Keys => keys::export(tx, names, after)?,
        Kind::Retired => of_owners(tx, names, after, modules::export_retired)?,
        Kind::Modules => modules::export(tx, names, after)?,
        Kind::Numbers => of_owners(tx, names, after, values::export_number)?,
        Kind::Values => values::export(tx, names, after)?,
        Kind::Usage => records::export_usage(tx, names, after)?,
        Kind::Routes => routes::export(tx, names, after)?,
        Kind::Audit => records::export_audit(tx, names, after)?,
    };
    match tx.forged.first() {
        None => Ok(page),
        Some(At { key, field }) => {
            let field = field.as_ref().map(|field| format!(" (`{}`)", String::from_utf8_lossy(field).escape_debug()));
            let field = field.unwrap_or_default();
            Err(Stop::Failed(StoreError::Corrupt(format!(
                "`{key}`{field} in Redis was altered or forged, and counts as absent: restore it, or delete it there"
            ))))
        }
    }
}

/// One entry an owner, at most.
fn of_owners(
    tx: &mut Tx,
    names: &Names,
    after: Option<&[u8]>,
    entry: fn(&mut Tx, &Names, &str) -> Step<Option<Entry>>,
) -> Step<Exported> {
    let (owners, next) = members(tx, &names.owners(), after, STEP)?;
    let owners = owners.iter().filter_map(|owner| std::str::from_utf8(owner).ok());
    let found = all(owners.map(|owner| entry(tx, names, owner)))?;
    Ok(Exported { entries: found.into_iter().flatten().collect(), next })
}

/// Some members of an index, and where to go on; nowhere at the end.
type Members = (Vec<Vec<u8>>, Option<Vec<u8>>);

/// Those of an index by letters that are behind `after`.
pub fn members(tx: &mut Tx, index: &str, after: Option<&[u8]>, most: u64) -> Step<Members> {
    let from = after.map_or(b"-".to_vec(), |after| [b"(", after].concat());
    let limit = most.to_string();
    let arguments: [&[u8]; 5] = [&from, b"+", b"LIMIT", b"0", limit.as_bytes()];
    let members: Vec<Vec<u8>> = tx.ask("ZRANGEBYLEX", index, &arguments)?;
    let next = members.last().filter(|_| members.len() as u64 == most).cloned();
    Ok((members, next))
}

pub fn import(tx: &mut Tx, names: &Names, entries: &[Entry], mark: Option<&Mark>, next: Option<&Mark>) -> Step<()> {
    let there = tx.get::<Mark>(names.mark());
    // All that the entries change is asked for at once.
    let asked = all(entries.iter().map(|entry| match entry {
        Entry::Module(module, _) => modules::owned(tx, names, &module.owner).map(drop),
        Entry::Number(owner, _) => values::sums(tx, names, owner).map(drop),
        Entry::Value(value) => values::sums(tx, names, &value.owner).map(drop),
        _ => Ok(()),
    }));
    if there?.as_ref() != mark {
        return Err(rules::other_copy().into());
    }
    asked?;
    match next {
        Some(next) => tx.put(names.mark(), next)?,
        None => tx.delete(names.mark()),
    }
    for (n, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Tier(tier) => records::put_tier(tx, names, tier)?,
            Entry::Token(hash, token) => records::insert_token(tx, names, hash, token)?,
            Entry::Key(hash, key) => keys::insert(tx, names, hash, key)?,
            Entry::Retired(retired) => modules::import_retired(tx, names, retired)?,
            Entry::Module(module, last) => modules::import(tx, names, module, *last)?,
            Entry::Number(owner, last) => values::import_number(tx, names, owner, *last)?,
            Entry::Value(value) => values::import(tx, names, value)?,
            Entry::Usage(row) => records::import_usage(tx, names, row)?,
            Entry::Routes(version, text) => routes::import(tx, names, version, text)?,
            Entry::Audit(line) => records::import_audit(tx, names, n, line)?,
        }
    }
    Ok(())
}
