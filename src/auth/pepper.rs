//! The peppers: server secrets under which keys are hashed, kept out of the store.
//!
//! Invariant: a pepper that others on the machine may read, or that is too weak, is refused before a key is hashed with
//! it. The text never appears in an error or in `Debug`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::SecretSource;

/// Bytes of a pepper.
const MIN_BYTES: usize = 32;
/// Different bytes a pepper has at least; a phrase or a repeated byte is none.
const MIN_DISTINCT: usize = 8;
/// Bytes of a pepper file.
const MAX_FILE: u64 = 16 << 10;

/// Peppers by id; new keys use the highest.
#[derive(Clone)]
pub struct Peppers(pub Vec<(u32, Vec<u8>)>);

#[derive(Debug, thiserror::Error)]
pub enum PepperError {
    #[error("`{file}`: {source}")]
    Io { file: PathBuf, source: std::io::Error },
    #[error("`{file}` can be read by others (mode {mode:o}); run `chmod 600` on it")]
    Readable { file: PathBuf, mode: u32 },
    #[error("the environment variable `{0}` is missing or not text; set it to the pepper")]
    Env(String),
    #[error("{source_name}: {problem}; use a line such as `openssl rand -hex 32` prints")]
    Weak { source_name: String, problem: &'static str },
}

impl Peppers {
    /// A pepper a line: `ID:SECRET`, or the secret alone, which has id 1. The highest id is used for new keys; older
    /// ones stay as long as keys made with them live. `Generated` makes the file in `data_dir` when it is missing.
    pub fn load(source: &SecretSource, data_dir: &Path) -> Result<Self, PepperError> {
        match source {
            SecretSource::File(file) => Self::parse(&read(file)?, &format!("`{}`", file.display())),
            SecretSource::Env(name) => {
                let text = std::env::var(name).map_err(|_| PepperError::Env(name.clone()))?;
                Self::parse(&text, &format!("the environment variable `{name}`"))
            }
            SecretSource::Generated(name) => {
                let file = data_dir.join(name);
                if !file.exists() {
                    make(&file, data_dir).map_err(|source| PepperError::Io { file: file.clone(), source })?;
                }
                Self::parse(&read(&file)?, &format!("`{}`", file.display()))
            }
        }
    }

    fn parse(text: &str, source_name: &str) -> Result<Self, PepperError> {
        let weak = |problem| PepperError::Weak { source_name: source_name.to_owned(), problem };
        let mut peppers: Vec<(u32, Vec<u8>)> = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (id, secret) = match line.split_once(':').map(|(id, s)| (id.parse::<u32>(), s)) {
                Some((Ok(id), secret)) => (id, secret.trim()),
                _ => (1, line),
            };
            if secret.len() < MIN_BYTES {
                return Err(weak("a pepper has fewer than 32 bytes"));
            }
            let mut bytes = secret.as_bytes().to_vec();
            bytes.sort_unstable();
            bytes.dedup();
            if bytes.len() < MIN_DISTINCT {
                return Err(weak("a pepper has fewer than 8 different characters"));
            }
            if peppers.iter().any(|(other, _)| *other == id) {
                return Err(weak("two peppers have the same id"));
            }
            peppers.push((id, secret.as_bytes().to_vec()));
        }
        if peppers.is_empty() {
            return Err(weak("there is no pepper"));
        }
        Ok(Self(peppers))
    }
}

fn read(file: &Path) -> Result<String, PepperError> {
    let io = |source| PepperError::Io { file: file.to_owned(), source };
    // The mode is of what was opened, not of what the path names by then.
    let opened = File::open(file).map_err(io)?;
    let mode = opened.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PepperError::Readable { file: file.to_owned(), mode });
    }
    let mut text = String::new();
    opened.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

/// Written aside and linked into place, so that the file is whole or missing, and of two processes one wins.
fn make(file: &Path, dir: &Path) -> std::io::Result<()> {
    let mut bytes = [0u8; MIN_BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    let text = bytes.iter().fold(String::from("1:"), |text, b| format!("{text}{b:02x}"));
    let aside = file.with_extension(format!("new-{}", std::process::id()));
    let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let done = writeln!(new, "{text}").and_then(|()| new.sync_all()).and_then(|()| std::fs::hard_link(&aside, file));
    std::fs::remove_file(&aside)?;
    match done {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done.and_then(|()| File::open(dir)?.sync_all()),
    }
}
