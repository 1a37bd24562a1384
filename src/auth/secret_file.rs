//! Secrets in files: made with mode 0600 at first start, refused when others on the machine may read them. A group of this
//! process's own may, as that is how Kubernetes gives them (`fsGroup`), but not change them.
//!
//! Invariant: a file that this module makes is whole or missing, and of two processes that make it one wins. The text
//! never appears in an error.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::SecretSource;

/// Bytes of a secret's file.
const MAX_BYTES: u64 = 16 << 10;
/// Random bytes of a secret that is made here.
const RANDOM_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("`{file}`: {source}")]
    Io { file: PathBuf, source: std::io::Error },
    #[error("`{file}` can be read by others (mode {mode:o}, group {group}); run `chmod 600` on it")]
    Readable { file: PathBuf, mode: u32, group: u32 },
    #[error("the environment variable `{0}` is missing or not text; set it to the secret")]
    Env(String),
}

/// The text of a secret; `make` gives that of one which is generated where its file is missing.
pub fn load(
    source: &SecretSource,
    data_dir: &Path,
    make: impl FnOnce() -> std::io::Result<String>,
) -> Result<String, SecretError> {
    match source {
        SecretSource::File(file) => read(file),
        SecretSource::Env(name) => std::env::var(name).map_err(|_| SecretError::Env(name.clone())),
        SecretSource::Generated(name) => read_or_make(&data_dir.join(name), make),
    }
}

/// Where it is, for messages.
pub fn place(source: &SecretSource, data_dir: &Path) -> String {
    match source {
        SecretSource::File(file) => format!("`{}`", file.display()),
        SecretSource::Env(name) => format!("the environment variable `{name}`"),
        SecretSource::Generated(name) => format!("`{}`", data_dir.join(name).display()),
    }
}

pub fn read(file: &Path) -> Result<String, SecretError> {
    let io = |source| SecretError::Io { file: file.to_owned(), source };
    // The mode is of what was opened, not of what the path names by then.
    let opened = File::open(file).map_err(io)?;
    let found = opened.metadata().map_err(io)?;
    let (mode, group) = (found.mode() & 0o777, found.gid());
    if !is_private(mode, || own_groups().contains(&group)) {
        return Err(SecretError::Readable { file: file.to_owned(), mode, group });
    }
    let mut text = String::new();
    opened.take(MAX_BYTES).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

/// Whether only this process's user may read it, or a group that is `ours` as well; others may not even look at it.
fn is_private(mode: u32, ours: impl FnOnce() -> bool) -> bool {
    mode & 0o077 == 0 || mode & 0o077 == 0o040 && ours()
}

/// Of this process, as the kernel tells; none where it does not.
fn own_groups() -> Vec<u32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace();
    // Of the first: real, effective, saved, of the file system.
    let (own, further) = (line("Gid:").nth(3), line("Groups:"));
    own.into_iter().chain(further).filter_map(|group| group.parse().ok()).collect()
}

/// Reads the file; where it is missing, it is made with what `make` gives.
pub fn read_or_make(file: &Path, make: impl FnOnce() -> std::io::Result<String>) -> Result<String, SecretError> {
    if !file.exists() {
        let text = make().map_err(|source| SecretError::Io { file: file.to_owned(), source })?;
        write_new(file, &text).map_err(|source| SecretError::Io { file: file.to_owned(), source })?;
    }
    read(file)
}

/// 32 random bytes as hex digits.
pub fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0u8; RANDOM_BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Written aside and linked into place.
fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    let aside = file.with_extension(format!("new-{}", std::process::id()));
    let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let done = writeln!(new, "{text}").and_then(|()| new.sync_all()).and_then(|()| std::fs::hard_link(&aside, file));
    std::fs::remove_file(&aside)?;
    match done {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done.and_then(|()| sync_folder(file)),
    }
}

fn sync_folder(file: &Path) -> std::io::Result<()> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
