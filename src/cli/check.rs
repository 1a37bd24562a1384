//! `wasmgate check`: every error of a configuration file and of the files that it names.

use std::path::Path;
use std::process::ExitCode;

use super::{Outcome, output};
use crate::app::files;

/// What `serve` would only warn of is an error here: who checks wants to know.
pub(super) fn run(file: &Path, json: bool) -> Outcome {
    let errors = match files::load(file) {
        Ok(config) => config.warnings,
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
            output::line(&error.in_file(&file.display().to_string()))?;
        }
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
