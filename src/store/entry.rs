//! What one store gives out and another one takes in: every record there is, as it is.
//!
//! Invariant: entries of a kind have one order in all stores, and an entry one form, so that stores with the same records have the
//! same [`Tally`]s. What can be made from entries (indexes, sums, fingerprints) is none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::rules::encode;
use super::{AdminToken, AuditEntry, Result, RoutesVersion, StoreError, UsageRow};
use crate::domain::{ApiKey, Digest, KeyHash, Module, OwnerId, Tier};

/// Entries of one [page](Exported), about, and bytes of them: whatever is reached first.
pub const PAGE: usize = 256;
const PAGE_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Tiers,
    Tokens,
    Keys,
    /// Numbers of versions that are not given again.
    Retired,
    Modules,
    /// Numbers of values that are not given again.
    Numbers,
    Values,
    Usage,
    Routes,
    Audit,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Tiers,
        Kind::Tokens,
        Kind::Keys,
        Kind::Retired,
        Kind::Modules,
        Kind::Numbers,
        Kind::Values,
        Kind::Usage,
        Kind::Routes,
        Kind::Audit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Tiers => "tiers",
            Kind::Tokens => "tokens",
            Kind::Keys => "keys",
            Kind::Retired => "retired-versions",
            Kind::Modules => "modules",
            Kind::Numbers => "value-numbers",
            Kind::Values => "values",
            Kind::Usage => "usage",
            Kind::Routes => "routes",
            Kind::Audit => "audit",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Entry {
    Tier(Tier),
    Token(#[serde(serialize_with = "hash")] KeyHash, AdminToken),
    Key(#[serde(serialize_with = "hash")] KeyHash, ApiKey),
    Retired(Retired),
    /// With the highest number that it has given.
    Module(Module, u32),
    Number(OwnerId, u64),
    Value(Value),
    Usage(UsageRow),
    /// With its text.
    Routes(RoutesVersion, #[serde(serialize_with = "text")] String),
    Audit(AuditEntry),
}

/// The highest numbers that an owner's deleted modules had given, and the one that stands for all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retired {
    pub owner: OwnerId,
    pub floor: u32,
    pub names: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    pub owner: OwnerId,
    pub key: Vec<u8>,
    pub version: u64,
    /// Unix milliseconds.
    pub expires: i64,
    #[serde(serialize_with = "bytes")]
    pub value: Vec<u8>,
}

fn hash<S: Serializer>(hash: &KeyHash, to: S) -> std::result::Result<S::Ok, S::Error> {
    Digest(hash.0).serialize(to)
}

fn text<S: Serializer>(text: &str, to: S) -> std::result::Result<S::Ok, S::Error> {
    bytes(text.as_bytes(), to)
}

fn bytes<S: Serializer>(bytes: &[u8], to: S) -> std::result::Result<S::Ok, S::Error> {
    Digest::of(bytes).serialize(to)
}

impl Entry {
    /// About what it takes.
    pub fn bytes(&self) -> usize {
        let large = match self {
            Entry::Value(Value { key, value, .. }) => key.len() + value.len(),
            Entry::Routes(_, text) => text.len(),
            Entry::Module(module, _) => {
                let names = |v: &crate::domain::ModuleVersion| {
                    let imports = v.shape.imports.iter().map(|i| i.module.len() + i.name.len() + i.ty.len() + 40);
                    let exports = v.shape.exports.iter().map(|e| e.name.len() + e.ty.len() + 30);
                    imports.sum::<usize>() + exports.sum::<usize>() + 400
                };
                module.versions.iter().map(names).sum()
            }
            Entry::Retired(retired) => retired.names.keys().map(|name| name.len() + 12).sum(),
            Entry::Audit(line) => line.subject.len() + line.detail.len(),
            _ => 0,
        };
        large + 400
    }
}

/// What there is of a kind: how many, and a digest of all of them in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub count: u64,
    pub digest: Digest,
}

impl Default for Tally {
    fn default() -> Self {
        Self { count: 0, digest: Digest([0; 32]) }
    }
}

impl Tally {
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        self.add_bytes(&encode(entry)?);
        Ok(())
    }

    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.count += 1;
        self.digest = Digest::of(&[&self.digest.0, bytes].concat());
    }
}

/// In a store that is being copied into, until all of it is there: no gateway uses it before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The store that is copied, by its number.
    pub from: String,
    pub kind: Kind,
    /// As [`Exported::next`]; and how many of the entries behind that are there.
    pub after: Option<Vec<u8>>,
    pub done: usize,
    /// Of what is there.
    pub tallies: BTreeMap<String, Tally>,
}

impl Mark {
    /// Why a gateway does not use a store with this mark.
    pub fn half_copied(&self) -> StoreError {
        StoreError::Foreign(format!(
            "the store is half copied: `wasmgate store copy` from the store `{}` is under way or was interrupted; run it again \
             with the same files, and it goes on, or empty this store",
            self.from
        ))
    }
}

/// Some entries of a kind, in their order.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    pub entries: Vec<Entry>,
    /// Where the next ones are, in this store; `None`: there are none.
    pub next: Option<Vec<u8>>,
}

impl Exported {
    /// All that there are.
    pub fn whole(entries: Vec<Entry>) -> Self {
        Self { entries, next: None }
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= PAGE || self.entries.iter().map(Entry::bytes).sum::<usize>() >= PAGE_BYTES
    }
}

/// How many of these are written at once.
pub fn batch(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = entries.iter().take(PAGE).take_while(|entry| {
        bytes += entry.bytes();
        bytes <= PAGE_BYTES
    });
    fits.count().max(1)
}

/// The parts of a place, which NULs hold apart.
pub fn parts<const N: usize>(place: &[u8]) -> Result<[&str; N]> {
    let text = std::str::from_utf8(place).ok();
    let parts: Option<Vec<&str>> = text.map(|text| text.splitn(N, '\0').collect());
    parts.and_then(|parts| parts.try_into().ok()).ok_or_else(no_place)
}

/// An owner, and any bytes behind the NUL.
pub fn split(place: &[u8]) -> Option<(&str, &[u8])> {
    let nul = place.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&place[..nul]).ok()?, &place[nul + 1..]))
}

pub fn no_place() -> StoreError {
    StoreError::Corrupt("the mark of a copy names no place in the store that is copied".into())
}
