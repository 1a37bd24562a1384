//! What every call of a function of wasmer-wasix goes through: fuel, deadline and caller before it, bounds on what it is
//! asked for, and the end of a panic in it.
//!
//! Invariant: between two looks at the clock, wasmer-wasix does work for at most [`PIECE`] bytes and [`MAX_PATH`] of a
//! path, and its tables hold at most [`DESCRIPTORS`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use wasmer::{Function, FunctionEnv, RuntimeError, Store, Value};

use crate::engine::abi::wasi::{ATIM, ATIM_NOW, Env, MAX_VECTORS, MTIM, MTIM_NOW, copied, now};
use crate::engine::abi::wasix::{Check, WasixFn};
use crate::engine::failure::Halt;
use crate::engine::files::{self, Errno, Stop};
use crate::engine::host::HostState;

use super::MAX_PATH;

/// Of `/` as wasmer-wasix begins with it, and of the run's files there.
const MOUNTS: u32 = 3;
const ROOT: i32 = 4;
/// Open at once; numbers are given from below.
const DESCRIPTORS: u32 = 256;
/// Of one read or write; more is done by calling again, as for any file.
const PIECE: u32 = 1 << 20;
/// Names in the target of a symbolic link: a chain of links is followed at the price of all of theirs.
const TARGET_NAMES: usize = 16;
const TARGET_BYTES: u32 = 256;
/// Fuel of a call: looking up a path costs some microseconds.
const CALL_UNITS: u64 = 500;
/// Flags of looking up a path and of opening.
const FOLLOW: i32 = 1 << 0;
const CREATE: i32 = files::CREATE as i32;
const EXCLUSIVE: i32 = files::EXCLUSIVE as i32;
const TRUNCATE: i32 = files::TRUNCATE as i32;

thread_local! {
    /// In wasmer-wasix for a guest.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

fn raise(halt: Halt) -> RuntimeError {
    RuntimeError::user(Box::new(halt))
}

/// For what nobody may call.
pub fn refusing(store: &mut Store, host: &FunctionEnv<HostState>, import: &'static WasixFn) -> Function {
    let refuse = |mut env: Env<'_>, _args: &[Value]| {
        let fuel = &mut env.data_mut().fuel;
        fuel.charge(1);
        fuel.check().map_err(raise)?;
        match import.ty.results() {
            [wasmer::Type::I32] => Ok(vec![Value::I32(Errno::NOTSUP.code())]),
            _ => Err(raise(Halt::Trap(format!("`{}` can't be called here", import.name)))),
        }
    };
    Function::new_with_env(store, host, import.ty.clone(), refuse)
}

/// Has no panic in wasmer-wasix printed: what a guest brings about is no fault of the gateway's, and writing a backtrace
/// takes longer than a run may be late. Once for the process.
pub fn hush_asserts() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !ASKING.get() {
            print(panic);
        }
    }));
}

/// Wasmer-wasix warns of bad pointers and the like, as often as a guest tries them: that is no line of the gateway's log.
pub fn unlogged<R>(work: impl FnOnce() -> R) -> R {
    tracing::dispatcher::with_default(&tracing::Dispatch::none(), work)
}

pub fn checked(
    store: &mut Store,
    host: &FunctionEnv<HostState>,
    import: &'static WasixFn,
    checks: &'static [Check],
    theirs: Function,
    close: Function,
) -> Function {
    let call = move |mut env: Env<'_>, args: &[Value]| match Call::prepare(env.data_mut(), checks, args)
        .and_then(|call| call.make(&mut env, import, &theirs, &close))
    {
        Ok(errno) => Ok(vec![Value::I32(errno)]),
        Err(Stop::Errno(errno)) => Ok(vec![Value::I32(errno.code())]),
        Err(Stop::Halt(halt)) => Err(raise(halt)),
    };
    Function::new_with_env(store, host, import.ty.clone(), call)
}

/// A call whose arguments are within bounds.
struct Call {
    args: Vec<Value>,
    /// A vector that was shortened: where its length stands, and what stood there.
    shortened: Option<(u32, u32)>,
    new_descriptor: Option<u32>,
    /// Where the flags are of an opening that may create.
    creates: Option<(usize, usize)>,
}

impl Call {
    fn prepare(host: &mut HostState, checks: &[Check], args: &[Value]) -> Result<Call, Stop> {
        if !host.wasix.ready {
            let why = "a start function can't use files: begin in `_start`";
            return Err(Halt::Trap(why.to_owned()).into());
        }
        host.fuel.charge(CALL_UNITS);
        host.fuel.check()?;
        let mut call = Call { args: args.to_vec(), shortened: None, new_descriptor: None, creates: None };
        for check in checks {
            call.check(host, *check)?;
        }
        Ok(call)
    }

    fn int(&self, at: usize) -> u32 {
        match self.args.get(at) {
            Some(Value::I32(n)) => *n as u32,
            _ => 0,
        }
    }

