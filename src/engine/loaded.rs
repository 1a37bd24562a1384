//! Compiled modules in memory.
//!
//! Invariant: native code enters the process here only, from an artifact that was verified or just compiled.

// `Module::deserialize_unchecked` trusts its bytes, so it is unsafe; that they can be trusted is this file's subject.
#![allow(unsafe_code)]

use bytes::Bytes;
use wasmer::sys::NativeEngineExt;

use crate::domain::{Abi, Digest, ModuleShape};

use super::abi::{self, MakeFn};
use super::guest::{FUEL_EXPIRE, FUEL_MODULE, make_expire};
use super::lane::Lane;
use super::tunables::GuestTunables;

/// A compiled module that can be instantiated at once. Cheap to clone behind `Arc`.
pub struct LoadedModule {
    digest: Digest,
    abi: Abi,
    shape: ModuleShape,
    /// How to make each import, in the module's order.
    imports: Vec<MakeFn>,
    /// Dropped before the engine that owns its code.
    module: wasmer::Module,
    /// Headless and of this version alone: its code is freed with it, and no other module's signatures can disturb it.
    engine: wasmer::Engine,
    code_bytes: u64,
    lane: Lane,
}

/// An artifact whose bytes may be trusted: its MAC fitted, or it came from the compiler just now.
pub struct Trusted(pub Bytes);

impl LoadedModule {
    pub(super) fn load(
        artifact: Trusted,
        digest: Digest,
        abi: Abi,
        shape: &ModuleShape,
    ) -> Result<LoadedModule, String> {
        let mut engine = wasmer::Engine::headless();
        engine.set_tunables(GuestTunables);
        let code_bytes = artifact.0.len() as u64;
        // SAFETY: `Trusted` says that the bytes are what our own compiler process wrote for this machine.
        let module =
            unsafe { wasmer::Module::deserialize_unchecked(&engine, artifact.0) }.map_err(|e| e.to_string())?;
        let host = abi::host(abi);
        let imports = module
            .imports()
            .map(|import| {
                if import.module() == FUEL_MODULE && import.name() == FUEL_EXPIRE {
                    return Ok(make_expire as MakeFn);
                }
                abi::resolve(host, import.module(), import.name())
                    .map(|f| f.make)
                    .ok_or_else(|| format!("the import `{}.{}` is unknown", import.module(), import.name()))
            })
            .collect::<Result<Vec<_>, String>>()?;
        Ok(LoadedModule { digest, abi, shape: shape.clone(), imports, module, engine, code_bytes, lane: Lane::new() })
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn abi(&self) -> Abi {
        self.abi
    }

    pub fn shape(&self) -> &ModuleShape {
        &self.shape
    }

    /// Size of its artifact, for caches.
    pub(super) fn code_bytes(&self) -> u64 {
        self.code_bytes
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(super) fn wasmer_engine(&self) -> &wasmer::Engine {
        &self.engine
    }

    pub(super) fn wasmer_module(&self) -> &wasmer::Module {
        &self.module
    }

    pub(super) fn imports(&self) -> &[MakeFn] {
        &self.imports
    }
}
