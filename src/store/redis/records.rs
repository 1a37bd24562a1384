//! Tier overrides, usage, admin tokens, and the audit log.
//!
//! Invariant: an audit line is written once, behind all others, and never touched again; the oldest go first.

use std::collections::BTreeMap;

use super::Names;
use super::keys::{hash_of, hash_text};
use super::seal::At;
use super::tx::{NOTHING, Step, Tx, all};
use crate::domain::{KeyHash, Name, OwnerId, Tier, Timestamp, TokenId, UsageDelta, UsageRecord};
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

/// With a number used once: no two lines are the same.
type Line = (String, AuditEntry);

pub fn append_audit(tx: &mut Tx, names: &Names, entry: &AuditEntry) -> Step<()> {
    tx.append(&names.audit(), &(tx.nonce(), entry))
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
