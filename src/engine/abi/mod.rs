//! One ABI = one file. This file holds what they have in common and the one list of them.
//!
//! How an ABI plugs in: implement [`AbiHost`] for a unit struct in its own file and add it to `ALL` and [`host`]. `matches` looks
//! at imports and exports only; `check` says why a module of this ABI can't run; `host_fn` gives the host function for
//! an import. An ABI file declares its functions with [`host_fns!`], which also states their signatures once, for
//! inspection and for linking. A host function is
//! `fn name(env: FunctionEnvMut<'_, HostState>, a: i32, ...) -> Result<R, Halt>`; it reaches the guest's memory through
//! `env.data_mut().memory` (bounds-checked, a bad pointer is `Halt::Trap`), so that ABI files only translate pointers
//! and encodings. Calling the exports is the caller's part: [`super::guest::Guest::call`].
//!
//! Invariant: an import that is in no table is refused at upload by name, and a module is linked to what it names only.

pub mod cgi;
pub mod command;
pub mod core;
pub mod http_wasm;
pub mod proxy_wasm;
pub mod wasi;
pub mod wasix;
pub mod wasmgate;
pub mod wire;

use wasmer::{Function, FunctionEnv, Store};

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, ModuleShape, NotLoadable};

use super::Input;
use super::host::HostState;
use wasix::WasixFn;

pub trait AbiHost: Send + Sync {
    fn abi(&self) -> Abi;

    /// The shape is one of this ABI. Imports and exports only.
    fn matches(&self, shape: &ModuleShape) -> bool;

    /// What this ABI requires of a module beyond its imports.
    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable>;

    /// The host function behind an import of this ABI's own modules; WASI preview1 is looked up for all.
    fn host_fn(&self, module: &str, name: &str) -> Option<&'static HostFn>;

    /// Modules of this ABI may import WASI preview1.
    fn wasi(&self) -> bool {
        true
    }
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
    /// As in [`crate::domain::module::ImportShape`]: `(i32, i32) -> i64`.
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

/// Every ABI, in the order in which shapes are tried. CGI has the shape of a command, so it is never found by shape.
static ALL: &[&dyn AbiHost] =
    &[&proxy_wasm::ProxyWasm, &http_wasm::HttpWasm, &command::Command, &core::Core, &cgi::Cgi];

pub fn host(abi: Abi) -> &'static dyn AbiHost {
    match abi {
        Abi::HttpWasm => &http_wasm::HttpWasm,
        Abi::ProxyWasm => &proxy_wasm::ProxyWasm,
        Abi::Command => &command::Command,
        Abi::Core => &core::Core,
        Abi::Cgi => &cgi::Cgi,
    }
}

/// The ABI of a shape that was declared, or the one whose shape it has; then all checks of that ABI.
pub fn detect(shape: &ModuleShape, declared: Option<Abi>) -> Result<Abi, NotLoadable> {
    let found = match declared {
        Some(abi) => host(abi),
        None => ALL.iter().copied().find(|h| h.matches(shape)).ok_or_else(|| unknown_shape(shape))?,
    };
    check_imports(found, shape)?;
    found.check(shape)?;
    Ok(found.abi())
}

/// Whether a route can have a module transform its requests, or answer them (`answers`); else why not.
pub fn serves(abi: Abi, shape: &ModuleShape, answers: bool) -> Result<(), String> {
    let callable = match abi {
        Abi::HttpWasm | Abi::ProxyWasm => true,
        _ if !answers => {
            return Err(format!("its ABI is `{abi}`, and a handler has to be `http-wasm` or `proxy-wasm`"));
        }
        Abi::Core => core::prepare(shape, &Input::default()).is_ok(),
        Abi::Command | Abi::Cgi => command::prepare(shape, &Input::default()).is_ok(),
    };
    let why = "a route calls `_start`, `main` or `run`, without arguments, and it exports no such function";
    if callable { Ok(()) } else { Err(why.to_owned()) }
}

