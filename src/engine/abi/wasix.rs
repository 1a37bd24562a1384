//! Which imports lead to wasmer-wasix, and what of it a guest may call.
//!
//! A command or CGI module that imports `wasix_32v1`, or makes symbolic links, has all its WASI functions served
//! here, so that they share one table of descriptors. What the lean WASI does as well, it does here too: arguments,
//! environment, clocks, random, sleep and exit. Files are wasmer-wasix's, behind the checks of `engine/wasix.rs`.
//!
//! Invariant: what is not on the list below is refused with `NOTSUP`, or a trap where a function has no result. Nothing
//! that is on it waits, starts a thread or a process, or reaches the host.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use wasmer::{FunctionType, Type};

use crate::domain::Abi;
use crate::engine::failure::Halt;
use crate::engine::files::Errno;
use crate::engine::wasix;

use super::wasi::{self, Env, proc_exit as proc_exit2, proc_exit as thread_exit};
use super::{MakeFn, host_fns, signature};

pub const MODULE: &str = "wasix_32v1";

/// What preview1 has and the lean WASI has not. Hard links and sockets are refused by both.
const BEYOND_LEAN: &str = "path_symlink";

/// A function of wasmer-wasix's own table.
pub struct WasixFn {
    pub name: String,
    pub ty: FunctionType,
    pub served: Served,
}

pub enum Served {
    /// By us: wasmer-wasix is not asked.
    Ours(MakeFn),
    /// By wasmer-wasix, when these hold.
    Checked(&'static [Check]),
    Refused,
}

/// What is looked at before (or after) wasmer-wasix is called; numbers are positions of arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The descriptor of a folder. Wasmer-wasix has two of `/`; the one that only lists what is mounted stands for the other.
    Folder(usize),
    /// A pointer to a path, its length behind it.
    Path(usize),
    /// The target of a symbolic link: as a path, and of few names.
    Target(usize),
    /// A pointer to vectors of bytes, their count behind it.
    Vectors(usize),
    /// A descriptor that the guest chooses.
    Descriptor(usize),
    /// Where the number of a new descriptor goes.
    NewDescriptor(usize),
    /// Flags of looking up a path, and of opening what it leads to.
    Opening(usize, usize),
    /// Two times, and the flags that say which of them are given and which are now.
    Times(usize, usize),
}

use Check::{Descriptor, Folder, NewDescriptor, Opening, Path, Target, Times, Vectors};

/// Files, and facts about the process. Not hard links: wasmer-wasix lets a folder be linked into itself, and then
/// recurses without end.
static CHECKED: &[(&str, &[Check])] = &[
    ("chdir", &[Path(0)]),
    ("fd_advise", &[]),
    ("fd_allocate", &[]),
    ("fd_close", &[]),
    ("fd_datasync", &[]),
    ("fd_dup", &[NewDescriptor(1)]),
    ("fd_dup2", &[Descriptor(1), NewDescriptor(3)]),
    ("fd_fdflags_get", &[]),
    ("fd_fdflags_set", &[]),
    ("fd_fdstat_get", &[]),
    ("fd_fdstat_set_flags", &[]),
    ("fd_fdstat_set_rights", &[]),
    ("fd_filestat_get", &[]),
    ("fd_filestat_set_size", &[]),
    ("fd_filestat_set_times", &[Times(1, 3)]),
    ("fd_pread", &[Vectors(1)]),
    ("fd_prestat_dir_name", &[]),
    ("fd_prestat_get", &[]),
    ("fd_pwrite", &[Vectors(1)]),
    ("fd_read", &[Vectors(1)]),
    ("fd_readdir", &[Folder(0)]),
    ("fd_renumber", &[Descriptor(1)]),
    ("fd_seek", &[]),
    ("fd_sync", &[]),
    ("fd_tell", &[]),
    ("fd_write", &[Vectors(1)]),
    ("getcwd", &[]),
    ("path_create_directory", &[Folder(0), Path(1)]),
    ("path_filestat_get", &[Folder(0), Path(2)]),
    ("path_filestat_set_times", &[Folder(0), Path(2), Times(4, 6)]),
    ("path_open", &[Folder(0), Path(2), NewDescriptor(8), Opening(1, 4)]),
    ("path_open2", &[Folder(0), Path(2), NewDescriptor(9), Opening(1, 4)]),
    ("path_readlink", &[Folder(0), Path(1)]),
    ("path_remove_directory", &[Folder(0), Path(1)]),
    ("path_rename", &[Folder(0), Path(1), Folder(3), Path(4)]),
    ("path_symlink", &[Target(0), Folder(2), Path(3)]),
    ("path_unlink_file", &[Folder(0), Path(1)]),
    ("proc_id", &[]),
    ("proc_signals_get", &[]),
    ("proc_signals_sizes_get", &[]),
    ("thread_id", &[]),
    ("thread_parallelism", &[]),
    ("tty_get", &[]),
];

/// What the lean WASI has and does not need files for.
const LEAN: [&str; 11] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
];

