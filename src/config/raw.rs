//! The configuration file as a tree with positions, read key by key into typed values.
//!
//! Invariant: reading never stops at an error. Whatever is wrong is recorded with its key path and line, the reader
//! goes on with a default, and a key that nobody asked for is reported when its table closes. In survey mode an empty
//! tree is walked through every section instead, which yields the list of all keys.

use std::cell::RefCell;
use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::check::{ConfigError, in_line_order};
use super::files::{FileUse, Finding, Look};
use super::units::{nearest, type_of};

/// A position in the file, as messages name it.
#[derive(Clone, Debug)]
pub struct At {
    /// `routes[2].target.upstream`; empty for the whole file.
    pub key: String,
    /// 1-based; 0 when unknown.
    pub line: usize,
}

/// What can be defined in one place of the file and referred to in others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Upstream,
    Tier,
    Route,
    Address,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Upstream => "an upstream",
            Kind::Tier => "a tier",
            Kind::Route => "a route",
            Kind::Address => "a listening address",
        }
    }
}

#[derive(Default)]
struct State {
    errors: Vec<ConfigError>,
    keys: Vec<String>,
    defined: BTreeMap<(Kind, String), At>,
    referred: Vec<(Kind, String, At)>,
    files: Vec<(FileUse, At)>,
}

/// One file being read.
pub struct Doc {
    newlines: Vec<usize>,
    survey: bool,
    /// Sent by somebody who may have no files here.
    pub is_pushed: bool,
    state: RefCell<State>,
}

impl Doc {
    pub fn new(text: &str) -> Self {
        Self {
            newlines: text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i).collect(),
            survey: false,
            is_pushed: false,
            state: RefCell::default(),
        }
    }

    pub fn pushed(text: &str) -> Self {
        Self { is_pushed: true, ..Self::new(text) }
    }

    pub fn survey() -> Self {
        Self { survey: true, ..Self::new("") }
    }

    /// 1-based line of an offset in the text.
    pub fn line(&self, offset: usize) -> usize {
        self.newlines.partition_point(|n| *n < offset) + 1
    }

    pub fn error(&self, at: &At, message: impl Into<String>) {
        let error = ConfigError { key: at.key.clone(), line: at.line, message: message.into() };
        self.state.borrow_mut().errors.push(error);
    }

    /// Notes that `name` exists; an error when it exists already.
    pub fn define(&self, kind: Kind, name: &str, at: &At) {
        let earlier = self.state.borrow_mut().defined.insert((kind, name.to_owned()), at.clone());
        if let Some(earlier) = earlier {
            let (noun, key) = (kind.noun(), &earlier.key);
            let place = if earlier.line > 0 { format!("in line {}", earlier.line) } else { "by default".into() };
            self.error(at, format!("`{name}` is already {noun}: `{key}` {place}; use another"));
        }
    }

    /// Whether something was wrong at a key or below it, so that checks of what was read there would mislead.
    pub fn failed(&self, key: &str) -> bool {
        let below =
            |e: &ConfigError| e.key.strip_prefix(key).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']));
        self.state.borrow().errors.iter().any(below)
    }

    /// A name that exists without the file's doing.
    pub fn define_builtin(&self, kind: Kind, name: &str) {
        self.state.borrow_mut().defined.insert((kind, name.to_owned()), At { key: String::new(), line: 0 });
    }

    /// Notes a use of `name`, looked up when the whole file is read.
    pub fn refer(&self, kind: Kind, name: &str, at: &At) {
        self.state.borrow_mut().referred.push((kind, name.to_owned(), at.clone()));
    }

    /// Notes a file that a setting names, looked at when the whole configuration is read.
    pub fn names_file(&self, file: FileUse, at: At) {
        self.state.borrow_mut().files.push((file, at));
    }

    /// Resolves the references and looks at the files; all errors, and all warnings, in line order.
    pub fn finish(self, look: Look) -> (Vec<ConfigError>, Vec<ConfigError>) {
        let files = std::mem::take(&mut self.state.borrow_mut().files);
        let mut warnings = Vec::new();
        for (file, at) in files.into_iter().filter(|(_, at)| !self.failed(&at.key)) {
            match look(&file) {
                Ok(()) => {}
                Err(Finding::Error(message)) => self.error(&at, message),
                Err(Finding::Warning(message)) => {
                    warnings.push(ConfigError { key: at.key, line: at.line, message });
                }
            }
        }
        let State { mut errors, defined, referred, .. } = self.state.into_inner();
        for (kind, name, at) in referred {
            if defined.contains_key(&(kind, name.clone())) {
                continue;
            }
            let known: Vec<&str> = defined.keys().filter(|(k, _)| *k == kind).map(|(_, n)| n.as_str()).collect();
            let hint = match (nearest(&name, known.iter().copied()), known.is_empty()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, true) => "the file has none".into(),
                (None, false) => format!("use `{}`", known.join("`, `")),
            };
            let message = format!("`{name}` is not {}; {hint}", kind.noun());
            errors.push(ConfigError { key: at.key, line: at.line, message });
        }
        for list in [&mut errors, &mut warnings] {
            in_line_order(list);
            list.dedup();
        }
        (errors, warnings)
    }

    /// Every key asked for, in the order of the file's documentation.
    pub fn surveyed(self) -> Vec<String> {
        self.state.into_inner().keys
    }
}

