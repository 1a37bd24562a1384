//! One optimistic transaction: what was read, what is to be written, and what has to be unchanged for that.
//!
//! A job is a plain function over a [`Tx`]: it reads what it needs, decides, and writes, all in memory. What is not there yet it
//! asks for and stops ([`Stop::Need`]); it is run again when the answers have come, all that was asked for in one round
//! trip. Several jobs share a transaction and see each other's writes.
//!
//! Invariant: every record that a job has looked at with [`Tx::get`] or [`Tx::content`] is checked when the writes are made.
//! Answers of commands on whole keys ([`Tx::ask`], [`Tx::fields`]), and records that were only peeked at, are not: what is
//! decided by them has a guard ([`Tx::guard`]), a record that changes with each write of its kind and is read before them.

mod commit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use redis::{Cmd, FromRedisValue, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fault::fault;
use super::seal::{At, Seal, head};
use crate::store::rules::{decode, encode};
use crate::store::{Result, StoreError};

/// Why a job did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// Something has to be read first.
    Need,
    /// What was written before has to be in Redis first.
    Barrier,
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Stop::Failed(e)
    }
}

/// No further arguments.
pub const NOTHING: &[&str] = &[];

pub type Step<T> = std::result::Result<T, Stop>;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Read {
    Record(At),
    /// Of a list.
    First(String),
    Command(&'static str, Vec<Vec<u8>>),
}

enum Answer {
    Record { head: Vec<u8>, content: Option<Vec<u8>>, is_checked: bool },
    Value(Value),
}

pub struct Tx<'a> {
    seal: &'a Seal,
    /// A number used once: no two transactions write the same guard.
    nonce: &'a str,
    answers: HashMap<Read, Answer>,
    wanted: Vec<(Read, bool)>,
    /// Of the jobs that have come to their end, and of the one that runs.
    group: Pending,
    job: Pending,
    pub met_absence: bool,
    /// Records whose MAC is wrong.
    pub forged: BTreeSet<At>,
}

#[derive(Default)]
struct Pending {
    records: BTreeMap<At, Option<Vec<u8>>>,
    others: Vec<Write>,
    /// Of the others.
    keys: HashSet<String>,
    /// About what all of it takes.
    bytes: usize,
}

struct Write {
    command: &'static str,
    key: String,
    arguments: Vec<Vec<u8>>,
}

impl<'a> Tx<'a> {
    pub fn new(seal: &'a Seal, nonce: &'a str) -> Self {
        Self {
            seal,
            nonce,
            answers: HashMap::new(),
            wanted: Vec::new(),
            group: Pending::default(),
            job: Pending::default(),
            met_absence: false,
            forged: BTreeSet::new(),
        }
    }

    // ---- for jobs ----

    pub fn get<T: DeserializeOwned>(&mut self, at: At) -> Step<Option<T>> {
        let found = self.content(&at)?;
        Ok(found.map(|content| decode(content, &at.key)).transpose()?)
    }

    /// As [`Self::get`], of bytes that are no JSON.
    pub fn content(&mut self, at: &At) -> Step<Option<&[u8]>> {
        self.look(at, true)
    }

    /// A record that has a guard.
    pub fn peek<T: DeserializeOwned>(&mut self, at: At) -> Step<Option<T>> {
        let found = self.peek_content(&at)?;
        Ok(found.map(|content| decode(content, &at.key)).transpose()?)
    }

    pub fn peek_content(&mut self, at: &At) -> Step<Option<&[u8]>> {
        self.look(at, false)
    }

    fn look(&mut self, at: &At, is_checked: bool) -> Step<Option<&[u8]>> {
        if self.job.keys.contains(&at.key) || self.group.keys.contains(&at.key) {
            return Err(Stop::Barrier);
        }
        let Self { job, group, answers, wanted, .. } = self;
        if let Some(written) = job.records.get(at).or_else(|| group.records.get(at)) {
            return Ok(written.as_deref());
        }
        let read = Read::Record(at.clone());
        match answers.get_mut(&read) {
            Some(Answer::Record { content, is_checked: checked, .. }) => {
                *checked |= is_checked;
                Ok(content.as_deref())
            }
            _ => {
                wanted.push((read, is_checked));
                Err(Stop::Need)
            }
        }
    }

