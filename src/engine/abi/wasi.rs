//! WASI preview1, the lean one: arguments, environment, standard streams, files in memory (`wasi/`), clocks, random,
//! yield, sleep, exit. What it has not (links, sockets) answers with an error number, so that real guests start: many
//! name those functions and never call them.
//!
//! Invariant: nothing here touches the host beyond [`HostState`]; every loop over guest data is bounded.

mod fds;
mod paths;

use std::time::Duration;

use bytes::Bytes;
use wasmer::FunctionEnvMut;

use crate::engine::failure::Halt;
use crate::engine::files::{Errno, Files, Stop};
use crate::engine::fuel::Fuel;
use crate::engine::host::{HostState, TICK};
use crate::engine::memory::GuestMemory;

use super::{HostFn, host_fns};
pub use fds::{ATIM, ATIM_NOW, MTIM, MTIM_NOW};
use fds::{
    fd_advise, fd_allocate, fd_close, fd_datasync, fd_fdstat_get, fd_fdstat_set_flags, fd_fdstat_set_rights,
    fd_filestat_get, fd_filestat_set_size, fd_filestat_set_times, fd_pread, fd_prestat_dir_name, fd_prestat_get,
    fd_pwrite, fd_read, fd_readdir, fd_renumber, fd_seek, fd_sync, fd_tell, fd_write,
};
use paths::{
    path_create_directory, path_filestat_get, path_filestat_set_times, path_open, path_readlink, path_remove_directory,
    path_rename, path_unlink_file,
};

pub const MODULE: &str = "wasi_snapshot_preview1";
/// Preview0. Proxy-wasm filters that name it mean the functions in which the two are the same.
pub const OLD_MODULE: &str = "wasi_unstable";

/// Vectors of one read or write, subscriptions of one poll.
pub const MAX_VECTORS: u32 = 1_024;
/// `random_get` fills memory in pieces, with the deadline looked at between them.
const RANDOM_PIECE: usize = 64 << 10;
/// Random bytes for one unit of fuel.
const RANDOM_BYTES_PER_UNIT: u64 = 8;
/// Bytes copied to or from the host for one unit of fuel.
const COPY_BYTES_PER_UNIT: u64 = 64;

const EVENTTYPE_CLOCK: u8 = 0;
const CLOCK_ABSTIME: u16 = 1;

/// Where standard output goes.
#[derive(Debug, Default)]
pub enum Stdout {
    /// To the log, as standard error does (living VMs).
    #[default]
    Log,
    /// Kept, up to the output limit.
    Kept(Vec<u8>),
}

/// What a WASI guest sees of its run.
#[derive(Debug, Default)]
pub struct WasiState {
    /// With the program's name first.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Bytes,
    pub stdout: Stdout,
    pub files: Files,
}

impl WasiState {
    pub fn take_stdout(&mut self) -> Bytes {
        match &mut self.stdout {
            Stdout::Kept(out) => std::mem::take(out).into(),
            Stdout::Log => Bytes::new(),
        }
    }
}

pub type Env<'a> = FunctionEnvMut<'a, HostState>;

/// What work on files comes to: an error number is an answer.
fn answer(done: Result<(), Stop>) -> Result<i32, Halt> {
    match done {
        Ok(()) => Ok(Errno::SUCCESS),
        Err(Stop::Errno(errno)) => Ok(errno.code()),
        Err(Stop::Halt(halt)) => Err(halt),
    }
}

/// Pays for bytes between the guest and the host.
pub fn copied(fuel: &mut Fuel, bytes: u32) -> Result<(), Halt> {
    fuel.charge(u64::from(bytes) / COPY_BYTES_PER_UNIT);
    fuel.check()
}

/// A list of C strings: pointers to `table`, text to `buffer`.
fn write_strings<'s>(
    memory: &mut GuestMemory,
    fuel: &mut Fuel,
    strings: impl Iterator<Item = [&'s str; 3]>,
    table: i32,
    buffer: i32,
) -> Result<i32, Halt> {
    let (mut entry, mut at) = (table as u32, buffer as u32);
    for parts in strings {
        let begin = at;
        memory.write_u32(entry, at)?;
        entry = entry.wrapping_add(4);
        for part in parts {
            memory.write(at, part.as_bytes())?;
            at = at.wrapping_add(part.len() as u32);
        }
        memory.write(at, &[0])?;
        at = at.wrapping_add(1);
        copied(fuel, at.wrapping_sub(begin))?;
    }
    Ok(Errno::SUCCESS)
}

fn args_get(mut env: Env<'_>, argv: i32, buffer: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, wasi, .. } = env.data_mut();
    write_strings(memory, fuel, wasi.args.iter().map(|a| [a.as_str(), "", ""]), argv, buffer)
}

