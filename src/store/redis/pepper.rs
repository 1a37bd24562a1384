//! The fleet's pepper: keys that one gateway makes are unknown to those with another one.
//!
//! Invariant: who uses the store knows the newest pepper of the fleet as of its start. The record has a fingerprint of it, which
//! the first gateway writes; one that knows it and has a newer one puts that there. So a pepper can be replaced by
//! giving all gateways both, one after the other, and later the new one alone.

use super::core::{Committed, Core, Known};
use super::seal::At;
use super::tx::{Stop, Tx};
use crate::store::{Result, StoreError};

/// Gateways that start at once with newer ones.
const TRIES: u32 = 10;

pub async fn agree(core: &Core, known: &Known, peppers: &[String], is_read_only: bool) -> Result<()> {
    let Some(newest) = peppers.first() else { return Ok(()) };
    let at = At::key(core.names.of(&["pepper"]));
    for _ in 0..TRIES {
        let nonce = core.nonce()?;
        let mut tx = Tx::new(&known.seal, &nonce);
        let fleets = loop {
            match tx.get::<String>(at.clone()) {
                Ok(found) => break found,
                Err(Stop::Need) => core.fetch(&mut tx).await?,
                Err(Stop::Failed(e)) => return Err(e),
                Err(Stop::Barrier) => return Err(StoreError::Corrupt("a look waits for a write".into())),
            }
        };
        core.tell_forged(&tx);
        match &fleets {
            Some(fleets) if fleets == newest => return Ok(()),
            Some(fleets) if !peppers.contains(fleets) => return Err(other(&at.key)),
            _ if is_read_only => return Ok(()),
            _ => {}
        }
        if let Err(Stop::Failed(e)) = tx.put(at.clone(), newest) {
            return Err(e);
        }
        tx.keep();
        match core.commit_to(known, "pepper", &tx, false).await? {
            Committed::Done(_) => return Ok(()),
            Committed::Lost => return Err(core.misfit(None)),
            Committed::Conflict => {}
        }
    }
    Err(StoreError::Unavailable("redis: too many gateways change the pepper at once".into()))
}

fn other(record: &str) -> StoreError {
    StoreError::Foreign(format!(
        "the fleet's keys are hashed with a pepper that this gateway does not have, so that keys made on one would be unknown \
         on the other: give it the pepper of the others (`auth.pepper_file` or `auth.pepper_env`); if that one is gone for good, \
         and all keys with it, delete `{record}` in Redis"
    ))
}
