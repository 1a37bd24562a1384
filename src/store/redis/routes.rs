//! Routes that were pushed: one record of all versions, and one for each version's text.
//!
//! Invariant: what the versions say is decided by one sealed record, so a text without it counts for nothing.

use super::Names;
use super::seal::At;
use super::tx::{Step, Tx};
use crate::store::entry::{Entry, Exported, no_place};
use crate::store::rules;
use crate::store::{NewRoutes, RoutesVersion, StoreError};

impl Names {
    fn routes(&self) -> At {
        At::key(self.of(&["routes"]))
    }

    fn routes_text(&self, version: u64) -> At {
        At::key(self.of(&["rt", &version.to_string()]))
    }
}

pub fn push(tx: &mut Tx, names: &Names, new: &NewRoutes, expect: u64) -> Step<RoutesVersion> {
    let mut versions = tx.get::<Vec<RoutesVersion>>(names.routes())?.unwrap_or_default();
    let (version, over) = rules::routes::push(&mut versions, new, expect)?;
    tx.put(names.routes(), &versions)?;
    tx.put_content(names.routes_text(version.version), new.text.clone().into_bytes());
    over.into_iter().for_each(|old| tx.delete(names.routes_text(old)));
    let nonce = tx.nonce();
    tx.write("SET", names.changes(), &[nonce]);
    Ok(version)
}

pub fn versions(tx: &mut Tx, names: &Names) -> Step<Vec<RoutesVersion>> {
    Ok(tx.get(names.routes())?.unwrap_or_default())
}

/// Oldest first, one at a time.
pub fn export(tx: &mut Tx, names: &Names, after: Option<&[u8]>) -> Step<Exported> {
    let versions = versions(tx, names)?;
    let (version, next) = rules::routes::after(&versions, after).ok_or_else(no_place)?;
    let Some(version) = version else { return Ok(Exported::default()) };
    let Some(text) = text(tx, names, version.version)? else {
        // One that was forged is told of as that.
        let missing = rules::routes::no_text(version.version);
        return if tx.forged.is_empty() { Err(missing.into()) } else { Ok(Exported::default()) };
    };
    Ok(Exported { entries: vec![Entry::Routes(version.clone(), text)], next })
}

pub fn import(tx: &mut Tx, names: &Names, version: &RoutesVersion, text: &str) -> Step<()> {
    let mut versions = versions(tx, names)?;
    versions.insert(0, version.clone());
    tx.put(names.routes(), &versions)?;
    tx.put_content(names.routes_text(version.version), text.as_bytes().to_vec());
    Ok(())
}

pub fn text(tx: &mut Tx, names: &Names, version: u64) -> Step<Option<String>> {
    let text = tx.content(&names.routes_text(version))?.map(<[u8]>::to_vec);
    let text = text.map(String::from_utf8).transpose();
    Ok(text.map_err(|_| StoreError::Corrupt(format!("version {version} of the routes is no text")))?)
}