fn args_sizes_get(mut env: Env<'_>, count: i32, bytes: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, wasi, .. } = env.data_mut();
    fuel.check()?;
    memory.write_u32(count as u32, wasi.args.len() as u32)?;
    memory.write_u32(bytes as u32, wasi.args.iter().map(|a| a.len() as u32 + 1).sum())?;
    Ok(Errno::SUCCESS)
}

fn environ_get(mut env: Env<'_>, environ: i32, buffer: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, wasi, .. } = env.data_mut();
    write_strings(memory, fuel, wasi.env.iter().map(|(k, v)| [k.as_str(), "=", v.as_str()]), environ, buffer)
}

fn environ_sizes_get(mut env: Env<'_>, count: i32, bytes: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, wasi, .. } = env.data_mut();
    fuel.check()?;
    memory.write_u32(count as u32, wasi.env.len() as u32)?;
    memory.write_u32(bytes as u32, wasi.env.iter().map(|(k, v)| (k.len() + v.len()) as u32 + 2).sum())?;
    Ok(Errno::SUCCESS)
}

fn clock_time_get(mut env: Env<'_>, clock: i32, _precision: i64, time: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    let Some(now) = clock_now(host, clock as u32) else { return Ok(Errno::INVAL.code()) };
    host.memory.write_u64(time as u32, now)?;
    Ok(Errno::SUCCESS)
}

fn clock_res_get(mut env: Env<'_>, clock: i32, resolution: i32) -> Result<i32, Halt> {
    if !(0..=3).contains(&clock) {
        return Ok(Errno::INVAL.code());
    }
    env.data_mut().memory.write_u64(resolution as u32, TICK.as_nanos() as u64)?;
    Ok(Errno::SUCCESS)
}

/// Real time in nanoseconds, as the guest could read it.
pub fn now(host: &HostState) -> u64 {
    clock_now(host, 0).unwrap_or_default()
}

/// Nanoseconds of a clock: 0 real time, 1 monotonic, 2 and 3 CPU time (as the monotonic one).
fn clock_now(host: &HostState, clock: u32) -> Option<u64> {
    let now = match clock {
        0 => host.clock.now(),
        1..=3 => host.clock.monotonic(),
        _ => return None,
    };
    u64::try_from(now.as_nanos()).ok()
}

fn random_get(mut env: Env<'_>, buffer: i32, len: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    let len = len as u32;
    host.memory.slice(buffer as u32, len)?;
    let mut done = 0u32;
    while done < len {
        let piece = (len - done).min(RANDOM_PIECE as u32);
        host.fuel.charge(u64::from(piece) / RANDOM_BYTES_PER_UNIT);
        host.fuel.check()?;
        host.random.fill(host.memory.slice_mut(buffer as u32 + done, piece)?)?;
        done += piece;
    }
    Ok(Errno::SUCCESS)
}

fn sched_yield(_env: Env<'_>) -> i32 {
    Errno::SUCCESS
}

pub fn proc_exit(_env: Env<'_>, code: i32) -> Result<(), Halt> {
    Err(Halt::Exit(code))
}

fn proc_raise(_env: Env<'_>, _signal: i32) -> Result<i32, Halt> {
    Err(Halt::Trap("the guest raised a signal".into()))
}

/// Subscriptions have 48 bytes: user data, then the kind at 8; clocks have their id at 16, timeout at 24, flags at 40.
/// Events have 32: user data, error at 8, kind at 10. Streams are always ready; without one, the earliest clock is
/// slept for, never past the deadline.
fn poll_oneoff(mut env: Env<'_>, subscriptions: i32, events: i32, count: i32, stored: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    let count = count as u32;
    if count == 0 || count > MAX_VECTORS {
        return Ok(Errno::INVAL.code());
    }
    // User data, kind and nanoseconds until it is due.
    let mut waits: Vec<([u8; 8], u8, u64)> = Vec::with_capacity(count as usize);
    for n in 0..count {
        let at = (subscriptions as u32).wrapping_add(n * 48);
        let bytes = host.memory.slice(at, 48)?;
        let mut user_data = [0u8; 8];
        user_data.copy_from_slice(&bytes[..8]);
        let kind = bytes[8];
        let wait = if kind == EVENTTYPE_CLOCK { clock_wait(host, at)? } else { 0 };
        waits.push((user_data, kind, wait));
    }
    let earliest = waits.iter().map(|w| w.2).min().unwrap_or(0);
    host.sleep(Duration::from_nanos(earliest))?;
    let mut written = 0u32;
    for (user_data, kind, _) in waits.iter().filter(|w| w.2 <= earliest) {
        let mut event = [0u8; 32];
        event[..8].copy_from_slice(user_data);
        event[10] = *kind;
        host.memory.write((events as u32).wrapping_add(written * 32), &event)?;
        written += 1;
    }
    host.memory.write_u32(stored as u32, written)?;
    Ok(Errno::SUCCESS)
}

