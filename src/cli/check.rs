//! `wasmgate check`: every error of a configuration file.

use std::path::Path;
use std::process::ExitCode;

use super::{Outcome, output};
use crate::config;

pub(super) fn run(file: &Path, json: bool) -> Outcome {
    let errors = match config::load_file(file) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.errors,
    };
    if json {
        let list: Vec<_> =
            errors.iter().map(|e| serde_json::json!({"key": e.key, "line": e.line, "message": e.message})).collect();
        output::json(&serde_json::json!({"ok": errors.is_empty(), "errors": list}))?;
    } else if errors.is_empty() {
        output::line("ok")?;
    } else {
        for error in &errors {
            output::line(&render(file, error))?;
        }
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// `file:line: key: message`, as editors jump to.
fn render(file: &Path, error: &config::ConfigError) -> String {
    let mut text = file.display().to_string();
    if error.line > 0 {
        text.push_str(&format!(":{}", error.line));
    }
    if !error.key.is_empty() {
        text.push_str(&format!(": {}", error.key));
    }
    format!("{text}: {}", error.message)
}
