//! Files that settings name, and what becomes of looking at them.
//!
//! Invariant: reading a configuration opens none of them by itself. Who knows what they have to hold hands in a [`Look`],
//! and what it finds is reported with the setting's key and line.

use std::path::PathBuf;

use super::Tls;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileUse {
    Certificate(PathBuf),
    PrivateKey(PathBuf),
    /// Both of a listener: whether they belong together.
    KeyPair(Tls),
    Authorities(PathBuf),
    Pepper(PathBuf),
    /// A password: any text.
    Secret(PathBuf),
    /// 32 bytes as hex digits.
    RecordKey(PathBuf),
    /// Made at start when it is missing; `data_dir` is made as well.
    AdminToken {
        file: PathBuf,
        data_dir: PathBuf,
    },
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Error(String),
    /// The gateway would run with it.
    Warning(String),
}

pub type Look = fn(&FileUse) -> Result<(), Finding>;

/// Looks at nothing: for text whose files are elsewhere.
pub fn unseen(_: &FileUse) -> Result<(), Finding> {
    Ok(())
}
