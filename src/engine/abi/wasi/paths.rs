//! What a guest does by a path below one of its folders.
//!
//! Invariant: a path is bounded and UTF-8 before anybody looks along it.

use super::fds::{new_times, write_stat};
use super::{Env, answer, now};
use crate::engine::failure::Halt;
use crate::engine::files::tree::MAX_PATH;
use crate::engine::files::{Errno, Files, Opening, Stop};
use crate::engine::fuel::Fuel;
use crate::engine::host::HostState;
use crate::engine::memory::GuestMemory;

/// Fuel of a call by path, and of its bytes: following it and making or removing a file.
const CALL_UNITS: u64 = 64;
const BYTES_PER_UNIT: u64 = 4;

fn text<'m>(memory: &'m GuestMemory, fuel: &mut Fuel, at: i32, len: i32) -> Result<&'m str, Stop> {
    fuel.charge(CALL_UNITS + u64::from(len as u32).min(MAX_PATH as u64) / BYTES_PER_UNIT);
    fuel.check()?;
    let bytes = memory.slice(at as u32, len as u32)?;
    if bytes.len() > MAX_PATH {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(std::str::from_utf8(bytes).map_err(|_| Errno::ILSEQ)?)
}

/// Runs `work` with the guest's files, a path from its memory and the time.
fn with_path(
    env: &mut Env<'_>,
    (at, len): (i32, i32),
    work: impl FnOnce(&mut Files, &str, u64) -> Result<(), Stop>,
) -> Result<i32, Halt> {
    let host = env.data_mut();
    let now = now(host);
    let HostState { memory, fuel, wasi, .. } = host;
    answer(text(memory, fuel, at, len).and_then(|path| work(&mut wasi.files, path, now)))
}

// The parameters are preview1's.
#[allow(clippy::too_many_arguments)]
pub fn path_open(
    mut env: Env<'_>,
    fd: i32,
    _lookup: i32,
    path: i32,
    path_len: i32,
    oflags: i32,
    rights: i64,
    inheriting: i64,
    flags: i32,
    opened: i32,
) -> Result<i32, Halt> {
    let mut new = 0;
    let done = with_path(&mut env, (path, path_len), |files, path, now| {
        let oflags = u16::try_from(oflags).map_err(|_| Errno::INVAL)?;
        let flags = u16::try_from(flags).map_err(|_| Errno::INVAL)?;
        let asked = Opening { oflags, rights: rights as u64, inheriting: inheriting as u64, flags };
        new = files.open(fd, path, &asked, now)?;
        Ok(())
    })?;
    if done == Errno::SUCCESS {
        env.data_mut().memory.write_u32(opened as u32, new as u32)?;
    }
    Ok(done)
}

pub fn path_filestat_get(
    mut env: Env<'_>,
    fd: i32,
    _lookup: i32,
    path: i32,
    path_len: i32,
    stat: i32,
) -> Result<i32, Halt> {
    let mut found = None;
    let done = with_path(&mut env, (path, path_len), |files, path, now| {
        found = Some(files.stat_at(fd, path, now)?);
        Ok(())
    })?;
    if let Some(found) = found {
        write_stat(env.data_mut(), stat, &found)?;
    }
    Ok(done)
}

// The parameters are preview1's.
#[allow(clippy::too_many_arguments)]
pub fn path_filestat_set_times(
    mut env: Env<'_>,
    fd: i32,
    _lookup: i32,
    path: i32,
    path_len: i32,
    accessed: i64,
    modified: i64,
    flags: i32,
) -> Result<i32, Halt> {
    with_path(&mut env, (path, path_len), |files, path, now| {
        let new = new_times(accessed, modified, flags, now)?;
        Ok(files.set_times_at(fd, path, new, now)?)
    })
}

pub fn path_create_directory(mut env: Env<'_>, fd: i32, path: i32, path_len: i32) -> Result<i32, Halt> {
    with_path(&mut env, (path, path_len), |files, path, now| Ok(files.create_folder(fd, path, now)?))
}

pub fn path_remove_directory(mut env: Env<'_>, fd: i32, path: i32, path_len: i32) -> Result<i32, Halt> {
    with_path(&mut env, (path, path_len), |files, path, now| Ok(files.remove_folder(fd, path, now)?))
}

pub fn path_unlink_file(mut env: Env<'_>, fd: i32, path: i32, path_len: i32) -> Result<i32, Halt> {
    with_path(&mut env, (path, path_len), |files, path, now| Ok(files.remove_file(fd, path, now)?))
}

pub fn path_readlink(
    mut env: Env<'_>,
    fd: i32,
    path: i32,
    path_len: i32,
    _buffer: i32,
    _buffer_len: i32,
    _used: i32,
) -> Result<i32, Halt> {
    with_path(&mut env, (path, path_len), |files, path, now| Ok(files.read_link(fd, path, now)?))
}

pub fn path_rename(
    mut env: Env<'_>,
    fd: i32,
    old: i32,
    old_len: i32,
    new_fd: i32,
    new: i32,
    new_len: i32,
) -> Result<i32, Halt> {
    let host = env.data_mut();
    let now = now(host);
    let HostState { memory, fuel, wasi, .. } = host;
    answer((|| {
        let old = text(memory, fuel, old, old_len)?;
        let new = text(memory, fuel, new, new_len)?;
        wasi.files.rename(fuel, (fd, old), (new_fd, new), now)
    })())
}
