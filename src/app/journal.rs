//! What a shared store does not have yet, in a file of the data directory: a gateway that ends during an outage sends it when it is
//! started again.
//!
//! Invariant: while there is a journal, a batch is in it before it is sent, so that a restart sends it under the same number and it
//! counts once. While the store answers there is none, and nothing is written.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tickers::Outboxes;
use crate::limit::usage::Gathered;
use crate::store::StoreError;

const FILE: &str = "usage.journal";
const LOCK: &str = "usage.lock";

pub struct Journal {
    file: PathBuf,
    /// As long as this run.
    _lock: File,
    is_there: bool,
    is_told: bool,
}

#[derive(Deserialize)]
struct Entry {
    sent: Outboxes,
    /// Not in a batch yet.
    gathered: Gathered,
}

#[derive(Serialize)]
struct EntryRef<'a> {
    sent: &'a Outboxes,
    gathered: &'a Gathered,
}

impl Journal {
    /// And what an earlier run has left. One that can't be read is put aside.
    pub fn open(data_dir: &Path) -> Result<(Self, Option<(Outboxes, Gathered)>), StoreError> {
        let (file, lock) = (data_dir.join(FILE), File::create(data_dir.join(LOCK)));
        let locked = lock.and_then(|lock| lock.try_lock().map(|()| lock).map_err(std::io::Error::from));
        let lock = locked.map_err(|error| {
            let (folder, advice) = (data_dir.display(), "give each gateway one of its own");
            StoreError::Unavailable(match error.kind() {
                ErrorKind::WouldBlock => format!("`{folder}` is in use by another wasmgate; {advice}"),
                _ => format!("`{folder}/{LOCK}`: {error}"),
            })
        })?;
        let left = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::from).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let left = left.unwrap_or_else(|error| {
            let aside = file.with_extension("journal-unread");
            let kept =
                std::fs::rename(&file, &aside).map_or_else(|error| error.to_string(), |()| aside.display().to_string());
            tracing::error!(%error, kept, "`usage.journal` can't be read; what it has is not sent");
            None
        });
        let left = left.map(|Entry { sent, gathered }| (sent, gathered));
        Ok((Self { file, _lock: lock, is_there: left.is_some(), is_told: false }, left))
    }

    pub fn is_there(&self) -> bool {
        self.is_there
    }

    pub async fn write(&mut self, sent: &Outboxes, gathered: &Gathered) {
        let (file, text) = (self.file.clone(), serde_json::to_vec(&EntryRef { sent, gathered }));
        let written = tokio::task::spawn_blocking(move || replace(&file, &text?)).await;
        match written.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
            Ok(()) => (self.is_there, self.is_told) = (true, false),
            Err(error) if !std::mem::replace(&mut self.is_told, true) => {
                let file = self.file.display();
                tracing::error!(%error, %file, "usage that the store does not have is lost if this gateway ends; make room there");
            }
            Err(_) => {}
        }
    }

    /// The store has it all.
    pub async fn remove(&mut self) {
        if !self.is_there {
            return;
        }
        match tokio::fs::remove_file(&self.file).await {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::error!(%error, file = %self.file.display(), "usage that the store has can't be taken out of the journal");
            }
            _ => self.is_there = false,
        }
    }
}

/// Whole or as before, also when the power fails; for nobody else to read.
pub(super) fn replace(file: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut aside = file.as_os_str().to_owned();
    aside.push("-new");
    let mut written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    written.write_all(text)?;
    written.sync_all()?;
    std::fs::rename(&aside, file)?;
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}
