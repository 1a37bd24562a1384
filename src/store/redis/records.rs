//! Tier overrides, usage, admin tokens, and the audit log.
//!
//! Invariant: an audit line is written once, behind all others, and never touched again; the oldest go first.

use std::collections::BTreeMap;

use super::Names;
use super::keys::{hash_of, hash_text};
use super::seal::At;
use super::tx::{NOTHING, Step, Tx, all};
use crate::domain::{KeyHash, Name, OwnerId, Tier, Timestamp, TokenId, UsageDelta, UsageRecord};
use crate::store::entry::{Entry, Exported, no_place, parts};
use crate::store::rules::{self, PRUNE_BATCH, decode};
use crate::store::{AdminToken, AuditEntry, Retention, StoreError, UsageRow};

impl Names {
    pub fn tiers(&self) -> String {
        self.of(&["tiers"])
    }

    fn token(&self, hash: &KeyHash) -> At {
        At::key(self.of(&["th", &hash_text(hash)]))
    }

    /// `id\0hash`, by its letters.
    fn tokens(&self) -> String {
        self.of(&["tokens"])
    }

    fn tokens_guard(&self) -> String {
        self.of(&["tg"])
    }

    /// By key.
    fn usage(&self, day: i64, owner: &OwnerId) -> String {
        self.of(&["u", &day.to_string(), owner.as_str()])
    }

    /// `owner\0day`, by day.
    fn usage_days(&self) -> String {
        self.of(&["usage"])
    }

    pub fn audit(&self) -> String {
        self.of(&["audit"])
    }
}

// ---- tiers ----

pub fn tiers(tx: &mut Tx, names: &Names) -> Step<Vec<Tier>> {
    let fields = tx.fields(&names.tiers())?;
    Ok(fields.values().map(|tier| decode(tier, "tiers")).collect::<Result<_, _>>()?)
}

pub fn put_tier(tx: &mut Tx, names: &Names, tier: &Tier) -> Step<()> {
    tx.put(At::field(names.tiers(), tier.name.as_str()), tier)
}

pub fn delete_tier(tx: &mut Tx, names: &Names, name: &Name) -> Step<bool> {
    let at = At::field(names.tiers(), name.as_str());
    let was_there = tx.content(&at)?.is_some();
    if was_there {
        tx.delete(at);
    }
    Ok(was_there)
}

// ---- tokens ----

pub fn token_by_hash(tx: &mut Tx, names: &Names, hash: &KeyHash) -> Step<Option<AdminToken>> {
    tx.get(names.token(hash))
}

pub fn tokens(tx: &mut Tx, names: &Names) -> Step<Vec<AdminToken>> {
    let mut tokens: Vec<AdminToken> = load_tokens(tx, names)?.into_iter().map(|(_, token)| token).collect();
    tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(tokens)
}

fn load_tokens(tx: &mut Tx, names: &Names) -> Step<Vec<(KeyHash, AdminToken)>> {
    let members: Vec<Vec<u8>> = tx.ask("ZRANGEBYLEX", &names.tokens(), &["-", "+"])?;
    let parsed = members.iter().filter_map(|member| {
        let (id, hash) = std::str::from_utf8(member).ok()?.split_once('\0')?;
        Some((id, hash_of(hash)?))
    });
    let found = all(parsed.map(|(id, hash)| {
        let token = tx.peek::<AdminToken>(names.token(&hash))?;
        Ok(token.filter(|token| token.id.as_str() == id).map(|token| (hash, token)))
    }))?;
    Ok(found.into_iter().flatten().collect())
}

pub fn put_token(tx: &mut Tx, names: &Names, hash: &KeyHash, token: &AdminToken) -> Step<()> {
    let guarded = tx.guard(names.tokens_guard());
    let there = tx.get::<AdminToken>(names.token(hash));
    let others = load_tokens(tx, names);
    let (_, there, others) = (guarded?, there?, others?);
    if there.is_some() || others.iter().any(|(_, other)| rules::token_is_taken(other, token)) {
        return Err(rules::token_taken(token).into());
    }
    insert_token(tx, names, hash, token)
}

/// By id.
pub fn export_tokens(tx: &mut Tx, names: &Names) -> Step<Exported> {
    let tokens = load_tokens(tx, names)?;
    Ok(Exported::whole(tokens.into_iter().map(|(hash, token)| Entry::Token(hash, token)).collect()))
}

pub fn insert_token(tx: &mut Tx, names: &Names, hash: &KeyHash, token: &AdminToken) -> Step<()> {
    tx.put(names.token(hash), token)?;
    tx.write("ZADD", names.tokens(), &["0", &format!("{}\0{}", token.id, hash_text(hash))]);
    Ok(())
}

pub fn revoke_token(tx: &mut Tx, names: &Names, id: &TokenId, at: Timestamp) -> Step<AdminToken> {
    let guarded = tx.guard(names.tokens_guard());
    let all = load_tokens(tx, names);
    guarded?;
    let found = all?.into_iter().find(|(_, token)| token.id == *id);
    let (hash, mut token) = found.ok_or_else(|| StoreError::NotFound(id.to_string()))?;
    token.revoked_at.get_or_insert(at);
    tx.put(names.token(&hash), &token)?;
    Ok(token)
}

