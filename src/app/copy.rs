//! A store copied into another one: every record as it is, in small steps, compared at the end.
//!
//! Invariant: each step writes its entries and the mark that says how far the copy is, both or neither. So a copy that was
//! interrupted goes on behind what is there, and no gateway uses a store that has not all of it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::{AppError, open, secrets};
use crate::auth::pepper::Peppers;
use crate::auth::secret_file;
use crate::config::{Config, SecretSource};
use crate::domain::{Digest, Module};
use crate::engine::Uploads;
use crate::store::entry::{Entry, Kind, Mark, Tally, batch};
use crate::store::redis::Purpose;
use crate::store::{Store, StoreError};

/// Of the bytes of modules and bundles, beside the kinds of records.
const FILES: &str = "files";

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A mistake in one of the two configurations.
    #[error("{side}: {error}")]
    Config { side: &'static str, error: AppError },
    #[error("{0}")]
    Refused(String),
    #[error("{side}: {what}")]
    Failed { side: &'static str, what: String },
}

type Result<T> = std::result::Result<T, CopyError>;

pub struct Copied {
    /// It went on where another one was interrupted.
    pub resumed: bool,
    /// What there is of each kind, in the one and the other.
    pub kinds: Vec<(String, Tally, Tally)>,
}

impl Copied {
    pub fn differing(&self) -> impl Iterator<Item = &str> {
        self.kinds.iter().filter(|(_, from, to)| from != to).map(|(kind, ..)| kind.as_str())
    }
}

/// Told what is done: a word for it, and how many there are so far.
pub type Progress<'a> = &'a dyn Fn(&str, &str, u64);

/// `live`: gateways may go on using `from`; the copy is then of what each record was when it was read.
pub async fn copy(from: &Config, to: &Config, live: bool, progress: Progress<'_>) -> Result<Copied> {
    let (from, to) = open_both(from, to).await?;
    for (side, must_rest) in [(&from, !live), (&to, true)] {
        let nodes = side.store.nodes().await.map_err(side.failed())?;
        if must_rest && !nodes.is_empty() {
            let names: Vec<_> = nodes.iter().map(|live| format!("`{}`", live.node.name)).collect();
            let advice = "stop them first (one that was killed is gone after ten seconds)";
            let instead = if side.name == FROM { ", or use `--live` for a copy that may be old at once" } else { "" };
            let (side, names) = (side.name, names.join(", "));
            return Err(CopyError::Refused(format!("{side} is in use by the gateways {names}: {advice}{instead}")));
        }
    }
    let (mut mark, resumed) = begin(&from, &to).await?;
    copy_all(&from, &to, &mut mark, progress).await?;
    let was = if live { mark.tallies.clone() } else { tallies(&from, progress).await? };
    let is = tallies(&to, progress).await?;
    let of = |tallies: &BTreeMap<String, Tally>, kind: &str| tallies.get(kind).copied().unwrap_or_default();
    let names = Kind::ALL.iter().map(|kind| kind.as_str()).chain([FILES]);
    let kinds = names.map(|kind| (kind.to_owned(), of(&was, kind), of(&is, kind))).collect();
    let copied = Copied { resumed, kinds };
    if copied.differing().next().is_none() {
        to.store.import(Vec::new(), Some(&mark), None).await.map_err(to.failed())?;
    }
    Ok(copied)
}

const FROM: &str = "FROM";
const TO: &str = "TO";

struct Side {
    name: &'static str,
    store: Arc<dyn Store>,
    /// Other gateways find bytes in it as well.
    is_shared: bool,
    uploads: Uploads,
}

async fn open_both(from: &Config, to: &Config) -> Result<(Side, Side)> {
    let place = |config: &Config| config.data_dir.canonicalize().ok();
    let same = || CopyError::Refused("FROM and TO are the same store".into());
    if from.store.redis.is_none() && to.store.redis.is_none() && place(from).is_some_and(|dir| Some(dir) == place(to)) {
        return Err(same());
    }
    if from.store.redis.is_none() && !open::embedded_file(from).exists() {
        let error = AppError::setting("data_dir", format!("`{}` has no store", from.data_dir.display()));
        return Err(CopyError::Config { side: FROM, error });
    }
    check_peppers(from, to)?;
    let from = Side::open(FROM, from, Purpose::Source).await?;
    let to = Side::open(TO, to, Purpose::Target).await?;
    if from.id().await? == to.id().await? {
        return Err(same());
    }
    Ok((from, to))
}

/// Keys of the one are keys of the other.
fn check_peppers(from: &Config, to: &Config) -> Result<()> {
    let (source, target) = (&from.auth.pepper, &to.auth.pepper);
    let place = |config: &Config| secret_file::place(&config.auth.pepper, &config.data_dir);
    let theirs = existing(FROM, from, source, "auth.pepper_file").and_then(|()| {
        secrets::peppers(source, &from.data_dir).map_err(|error| CopyError::Config { side: FROM, error })
    })?;
    let remedy = format!("give it the peppers of FROM: copy {} to {}, mode 0600", place(from), place(to));
    let missing = |why: &str| CopyError::Config {
        side: TO,
        error: AppError::setting("auth.pepper_file", format!("{why}, so that no key would be known: {remedy}")),
    };
    existing(TO, to, target, "auth.pepper_file").map_err(|_| missing("there is no pepper"))?;
    let ours: Peppers =
        secrets::peppers(target, &to.data_dir).map_err(|error| CopyError::Config { side: TO, error })?;
    if theirs.0.iter().all(|pepper| ours.0.contains(pepper)) {
        Ok(())
    } else {
        Err(missing("the pepper is another one"))
    }
}

/// A copy makes no secrets: they would be none that anybody has.
fn existing(side: &'static str, config: &Config, source: &SecretSource, key: &str) -> Result<()> {
    match source {
        SecretSource::Generated(name) if !config.data_dir.join(name).exists() => {
            let error = format!("`{}` does not exist", config.data_dir.join(name).display());
            Err(CopyError::Config { side, error: AppError::setting(key, error) })
        }
        _ => Ok(()),
    }
}

impl Side {
    async fn open(name: &'static str, config: &Config, purpose: Purpose) -> Result<Self> {
        let wrong = |error| match error {
            AppError::Store(error) => CopyError::Failed { side: name, what: error.to_string() },
            error => CopyError::Config { side: name, error },
        };
        if purpose == Purpose::Target {
            let made = secrets::private_dir(&config.data_dir);
            let dir: &Path = &config.data_dir;
            made.map_err(|e| wrong(AppError::setting("data_dir", format!("`{}`: {e}", dir.display()))))?;
        } else if let Some(redis) = &config.store.redis {
            existing(name, config, &redis.record_key, "store.redis.record_key_file")?;
        }
        let peppers = secrets::peppers(&config.auth.pepper, &config.data_dir).map_err(wrong)?;
        let store = open::open_to_copy(config, &peppers, purpose).await.map_err(wrong)?;
        Ok(Self { name, store, is_shared: config.store.redis.is_some(), uploads: Uploads::of(&config.data_dir) })
    }

    fn failed(&self) -> impl Fn(StoreError) -> CopyError + use<> {
        let side = self.name;
        move |error| CopyError::Failed { side, what: error.to_string() }
    }

    async fn id(&self) -> Result<String> {
        self.store.id().await.map_err(self.failed())
    }

    /// Counts what all versions name. The bytes of what was not `seen` are read, and put into `to`; the digest of each fits.
    async fn files(
        &self,
        module: &Module,
        seen: &mut HashSet<Digest>,
        tally: &mut Tally,
        to: Option<&Side>,
    ) -> Result<()> {
        for version in &module.versions {
            for file in Uploads::named(version) {
                tally.add_bytes(&file.1.0);
                if !seen.insert(file.1) {
                    continue;
                }
                let lacks = |why: String| {
                    let (side, owner, name, number) = (self.name, &module.owner, &module.name, version.version);
                    let what = format!("the {} of `{owner}/{name}@{number}`, {}: {why}", file.0.as_str(), file.1);
                    CopyError::Failed { side, what }
                };
                // A store that has no others has none.
                let bytes = match self.store.blob(file.1).await.map_err(self.failed())? {
                    Some(bytes) => bytes,
                    // Redis has lost what the gateway has kept.
                    None if !self.is_shared || self.name == FROM => {
                        self.uploads.read(file).map_err(|e| lacks(e.to_string()))?
                    }
                    None => return Err(lacks("it is not there".into())),
                };
                if let Some(to) = to {
                    to.keep(file, &bytes).await?;
                }
            }
        }
        Ok(())
    }

    async fn keep(&self, file: (crate::engine::Upload, Digest), bytes: &[u8]) -> Result<()> {
        if self.is_shared {
            // What is there may be of a copy that was cut off, or damaged.
            if self.store.blob(file.1).await.map_err(self.failed())?.is_none() {
                self.store.delete_blob(file.1).await.map_err(self.failed())?;
                self.store.put_blob(file.1, bytes).await.map_err(self.failed())?;
            }
            return Ok(());
        }
        let failed = |e: std::io::Error| CopyError::Failed { side: self.name, what: e.to_string() };
        self.uploads.keep(file, bytes).map_err(failed)
    }
}

/// The mark of the copy that was interrupted, or the first one of an empty store.
async fn begin(from: &Side, to: &Side) -> Result<(Mark, bool)> {
    let id = from.id().await?;
    match to.store.mark().await.map_err(to.failed())? {
        Some(mark) if mark.from == id => return Ok((mark, true)),
        Some(mark) => {
            let other = mark.from;
            return Err(CopyError::Refused(format!(
                "TO has an interrupted copy of another store than FROM (`{other}`): go on with that one, or empty TO"
            )));
        }
        None => {}
    }
    for kind in Kind::ALL {
        let mut after = None;
        loop {
            let page = to.store.export(kind, after.as_deref()).await.map_err(to.failed())?;
            if !page.entries.is_empty() {
                let kind = kind.as_str();
                return Err(CopyError::Refused(format!("TO is not empty, it has {kind}: copy into an empty store")));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    let mark = Mark { from: id, kind: Kind::ALL[0], after: None, done: 0, tallies: BTreeMap::new() };
    to.store.import(Vec::new(), None, Some(&mark)).await.map_err(to.failed())?;
    Ok((mark, false))
}

async fn copy_all(from: &Side, to: &Side, mark: &mut Mark, progress: Progress<'_>) -> Result<()> {
    let mut seen = HashSet::new();
    let first = mark.kind;
    for kind in Kind::ALL.into_iter().filter(|kind| *kind >= first) {
        let begun = mark.kind == kind;
        let (mut after, mut done) = if begun { (mark.after.clone(), mark.done) } else { (None, 0) };
        loop {
            let page = from.store.export(kind, after.as_deref()).await.map_err(from.failed())?;
            let mut rest = page.entries.get(done..).unwrap_or_default();
            while !rest.is_empty() {
                let (entries, behind) = rest.split_at(batch(rest).min(rest.len()));
                let mut next = Mark { kind, after: after.clone(), done: done + entries.len(), ..mark.clone() };
                let mut tally = next.tallies.remove(kind.as_str()).unwrap_or_default();
                let mut files = next.tallies.remove(FILES).unwrap_or_default();
                for entry in entries {
                    tally.add(entry).map_err(from.failed())?;
                    if let Entry::Module(module, _) = entry {
                        from.files(module, &mut seen, &mut files, Some(to)).await?;
                    }
                }
                next.tallies.extend([(kind.as_str().to_owned(), tally), (FILES.to_owned(), files)]);
                to.store.import(entries.to_vec(), Some(mark), Some(&next)).await.map_err(to.failed())?;
                *mark = next;
                done += entries.len();
                rest = behind;
                progress("copied", kind.as_str(), tally.count);
            }
            (after, done) = (page.next, 0);
            if after.is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// What there is, read whole.
async fn tallies(side: &Side, progress: Progress<'_>) -> Result<BTreeMap<String, Tally>> {
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    let (mut seen, mut files) = (HashSet::new(), Tally::default());
    let word = if side.name == FROM { "read in FROM" } else { "read in TO" };
    for kind in Kind::ALL {
        let (mut tally, mut after) = (Tally::default(), None);
        loop {
            let page = side.store.export(kind, after.as_deref()).await.map_err(side.failed())?;
            for entry in &page.entries {
                tally.add(entry).map_err(side.failed())?;
                if let Entry::Module(module, _) = entry {
                    side.files(module, &mut seen, &mut files, None).await?;
                }
            }
            progress(word, kind.as_str(), tally.count);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        all.insert(kind.as_str().to_owned(), tally);
    }
    all.insert(FILES.to_owned(), files);
    Ok(all)
}
