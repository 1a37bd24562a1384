//! The secrets of a data directory.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::AppError;
use crate::auth::cache::Authenticator;
use crate::auth::pepper::Peppers;
use crate::auth::secret_file;
use crate::config::SecretSource;
use crate::domain::{Digest, KeyHash, Timestamp};

/// Fewer characters than this can be guessed.
const MIN_TOKEN_BYTES: usize = 32;

/// Makes the directory (mode 0700) where it is missing and proves that it can be written.
pub fn private_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let probe = dir.join(".write-probe");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

pub fn peppers(source: &SecretSource, data_dir: &Path) -> Result<Peppers, AppError> {
    let key = match source {
        SecretSource::Env(_) => "auth.pepper_env",
        SecretSource::File(_) | SecretSource::Generated(_) => "auth.pepper_file",
    };
    Peppers::load(source, data_dir).map_err(|e| AppError::setting(key, e))
}

/// The key under which artifacts on this disk are authenticated. Local to this gateway.
pub fn artifact_key(data_dir: &Path) -> Result<[u8; 32], AppError> {
    key(&SecretSource::Generated("artifact.key"), data_dir, "remove it, artifacts are then made anew")
        .map_err(|e| AppError::setting("data_dir", e))
}

/// The key under which records in a shared store are authenticated.
pub fn record_key(source: &SecretSource, data_dir: &Path) -> Result<[u8; 32], String> {
    key(source, data_dir, "use the fleet's, or for a new one what `openssl rand -hex 32` prints")
}

/// 32 bytes as hex digits.
fn key(source: &SecretSource, data_dir: &Path, advice: &str) -> Result<[u8; 32], String> {
    let text = secret_file::load(source, data_dir, secret_file::random_hex).map_err(|e| e.to_string())?;
    let bytes = text.trim_end().parse::<Digest>().map(|d| d.0);
    bytes.map_err(|_| format!("{} does not hold 64 hex digits: {advice}", secret_file::place(source, data_dir)))
}

/// The token that the admin API always knows.
pub struct BootstrapToken {
    /// Of its text, which is in its file alone.
    pub hash: KeyHash,
    pub file: PathBuf,
    /// When the file was made.
    pub since: Timestamp,
}

pub fn bootstrap_token(file: &Path, auth: &Authenticator) -> Result<BootstrapToken, AppError> {
    const KEY: &str = "admin.token_file";
    let make = || auth.mint_token().map(|minted| minted.secret).map_err(std::io::Error::other);
    let text = secret_file::read_or_make(file, make).map_err(|e| AppError::setting(KEY, e))?;
    check_token(&text, file).map_err(|e| AppError::setting(KEY, e))?;
    let modified = std::fs::metadata(file).and_then(|m| m.modified()).ok();
    let age = modified.and_then(|at| at.elapsed().ok()).unwrap_or_default();
    let millis = i64::try_from(age.as_millis()).unwrap_or_default();
    let now = Timestamp::now();
    let since = Timestamp::from_unix_millis(now.unix_millis().saturating_sub(millis)).unwrap_or(now);
    Ok(BootstrapToken { hash: auth.hash_token(text.trim_end()), file: file.to_owned(), since })
}

pub fn check_token(text: &str, file: &Path) -> Result<(), String> {
    if text.trim_end().len() >= MIN_TOKEN_BYTES {
        return Ok(());
    }
    Err(format!("`{}` holds fewer than {MIN_TOKEN_BYTES} characters: remove it to get a new one", file.display()))
}