/// A value with its position.
pub struct Item<'a> {
    pub doc: &'a Doc,
    pub at: At,
    pub value: &'a DeValue<'a>,
}

impl<'a> Item<'a> {
    pub fn read<T>(&self, parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>) -> Option<T> {
        parse(self.value).map_err(|message| self.doc.error(&self.at, message)).ok()
    }

    /// As a table, for `read`; an error when it is something else.
    pub fn table<T>(&self, read: impl FnOnce(&Table<'a>) -> T) -> Option<T> {
        let DeValue::Table(entries) = self.value else {
            self.doc.error(&self.at, format!("expected a table, found {}", type_of(self.value)));
            return None;
        };
        Some(Table::read(self.doc, self.at.clone(), Some(entries), read))
    }

    /// The elements; an error when it is no array.
    pub fn elements(&self) -> Vec<Item<'a>> {
        let DeValue::Array(items) = self.value else {
            self.doc.error(&self.at, format!("expected an array, found {}", type_of(self.value)));
            return Vec::new();
        };
        let element = |(i, item): (usize, &'a toml::Spanned<DeValue<'a>>)| Item {
            doc: self.doc,
            at: At { key: format!("{}[{i}]", self.at.key), line: self.doc.line(item.span().start) },
            value: item.get_ref(),
        };
        items.iter().enumerate().map(element).collect()
    }

    /// The entries of a table whose keys are free; an error when it is no table.
    pub fn entries(&self) -> Vec<(&'a str, Item<'a>)> {
        let DeValue::Table(entries) = self.value else {
            self.doc.error(&self.at, format!("expected a table, found {}", type_of(self.value)));
            return Vec::new();
        };
        let entry = |(key, item): (&'a toml::Spanned<toml::de::DeString<'a>>, &'a toml::Spanned<DeValue<'a>>)| {
            let at = At { key: join(&self.at.key, &quoted(key.get_ref())), line: self.doc.line(key.span().start) };
            (key.get_ref().as_ref(), Item { doc: self.doc, at, value: item.get_ref() })
        };
        entries.iter().map(entry).collect()
    }
}