/// What serves an import.
#[derive(Clone, Copy)]
pub enum Import {
    Host(&'static HostFn),
    Wasix(&'static WasixFn),
}

impl Import {
    fn signature(self) -> String {
        match self {
            Import::Host(f) => f.signature(),
            Import::Wasix(f) => f.signature(),
        }
    }
}

/// How the imports of one module are served.
pub struct Resolver {
    host: &'static dyn AbiHost,
    wasix: bool,
}

impl Resolver {
    /// For a module that has these imports.
    pub fn new<'i>(host: &'static dyn AbiHost, imports: impl Iterator<Item = (&'i str, &'i str)>) -> Resolver {
        Resolver { host, wasix: wasix::serves(host.abi(), imports) }
    }

    fn of(host: &'static dyn AbiHost, shape: &ModuleShape) -> Resolver {
        Resolver::new(host, shape.imports.iter().map(|i| (i.module.as_str(), i.name.as_str())))
    }

    /// The function behind an import, if this ABI may have it.
    pub fn resolve(&self, module: &str, name: &str) -> Option<Import> {
        if module == wasmgate::MODULE && wasmgate::serves(self.host.abi()) {
            return wasmgate::host_fn(name).map(Import::Host);
        }
        if self.wasix {
            return wasix::resolve(module, name).map(Import::Wasix);
        }
        let is_wasi = module == wasi::MODULE || (module == wasi::OLD_MODULE && self.host.abi() == Abi::ProxyWasm);
        let wasi = is_wasi && self.host.wasi();
        if wasi { wasi::host_fn(name) } else { self.host.host_fn(module, name) }.map(Import::Host)
    }
}

/// A function that waits, or whose effect outlives the run. Of proxy-wasm filters only the call tells.
pub fn reaches_out(module: &str, name: &str) -> bool {
    module == wasmgate::MODULE && wasmgate::reaches_out(name)
}

fn check_imports(host: &'static dyn AbiHost, shape: &ModuleShape) -> Result<(), NotLoadable> {
    let resolver = Resolver::of(host, shape);
    for import in &shape.imports {
        let (module, name, ty) = (&import.module, &import.name, &import.ty);
        let refuse = |why: String| Err(NotLoadable::new(NotLoadableKind::UnknownImport, why));
        match resolver.resolve(module, name) {
            Some(f) if f.signature() == *ty => {}
            Some(f) => return refuse(format!("the import `{module}.{name}` is {ty}; it must be {}", f.signature())),
            None => return refuse(unknown_import(host.abi(), module, name)),
        }
    }
    if resolver.wasix && !shape.exports.iter().any(|export| export.ty == "memory") {
        let why = "a module that imports WASIX has to export its memory";
        return Err(NotLoadable::new(NotLoadableKind::MissingExport, why));
    }
    Ok(())
}

fn unknown_import(abi: Abi, module: &str, name: &str) -> String {
    let import = format!("the import `{module}.{name}` is unknown");
    match module {
        proxy_wasm::MODULE if name.starts_with("proxy_") && abi != Abi::ProxyWasm => {
            format!("{import} to the ABI `{abi}`: it is of proxy-wasm, whose filters export `proxy_abi_version_0_2_1`")
        }
        wasi::OLD_MODULE => format!("{import}: it is of WASI preview0; build for wasip1"),
        wasix::MODULE if !matches!(abi, Abi::Command | Abi::Cgi) => {
            format!("{import} to the ABI `{abi}`: WASIX is for `command` and `cgi`")
        }
        wasmgate::MODULE if abi == Abi::ProxyWasm => format!(
            "{import} to the ABI `{abi}`, whose filters call foreign functions: `wasmgate_kv_get`, `wasmgate_kv_set`, \
             `wasmgate_kv_cas`, `wasmgate_kv_incr` and `wasmgate_kv_delete`"
        ),
        _ if module.starts_with("wasix") => format!("{import}: WASIX is known as `{}`", wasix::MODULE),
        wasi::MODULE if abi == Abi::Core => {
            format!("{import}: a core module imports nothing; a WASI command has the ABI `command`")
        }
        _ => format!("{import} to the ABI `{abi}`"),
    }
}

fn unknown_shape(shape: &ModuleShape) -> NotLoadable {
    // An import that no ABI knows says most about what the module is.
    let resolvers: Vec<Resolver> = ALL.iter().map(|host| Resolver::of(*host, shape)).collect();
    let unknown =
        |i: &&crate::domain::module::ImportShape| resolvers.iter().all(|r| r.resolve(&i.module, &i.name).is_none());
    match shape.imports.iter().find(unknown) {
        Some(i) => NotLoadable::new(NotLoadableKind::UnknownImport, unknown_import(Abi::Command, &i.module, &i.name)),
        None => NotLoadable::new(
            NotLoadableKind::MissingExport,
            "the module imports WASI and exports no `_start`: build a command, or an http-wasm handler",
        ),
    }
}
