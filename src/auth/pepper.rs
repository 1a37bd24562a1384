//! The peppers: server secrets under which keys are hashed, kept out of the store.
//!
//! Invariant: a pepper that others on the machine may read, or that is too weak, is refused before a key is hashed with
//! it. The text never appears in an error or in `Debug`.

use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret_file::{self, SecretError};
use crate::config::SecretSource;

/// Bytes of a pepper.
const MIN_BYTES: usize = 32;
/// Different bytes a pepper has at least; a phrase or a repeated byte is none.
const MIN_DISTINCT: usize = 8;

/// Peppers by id; new keys use the highest.
#[derive(Clone)]
pub struct Peppers(pub Vec<(u32, Vec<u8>)>);

#[derive(Debug, thiserror::Error)]
pub enum PepperError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{source_name}: {problem}; use a line such as `openssl rand -hex 32` prints")]
    Weak { source_name: String, problem: &'static str },
}

impl Peppers {
    /// A pepper a line: `ID:SECRET`, or the secret alone, which has id 1. The highest id is used for new keys; older
    /// ones stay as long as keys made with them live. `Generated` makes the file in `data_dir` when it is missing.
    pub fn load(source: &SecretSource, data_dir: &Path) -> Result<Self, PepperError> {
        let text = secret_file::load(source, data_dir, || Ok(format!("1:{}", secret_file::random_hex()?)))?;
        Self::parse(&text, &secret_file::place(source, data_dir))
    }

    /// What tells one pepper from another and nothing else of it, newest first.
    pub fn fingerprints(&self) -> Vec<String> {
        let mut peppers: Vec<_> = self.0.iter().collect();
        peppers.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let fingerprint = |(_, pepper): &(u32, Vec<u8>)| {
            let mut mac = Hmac::<Sha256>::new_from_slice(pepper).expect("HMAC takes keys of any length");
            mac.update(b"wasmgate fingerprint of the pepper");
            mac.finalize().into_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        peppers.into_iter().map(fingerprint).collect()
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
