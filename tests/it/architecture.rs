//! The shape of the source: imports point one way, and each runtime is named in its own place only.
//!
//! Invariant: domain <- config, store <- auth, limit, engine <- gateway <- app <- api, cli.

use std::path::{Path, PathBuf};

/// Layers from the lowest to the highest; a file may use its own layer and lower ones.
const LAYERS: [&[&str]; 6] = [
    &["domain"],
    &["config", "store"],
    &["auth", "limit", "engine", "telemetry"],
    &["gateway"],
    &["app"],
    &["api", "cli"],
];

/// A crate, and the places under `src/` that may name it.
const PLACES: [(&str, &[&str]); 5] = [
    ("wasmer", &["engine/"]),
    ("redb", &["store/embedded"]),
    ("redis", &["store/redis"]),
    ("pingora", &["gateway/", "app.rs", "cli/serve"]),
    ("axum", &["api/", "cli/quickstart"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src/ is readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                files.push((path.strip_prefix(&root).expect("it is below").to_owned(), text));
            }
        }
    }
    assert!(files.len() > 10, "{files:?}");
    files
}

/// The code of a line, without comments.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top-level modules that a line's `crate::` paths name, also in `use crate::{a, b}`.
fn used(line: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let whole = line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let names = rest.strip_prefix('{').unwrap_or(rest).split(',').take(if rest.starts_with('{') { 99 } else { 1 });
        let first =
            |name: &str| name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        modules.extend(names.map(first).filter(|name| !whole && !name.is_empty()));
    }
    modules
}

#[test]
fn imports_point_one_way() {
    let mut back = Vec::new();
    for (path, text) in sources() {
        let own = path.iter().next().and_then(|p| p.to_str()).unwrap_or_default().trim_end_matches(".rs");
        let Some(own) = layer(own) else { continue };
        for (number, line) in text.lines().enumerate() {
            for module in used(code(line)) {
                if layer(&module).is_some_and(|theirs| theirs > own) {
                    back.push(format!("src/{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(back.is_empty(), "imports that run back:\n{}", back.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let known = |name: &str| layer(name).is_some() || ["lib", "main"].contains(&name);
    for (path, _) in sources() {
        let top = path.iter().next().and_then(|p| p.to_str()).unwrap_or_default().trim_end_matches(".rs");
        assert!(known(top), "src/{}: give `{top}` a layer in this test and in ARCHITECTURE.md", path.display());
    }
}

#[test]
fn runtimes_are_named_in_their_places_only() {
    let mut strays = Vec::new();
    for (path, text) in sources() {
        let place = path.to_string_lossy();
        for (name, allowed) in PLACES {
            if allowed.iter().any(|a| place.starts_with(a)) {
                continue;
            }
            let named = |line: &str| {
                let uses = [format!("{name}::"), format!("{name}_")];
                let starts = |at: usize| at == 0 || !line.as_bytes()[at - 1].is_ascii_alphanumeric();
                // Our own modules may have a crate's name.
                let ours = |at: usize| line[..at].ends_with("wasm_") || line[..at].ends_with("store::");
                uses.iter().any(|u| line.match_indices(u.as_str()).any(|(at, _)| starts(at) && !ours(at)))
            };
            strays.extend(
                text.lines()
                    .enumerate()
                    .filter(|(_, l)| named(code(l)))
                    .map(|(n, l)| format!("src/{place}:{}: {}", n + 1, l.trim())),
            );
        }
    }
    assert!(strays.is_empty(), "named outside their places:\n{}", strays.join("\n"));
}

#[test]
fn files_open_with_what_they_own() {
    for (path, text) in sources() {
        assert!(
            text.starts_with("//!") || path.ends_with("main.rs"),
            "src/{} does not say what it owns",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    let marks = ["todo!", "unimplemented!", "FIXME", "XXX"];
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            assert!(!marks.iter().any(|m| line.contains(m)), "src/{}:{}: {}", path.display(), number + 1, line.trim());
        }
    }
}
