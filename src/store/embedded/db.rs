//! The redb file: opening, schema, errors, and opening it again after a failure of the disk.
//!
//! Invariant: after an I/O error redb refuses everything until the file is opened anew, so [`Db::write`] does that; what
//! was committed before is there again, what failed is not. redb asserts on pages that are damaged; here that is
//! [`StoreError::Corrupt`] like any other damage, and never the end of a worker or of the writer.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, TableDefinition, TableHandle, WriteTransaction,
};

use super::{copy, keys, modules, records, retired, routes, values};
use crate::store::{Result, StoreError};

/// redb's page cache; its default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;
/// How long a scan waits for the file to be opened again.
const REOPEN_WAIT: Duration = Duration::from_secs(5);

const META: TableDefinition<&str, u32> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";

/// Step `n` turns schema `n` into `n + 1`; an empty file has schema 0. Steps are only ever added.
const MIGRATIONS: &[fn(&WriteTransaction) -> Result<()>] = &[
    |tx| {
        keys::create(tx)?;
        modules::create(tx)?;
        records::create(tx)
    },
    retired::create,
    |tx| {
        modules::sum_bytes(tx)?;
        records::bound_storage(tx)
    },
    values::create,
    routes::create,
    copy::create,
];

pub struct Db {
    path: PathBuf,
    /// Empty while (and as long as) the file can't be opened again.
    slot: RwLock<Option<Database>>,
}

impl Db {
    pub fn open(path: &Path) -> Result<Self> {
        let is_new = !path.exists();
        let db = open_file(path)?;
        if is_new && let Some(parent) = path.parent() {
            // The directory entry has to survive a power cut as well as the file.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| at(path, &e))?;
        }
        Ok(Self { path: path.to_owned(), slot: RwLock::new(Some(db)) })
    }

    /// Never waits for a writer; fails while the file is being opened again.
    pub fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T>) -> Result<T> {
        let slot = match self.slot.try_read() {
            Some(slot) => slot,
            None => return Err(StoreError::Unavailable(format!("`{}` is being opened again", self.path.display()))),
        };
        read_in(slot.as_ref().ok_or_else(|| self.closed())?, read)
    }

    /// As [`Self::read`], from a thread that may wait.
    pub fn read_waiting<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T>) -> Result<T> {
        let slot = self.slot.try_read_for(REOPEN_WAIT).ok_or_else(|| self.closed())?;
        read_in(slot.as_ref().ok_or_else(|| self.closed())?, read)
    }

    /// One transaction. `write` returns whether there is something to commit.
    pub fn write(&self, write: impl FnOnce(&WriteTransaction) -> Result<bool>) -> Result<()> {
        if self.slot.read().is_none() {
            self.reopen()?;
        }
        let done = {
            let slot = self.slot.read();
            let db = slot.as_ref().ok_or_else(|| self.closed())?;
            unwound(|| transact(db, write))
        };
        if matches!(done, Err(StoreError::Full | StoreError::Unavailable(_) | StoreError::Corrupt(_))) {
            // The write's own error is the one to report; without the file, later calls say so.
            if let Err(again) = self.reopen() {
                tracing::error!(file = %self.path.display(), error = %again, "the store can't be opened again");
            }
        }
        done
    }

    fn reopen(&self) -> Result<()> {
        let mut slot = self.slot.write();
        // The lock on the file goes with the old handle.
        close(slot.take());
        *slot = Some(open_file(&self.path)?);
        Ok(())
    }

    fn closed(&self) -> StoreError {
        StoreError::Unavailable(format!("`{}` could not be opened again", self.path.display()))
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        close(self.slot.get_mut().take());
    }
}

/// redb writes its last state when it is dropped, which can meet the same damage.
fn close(db: Option<Database>) {
    let dropped = unwound(|| {
        drop(db);
        Ok(())
    });
    if let Err(error) = dropped {
        tracing::error!(%error, "the store could not be closed cleanly");
    }
}

fn read_in<T>(db: &Database, read: impl FnOnce(&ReadTransaction) -> Result<T>) -> Result<T> {
    unwound(|| read(&db.begin_read().map_err(fault)?))
}

/// A panic of redb as an error. What it left behind is redb's alone: poisoned locks answer with errors, and an open
/// transaction is never committed.
fn unwound<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StoreError::Corrupt("a page of the file is damaged; restore it from a backup".into())))
}

fn transact(db: &Database, write: impl FnOnce(&WriteTransaction) -> Result<bool>) -> Result<()> {
    let mut tx = db.begin_write().map_err(fault)?;
    // Two-phase commit: the one-phase kind trusts a checksum that isn't cryptographic, and tenants choose bytes in this
    // file. It also keeps the start after a crash quick, whatever the size of the file.
    tx.set_quick_repair(true);
    match write(&tx) {
        Ok(true) => tx.commit().map_err(fault),
        Ok(false) => tx.abort().map_err(fault),
        Err(e) => {
            // Dropping would abort as well, but panics on none and hides its error; the first error is the cause.
            let _ = tx.abort();
            Err(e)
        }
    }
}

fn open_file(path: &Path) -> Result<Database> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| at(path, &e))?;
    let opened = unwound(|| Ok(redb::Builder::new().set_cache_size(CACHE_BYTES).create_file(file)))?;
    let db = opened.map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Unavailable(format!("`{}` is in use by another wasmgate; stop that one first", path.display()))
        }
        DatabaseError::Storage(redb::StorageError::Io(e))
            if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            StoreError::Corrupt(format!("`{}` is not a store of wasmgate: {e}", path.display()))
        }
        DatabaseError::UpgradeRequired(v) => {
            StoreError::Corrupt(format!("`{}` has the unknown file format {v}", path.display()))
        }
        e => fault(e),
    })?;
    match unwound(|| migrate(&db, path)) {
        Ok(()) => Ok(db),
        Err(e) => {
            close(Some(db));
            Err(e)
        }
    }
}

fn migrate(db: &Database, path: &Path) -> Result<()> {
    let known = MIGRATIONS.len() as u32;
    let found = read_in(db, |tx| {
        let names: Vec<_> = tx.list_tables().map_err(fault)?.map(|t| t.name().to_owned()).collect();
        if names.is_empty() {
            return Ok(0);
        }
        let foreign = || StoreError::Corrupt(format!("`{}` is not a store of wasmgate", path.display()));
        if !names.iter().any(|n| n == META.name()) {
            return Err(foreign());
        }
        let meta = tx.open_table(META).map_err(fault)?;
        Ok(meta.get(SCHEMA).map_err(fault)?.ok_or_else(foreign)?.value())
    })?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    if found == known {
        return Ok(());
    }
    transact(db, |tx| {
        for step in &MIGRATIONS[found as usize..] {
            step(tx)?;
        }
        tx.open_table(META).map_err(fault)?.insert(SCHEMA, known).map_err(fault)?;
        Ok(true)
    })
}

fn at(path: &Path, e: &std::io::Error) -> StoreError {
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreError::Full,
        _ => StoreError::Unavailable(format!("`{}`: {e}", path.display())),
    }
}

/// What redb reports, as the layers above know it.
pub fn fault(e: impl Into<redb::Error>) -> StoreError {
    match e.into() {
        redb::Error::Io(e) => match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreError::Full,
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => StoreError::Corrupt(e.to_string()),
            _ => StoreError::Unavailable(e.to_string()),
        },
        redb::Error::ValueTooLarge(n) => StoreError::Limit(format!("a record of {n} bytes is too large")),
        e @ (redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. }) => StoreError::Corrupt(e.to_string()),
        e => StoreError::Unavailable(e.to_string()),
    }
}