    /// Stands for everything that changes with `key`: to be called before that is read, by all that change it.
    pub fn guard(&mut self, key: String) -> Step<()> {
        let at = At::key(key);
        self.content(&at)?;
        let content = self.nonce.as_bytes().to_vec();
        self.job.records.insert(at, Some(content));
        Ok(())
    }

    pub fn nonce(&self) -> &'a str {
        self.nonce
    }

    /// All of a hash of records.
    pub fn fields(&mut self, key: &str) -> Step<BTreeMap<Vec<u8>, Vec<u8>>> {
        let found: Vec<(Vec<u8>, Vec<u8>)> = self.ask("HGETALL", key, NOTHING)?;
        let mut all = BTreeMap::new();
        for (field, record) in found {
            let at = At::field(key, field.clone());
            match self.seal.open(&at, &record) {
                Some(content) => drop(all.insert(field, content.to_vec())),
                None => drop(self.forged.insert(at)),
            }
        }
        Ok(all)
    }

    /// The list is to begin with the same item when the writes are made.
    pub fn guard_first(&mut self, key: &str) -> Step<()> {
        if self.group.keys.contains(key) {
            return Err(Stop::Barrier);
        }
        let read = Read::First(key.to_owned());
        if self.answers.contains_key(&read) {
            return Ok(());
        }
        self.wanted.push((read, true));
        Err(Stop::Need)
    }

    /// Of a list of records: what is at the places from `first` to `last`; a forged one is `None`.
    pub fn items(&mut self, key: &str, first: u64, last: u64) -> Step<Vec<Option<Vec<u8>>>> {
        let found: Vec<Vec<u8>> = self.ask("LRANGE", key, &[first.to_string(), last.to_string()])?;
        let at = At::key(key);
        let open = |(place, record): (u64, Vec<u8>)| {
            let content = self.seal.open(&at, &record).map(<[u8]>::to_vec);
            if content.is_none() {
                self.forged.insert(At::field(key, place.to_string()));
            }
            content
        };
        Ok((first..).zip(found).map(open).collect())
    }

    /// What a command answers that reads one whole key.
    pub fn ask<T: FromRedisValue>(
        &mut self,
        command: &'static str,
        key: &str,
        arguments: &[impl AsRef<[u8]>],
    ) -> Step<T> {
        if self.job.touches(key) || self.group.touches(key) {
            return Err(Stop::Barrier);
        }
        let arguments = arguments.iter().map(|a| a.as_ref().to_vec());
        let read = Read::Command(command, std::iter::once(key.as_bytes().to_vec()).chain(arguments).collect());
        match self.answers.get(&read) {
            Some(Answer::Value(value)) => {
                let unfit = |_| StoreError::Corrupt(format!("redis answers `{command}` with something else"));
                Ok(T::from_redis_value(value.clone()).map_err(unfit)?)
            }
            _ => {
                self.wanted.push((read, false));
                Err(Stop::Need)
            }
        }
    }

    pub fn put<T: Serialize>(&mut self, at: At, record: &T) -> Step<()> {
        let content = encode(record)?;
        self.put_content(at, content);
        Ok(())
    }

    pub fn put_content(&mut self, at: At, content: Vec<u8>) {
        self.job.bytes += content.len();
        self.job.records.insert(at, Some(content));
    }

    pub fn delete(&mut self, at: At) {
        self.job.records.insert(at, None);
    }

    /// A write of something that is no record: an index, a list, a whole hash.
    pub fn write(&mut self, command: &'static str, key: impl Into<String>, arguments: &[impl AsRef<[u8]>]) {
        let arguments: Vec<Vec<u8>> = arguments.iter().map(|a| a.as_ref().to_vec()).collect();
        let key = key.into();
        self.job.keys.insert(key.clone());
        self.job.bytes += arguments.iter().map(Vec::len).sum::<usize>();
        self.job.others.push(Write { command, key, arguments });
    }

    /// A further item of a list of records.
    pub fn append<T: Serialize>(&mut self, key: &str, record: &T) -> Step<()> {
        let sealed = self.seal.seal(&At::key(key), &encode(record)?);
        self.write("RPUSH", key, &[sealed]);
        Ok(())
    }

    // ---- for who runs them ----

    /// Before jobs are run (again): what they wrote is forgotten, what was read is not.
    pub fn begin(&mut self) {
        self.group = Pending::default();
        self.job = Pending::default();
    }

    /// The job that ran has come to its end.
    pub fn keep(&mut self) {
        let Pending { mut records, others, keys, bytes } = std::mem::take(&mut self.job);
        self.group.bytes += bytes;
        self.group.records.append(&mut records);
        self.group.others.extend(others);
        self.group.keys.extend(keys);
    }

    pub fn discard(&mut self) {
        self.job = Pending::default();
    }

    pub fn lacks_something(&self) -> bool {
        !self.wanted.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.group.bytes
    }

    pub fn has_writes(&self) -> bool {
        !self.group.records.is_empty() || !self.group.others.is_empty()
    }

    /// What has to be asked, in the order in which it was wanted; [`Self::answer`] takes the answers.
    pub fn questions(&mut self) -> Vec<Cmd> {
        let mut seen: HashMap<Read, usize> = HashMap::new();
        let mut distinct: Vec<(Read, bool)> = Vec::new();
        for (read, is_checked) in self.wanted.drain(..) {
            match seen.get(&read) {
                Some(&place) => distinct[place].1 |= is_checked,
                None => {
                    seen.insert(read.clone(), distinct.len());
                    distinct.push((read, is_checked));
                }
            }
        }
        self.wanted = distinct;
        self.wanted.iter().map(|(read, _)| read.command()).collect()
    }

    pub fn answer(&mut self, values: Vec<Value>) -> Result<()> {
        for ((read, is_checked), value) in std::mem::take(&mut self.wanted).into_iter().zip(values) {
            let answer = match &read {
                Read::Record(at) => {
                    let record = Option::<Vec<u8>>::from_redis_value(value).map_err(|e| fault(&e.into()).error)?;
                    let content = record.as_deref().and_then(|record| self.seal.open(at, record)).map(<[u8]>::to_vec);
                    self.met_absence |= content.is_none();
                    if content.is_none() && record.is_some() {
                        self.forged.insert(at.clone());
                    }
                    Answer::Record { head: head(&record.unwrap_or_default()).to_vec(), content, is_checked }
                }
                Read::First(_) | Read::Command(..) => {
                    self.met_absence |= is_empty(&value);
                    Answer::Value(value)
                }
            };
            self.answers.insert(read, answer);
        }
        Ok(())
    }
}