/// A table being read: every key is asked for by name, once, with its parser.
pub struct Table<'a> {
    pub doc: &'a Doc,
    pub at: At,
    /// `None`: the file has no such table, every key takes its default.
    entries: Option<&'a DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// Hands the table to `read`, then reports the keys that it did not ask for.
    pub fn read<T>(doc: &'a Doc, at: At, entries: Option<&'a DeTable<'a>>, read: impl FnOnce(&Table<'a>) -> T) -> T {
        let table = Table { doc, at, entries, known: RefCell::default() };
        let value = read(&table);
        table.close();
        value
    }

    fn close(self) {
        let known = self.known.into_inner();
        for (key, _) in self.entries.into_iter().flat_map(DeTable::iter) {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let at = At { key: join(&self.at.key, &quoted(name)), line: self.doc.line(key.span().start) };
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use `{}`", known.join("`, `")),
            };
            self.doc.error(&at, format!("`{name}` is not a key here; {hint}"));
        }
    }

    /// A key of this table, whether it is there or not.
    pub fn at(&self, key: &str) -> At {
        let span = self.entries.and_then(|e| e.get_key_value(key)).map(|(k, _)| k.span());
        let line = span.map_or(self.at.line, |s| self.doc.line(s.start));
        At { key: join(&self.at.key, key), line }
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|e| e.contains_key(key))
    }

    pub fn error(&self, key: &str, message: impl Into<String>) {
        self.doc.error(&self.at(key), message);
    }

    /// The value of a key, which is thereby known.
    pub fn item(&self, key: &'static str) -> Option<Item<'a>> {
        self.known.borrow_mut().push(key);
        if self.doc.survey {
            self.doc.state.borrow_mut().keys.push(join(&self.at.key, key));
        }
        let (_, value) = self.entries?.get_key_value(key)?;
        Some(Item { doc: self.doc, at: self.at(key), value: value.get_ref() })
    }

    /// A key that is known only to be refused, with the reason. The value is not shown: it may be a secret.
    pub fn refuse(&self, key: &'static str, reason: &str) {
        if self.has(key) {
            self.known.borrow_mut().push(key);
            self.error(key, reason);
        }
    }

    pub fn opt<T>(&self, key: &'static str, parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>) -> Option<T> {
        self.item(key)?.read(parse)
    }

    pub fn get<T>(&self, key: &'static str, default: T, parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>) -> T {
        self.opt(key, parse).unwrap_or(default)
    }

    /// A key without a default; `None` after an error.
    pub fn need<T>(&self, key: &'static str, parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>) -> Option<T> {
        match self.item(key) {
            Some(item) => item.read(parse),
            None => {
                self.doc.error(&self.at, format!("`{key}` is missing"));
                None
            }
        }
    }

    /// An array; elements that do not parse are reported and left out.
    pub fn list<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Result<T, String>) -> Vec<T> {
        let Some(item) = self.item(key) else { return Vec::new() };
        item.elements().iter().filter_map(|e| e.read(&parse)).collect()
    }

    /// The entries of a table whose keys are free, such as header names.
    pub fn entries(&self, key: &'static str) -> Vec<(&'a str, Item<'a>)> {
        self.item(key).map(|i| i.entries()).unwrap_or_default()
    }

    /// A table that always counts as there.
    pub fn section<T>(&self, key: &'static str, read: impl Fn(&Table<'a>) -> T) -> T {
        let present = self.item(key).and_then(|item| item.table(&read));
        present.unwrap_or_else(|| Table::read(self.doc, self.at(key), None, &read))
    }

    /// A table that means something by being there.
    pub fn opt_section<T>(&self, key: &'static str, read: impl FnOnce(&Table<'a>) -> T) -> Option<T> {
        match self.item(key) {
            Some(item) => item.table(read),
            None if self.doc.survey => Some(Table::read(self.doc, self.at(key), None, read)),
            None => None,
        }
    }

    /// `[[key]]`, an array of tables; `None` when the file has none.
    pub fn sections<T>(&self, key: &'static str, read: impl Fn(&Table<'a>) -> Option<T>) -> Option<Vec<T>> {
        if self.doc.survey {
            self.survey_below(key, "[]", |table| read(table));
        }
        let item = self.item(key)?;
        Some(item.elements().iter().filter_map(|e| e.table(&read).flatten()).collect())
    }

    /// Walks what lies below one element of `key` (survey mode).
    pub fn survey_below<T>(&self, key: &str, element: &str, read: impl FnOnce(&Table<'a>) -> T) {
        if self.doc.survey {
            let at = At { key: format!("{}{element}", join(&self.at.key, key)), line: 0 };
            Table::read(self.doc, at, None, read);
        }
    }

    /// Exactly one of `keys`; an error naming them when there are none or several. `None` after an error.
    pub fn exactly_one(&self, keys: &[&'static str]) -> Option<&'static str> {
        let present: Vec<&'static str> = keys.iter().copied().filter(|key| self.has(key)).collect();
        match present.as_slice() {
            [one] => Some(one),
            [] => {
                self.doc.error(&self.at, format!("one of `{}` is missing", keys.join("`, `")));
                None
            }
            several => {
                self.doc.error(&self.at, format!("`{}` exclude each other; keep one", several.join("` and `")));
                None
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A key as TOML wants it written.
fn quoted(key: &str) -> std::borrow::Cow<'_, str> {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if bare { key.into() } else { format!("{key:?}").into() }
}
