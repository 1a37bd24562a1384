//! What the files have to hold that a configuration names; `check`, `serve` and a reload look at them here.
//!
//! Invariant: what passes here, the start finds usable, unless the file changes in between.

use std::path::Path;

use super::secrets;
use crate::auth::pepper::Peppers;
use crate::auth::secret_file;
use crate::config::{self, Config, ConfigErrors, FileUse, Finding, SecretSource};
use crate::domain::Timestamp;
use crate::gateway::pem;

/// Reads a configuration and looks at the files that it names.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    config::load_file(path, look)
}

pub fn look(file: &FileUse) -> Result<(), Finding> {
    let outdated = |file: &Path| match pem::validity(file, Timestamp::now()) {
        Ok(None) => Ok(()),
        Ok(Some(warning)) => Err(Finding::Warning(warning)),
        Err(error) => Err(Finding::Error(error)),
    };
    match file {
        FileUse::Certificate(file) => outdated(file),
        FileUse::PrivateKey(file) => pem::private_key(file).map_err(Finding::Error),
        // What is wrong with one of the two is said of it alone.
        FileUse::KeyPair(tls) if pem::validity(&tls.cert_file, Timestamp::now()).is_err() => Ok(()),
        FileUse::KeyPair(tls) if pem::private_key(&tls.key_file).is_err() => Ok(()),
        FileUse::KeyPair(tls) => pem::server_config(tls).map(drop).map_err(Finding::Error),
        FileUse::Authorities(file) => {
            pem::authorities(file).map_err(Finding::Error)?;
            outdated(file)
        }
        FileUse::Pepper(file) => Peppers::load(&SecretSource::File(file.clone()), Path::new(""))
            .map(drop)
            .map_err(|e| Finding::Error(e.to_string())),
        FileUse::Secret(file) => secret_file::read(file).map(drop).map_err(|e| Finding::Error(e.to_string())),
        FileUse::RecordKey(file) => {
            secrets::record_key(&SecretSource::File(file.clone()), Path::new("")).map(drop).map_err(Finding::Error)
        }
        FileUse::AdminToken { file, data_dir } => admin_token(file, data_dir).map_err(Finding::Error),
    }
}

fn admin_token(file: &Path, data_dir: &Path) -> Result<(), String> {
    if file.exists() {
        let text = secret_file::read(file).map_err(|e| e.to_string())?;
        return secrets::check_token(&text, file);
    }
    match file.parent() {
        Some(folder) if !folder.starts_with(data_dir) && !folder.is_dir() => {
            Err(format!("`{}` can't be made: its folder does not exist", file.display()))
        }
        _ => Ok(()),
    }
}
