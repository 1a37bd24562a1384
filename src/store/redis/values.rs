//! Values that guests keep: a hash for each owner, and when they are over.
//!
//! Invariant: an owner's sums change with its values and are read before them, so they guard what is decided by all of them.
//! A value whose time is over is as good as gone, whether or not it has been swept.

use super::Names;
use super::seal::At;
use super::tx::{NOTHING, Step, Tx, all};
use crate::domain::{OwnerId, Timestamp};
use crate::store::entry::{self, Entry, Exported};
use crate::store::rules::values::{self as rules, NEVER, Sums};
use crate::store::{KvIncr, KvSet, KvValue};

impl Names {
    fn values(&self, owner: &OwnerId) -> String {
        self.of(&["v", owner.as_str()])
    }

    fn value(&self, owner: &OwnerId, key: &[u8]) -> At {
        At::field(self.values(owner), key)
    }

    fn value_sums(&self, owner: &OwnerId) -> At {
        At::key(self.of(&["vs", owner.as_str()]))
    }

    /// Keys of an owner's values, by when they are over.
    fn expiring(&self, owner: &OwnerId) -> String {
        self.of(&["ve", owner.as_str()])
    }

    /// Owners, by when the first of their values is over, or before that.
    pub fn expiring_owners(&self) -> String {
        self.of(&["vx"])
    }
}

/// Number, end and bytes of a value.
struct Row {
    value: KvValue,
    expires: i64,
}

impl Row {
    fn read(content: &[u8]) -> Option<Self> {
        let (version, rest) = content.split_first_chunk()?;
        let (expires, value) = rest.split_first_chunk()?;
        let value = KvValue { value: value.to_vec(), version: u64::from_be_bytes(*version) };
        Some(Self { value, expires: i64::from_be_bytes(*expires) })
    }

    fn content(version: u64, expires: i64, value: &[u8]) -> Vec<u8> {
        [&version.to_be_bytes()[..], &expires.to_be_bytes()[..], value].concat()
    }

    fn size(&self, key: &[u8]) -> u64 {
        (key.len() + self.value.value.len()) as u64
    }

    fn is_live(&self, now: Timestamp) -> bool {
        self.expires > now.unix_millis()
    }
}

/// Whether or not its time is over.
fn row(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8]) -> Step<Option<Row>> {
    Ok(tx.content(&names.value(owner, key))?.and_then(Row::read))
}

pub fn get(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8], now: Timestamp) -> Step<Option<KvValue>> {
    Ok(row(tx, names, owner, key)?.filter(|row| row.is_live(now)).map(|row| row.value))
}

pub fn set(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8], set: &KvSet, now: Timestamp) -> Step<u64> {
    let (sums, found) = look(tx, names, owner, key)?;
    let live = found.as_ref().filter(|row| row.is_live(now)).map(|row| row.value.version);
    rules::check_expected(live, set.expected)?;
    let expires = set.expires_at.map_or(NEVER, Timestamp::unix_millis);
    put(tx, names, (owner, key), (sums, found), (&set.value, expires), now)
}

pub fn incr(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8], incr: &KvIncr, now: Timestamp) -> Step<i64> {
    let (sums, found) = look(tx, names, owner, key)?;
    let (before, expires) = match found.as_ref().filter(|row| row.is_live(now)) {
        Some(row) => (Some(row.value.value.as_slice()), row.expires),
        None => (None, incr.expires_at.map_or(NEVER, Timestamp::unix_millis)),
    };
    let after = rules::add(before, incr.by)?;
    put(tx, names, (owner, key), (sums, found), (after.to_string().as_bytes(), expires), now)?;
    Ok(after)
}

pub fn delete(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8], now: Timestamp) -> Step<bool> {
    let (mut sums, found) = look(tx, names, owner, key)?;
    let Some(row) = found else { return Ok(false) };
    remove(tx, names, owner, key, &row, &mut sums);
    tx.put(names.value_sums(owner), &sums)?;
    Ok(row.is_live(now))
}