    fn check(&mut self, host: &mut HostState, check: Check) -> Result<(), Stop> {
        match check {
            Check::Folder(at) => {
                if self.int(at) == MOUNTS {
                    self.args[at] = Value::I32(ROOT);
                }
                Ok(())
            }
            Check::Path(at) if self.int(at + 1) as usize > MAX_PATH => Err(Errno::NAMETOOLONG.into()),
            Check::Path(_) => Ok(()),
            Check::Target(at) => {
                let len = self.int(at + 1);
                if len > TARGET_BYTES {
                    return Err(Errno::NAMETOOLONG.into());
                }
                let names = host.memory.slice(self.int(at), len)?.split(|b| *b == b'/');
                if names.count() > TARGET_NAMES { Err(Errno::NAMETOOLONG.into()) } else { Ok(()) }
            }
            Check::Vectors(at) => self.shorten(host, at),
            Check::Descriptor(at) if self.int(at) >= DESCRIPTORS => Err(Errno::BADF.into()),
            Check::Descriptor(_) => Ok(()),
            Check::NewDescriptor(at) => {
                self.new_descriptor = Some(self.int(at));
                // A place for its number there must be, or it would stay open without anybody knowing.
                host.memory.slice(self.int(at), 4)?;
                Ok(())
            }
            Check::Opening(lookup, open) => {
                let may = self.int(lookup) as i32 & FOLLOW != 0 && self.int(open) as i32 & CREATE != 0;
                self.creates = may.then_some((lookup, open));
                Ok(())
            }
            Check::Times(at, flags) => {
                self.give_times(host, at, flags);
                Ok(())
            }
        }
    }

    /// Leaves vectors with at most [`PIECE`] bytes together.
    fn shorten(&mut self, host: &mut HostState, at: usize) -> Result<(), Stop> {
        let (vectors, count) = (self.int(at), self.int(at + 1));
        if count > MAX_VECTORS {
            return Err(Errno::INVAL.into());
        }
        let mut left = PIECE;
        for n in 0..count {
            let length = vectors.wrapping_add(n * 8).wrapping_add(4);
            let bytes = host.memory.read_u32(length)?;
            if bytes > left {
                host.memory.write_u32(length, left)?;
                self.shortened = Some((length, bytes));
                self.args[at + 1] = Value::I32((n + 1) as i32);
                left = 0;
                break;
            }
            left -= bytes;
        }
        Ok(copied(&mut host.fuel, PIECE - left)?)
    }

    /// Wasmer-wasix would read the system's clock for what is to be now, and to the nanosecond.
    fn give_times(&mut self, host: &HostState, at: usize, flags: usize) {
        let now = Value::I64(now(host) as i64);
        let mut given = self.int(flags) as i32;
        for (n, set, set_now) in [(0, ATIM, ATIM_NOW), (1, MTIM, MTIM_NOW)] {
            if given & set_now != 0 && given & set == 0 {
                given = given & !set_now | set;
                self.args[at + n] = now.clone();
            }
        }
        self.args[flags] = Value::I32(given);
    }

    /// Wasmer-wasix creates what a link leads to by following the whole chain again at each of its links. Through a link,
    /// only what exists is opened here.
    fn open_through_link(
        &mut self,
        env: &mut Env<'_>,
        import: &'static WasixFn,
        theirs: &Function,
        close: &Function,
    ) -> Result<(), Stop> {
        let (Some((lookup, open)), Some(at)) = (self.creates, self.new_descriptor) else { return Ok(()) };
        let flags = self.int(open) as i32;
        let mut look = self.args.clone();
        look[lookup] = Value::I32(self.int(lookup) as i32 & !FOLLOW);
        look[open] = Value::I32(flags & !(CREATE | EXCLUSIVE | TRUNCATE));
        let found = ask(env, import, theirs, &look)?;
        if found == Errno::SUCCESS {
            let descriptor = env.data().memory.read_u32(at)?;
            ask(env, import, close, &[Value::I32(descriptor as i32)])?;
        } else if found == Errno::LOOP.code() {
            if flags & EXCLUSIVE != 0 {
                return Err(Errno::EXIST.into());
            }
            self.args[open] = Value::I32(flags & !CREATE);
        }
        Ok(())
    }

    /// The error number.
    fn make(
        mut self,
        env: &mut Env<'_>,
        import: &'static WasixFn,
        theirs: &Function,
        close: &Function,
    ) -> Result<i32, Stop> {
        self.open_through_link(env, import, theirs, close)?;
        let result = ask(env, import, theirs, &self.args);
        if let Some((length, bytes)) = self.shortened {
            env.data_mut().memory.write_u32(length, bytes)?;
        }
        let errno = result?;
        env.data_mut().take_output()?;
        if let Some(at) = self.new_descriptor.filter(|_| errno == Errno::SUCCESS) {
            let descriptor = env.data().memory.read_u32(at)?;
            if descriptor >= DESCRIPTORS {
                ask(env, import, close, &[Value::I32(descriptor as i32)])?;
                return Err(Errno::MFILE.into());
            }
        }
        Ok(errno)
    }
}

fn ask(env: &mut Env<'_>, import: &'static WasixFn, theirs: &Function, args: &[Value]) -> Result<i32, Stop> {
    let (_, mut store) = env.data_and_store_mut();
    // It has asserts and unwraps on what guests can bring about. The run ends, so what a panic leaves is not seen again.
    ASKING.set(true);
    let call = || catch_unwind(AssertUnwindSafe(|| theirs.call(&mut store, args)));
    let asked = unlogged(call);
    ASKING.set(false);
    let failed = || Halt::Trap(format!("`{}` failed in the host", import.name));
    match asked {
        Ok(Ok(results)) => match &*results {
            [Value::I32(errno)] => Ok(*errno),
            _ => Err(failed().into()),
        },
        Ok(Err(error)) => {
            tracing::debug!(function = import.name, %error, "wasmer-wasix ended the guest");
            Err(failed().into())
        }
        Err(_) => Err(failed().into()),
    }
}