/// Nanoseconds until a clock subscription is due; an absolute time that has passed is due at once.
fn clock_wait(host: &HostState, subscription: u32) -> Result<u64, Halt> {
    let clock = host.memory.read_u32(subscription.wrapping_add(16))?;
    let timeout = host.memory.read_u64(subscription.wrapping_add(24))?;
    let flags = host.memory.read_u32(subscription.wrapping_add(40))? as u16;
    if flags & CLOCK_ABSTIME == 0 {
        return Ok(timeout);
    }
    Ok(timeout.saturating_sub(clock_now(host, clock).unwrap_or(u64::MAX)))
}

/// An answer for what this WASI has not.
macro_rules! answers {
    ($( $name:ident ( $($param:ident: $ty:ident),* ) = $errno:ident ; )*) => {
        $(
            // The parameters are preview1's.
            #[allow(clippy::too_many_arguments)]
            fn $name(_env: Env<'_>, $($param: $ty),*) -> i32 {
            $( let _ = $param; )*
            Errno::$errno.code()
        } )*
    };
}

answers! {
    path_link(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32, g: i32) = NOTCAPABLE;
    path_symlink(a: i32, b: i32, c: i32, d: i32, e: i32) = NOTCAPABLE;
    sock_accept(a: i32, b: i32, c: i32) = NOSYS;
    sock_recv(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32) = NOSYS;
    sock_send(a: i32, b: i32, c: i32, d: i32, e: i32) = NOSYS;
    sock_shutdown(a: i32, b: i32) = NOSYS;
}

host_fns! {
    static TABLE;
    args_get(i32, i32) -> i32;
    args_sizes_get(i32, i32) -> i32;
    environ_get(i32, i32) -> i32;
    environ_sizes_get(i32, i32) -> i32;
    clock_res_get(i32, i32) -> i32;
    clock_time_get(i32, i64, i32) -> i32;
    fd_advise(i32, i64, i64, i32) -> i32;
    fd_allocate(i32, i64, i64) -> i32;
    fd_close(i32) -> i32;
    fd_datasync(i32) -> i32;
    fd_fdstat_get(i32, i32) -> i32;
    fd_fdstat_set_flags(i32, i32) -> i32;
    fd_fdstat_set_rights(i32, i64, i64) -> i32;
    fd_filestat_get(i32, i32) -> i32;
    fd_filestat_set_size(i32, i64) -> i32;
    fd_filestat_set_times(i32, i64, i64, i32) -> i32;
    fd_pread(i32, i32, i32, i64, i32) -> i32;
    fd_prestat_get(i32, i32) -> i32;
    fd_prestat_dir_name(i32, i32, i32) -> i32;
    fd_pwrite(i32, i32, i32, i64, i32) -> i32;
    fd_read(i32, i32, i32, i32) -> i32;
    fd_readdir(i32, i32, i32, i64, i32) -> i32;
    fd_renumber(i32, i32) -> i32;
    fd_seek(i32, i64, i32, i32) -> i32;
    fd_sync(i32) -> i32;
    fd_tell(i32, i32) -> i32;
    fd_write(i32, i32, i32, i32) -> i32;
    path_create_directory(i32, i32, i32) -> i32;
    path_filestat_get(i32, i32, i32, i32, i32) -> i32;
    path_filestat_set_times(i32, i32, i32, i32, i64, i64, i32) -> i32;
    path_link(i32, i32, i32, i32, i32, i32, i32) -> i32;
    path_open(i32, i32, i32, i32, i32, i64, i64, i32, i32) -> i32;
    path_readlink(i32, i32, i32, i32, i32, i32) -> i32;
    path_remove_directory(i32, i32, i32) -> i32;
    path_rename(i32, i32, i32, i32, i32, i32) -> i32;
    path_symlink(i32, i32, i32, i32, i32) -> i32;
    path_unlink_file(i32, i32, i32) -> i32;
    poll_oneoff(i32, i32, i32, i32) -> i32;
    proc_exit(i32);
    proc_raise(i32) -> i32;
    random_get(i32, i32) -> i32;
    sched_yield() -> i32;
    sock_accept(i32, i32, i32) -> i32;
    sock_recv(i32, i32, i32, i32, i32, i32) -> i32;
    sock_send(i32, i32, i32, i32, i32) -> i32;
    sock_shutdown(i32, i32) -> i32;
}

pub fn host_fn(name: &str) -> Option<&'static HostFn> {
    TABLE.iter().find(|f| f.name == name)
}

#[cfg(test)]
pub fn all() -> &'static [HostFn] {
    TABLE
}