fn look(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8]) -> Step<(Sums, Option<Row>)> {
    let sums = tx.get::<Sums>(names.value_sums(owner));
    let found = row(tx, names, owner, key);
    Ok((sums?.unwrap_or_default(), found?))
}

/// In the place of what the key had. Where there is no room, what has expired makes some.
fn put(
    tx: &mut Tx,
    names: &Names,
    (owner, key): (&OwnerId, &[u8]),
    (mut sums, mut found): (Sums, Option<Row>),
    (value, expires): (&[u8], i64),
    now: Timestamp,
) -> Step<u64> {
    let size = (key.len() + value.len()) as u64;
    if !sums.fits(found.as_ref().map(|row| row.size(key)), size) {
        remove_expired(tx, names, owner, &mut sums, now, u64::MAX)?;
        // What was there under this key may be among it.
        found = row(tx, names, owner, key)?;
        if !sums.fits(found.as_ref().map(|row| row.size(key)), size) {
            return Err(rules::no_room(owner).into());
        }
    }
    if let Some(row) = &found {
        remove(tx, names, owner, key, row, &mut sums);
    }
    if sums.last == 0 {
        tx.write("ZADD", names.owners(), &["0", owner.as_str()]);
    }
    let number = sums.add(size);
    insert(tx, names, (owner, key), number, (value, expires));
    tx.put(names.value_sums(owner), &sums)?;
    Ok(number)
}

fn insert(tx: &mut Tx, names: &Names, (owner, key): (&OwnerId, &[u8]), number: u64, (value, expires): (&[u8], i64)) {
    tx.put_content(names.value(owner, key), Row::content(number, expires, value));
    if expires != NEVER {
        let score = expires.to_string();
        tx.write("ZADD", names.expiring(owner), &[score.as_bytes(), key]);
        tx.write("ZADD", names.expiring_owners(), &["LT", &score, owner.as_str()]);
    }
}

pub fn sums(tx: &mut Tx, names: &Names, owner: &OwnerId) -> Step<Sums> {
    Ok(tx.get(names.value_sums(owner))?.unwrap_or_default())
}

/// Values read in one step, of one owner.
const STEP: usize = 128;

/// By owner and key, also those whose time is over. A place is an owner, and the key behind which to go on.
pub fn export(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let (from, after) = match after {
        Some(after) => match entry::split(after) {
            Some((owner, key)) => (owner.as_bytes(), Some((owner, key))),
            None => (after, None),
        },
        None => (&b""[..], None),
    };
    let from = if from.is_empty() { b"-".to_vec() } else { [b"[", from].concat() };
    let arguments: [&[u8]; 5] = [&from, b"+", b"LIMIT", b"0", b"2"];
    let owners: Vec<Vec<u8>> = tx.ask("ZRANGEBYLEX", &names.owners(), &arguments)?;
    let Some(first) = owners.first() else { return Ok(Exported::default()) };
    let next_owner = owners.get(1).cloned();
    let owner = std::str::from_utf8(first).ok().and_then(|owner| owner.parse::<OwnerId>().ok());
    let Some(owner) = owner else { return Ok(Exported { entries: Vec::new(), next: next_owner }) };
    let behind = after.filter(|(of, _)| *of == owner.as_str()).map(|(_, key)| key);
    let mut keys: Vec<Vec<u8>> = tx.ask("HKEYS", &names.values(&owner), NOTHING)?;
    keys.retain(|key| behind.is_none_or(|behind| key.as_slice() > behind));
    keys.sort_unstable();
    let more = keys.len() > STEP;
    keys.truncate(STEP);
    let next = match keys.last() {
        Some(last) if more => Some([owner.as_str().as_bytes(), b"\0", last].concat()),
        _ => next_owner,
    };
    let rows = all(keys.iter().map(|key| Ok(tx.peek_content(&names.value(&owner, key))?.and_then(Row::read))))?;
    let entries = keys.into_iter().zip(rows).filter_map(|(key, row)| {
        let Row { value, expires } = row?;
        let (owner, version, value) = (owner.clone(), value.version, value.value);
        Some(Entry::Value(entry::Value { owner, key, version, expires, value }))
    });
    Ok(Exported { entries: entries.collect(), next })
}

