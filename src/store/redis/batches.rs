//! Writes that are sent again until they are answered, and count once.
//!
//! Invariant: the number of the sender's last batch is written with what is in it. A sender has one batch under way, so that
//! one number for each is enough.

use std::time::Duration;

use super::Names;
use super::seal::At;
use super::tx::{Step, Tx};
use crate::store::Batch;

/// How long a sender is remembered after its last batch: a batch whose answer was lost counts once if Redis is back by then.
const REMEMBERED: Duration = Duration::from_secs(30 * 86_400);

pub fn once(tx: &mut Tx, names: &Names, batch: &Batch, write: impl FnOnce(&mut Tx) -> Step<()>) -> Step<()> {
    let at = At::key(names.of(&["batch", &batch.sender]));
    if tx.get::<u64>(at.clone())?.is_some_and(|done| done >= batch.number) {
        return Ok(());
    }
    write(tx)?;
    tx.put(at.clone(), &batch.number)?;
    tx.write("PEXPIRE", at.key, &[REMEMBERED.as_millis().to_string()]);
    Ok(())
}
