//! One ABI = one file. This file holds what they have in common and the one list of them.
//!
//! How an ABI plugs in: implement [`AbiHost`] for a unit struct in its own file and add it to [`ALL`]. `matches` looks
//! at imports and exports only; `check` says why a module of this ABI can't run; `host_fn` gives the host function for
//! an import. An ABI file declares its functions with [`host_fns!`], which also states their signatures once, for
//! inspection and for linking. A host function is
//! `fn name(env: FunctionEnvMut<'_, HostState>, a: i32, ...) -> Result<R, Halt>`; it reaches the guest's memory through
//! `env.data_mut().memory` (bounds-checked, a bad pointer is `Halt::Trap`), so that ABI files only translate pointers
//! and encodings. Calling the exports is the caller's part: [`super::guest::Guest::call`].
//!
//! Invariant: an import that is in no table is refused at upload by name, and a module is linked to what it names only.

pub mod http_wasm;

use wasmer::{Function, FunctionEnv, Store};

use crate::domain::{Abi, ModuleShape, NotLoadable};

use super::host::HostState;

pub trait AbiHost: Send + Sync {
    fn abi(&self) -> Abi;

    /// The shape is one of this ABI. Imports and exports only.
    fn matches(&self, shape: &ModuleShape) -> bool;

    /// What this ABI requires of a module beyond its imports.
    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable>;

    /// The host function behind an import.
    fn host_fn(&self, module: &str, name: &str) -> Option<&'static HostFn>;
}

/// Builds a host function in a store.
pub type MakeFn = fn(&mut Store, &FunctionEnv<HostState>) -> Function;

/// A host function that modules may import: its name, its signature and how it is made.
pub struct HostFn {
    pub name: &'static str,
    pub params: &'static [&'static str],
    pub results: &'static [&'static str],
    pub make: MakeFn,
}

impl HostFn {
    /// As in [`crate::domain::ImportShape`]: `(i32, i32) -> i64`.
    pub fn signature(&self) -> String {
        signature(self.params, self.results)
    }
}

/// `(i32, i32) -> i64`, `() -> ()`, `(i32) -> (i32, i32)`.
pub fn signature(params: &[&str], results: &[&str]) -> String {
    match results {
        [one] => format!("({}) -> {one}", params.join(", ")),
        many => format!("({}) -> ({})", params.join(", "), many.join(", ")),
    }
}

/// A `static` table of host functions: `host_fns! { pub static NAME; function(i32, i32) -> i32; ... }`. Every function
/// must be in scope under its import's name, with these WebAssembly types.
macro_rules! host_fns {
    ($vis:vis static $table:ident; $( $name:ident ( $($param:ident),* ) $(-> $result:ident)? ; )*) => {
        $vis static $table: &[$crate::engine::abi::HostFn] = &[
            $( $crate::engine::abi::HostFn {
                name: stringify!($name),
                params: &[$(stringify!($param)),*],
                results: &[$(stringify!($result))?],
                make: |store, env| wasmer::Function::new_typed_with_env(store, env, $name),
            } ),*
        ];
    };
}
pub(crate) use host_fns;

/// Every ABI, in the order in which shapes are tried.
pub static ALL: &[&dyn AbiHost] = &[&http_wasm::HttpWasm];

pub fn host(abi: Abi) -> Option<&'static dyn AbiHost> {
    ALL.iter().copied().find(|h| h.abi() == abi)
}
