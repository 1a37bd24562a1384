//! Modules and their compiled forms as files, by digest.
//!
//! `modules/<hex>.wasm` and `.bundle` hold what was uploaded; `artifacts/<hex>.<compiler>` holds a MAC and the artifact. Artifacts are
//! a cache: over their bound, those go whose file's time, which is when they were last used, is the longest ago.
//!
//! Invariant: native code is loaded only under a MAC made with this gateway's key over everything it depends on: what
//! is under a name was written whole, by this gateway, for this machine and this Wasmer.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use wasmer_types::target::{CpuFeature, Triple};

use crate::domain::Digest;

use super::Compiler;

const MAC_BYTES: usize = 32;
/// Of this file's format and of the instrumentation inside: a change of either makes artifacts anew.
const FORMAT: &[u8] = b"wasmgate artifact 4";
const WASMER: &[u8] = b"wasmer 7.4.2";

pub struct Artifacts {
    modules: PathBuf,
    artifacts: PathBuf,
    key: [u8; 32],
    /// Of this machine: artifacts may use all its CPU's instructions.
    target: String,
    temporary: AtomicU64,
    /// What all artifacts may take.
    bound: u64,
    /// What they take, or more: counted by [`Artifacts::make_room`], and added to by every write since. `u64::MAX`: not
    /// counted yet.
    taken: AtomicU64,
    counting: Mutex<()>,
    evicted: AtomicU64,
}

/// That an artifact was used is written down when its file's time is older than this: once an hour, and nothing waits
/// for the disk. So "used longest ago" is exact to the hour, also across restarts.
const USE_NOTED: Duration = Duration::from_secs(3600);
/// A tenth of the bound is made free at once, so that a look at all files is worth it.
const FREED: u64 = 10;

/// What was uploaded.
#[derive(Clone, Copy, Debug)]
pub enum Upload {
    Module,
    /// The archive with a module's files.
    Bundle,
}

impl Upload {
    pub fn as_str(self) -> &'static str {
        match self {
            Upload::Module => "module",
            Upload::Bundle => "bundle",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Upload::Module => "wasm",
            Upload::Bundle => "bundle",
        }
    }
}

/// What a look-up of an artifact gave.
pub enum Stored {
    Good(Vec<u8>),
    Missing,
    /// Its MAC does not fit.
    Rejected,
}

impl Artifacts {
    pub fn open(data_dir: &Path, key: [u8; 32], bound: u64) -> io::Result<Artifacts> {
        let opened = Self::of(data_dir, key, bound);
        opened.make_folder()?;
        fs::create_dir_all(&opened.artifacts)?;
        for dir in [&opened.modules, &opened.artifacts] {
            remove_temporaries(dir)?;
        }
        Ok(opened)
    }

    /// As they are in the data directory, in which nothing is made or removed.
    pub fn of(data_dir: &Path, key: [u8; 32], bound: u64) -> Artifacts {
        Artifacts {
            modules: data_dir.join("modules"),
            artifacts: data_dir.join("artifacts"),
            key,
            target: format!("{} {:?}", Triple::host(), CpuFeature::for_host()),
            temporary: AtomicU64::new(0),
            bound,
            taken: AtomicU64::new(u64::MAX),
            counting: Mutex::new(()),
            evicted: AtomicU64::new(0),
        }
    }

    /// Of what was uploaded.
    pub fn make_folder(&self) -> io::Result<()> {
        fs::create_dir_all(&self.modules)
    }

    pub fn has(&self, what: Upload, digest: Digest) -> bool {
        self.upload_path(what, digest).exists()
    }

