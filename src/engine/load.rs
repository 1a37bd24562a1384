//! Loading modules, and giving them better code while they are in use.
//!
//! A module begins with code that was compiled fast. One process at a time compiles stored modules, and inline ones that
//! were seen again, optimised; the result takes the place of the other in one step.
//!
//! Invariant: a request never waits for the optimising compiler, and its failure leaves things as they were.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::domain::{Abi, Digest, GuestFailure, ModuleShape, OwnerId};

use super::artifacts::{Stored, Upload};
use super::compile::Why;
use super::counted::Counted;
use super::loaded::Trusted;
use super::{Compiler, Engine, Inspected, InstallError, LoadedModule, RunError, compile};

/// Better code is begun with when the answer to an upload is out, and perhaps the first one of the module itself.
const AFTER_THE_ANSWER: Duration = Duration::from_millis(100);
/// Modules that may wait for better code; beyond, they are offered again when they are next loaded.
const MAX_BEGUN: usize = 10_000;
/// Modules remembered as having none, those told of last.
const MAX_FAILED: u64 = 10_000;
/// Inline modules whose bytes are held for the compiler; others are offered again when they are seen again.
const MAX_INLINE: usize = 4;

/// Modules whose better code is under way or could not be made: neither is begun again.
pub struct Optimised {
    begun: Mutex<HashSet<Digest>>,
    /// Of the modules begun, those that the compiler has not begun with.
    waiting: AtomicUsize,
    inline: Mutex<usize>,
    failed: moka::sync::Cache<Digest, ()>,
}

impl Engine {
    /// From memory, else from the artifact cache, else compiled anew from the stored bytes. Loads are coalesced. `owner`:
    /// of the module, whose turns at the compiler it takes; `None`: the gateway itself.
    pub async fn load(
        self: &Arc<Self>,
        owner: Option<&OwnerId>,
        digest: Digest,
        abi: Abi,
        shape: &ModuleShape,
    ) -> Result<Arc<LoadedModule>, RunError> {
        if let Some(module) = self.modules.get(digest, abi) {
            return Ok(module);
        }
        let _turn = self.modules.turn(digest).await;
        if let Some(module) = self.modules.get(digest, abi) {
            return Ok(module);
        }
        let not_loadable = |e: InstallError| match e {
            // That many modules are to be compiled again is not this one's fault.
            InstallError::Busy => RunError::Busy { retry_after: Why::New.wait() },
            InstallError::Unread => RunError::Unread,
            e => RunError::Guest(GuestFailure::NotLoadable(e.to_string())),
        };
        let trusted = match self.stored_artifact(digest).await.map_err(not_loadable)? {
            Some(trusted) => trusted,
            None => self.recompile(owner, digest).await.map_err(not_loadable)?,
        };
        let compiler = trusted.compiler;
        let module = load_blocking(trusted, digest, abi, shape.clone()).await;
        let module = module.map_err(|why| RunError::Guest(GuestFailure::NotLoadable(why)))?;
        self.modules.put(module.clone());
        if compiler == Compiler::Fast {
            self.optimise(digest);
        }
        Ok(module)
    }

    /// Compiles fast and loads without storing the bytes; kept in a bounded memory cache by digest. One that is seen again
    /// is optimised. `owner`: who asks for it.
    pub async fn load_inline(
        self: &Arc<Self>,
        bytes: Bytes,
        inspected: &Inspected,
        owner: Option<&OwnerId>,
    ) -> Result<Arc<LoadedModule>, InstallError> {
        let Inspected { digest, abi, shape } = inspected;
        let known = || self.modules.get(*digest, *abi).or_else(|| self.modules.get_inline(*digest, *abi));
        if let Some(module) = known() {
            self.optimise_inline(&module, bytes);
            return Ok(module);
        }
        let _turn = self.modules.turn_inline(*digest).await;
        if let Some(module) = known() {
            return Ok(module);
        }
        let compiler = Compiler::Fast;
        let artifact = self.compilers.compile((*digest, &bytes), compiler, owner, Why::New).await?;
        let trusted = Trusted { compiler, artifact };
        let module = load_blocking(trusted, *digest, *abi, shape.clone()).await.map_err(InstallError::Io)?;
        self.modules.put_inline(module.clone());
        Ok(module)
    }