fn thread_sleep(env: Env<'_>, nanos: i64) -> Result<i32, Halt> {
    env.data().sleep(Duration::from_nanos(nanos as u64))?;
    Ok(Errno::SUCCESS)
}

/// The C library registers its handler at start; no signal ever comes.
fn callback_signal(_env: Env<'_>, _name: i32, _len: i32) {}

host_fns! {
    static OURS;
    callback_signal(i32, i32);
    proc_exit2(i32);
    // The only one.
    thread_exit(i32);
    thread_sleep(i64) -> i32;
}

/// Whether a module with these imports is one for wasmer-wasix.
pub fn serves<'i>(abi: Abi, mut imports: impl Iterator<Item = (&'i str, &'i str)>) -> bool {
    let theirs = |(module, name)| module == MODULE || (module == wasi::MODULE && name == BEYOND_LEAN);
    matches!(abi, Abi::Command | Abi::Cgi) && imports.any(theirs)
}

/// The function behind an import of such a module.
pub fn resolve(module: &str, name: &str) -> Option<&'static WasixFn> {
    let known = module == MODULE || (module == wasi::MODULE && wasi::host_fn(name).is_some());
    if known { table().get(name) } else { None }
}

impl WasixFn {
    /// As in [`crate::domain::module::ImportShape`].
    pub fn signature(&self) -> String {
        let names = |types: &[Type]| types.iter().map(|ty| ty.to_string().to_lowercase()).collect::<Vec<_>>();
        let (params, results) = (names(self.ty.params()), names(self.ty.results()));
        let [params, results] = [&params, &results].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
        signature(&params, &results)
    }
}

/// All functions of wasmer-wasix, by name.
fn table() -> &'static HashMap<String, WasixFn> {
    static TABLE: OnceLock<HashMap<String, WasixFn>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let functions = wasix::functions().into_iter();
        functions.map(|(name, ty)| (name.clone(), WasixFn { served: served(&name), name, ty })).collect()
    })
}

fn served(name: &str) -> Served {
    let lean = LEAN.contains(&name).then(|| wasi::host_fn(name)).flatten();
    if let Some(f) = lean.or_else(|| OURS.iter().find(|f| f.name == name)) {
        return Served::Ours(f.make);
    }
    match CHECKED.iter().find(|(checked, _)| *checked == name) {
        Some((_, checks)) => Served::Checked(checks),
        None => Served::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_name_functions_of_wasmer_wasix_as_it_has_them() {
        assert!(table().len() > 100, "{}", table().len());
        let lean = LEAN.iter().filter_map(|name| wasi::host_fn(name));
        for f in lean.chain(OURS) {
            let theirs = resolve(MODULE, f.name).unwrap_or_else(|| panic!("`{}`", f.name));
            assert_eq!(f.signature(), theirs.signature(), "{}", f.name);
            assert!(matches!(theirs.served, Served::Ours(_)), "{}", f.name);
        }
        for (name, checks) in CHECKED {
            let f = resolve(MODULE, name).unwrap_or_else(|| panic!("`{name}`"));
            assert!(matches!(f.served, Served::Checked(_)), "{name}");
            assert_eq!(f.ty.results(), [Type::I32], "{name}: checks answer with an error number");
            for check in *checks {
                let (i32s, last) = match *check {
                    Path(at) | Target(at) | Vectors(at) => (vec![at, at + 1], at + 1),
                    Folder(at) | Descriptor(at) | NewDescriptor(at) => (vec![at], at),
                    Opening(lookup, open) => (vec![lookup, open], open),
                    Times(at, flags) => {
                        assert_eq!(f.ty.params()[at..at + 2], [Type::I64; 2], "{name}");
                        (vec![flags], flags)
                    }
                };
                assert!(last < f.ty.params().len(), "{name}: {check:?}");
                assert!(i32s.iter().all(|at| f.ty.params()[*at] == Type::I32), "{name}: {check:?}");
            }
        }
    }

    #[test]
    fn preview1_is_the_same_in_both() {
        for f in wasi::all() {
            let theirs = resolve(wasi::MODULE, f.name).unwrap_or_else(|| panic!("`{}`", f.name));
            let other = f.name == "sock_accept";
            assert!(other || f.signature() == theirs.signature(), "{}: {}", f.name, theirs.signature());
        }
        assert!(resolve(wasi::MODULE, "proc_fork").is_none() && resolve("env", "fd_read").is_none());
        assert!(resolve(MODULE, "no_such").is_none());
    }

    #[test]
    fn what_is_not_on_a_list_is_refused() {
        for name in ["sock_open", "resolve", "port_bridge", "thread_spawn", "proc_fork", "proc_exec", "proc_spawn"]
            .iter()
            .chain(&["path_link", "fd_pipe", "fd_event", "epoll_wait", "futex_wait", "dlopen", "stack_checkpoint"])
        {
            assert!(matches!(resolve(MODULE, name).expect(name).served, Served::Refused), "{name}");
        }
    }
}