pub fn export_number(tx: &mut Tx, names: &Names, owner: &str) -> Step<Option<Entry>> {
    let Ok(owner) = owner.parse::<OwnerId>() else { return Ok(None) };
    let sums = tx.peek::<Sums>(names.value_sums(&owner))?.filter(|sums| sums.last > 0);
    Ok(sums.map(|sums| Entry::Number(owner, sums.last)))
}

pub fn import(tx: &mut Tx, names: &Names, value: &entry::Value) -> Step<()> {
    let entry::Value { owner, key, version, expires, value } = value;
    let mut sums = sums(tx, names, owner)?;
    sums.take_up((key.len() + value.len()) as u64, *version);
    insert(tx, names, (owner, key), *version, (value, *expires));
    tx.put(names.value_sums(owner), &sums)
}

pub fn import_number(tx: &mut Tx, names: &Names, owner: &OwnerId, last: u64) -> Step<()> {
    let sums = sums(tx, names, owner)?;
    tx.write("ZADD", names.owners(), &["0", owner.as_str()]);
    tx.put(names.value_sums(owner), &Sums { last, ..sums })
}

fn remove(tx: &mut Tx, names: &Names, owner: &OwnerId, key: &[u8], row: &Row, sums: &mut Sums) {
    sums.take(row.size(key));
    tx.delete(names.value(owner, key));
    if row.expires != NEVER {
        tx.write("ZREM", names.expiring(owner), &[key]);
    }
}

/// Removes what is over, at most `most`; how many.
fn remove_expired(
    tx: &mut Tx,
    names: &Names,
    owner: &OwnerId,
    sums: &mut Sums,
    now: Timestamp,
    most: u64,
) -> Step<u64> {
    let (index, now_text) = (names.expiring(owner), now.unix_millis().to_string());
    let most = most.min(i64::MAX as u64).to_string();
    let keys: Vec<Vec<u8>> = tx.ask("ZRANGEBYSCORE", &index, &["-inf", &now_text, "LIMIT", "0", &most])?;
    let rows = all(keys.iter().map(|key| row(tx, names, owner, key)))?;
    for (key, row) in keys.iter().zip(rows) {
        match row {
            Some(row) if !row.is_live(now) => remove(tx, names, owner, key, &row, sums),
            // The index is not sealed.
            _ => tx.write("ZREM", index.clone(), &[key]),
        }
    }
    Ok(keys.len() as u64)
}

/// Of one owner: removes what is over, at most `most`, and says when to look again; how many.
pub fn sweep(tx: &mut Tx, names: &Names, owner: &OwnerId, now: Timestamp, most: u64) -> Step<u64> {
    let after = format!("({}", now.unix_millis());
    let sums = tx.get::<Sums>(names.value_sums(owner));
    let next = tx.ask::<Vec<Vec<u8>>>(
        "ZRANGEBYSCORE",
        &names.expiring(owner),
        &[after.as_str(), "+inf", "WITHSCORES", "LIMIT", "0", "1"],
    );
    let mut sums = sums?.unwrap_or_default();
    let next = next?.into_iter().nth(1);
    let swept = remove_expired(tx, names, owner, &mut sums, now, most)?;
    tx.put(names.value_sums(owner), &sums)?;
    if swept < most {
        match next {
            Some(score) => tx.write("ZADD", names.expiring_owners(), &[score.as_slice(), owner.as_str().as_bytes()]),
            None => tx.write("ZREM", names.expiring_owners(), &[owner.as_str()]),
        }
    }
    Ok(swept)
}

/// Some owners of whom something is over.
pub fn due(tx: &mut Tx, names: &Names, now: Timestamp) -> Step<Vec<OwnerId>> {
    let now = now.unix_millis().to_string();
    let owners: Vec<String> =
        tx.ask("ZRANGEBYSCORE", &names.expiring_owners(), &["-inf", &now, "LIMIT", "0", "100"])?;
    Ok(owners.iter().filter_map(|owner| owner.parse().ok()).collect())
}