// ---- usage ----

pub fn add_usage(tx: &mut Tx, names: &Names, deltas: &[UsageDelta]) -> Step<()> {
    let mut sums: BTreeMap<(i64, &OwnerId, &str), UsageRecord> = BTreeMap::new();
    for delta in deltas {
        sums.entry((delta.day, &delta.owner, delta.key.as_str())).or_default().merge(&delta.add);
    }
    let place = |(day, owner, key): (i64, &OwnerId, &str)| At::field(names.usage(day, owner), key);
    let before = all(sums.keys().map(|row| tx.get::<UsageRecord>(place(*row))))?;
    let mut days = None;
    for ((row, add), before) in sums.iter().zip(before) {
        let mut sum = before.unwrap_or_default();
        sum.merge(add);
        tx.put(place(*row), &sum)?;
        let (day, owner, _) = *row;
        if days.replace((day, owner)) != Some((day, owner)) {
            tx.write("ZADD", names.usage_days(), &[day.to_string(), format!("{owner}\0{day}")]);
        }
    }
    Ok(())
}

pub fn usage(tx: &mut Tx, names: &Names, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> Step<Vec<UsageRow>> {
    let bounds = [from_day.to_string(), to_day.to_string()];
    let members: Vec<String> = tx.ask("ZRANGEBYSCORE", &names.usage_days(), &bounds)?;
    let days = members.iter().filter_map(|member| owner_and_day(member));
    let days: Vec<_> = days.filter(|(of, _)| owner.is_none_or(|owner| owner == of)).collect();
    rows(tx, names, &days)
}

fn rows(tx: &mut Tx, names: &Names, days: &[(OwnerId, i64)]) -> Step<Vec<UsageRow>> {
    let found = all(days.iter().map(|(owner, day)| tx.fields(&names.usage(*day, owner))))?;
    let mut rows = Vec::new();
    for ((owner, day), fields) in days.iter().zip(found) {
        for (key, sum) in fields {
            let key =
                String::from_utf8(key).map_err(|_| StoreError::Corrupt("usage of a key that is no text".into()))?;
            rows.push(UsageRow { day: *day, owner: owner.clone(), key: key.into(), usage: decode(&sum, "usage")? });
        }
    }
    Ok(rows)
}

/// Days of owners that are read in one step.
const STEP: u64 = 64;

/// By day, owner and key. A place is the last member of the index, behind its number among those of its day.
pub fn export_usage(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let index = names.usage_days();
    let (mut from, mut skip, mut behind) = ("-inf".to_owned(), 0, None);
    if let Some(after) = after {
        let [number, member] = parts(after)?;
        let number: u64 = number.parse().map_err(|_| no_place())?;
        let (_, day) = owner_and_day(member).ok_or_else(no_place)?;
        from = day.to_string();
        let place = number.saturating_sub(1).to_string();
        let there: Vec<String> = tx.ask("ZRANGEBYSCORE", &index, &[&from, "+inf", "LIMIT", &place, "1"])?;
        skip = if there.first().is_some_and(|there| there == member) {
            number
        } else {
            // Somebody has pruned meanwhile.
            let of_day: Vec<String> = tx.ask("ZRANGEBYSCORE", &index, &[&from, &from])?;
            of_day.iter().filter(|other| other.as_str() <= member).count() as u64
        };
        behind = Some(day);
    }
    let (place, most) = (skip.to_string(), STEP.to_string());
    let members: Vec<String> = tx.ask("ZRANGEBYSCORE", &index, &[from.as_str(), "+inf", "LIMIT", &place, &most])?;
    let days: Vec<_> = members.iter().filter_map(|member| owner_and_day(member)).collect();
    let rows = rows(tx, names, &days)?;
    let next = members.last().filter(|_| members.len() as u64 == STEP).and_then(|last| {
        let (_, day) = owner_and_day(last)?;
        let of_day = days.iter().filter(|(_, other)| *other == day).count() as u64;
        let number = if behind == Some(day) { skip + of_day } else { of_day };
        Some(format!("{number}\0{last}").into_bytes())
    });
    Ok(Exported { entries: rows.into_iter().map(Entry::Usage).collect(), next })
}

pub fn import_usage(tx: &mut Tx, names: &Names, row: &UsageRow) -> Step<()> {
    let UsageRow { day, owner, key, usage } = row;
    tx.put(At::field(names.usage(*day, owner), key.as_str()), usage)?;
    tx.write("ZADD", names.usage_days(), &[day.to_string(), format!("{owner}\0{day}")]);
    Ok(())
}

fn owner_and_day(member: &str) -> Option<(OwnerId, i64)> {
    let (owner, day) = member.split_once('\0')?;
    Some((owner.parse().ok()?, day.parse().ok()?))
}

/// Deletes the oldest rows that are over, at most a batch; how many.
pub fn prune_usage(tx: &mut Tx, names: &Names, keep: &Retention) -> Step<u64> {
    let before = format!("({}", keep.usage_from_day);
    let batch = PRUNE_BATCH.to_string();
    let arguments = ["-inf", &before, "LIMIT", "0", &batch];
    let members: Vec<String> = tx.ask("ZRANGEBYSCORE", &names.usage_days(), &arguments)?;
    let mut deleted = 0;
    for member in members {
        let Some((owner, day)) = owner_and_day(&member) else {
            tx.write("ZREM", names.usage_days(), &[member]);
            continue;
        };
        let mut keys: Vec<Vec<u8>> = tx.ask("HKEYS", &names.usage(day, &owner), NOTHING)?;
        keys.sort_unstable();
        let room = (PRUNE_BATCH - deleted) as usize;
        if keys.len() <= room {
            tx.write("ZREM", names.usage_days(), &[member]);
        }
        keys.truncate(room);
        deleted += keys.len() as u64;
        keys.into_iter().for_each(|key| tx.delete(At::field(names.usage(day, &owner), key)));
        if deleted == PRUNE_BATCH {
            break;
        }
    }
    Ok(deleted)
}

// ---- the audit log ----

/// Lines read in one step.
const LINES: u64 = 500;

/// With a number used once: no two lines are the same.
type Line = (String, AuditEntry);

pub fn append_audit(tx: &mut Tx, names: &Names, entry: &AuditEntry) -> Step<()> {
    tx.append(&names.audit(), &(tx.nonce(), entry))
}

/// Oldest first. A place is how many are before it, and the number of the last of these.
pub fn export_audit(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let list = names.audit();
    let mut from = 0;
    if let Some(after) = after {
        let [before, last] = parts(after)?;
        let mut before: u64 = before.parse().map_err(|_| no_place())?;
        let is_last = |item: &Option<Vec<u8>>| {
            item.as_ref().and_then(|line| decode::<Line>(line, "audit").ok()).is_some_and(|(number, _)| number == last)
        };
        // Where it was, or lower, if somebody has pruned meanwhile; those behind a line that was pruned are all.
        let mut step = 1;
        while before > 0 && from == 0 {
            let first = before.saturating_sub(step);
            let items = tx.items(&list, first, before - 1)?;
            from = items.iter().position(is_last).map_or(0, |place| first + place as u64 + 1);
            (before, step) = (first, LINES);
        }
    }
    let items = tx.items(&list, from, from + LINES - 1)?;
    let lines = items.iter().flatten().map(|line| decode::<Line>(line, "audit")).collect::<Result<Vec<_>, _>>()?;
    let next = lines.last().filter(|_| items.len() as u64 == LINES);
    let next = next.map(|(number, _)| format!("{}\0{number}", from + LINES).into_bytes());
    Ok(Exported { entries: lines.into_iter().map(|(_, line)| Entry::Audit(line)).collect(), next })
}

/// The `n`th line of this transaction.
pub fn import_audit(tx: &mut Tx, names: &Names, n: usize, entry: &AuditEntry) -> Step<()> {
    tx.append(&names.audit(), &(format!("{}.{n}", tx.nonce()), entry))
}

/// Of the items of the list from `first` to `last`, the newest first.
pub fn audit(tx: &mut Tx, names: &Names, first: u64, last: u64) -> Step<Vec<AuditEntry>> {
    let items = tx.items(&names.audit(), first, last)?;
    let newest_first = items.iter().rev().flatten();
    Ok(newest_first.map(|line| decode::<Line>(line, "audit").map(|(_, entry)| entry)).collect::<Result<_, _>>()?)
}

pub fn audit_length(tx: &mut Tx, names: &Names) -> Step<u64> {
    tx.ask("LLEN", &names.audit(), NOTHING)
}

/// Deletes the oldest lines that are over, at most a batch; how many. A forged one goes with its neighbours.
pub fn prune_audit(tx: &mut Tx, names: &Names, keep: &Retention) -> Step<u64> {
    let guarded = tx.guard_first(&names.audit());
    let length = audit_length(tx, names);
    let items = tx.items(&names.audit(), 0, PRUNE_BATCH - 1);
    let ((), mut held, items) = (guarded?, length?, items?);
    let mut over = 0;
    for item in items {
        let oldest = || match &item {
            Some(line) => decode::<Line>(line, "audit").map(|(_, entry)| entry),
            None => Err(StoreError::NotFound("audit".into())),
        };
        match rules::audit_is_over(held, oldest, keep) {
            Ok(true) | Err(StoreError::NotFound(_)) => {}
            Ok(false) => break,
            Err(e) => return Err(e.into()),
        }
        held -= 1;
        over += 1;
    }
    if over > 0 {
        tx.write("LTRIM", names.audit(), &[over.to_string(), "-1".to_owned()]);
    }
    Ok(over)
}
