//! Modules and their compiled forms as files, by digest.
//!
//! `modules/<hex>.wasm` holds what was uploaded; `artifacts/<hex>.<compiler>` holds a MAC and the artifact.
//!
//! Invariant: native code is loaded only under a MAC made with this gateway's key over everything it depends on: what
//! is under a name was written whole, by this gateway, for this machine and this Wasmer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use wasmer_types::target::{CpuFeature, Triple};

use crate::domain::Digest;

use super::Compiler;

const MAC_BYTES: usize = 32;
/// Of this file's format and of the instrumentation inside: a change of either makes artifacts anew.
const FORMAT: &[u8] = b"wasmgate artifact 3";
const WASMER: &[u8] = b"wasmer 7.4.2";

pub struct Artifacts {
    modules: PathBuf,
    artifacts: PathBuf,
    key: [u8; 32],
    /// Of this machine: artifacts may use all its CPU's instructions.
    target: String,
    temporary: AtomicU64,
}

/// What a look-up of an artifact gave.
pub enum Stored {
    Good(Vec<u8>),
    Missing,
    /// Its MAC does not fit.
    Rejected,
}

impl Artifacts {
    pub fn open(data_dir: &Path, key: [u8; 32]) -> io::Result<Artifacts> {
        let (modules, artifacts) = (data_dir.join("modules"), data_dir.join("artifacts"));
        fs::create_dir_all(&modules)?;
        fs::create_dir_all(&artifacts)?;
        for dir in [&modules, &artifacts] {
            remove_temporaries(dir)?;
        }
        let target = format!("{} {:?}", Triple::host(), CpuFeature::for_host());
        Ok(Artifacts { modules, artifacts, key, target, temporary: AtomicU64::new(0) })
    }

    pub fn has_module(&self, digest: Digest) -> bool {
        self.module_path(digest).exists()
    }

    /// The stored bytes; an error when they no longer have their digest.
    pub fn read_module(&self, digest: Digest) -> io::Result<Vec<u8>> {
        let bytes = fs::read(self.module_path(digest))?;
        if Digest::of(&bytes) != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the stored module is damaged"));
        }
        Ok(bytes)
    }

    pub fn write_module(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.write(&self.modules, &self.module_path(digest), &[bytes])
    }

    pub fn read_artifact(&self, digest: Digest, compiler: Compiler) -> io::Result<Stored> {
        let mut bytes = match fs::read(self.artifact_path(digest, compiler)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stored::Missing),
            Err(e) => return Err(e),
        };
        let Some((mac, artifact)) = bytes.split_at_checked(MAC_BYTES) else { return Ok(Stored::Rejected) };
        if !bool::from(self.mac(digest, compiler, artifact).ct_eq(mac)) {
            return Ok(Stored::Rejected);
        }
        bytes.drain(..MAC_BYTES);
        Ok(Stored::Good(bytes))
    }

    pub fn write_artifact(&self, digest: Digest, compiler: Compiler, artifact: &[u8]) -> io::Result<()> {
        let mac = self.mac(digest, compiler, artifact);
        self.write(&self.artifacts, &self.artifact_path(digest, compiler), &[&mac, artifact])
    }

    pub fn remove_artifact(&self, digest: Digest, compiler: Compiler) -> io::Result<()> {
        match fs::remove_file(self.artifact_path(digest, compiler)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        let paths = [
            self.module_path(digest),
            self.artifact_path(digest, Compiler::Fast),
            self.artifact_path(digest, Compiler::Optimising),
        ];
        for path in paths {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        sync_dir(&self.modules)?;
        sync_dir(&self.artifacts)
    }

    fn module_path(&self, digest: Digest) -> PathBuf {
        self.modules.join(format!("{}.wasm", digest.hex()))
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

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
