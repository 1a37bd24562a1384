//! Secrets in files: made at first start with mode 0600, refused when others can read them.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::AppError;
use crate::auth::cache::Authenticator;
use crate::auth::pepper::Peppers;
use crate::config::SecretSource;
use crate::domain::KeyHash;

/// Fewer bytes than this can be guessed.
const MIN_SECRET_BYTES: usize = 32;

/// Makes the directory (mode 0700) where it is missing and proves that it can be written.
pub fn private_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let probe = dir.join(".write-probe");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

/// The file's text; made by `make` with mode 0600 when it is missing.
fn read_or_create(path: &Path, make: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            return Err(format!("`{}` can be read by others: chmod 600 it", path.display()));
        }
        Ok(_) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("`{}`: {e}", path.display()))?;
            return Ok(text.trim_end().to_owned());
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(format!("`{}`: {e}", path.display())),
    }
    let text = make()?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| format!("`{}`: {e}", path.display()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(|e| format!("`{}`: {e}", path.display()))?;
    Ok(text)
}

fn random_hex() -> Result<String, String> {
    let mut bytes = [0u8; MIN_SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
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
    let text =
        read_or_create(&data_dir.join("artifact.key"), random_hex).map_err(|e| AppError::setting("data_dir", e))?;
    text.parse::<crate::domain::Digest>().map(|d| d.0).map_err(|_| {
        AppError::setting("data_dir", "`artifact.key` is damaged: remove it, artifacts are then made anew")
    })
}

/// The token that the admin API always knows, in its file.
pub fn bootstrap_token(file: &Path, auth: &Authenticator) -> Result<KeyHash, AppError> {
    let make = || auth.mint_token().map(|minted| minted.secret).map_err(|e| e.to_string());
    let text = read_or_create(file, make).map_err(|e| AppError::setting("admin.token_file", e))?;
    if text.len() < MIN_SECRET_BYTES {
        let message =
            format!("`{}` holds fewer than {MIN_SECRET_BYTES} characters: remove it to get a new one", file.display());
        return Err(AppError::setting("admin.token_file", message));
    }
    Ok(auth.hash_token(&text))
}