    /// The best artifact on disk.
    async fn stored_artifact(&self, digest: Digest) -> Result<Option<Trusted>, InstallError> {
        for compiler in Compiler::BEST_FIRST {
            match self.blocking(move |artifacts| artifacts.read_artifact(digest, compiler)).await? {
                Stored::Good(bytes) => return Ok(Some(Trusted { compiler, artifact: bytes.into() })),
                Stored::Missing => {}
                Stored::Rejected => {
                    self.artifacts_rejected.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%digest, ?compiler, "an artifact's MAC does not fit: it is compiled anew");
                }
            }
        }
        Ok(None)
    }

    async fn recompile(&self, owner: Option<&OwnerId>, digest: Digest) -> Result<Trusted, InstallError> {
        let compiler = Compiler::Fast;
        let bytes = self.uploaded(Upload::Module, digest).await?;
        let artifact = self.compilers.compile((digest, &bytes), compiler, owner, Why::Again).await?;
        let stored = artifact.clone();
        let written = self.blocking(move |artifacts| artifacts.write_artifact(digest, compiler, &stored)).await;
        if let Err(e) = written {
            // It runs all the same; the next start compiles again.
            tracing::warn!(%digest, error = %e, "can't store an artifact");
        }
        self.make_room().await;
        Ok(Trusted { compiler, artifact })
    }

    /// Gives a stored module better code, once there is a turn for it.
    pub(super) fn optimise(self: &Arc<Self>, digest: Digest) {
        if !self.optimised.begin(digest) {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AFTER_THE_ANSWER).await;
            let result = engine.optimise_stored(digest).await;
            if let Err(error) = &result {
                tracing::warn!(%digest, %error, "a module keeps the code that was compiled fast");
            }
            engine.optimised.done(digest, &result);
        });
    }

    async fn optimise_stored(&self, digest: Digest) -> Result<(), InstallError> {
        let turn = self.turn_to_optimise().await?;
        let bytes = self.blocking(move |artifacts| artifacts.read(Upload::Module, digest)).await?;
        let artifact = turn.compile(digest, &bytes).await?;
        let _turn = self.modules.turn(digest).await;
        let stored = artifact.clone();
        let kept = self.blocking(move |artifacts| {
            // It may have been deleted meanwhile.
            let kept = artifacts.has(Upload::Module, digest);
            if kept {
                artifacts.write_artifact(digest, Compiler::Optimising, &stored)?;
                artifacts.remove_artifact(digest, Compiler::Fast)?;
            }
            Ok(kept)
        });
        if !kept.await? {
            return Ok(());
        }
        self.make_room().await;
        for module in Abi::ALL.iter().filter_map(|abi| self.modules.get(digest, *abi)) {
            replace_blocking(&module, artifact.clone()).await?;
            // It has another size now.
            self.modules.put(module);
        }
        Ok(())
    }

    fn optimise_inline(self: &Arc<Self>, module: &Arc<LoadedModule>, bytes: Bytes) {
        let digest = module.digest();
        if module.code().compiler == Compiler::Optimising || !self.optimised.begin_inline(digest) {
            return;
        }
        let (engine, module) = (self.clone(), module.clone());
        tokio::spawn(async move {
            let optimised = async {
                let artifact = engine.turn_to_optimise().await?.compile(digest, &bytes).await?;
                replace_blocking(&module, artifact).await
            };
            let result = optimised.await;
            engine.optimised.done_inline();
            if let Err(error) = &result {
                tracing::info!(%digest, %error, "an inline module keeps the code that was compiled fast");
            }
            engine.optimised.done(digest, &result);
        });
    }

    async fn turn_to_optimise(&self) -> Result<compile::Background<'_>, InstallError> {
        let _waiting = Counted::enter(&self.optimised.waiting, usize::MAX);
        self.compilers.background().await
    }
}

impl Default for Optimised {
    fn default() -> Self {
        Optimised {
            begun: Mutex::default(),
            waiting: AtomicUsize::new(0),
            inline: Mutex::default(),
            failed: moka::sync::Cache::new(MAX_FAILED),
        }
    }
}

impl Optimised {
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn begin(&self, digest: Digest) -> bool {
        let mut begun = self.begun.lock();
        !self.failed.contains_key(&digest) && begun.len() < MAX_BEGUN && begun.insert(digest)
    }

    fn begin_inline(&self, digest: Digest) -> bool {
        let mut inline = self.inline.lock();
        let begins = *inline < MAX_INLINE && self.begin(digest);
        *inline += usize::from(begins);
        begins
    }

    /// A module that can't be compiled so is not tried again; another failure, as of the disk, was not its own.
    fn done(&self, digest: Digest, result: &Result<(), InstallError>) {
        if matches!(result, Err(InstallError::NotLoadable(_))) {
            self.failed.insert(digest, ());
        }
        self.begun.lock().remove(&digest);
    }

    fn done_inline(&self) {
        *self.inline.lock() -= 1;
    }
}

async fn load_blocking(
    trusted: Trusted,
    digest: Digest,
    abi: Abi,
    shape: ModuleShape,
) -> Result<Arc<LoadedModule>, String> {
    let load = move || LoadedModule::load(trusted, digest, abi, &shape).map(Arc::new);
    tokio::task::spawn_blocking(load).await.map_err(|e| e.to_string())?
}

async fn replace_blocking(module: &Arc<LoadedModule>, artifact: Bytes) -> Result<(), InstallError> {
    let module = module.clone();
    let replace = move || module.replace(Trusted { compiler: Compiler::Optimising, artifact });
    let replaced = tokio::task::spawn_blocking(replace).await.map_err(|e| InstallError::Io(e.to_string()))?;
    replaced.map_err(InstallError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::NotLoadable;
    use crate::domain::rejection::NotLoadableKind::CompileLimit;

    #[test]
    fn what_cannot_be_compiled_is_not_tried_again_and_nothing_else_is_kept() {
        let (optimised, digest) = (Optimised::default(), Digest([1; 32]));
        assert!(optimised.begin(digest) && !optimised.begin(digest));
        optimised.done(digest, &Err(InstallError::Io("the disk".into())));
        assert!(optimised.begin(digest), "the disk is none of its faults");
        optimised.done(digest, &Err(NotLoadable::new(CompileLimit, "too much").into()));
        assert!(!optimised.begin(digest));
        for n in 0..MAX_BEGUN {
            assert!(optimised.begin(Digest::of(&n.to_le_bytes())));
        }
        assert!(!optimised.begin(Digest([2; 32])), "as many as may wait do");
        for n in 0..MAX_BEGUN {
            optimised.done(Digest::of(&n.to_le_bytes()), &Ok(()));
        }
        assert!(optimised.begun.lock().is_empty());
    }
}
