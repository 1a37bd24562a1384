//! Raw configuration to [`Config`], collecting every error.

use std::path::Path;

use super::Config;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `routes[2].target.upstream`.
    pub key: String,
    /// 1-based; 0 when unknown.
    pub line: usize,
    /// The value, what is allowed, and a did-you-mean where one is near.
    pub message: String,
}

/// Everything that is wrong with a file, in line order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} error(s) in the configuration", .errors.len())]
pub struct ConfigErrors {
    pub file: String,
    pub errors: Vec<ConfigError>,
}

pub fn load_file(_path: &Path) -> Result<Config, ConfigErrors> {
    unimplemented!()
}

/// `file` is only for messages; relative paths in the text are taken from `base`.
pub fn parse(_text: &str, _file: &str, _base: &Path) -> Result<Config, ConfigErrors> {
    unimplemented!()
}