impl Pending {
    fn touches(&self, key: &str) -> bool {
        let first = At::key(key);
        self.keys.contains(key) || self.records.range(first..).next().is_some_and(|(at, _)| at.key == key)
    }
}

impl Read {
    fn command(&self) -> Cmd {
        match self {
            Read::Record(At { key, field: None }) => redis::cmd("GET").arg(key).take(),
            Read::Record(At { key, field: Some(field) }) => redis::cmd("HGET").arg(key).arg(field).take(),
            Read::First(key) => redis::cmd("LINDEX").arg(key).arg(0).take(),
            Read::Command(name, arguments) => {
                let mut command = redis::cmd(name);
                for argument in arguments {
                    command.arg(argument);
                }
                command
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Nil | Value::Int(0) => true,
        Value::Array(items) | Value::Set(items) => items.is_empty(),
        Value::Map(pairs) => pairs.is_empty(),
        _ => false,
    }
}

/// The results of several steps, all asked for before the first answer is waited for.
pub fn all<T>(steps: impl IntoIterator<Item = Step<T>>) -> Step<Vec<T>> {
    let (mut done, mut need) = (Vec::new(), false);
    for step in steps {
        match step {
            Ok(value) => done.push(value),
            Err(Stop::Need) => need = true,
            Err(stop) => return Err(stop),
        }
    }
    if need { Err(Stop::Need) } else { Ok(done) }
}
