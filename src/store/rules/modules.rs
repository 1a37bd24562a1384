//! Rules of modules: numbers of versions, the active one, numbers that outlive their module.
//!
//! Invariant: versions of a module are numbered 1, 2, 3 ..., each digest once with each ABI and bundle; a number is never given
//! twice, also not after its version or the whole module was deleted: `name@1` means the same bytes for ever, or nothing.

use serde::{Deserialize, Serialize};

use crate::domain::{LimitsChange, Module, ModuleVersion, Name, OwnerId, Timestamp};
use crate::store::{NewVersion, Result, StoreError};

/// Names whose last number is kept for an owner; those with the lowest numbers become its floor.
const MAX_RETIRED: usize = 1_000;

/// What is kept of a module beside its versions and runs.
#[derive(Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub owner: OwnerId,
    pub name: Name,
    pub description: String,
    pub public: bool,
    pub active: u32,
    /// Records of earlier releases have none.
    #[serde(default)]
    pub previous: Option<u32>,
    /// The highest number given so far.
    pub last: u32,
    #[serde(default, skip_serializing_if = "LimitsChange::is_empty")]
    pub limits: LimitsChange,
}

impl Record {
    /// Of a module that gets its first version; `last` is the number that it goes on from.
    pub fn new(new: &NewVersion, id: &str, last: u32) -> Self {
        Self {
            id: id.to_owned(),
            owner: new.owner.clone(),
            name: new.name.clone(),
            description: String::new(),
            public: false,
            active: 0,
            previous: None,
            last,
            limits: LimitsChange::default(),
        }
    }

    /// Of a module as it is; `last` is the highest number that it has given.
    pub fn of(module: &Module, last: u32) -> Self {
        Self {
            id: module.id.clone(),
            owner: module.owner.clone(),
            name: module.name.clone(),
            description: module.description.clone(),
            public: module.public,
            active: module.active,
            previous: module.previous,
            last,
            limits: module.limits.clone(),
        }
    }

    /// Takes up a version, under the number that it has already where it is `known`; its number.
    pub fn take_up(&mut self, new: &NewVersion, known: Option<u32>) -> u32 {
        let number = known.unwrap_or(self.last + 1);
        self.last = self.last.max(number);
        if self.active == 0 || new.activate {
            self.activate(number);
        }
        if let Some(description) = &new.description {
            self.description.clone_from(description);
        }
        if let Some(limits) = &new.limits {
            self.limits.clone_from(limits);
        }
        self.public = new.public.unwrap_or(self.public);
        number
    }

    /// The version has to be there.
    pub fn activate(&mut self, version: u32) {
        if self.active != version {
            self.previous = Some(self.active).filter(|before| *before > 0);
            self.active = version;
        }
    }

    /// Forgets a version; the active one stays.
    pub fn forget(&mut self, version: u32) -> Result<()> {
        if self.active == version {
            return Err(StoreError::Conflict(format!(
                "`{}/{}@{version}` is active; activate another one first, or delete the whole module",
                self.owner, self.name
            )));
        }
        self.previous = self.previous.filter(|before| *before != version);
        Ok(())
    }

    /// With its versions, in order, and its runs: how many, and the last one in Unix milliseconds.
    pub fn module(self, versions: Vec<ModuleVersion>, runs: Option<(u64, i64)>) -> Module {
        Module {
            id: self.id,
            owner: self.owner,
            name: self.name,
            description: self.description,
            public: self.public,
            active: self.active,
            previous: self.previous,
            versions,
            limits: self.limits,
            executions: runs.map_or(0, |(count, _)| count),
            last_executed: runs.and_then(|(_, last)| Timestamp::from_unix_millis(last)),
        }
    }
}

/// As [`Record::module`] takes them.
pub fn runs(module: &Module) -> Option<(u64, i64)> {
    module.last_executed.map(|last| (module.executions, last.unix_millis()))
}

/// The runs of a module after some more.
pub fn add_runs(before: Option<(u64, i64)>, add: u64, at: Timestamp) -> (u64, i64) {
    let (runs, last) = before.unwrap_or((0, i64::MIN));
    (runs.saturating_add(add), last.max(at.unix_millis()))
}

pub fn missing(owner: &OwnerId, name: &Name) -> StoreError {
    StoreError::NotFound(format!("{owner}/{name}"))
}

pub fn missing_version(owner: &OwnerId, name: &Name, version: u32) -> StoreError {
    StoreError::NotFound(format!("{owner}/{name}@{version}"))
}

/// Where an owner has too many retired names: its floor then, up to which names are forgotten. Numbers that were never
/// given may be skipped; those that were must not come again, so the floor only rises.
pub fn raised_floor<'a>(retired: impl ExactSizeIterator<Item = &'a u32>, floor: u32) -> Option<u32> {
    if retired.len() <= MAX_RETIRED {
        return None;
    }
    retired.min().map(|least| floor.max(*least))
}
