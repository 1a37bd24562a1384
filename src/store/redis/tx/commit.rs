//! A transaction as keys and arguments of `commit.lua`.
//!
//! Invariant: every key is among the keys of the call, as a cluster and the rules of an ACL want it.

use std::collections::HashMap;

use redis::Value;

use super::{Answer, Read, Tx};
use crate::store::redis::seal::{At, head};

/// What the script is called with, beside the keys and arguments that every call has.
pub struct Commit {
    pub keys: Vec<String>,
    pub arguments: Vec<Vec<u8>>,
}

impl Tx<'_> {
    pub fn commit(&self) -> Commit {
        let mut keys = Keys::default();
        let (mut checks, mut writes) = (Counted::default(), Counted::default());
        for (read, answer) in &self.answers {
            match (read, answer) {
                (Read::Record(At { key, field }), Answer::Record { head, is_checked: true, .. }) => {
                    let kind: &[u8] = if field.is_some() { b"hash" } else { b"" };
                    checks.add([kind, keys.place(key).as_bytes(), field.as_deref().unwrap_or_default(), head]);
                }
                (Read::First(key), Answer::Value(Value::BulkString(record))) => {
                    checks.add([b"list", keys.place(key).as_bytes(), b"", head(record)]);
                }
                _ => {}
            }
        }
        for (at, content) in &self.group.records {
            let record = content.as_deref().map(|content| self.seal.seal(at, content));
            let (command, rest): (&[u8], Vec<&[u8]>) = match (&at.field, &record) {
                (None, Some(record)) => (b"SET", vec![record]),
                (None, None) => (b"DEL", vec![]),
                (Some(field), Some(record)) => (b"HSET", vec![field, record]),
                (Some(field), None) => (b"HDEL", vec![field]),
            };
            let (place, more) = (keys.place(&at.key), rest.len().to_string());
            writes.add([command, place.as_bytes(), more.as_bytes()].into_iter().chain(rest));
        }
        for write in &self.group.others {
            let (place, more) = (keys.place(&write.key), write.arguments.len().to_string());
            let rest = write.arguments.iter().map(Vec::as_slice);
            writes.add([write.command.as_bytes(), place.as_bytes(), more.as_bytes()].into_iter().chain(rest));
        }
        Commit { keys: keys.in_order, arguments: [checks.finish(), writes.finish()].concat() }
    }
}

/// The keys of a call, each once, behind the three that every call has.
#[derive(Default)]
struct Keys {
    places: HashMap<String, usize>,
    in_order: Vec<String>,
}

impl Keys {
    fn place(&mut self, key: &str) -> String {
        let Self { places, in_order } = self;
        let place = *places.entry(key.to_owned()).or_insert_with(|| {
            in_order.push(key.to_owned());
            in_order.len() + 3
        });
        place.to_string()
    }
}

#[derive(Default)]
struct Counted {
    number: usize,
    arguments: Vec<Vec<u8>>,
}

impl Counted {
    fn add<'a>(&mut self, arguments: impl IntoIterator<Item = &'a [u8]>) {
        self.number += 1;
        self.arguments.extend(arguments.into_iter().map(<[u8]>::to_vec));
    }

    fn finish(self) -> Vec<Vec<u8>> {
        let mut all = vec![self.number.to_string().into_bytes()];
        all.extend(self.arguments);
        all
    }
}
