//! Compiled modules in memory.
//!
//! Invariant: native code enters the process here only, from an artifact that was verified or just compiled.

// `Module::deserialize_unchecked` trusts its bytes, so it is unsafe; that they can be trusted is this file's subject.
#![allow(unsafe_code)]

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use wasmer::sys::NativeEngineExt;

use crate::domain::{Abi, Digest, Limits, ModuleShape};

use super::Compiler;
use super::abi::wasix::WasixFn;
use super::abi::{self, Import, MakeFn, Resolver};
use super::guest::{FUEL_EXPIRE, FUEL_MODULE, make_expire};
use super::lane::Lane;
use super::tunables::GuestTunables;

/// A module that can be instantiated at once. Cheap to clone behind `Arc`.
pub struct LoadedModule {
    digest: Digest,
    abi: Abi,
    shape: ModuleShape,
    /// Replaced once there is better: what begins after that runs the new code.
    code: ArcSwap<Code>,
    lane: Lane,
    /// It imports functions that wait or have effects beyond the run.
    reaches_out: bool,
}

/// A module's native code.
pub struct Code {
    pub(super) compiler: Compiler,
    /// How to make each import, in the module's order.
    pub(super) imports: Vec<Link>,
    /// One of them is of wasmer-wasix.
    pub(super) needs_wasix: bool,
    /// Dropped before the engine that owns its code.
    pub(super) module: wasmer::Module,
    /// Headless and of this code alone: it is freed with it, and no other module's signatures can disturb it.
    pub(super) engine: wasmer::Engine,
    /// Size of its artifact, for caches.
    bytes: u64,
}

/// How an import is made.
#[derive(Clone, Copy)]
pub enum Link {
    Host(MakeFn),
    Wasix(&'static WasixFn),
}

/// An artifact whose bytes may be trusted: its MAC fitted, or it came from the compiler just now.
pub struct Trusted {
    pub compiler: Compiler,
    pub artifact: Bytes,
}

impl Code {
    fn load(trusted: Trusted, abi: Abi) -> Result<Code, String> {
        let Trusted { compiler, artifact } = trusted;
        let mut engine = wasmer::Engine::headless();
        engine.set_tunables(GuestTunables::new(Limits::STACK_BYTES));
        let bytes = artifact.len() as u64;
        // SAFETY: `Trusted` says that the bytes are what our own compiler process wrote for this machine.
        let module = unsafe { wasmer::Module::deserialize_unchecked(&engine, artifact) }.map_err(|e| e.to_string())?;
        let names: Vec<_> = module.imports().map(|i| (i.module().to_owned(), i.name().to_owned())).collect();
        let resolver =
            Resolver::new(abi::host(abi), names.iter().map(|(module, name)| (module.as_str(), name.as_str())));
        let imports = names
            .iter()
            .map(|(module, name)| {
                if module == FUEL_MODULE && name == FUEL_EXPIRE {
                    return Ok(Link::Host(make_expire));
                }
                match resolver.resolve(module, name) {
                    Some(Import::Host(f)) => Ok(Link::Host(f.make)),
                    Some(Import::Wasix(f)) => Ok(Link::Wasix(f)),
                    None => Err(format!("the import `{module}.{name}` is unknown")),
                }
            })
            .collect::<Result<Vec<_>, String>>()?;
        let needs_wasix = imports.iter().any(|link| matches!(link, Link::Wasix(_)));
        Ok(Code { compiler, imports, needs_wasix, module, engine, bytes })
    }
}

impl LoadedModule {
    pub(super) fn load(
        trusted: Trusted,
        digest: Digest,
        abi: Abi,
        shape: &ModuleShape,
    ) -> Result<LoadedModule, String> {
        let code = ArcSwap::from_pointee(Code::load(trusted, abi)?);
        let reaches_out = shape.imports.iter().any(|import| abi::reaches_out(&import.module, &import.name));
        Ok(LoadedModule { digest, abi, shape: shape.clone(), code, lane: Lane::new(), reaches_out })
    }

    /// Takes other code of the same module, in one step.
    pub(super) fn replace(&self, trusted: Trusted) -> Result<(), String> {
        self.code.store(Arc::new(Code::load(trusted, self.abi)?));
        Ok(())
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

    /// It never runs on a proxy worker: it may call what waits or has an effect that a second run would repeat, or its host
    /// functions are wasmer-wasix's, whose work between two looks at the clock is too long.
    pub(super) fn needs_pool(&self) -> bool {
        self.reaches_out || self.code.load().needs_wasix
    }

    pub(super) fn code(&self) -> Arc<Code> {
        self.code.load_full()
    }

    /// Of the code that new runs get.
    pub(super) fn compiler(&self) -> Compiler {
        self.code.load().compiler
    }

    pub(super) fn code_bytes(&self) -> u64 {
        self.code.load().bytes
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }
}