    /// The stored bytes; an error when they no longer have their digest.
    pub fn read(&self, what: Upload, digest: Digest) -> io::Result<Vec<u8>> {
        let bytes = fs::read(self.upload_path(what, digest))?;
        if Digest::of(&bytes) != digest {
            let why = format!("the stored {} is damaged", what.as_str());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(bytes)
    }

    /// Unless it is stored already.
    pub fn keep(&self, what: Upload, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        if self.has(what, digest) { Ok(()) } else { self.replace(what, digest, bytes) }
    }

    /// Also where something else is in its place.
    pub fn replace(&self, what: Upload, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.write(&self.modules, &self.upload_path(what, digest), &[bytes])
    }

    pub fn read_artifact(&self, digest: Digest, compiler: Compiler) -> io::Result<Stored> {
        // Read, not mapped, though a mapping saves a tenth (`benches/artifact.rs`; the MAC is half of it all): what is mapped
        // can still be changed in the file after its MAC was looked at, and cut short it ends the process.
        let mut file = match File::open(self.artifact_path(digest, compiler)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stored::Missing),
            Err(e) => return Err(e),
        };
        let about = file.metadata()?;
        let mut mac = [0; MAC_BYTES];
        match file.read_exact(&mut mac) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Stored::Rejected),
            other => other?,
        }
        // Apart from the MAC: Wasmer wants artifacts aligned as allocations are.
        let mut artifact = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
        file.read_to_end(&mut artifact)?;
        if !bool::from(self.mac(digest, compiler, &artifact).ct_eq(&mac)) {
            return Ok(Stored::Rejected);
        }
        note_use(&file, about.modified().ok());
        Ok(Stored::Good(artifact))
    }

    /// One that alone is over the bound is not kept. [`Artifacts::make_room`] is to follow when [`Artifacts::is_over`].
    pub fn write_artifact(&self, digest: Digest, compiler: Compiler, artifact: &[u8]) -> io::Result<()> {
        let bytes = (MAC_BYTES + artifact.len()) as u64;
        if bytes > self.bound {
            tracing::warn!(%digest, bytes, "an artifact is over `engine.artifact_disk` by itself: it is not kept");
            return Ok(());
        }
        let mac = self.mac(digest, compiler, artifact);
        self.write(&self.artifacts, &self.artifact_path(digest, compiler), &[&mac, artifact])?;
        let add = |taken: u64| Some(taken.saturating_add(bytes));
        let _ = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        Ok(())
    }

    pub fn is_over(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.bound
    }

    /// What the artifacts took when they were last counted, with what was written since; and how many were evicted.
    pub fn room(&self) -> (u64, u64) {
        let taken = self.taken.load(Ordering::Relaxed);
        (if taken == u64::MAX { 0 } else { taken }, self.evicted.load(Ordering::Relaxed))
    }

    /// Counts the artifacts and deletes those used longest ago while they are over the bound. What is in memory counts as
    /// used now: its file is not read again before the next start, and then at once. One that goes while it is read
    /// is read to its end, and is compiled anew when it is next needed.
    pub fn make_room(&self, in_memory: &HashSet<Digest>) -> io::Result<()> {
        let Some(_alone) = self.counting.try_lock() else { return Ok(()) };
        let now = SystemTime::now();
        let (mut files, mut taken) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.artifacts)? {
            let entry = entry?;
            let Some(digest) = digest_of(&entry.path()) else { continue };
            // It may have gone meanwhile.
            let Ok(about) = entry.metadata() else { continue };
            let mut used = about.modified().unwrap_or(now);
            if in_memory.contains(&digest) {
                if let Ok(file) = File::open(entry.path()) {
                    note_use(&file, Some(used));
                }
                used = now;
            }
            taken += about.len();
            files.push((used, about.len(), entry.path()));
        }
        if taken > self.bound {
            files.sort();
            for (_, bytes, path) in files {
                if taken <= self.bound - self.bound / FREED {
                    break;
                }
                remove_file(&path)?;
                taken -= bytes;
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.taken.store(taken, Ordering::Relaxed);
        Ok(())
    }

    /// Everything that is stored, whether anybody refers to it or not.
    pub fn digests(&self) -> io::Result<HashSet<Digest>> {
        let mut all = HashSet::new();
        for dir in [&self.modules, &self.artifacts] {
            for entry in fs::read_dir(dir)? {
                all.extend(digest_of(&entry?.path()));
            }
        }
        Ok(all)
    }

    pub fn remove_artifact(&self, digest: Digest, compiler: Compiler) -> io::Result<()> {
        remove_file(&self.artifact_path(digest, compiler))
    }

    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        let paths = [
            self.upload_path(Upload::Module, digest),
            self.upload_path(Upload::Bundle, digest),
            self.artifact_path(digest, Compiler::Fast),
            self.artifact_path(digest, Compiler::Optimising),
        ];
        for path in paths {
            remove_file(&path)?;
        }
        sync_dir(&self.modules)?;
        sync_dir(&self.artifacts)
    }

    fn upload_path(&self, what: Upload, digest: Digest) -> PathBuf {
        self.modules.join(format!("{}.{}", digest.hex(), what.ending()))
    }

    fn artifact_path(&self, digest: Digest, compiler: Compiler) -> PathBuf {
        self.artifacts.join(format!("{}.{}", digest.hex(), compiler.as_str()))
    }

    fn mac(&self, digest: Digest, compiler: Compiler, artifact: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for part in [FORMAT, WASMER, self.target.as_bytes(), &digest.0, compiler.as_str().as_bytes(), artifact] {
            // Lengths keep the parts apart.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whole or not at all, and durable when it returns.
    fn write(&self, dir: &Path, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let n = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!("{TEMPORARY}{}-{n}", std::process::id()));
        let written = (|| {
            let mut file = File::create_new(&temporary)?;
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_dir(dir)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

const TEMPORARY: &str = ".tmp-";

/// What a killed process left behind.
fn remove_temporaries(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes down that an artifact is used now. Losing that in a crash costs nothing, so it is not synced.
fn note_use(file: &File, noted: Option<SystemTime>) {
    let now = SystemTime::now();
    if noted.and_then(|noted| now.duration_since(noted).ok()).is_some_and(|age| age > USE_NOTED) {
        // Not on a read-only disk, which does not fill either.
        let _ = file.set_modified(now);
    }
}

/// Of a file that is named as ours are; others are left alone.
fn digest_of(path: &Path) -> Option<Digest> {
    let known =
        [Upload::Module.ending(), Upload::Bundle.ending(), Compiler::Fast.as_str(), Compiler::Optimising.as_str()];
    path.extension().filter(|ending| known.iter().any(|known| ending == known))?;
    let stem = path.file_stem()?.to_str()?;
    stem.parse::<Digest>().ok().filter(|digest| digest.hex() == stem)
}

/// Whether it is there or not.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
