//! What is added to sums in the store: written in batches, each until it is answered, and counted once.
//!
//! Invariant: a batch that was sent stays as it was until then; what comes meanwhile goes into later ones.

use serde::{Deserialize, Serialize};

use crate::store::{Batch, Result};

/// Rows of a batch: it has to be written within the time of one command.
const ROWS: usize = 1_000;

#[derive(Serialize, Deserialize)]
pub struct Outbox<T> {
    batch: Batch,
    /// Beginning with those of the batch.
    rows: Vec<T>,
}

impl<T> Outbox<T> {
    pub fn new() -> Result<Self> {
        Ok(Self { batch: Batch::first()?, rows: Vec::new() })
    }

    /// What is to be written next, and again until it is answered.
    pub fn unanswered(&self) -> Option<(&Batch, &[T])> {
        let end = self.rows.len().min(ROWS);
        (end > 0).then(|| (&self.batch, &self.rows[..end]))
    }

    pub fn answered(&mut self) {
        self.rows.drain(..self.rows.len().min(ROWS));
        self.batch.next();
    }

    /// Once nothing is unanswered.
    pub fn fill(&mut self, rows: impl IntoIterator<Item = T>) {
        self.rows.extend(rows);
    }
}
