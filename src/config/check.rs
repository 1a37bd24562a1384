//! From a file's text to [`Config`], with everything that is wrong with it.
//!
//! Invariant: either a whole valid configuration comes out or all its errors do, in line order.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use toml::de::DeTable;

use super::files::{Look, unseen};
use super::raw::{At, Doc, Table};
use super::{Config, PushedPart, RoutesFrom, routes, sections, store, upstreams};
use crate::domain::{Digest, Tier};

/// What of a configuration is pushed, and what is not.
const COMMON: [&str; 3] = ["tiers", "upstreams", "routes"];
const OWN: [&str; 7] = ["data_dir", "server", "admin", "auth", "log", "store", "engine"];
/// Bound of a configuration file.
const MAX_FILE: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `routes[2].target.upstream`; empty when it is about the whole file.
    pub key: String,
    /// 1-based; 0 when unknown.
    pub line: usize,
    /// The value, what is allowed, and a did-you-mean where one is near.
    pub message: String,
}

/// Everything that is wrong with a file, in line order; shown one a line as `FILE:LINE: KEY: MESSAGE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub file: String,
    pub errors: Vec<ConfigError>,
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.errors.iter().map(|error| error.in_file(&self.file)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl ConfigError {
    /// `FILE:LINE: KEY: MESSAGE`, as editors jump to: one line, whatever a value holds.
    pub fn in_file(&self, file: &str) -> String {
        let mut line = file.to_owned();
        if self.line > 0 {
            line.push_str(&format!(":{}", self.line));
        }
        if !self.key.is_empty() {
            line.push_str(&format!(": {}", self.key));
        }
        line.push_str(": ");
        for c in self.message.chars() {
            if c.is_control() { line.extend(c.escape_debug()) } else { line.push(c) }
        }
        line
    }
}

pub(super) fn in_line_order(errors: &mut [ConfigError]) {
    errors.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
}

pub fn load_file(path: &Path, look: Look) -> Result<Config, ConfigErrors> {
    let file = path.display().to_string();
    let fail = |message: String| ConfigErrors {
        file: file.clone(),
        errors: vec![ConfigError { key: String::new(), line: 0, message }],
    };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(e) => return Err(fail(format!("the configuration can't be read: {e}"))),
        Ok(n) if n as u64 > MAX_FILE => return Err(fail(format!("the file is over the limit of {MAX_FILE} bytes"))),
        Ok(_) => {}
    }
    // Absolute, so that a later change of the working directory (a daemon, a reload) changes no path.
    let path = std::path::absolute(path).map_err(|e| fail(format!("the file's folder can't be found: {e}")))?;
    check(&text, &file, path.parent().unwrap_or(Path::new("/")), look)
}

/// As [`check`], without a look at the files that the text names.
pub fn parse(text: &str, file: &str, base: &Path) -> Result<Config, ConfigErrors> {
    check(text, file, base, unseen)
}

/// `file` is only for messages; relative paths in the text are taken from `base`.
pub fn check(text: &str, file: &str, base: &Path, look: Look) -> Result<Config, ConfigErrors> {
    let (config, warnings) = read_whole(Doc::new(text), text, file, look, |t| read(t, base))?;
    Ok(Config { warnings, digest: Digest::of(text.as_bytes()), ..config })
}

/// As [`check`], of a text that is pushed: what a fleet has in common, and nothing of one gateway's own.
pub fn pushed_part(text: &str, file: &str, base: &Path, look: Look) -> Result<PushedPart, ConfigErrors> {
    let (part, warnings) = read_whole(Doc::pushed(text), text, file, look, |t| {
        for key in OWN {
            t.refuse(key, "is each gateway's own: keep it in the gateway's configuration file");
        }
        PushedPart {
            tiers: sections::tiers(t),
            upstreams: upstreams::upstreams(t, base),
            routes: routes::routes(t, base),
            warnings: Vec::new(),
        }
    })?;
    Ok(PushedPart { warnings, ..part })
}

/// What `read` makes of the text, and the warnings.
fn read_whole<T>(
    doc: Doc,
    text: &str,
    file: &str,
    look: Look,
    read: impl FnOnce(&Table<'_>) -> T,
) -> Result<(T, Vec<ConfigError>), ConfigErrors> {
    let (tree, syntax) = DeTable::parse_recoverable(text);
    let (config, (mut errors, warnings)) = if syntax.is_empty() {
        let root = At { key: String::new(), line: 0 };
        let config = Table::read(&doc, root, Some(tree.get_ref()), read);
        (Some(config), doc.finish(look))
    } else {
        // What a broken file seems to hold is not worth checking: most of it would be after-effects.
        for error in syntax {
            let before = error.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let at = At { key: String::new(), line: doc.line(before.len()) };
            doc.error(&at, format!("column {column}: {}", error.message().replace('\n', " ")));
        }
        (None, doc.finish(look))
    };
    match config {
        Some(config) if errors.is_empty() => Ok((config, warnings)),
        _ => {
            errors.extend(warnings);
            in_line_order(&mut errors);
            Err(ConfigErrors { file: file.to_owned(), errors })
        }
    }
}

fn read(t: &Table<'_>, base: &Path) -> Config {
    let data_dir = t.get("data_dir", base.join("data"), sections::file(base));
    let server = t.section("server", |t| sections::server(t, base));
    let admin = t.section("admin", |t| sections::admin(t, base, &data_dir));
    let store = t.section("store", |t| store::store(t, base));
    let is_pushed = store.routes == RoutesFrom::Store;
    for key in COMMON.into_iter().filter(|_| is_pushed) {
        t.refuse(key, "is in the store (`store.routes`): push it with `wasmgate routes push`, and remove it here");
    }
    Config {
        auth: t.section("auth", |t| sections::auth(t, base)),
        log: t.section("log", sections::log),
        engine: t.section("engine", sections::engine),
        tiers: if is_pushed { Tier::defaults() } else { sections::tiers(t) },
        upstreams: if is_pushed { Vec::new() } else { upstreams::upstreams(t, base) },
        routes: if is_pushed { Vec::new() } else { routes::routes(t, base) },
        server,
        admin,
        store,
        data_dir,
        warnings: Vec::new(),
        digest: Digest::of(&[]),
        pushed: None,
    }
}

/// Every key a file may have, such as `routes[].match.path`; from the reader itself, so that documentation can be
/// checked against it.
pub fn known_keys() -> Vec<String> {
    let doc = Doc::survey();
    let root = At { key: String::new(), line: 0 };
    Table::read(&doc, root, None, |t| read(t, Path::new("")));
    let mut keys = doc.surveyed();
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| seen.insert(key.clone()));
    keys
}
