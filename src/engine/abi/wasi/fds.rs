//! What a guest does with its descriptors: standard streams, open files and folders.
//!
//! Invariant: work is paid by the byte before the next piece of it begins, and only addresses inside the guest's memory
//! are read or written.

use super::{Env, MAX_VECTORS, Stdout, answer, copied, now};
use crate::engine::failure::Halt;
use crate::engine::files::table::{Descriptor, Open, Stream, rights};
use crate::engine::files::tree::Stat;
use crate::engine::files::{Errno, Offset, Stop, Times};
use crate::engine::host::HostState;

const FILETYPE_CHARACTER_DEVICE: u8 = 2;
const FILETYPE_DIRECTORY: u8 = 3;
const FILETYPE_REGULAR_FILE: u8 = 4;
const ROOT: &[u8] = b"/";
/// `dirent` without its name: next cookie, inode, length of the name, type.
const DIRENT: usize = 24;
/// Entries of a folder between two looks at the deadline; an entry's units of fuel beside its bytes.
const ENTRIES: u32 = 128;
const ENTRY_UNITS: u64 = 8;
/// Fuel of a vector beside its bytes: there may be a thousand empty ones in a call.
const VECTOR_UNITS: u64 = 8;
/// The last kind of advice.
const NOREUSE: i32 = 5;

/// `fstflags`: whether each time is given, or now.
pub const ATIM: i32 = 1;
pub const ATIM_NOW: i32 = 2;
pub const MTIM: i32 = 4;
pub const MTIM_NOW: i32 = 8;

fn descriptor(host: &HostState, fd: i32) -> Result<Descriptor, Errno> {
    host.wasi.files.table.get(fd)
}

/// Calls `each` with the address and length of every vector, until one was not used up. Gives the bytes in all.
fn vectors(
    host: &mut HostState,
    (iovs, count): (i32, i32),
    mut each: impl FnMut(&mut HostState, u32, u32, u64) -> Result<u64, Stop>,
) -> Result<u64, Stop> {
    if count as u32 > MAX_VECTORS {
        return Err(Errno::INVAL.into());
    }
    let mut total = 0u64;
    for n in 0..count as u32 {
        let vector = (iovs as u32).wrapping_add(n * 8);
        let (at, len) = (host.memory.read_u32(vector)?, host.memory.read_u32(vector.wrapping_add(4))?);
        let done = match each(host, at, len, total) {
            // What was done before it counts.
            Err(Stop::Errno(_)) if total > 0 => break,
            done => done?,
        };
        host.fuel.charge(VECTOR_UNITS);
        copied(&mut host.fuel, done as u32)?;
        total += done;
        if done < u64::from(len) {
            break;
        }
    }
    Ok(total)
}

/// As [`vectors`], and tells the guest how much it was. A caller that writes 4 GiB or more at once has overlapping
/// vectors; the count wraps, as it does in C.
fn transfer(
    host: &mut HostState,
    list: (i32, i32),
    count: i32,
    each: impl FnMut(&mut HostState, u32, u32, u64) -> Result<u64, Stop>,
) -> Result<i32, Halt> {
    answer((|| {
        let total = vectors(host, list, each)?;
        Ok(host.memory.write_u32(count as u32, total as u32)?)
    })())
}

pub fn fd_write(mut env: Env<'_>, fd: i32, iovs: i32, iovs_len: i32, written: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    match descriptor(host, fd) {
        Err(errno) => Ok(errno.code()),
        Ok(Descriptor::Stream(Stream::In)) => Ok(Errno::BADF.code()),
        Ok(Descriptor::Stream(stream)) => {
            transfer(host, (iovs, iovs_len), written, |host, at, len, _| Ok(print(host, stream, at, len)?))
        }
        Ok(Descriptor::Node(_)) => write_file(host, fd, (iovs, iovs_len), None, written),
    }
}

fn print(host: &mut HostState, stream: Stream, at: u32, len: u32) -> Result<u64, Halt> {
    let HostState { memory, fuel, wasi, log, output, .. } = host;
    let bytes = memory.slice(at, len)?;
    match &mut wasi.stdout {
        Stdout::Kept(out) if stream == Stream::Out => {
            output.spend(bytes.len())?;
            fuel.append(out, bytes)?;
        }
        _ => log.write(bytes),
    }
    Ok(u64::from(len))
}

/// `from`: the offset, where the call names one.
fn write_file(host: &mut HostState, fd: i32, list: (i32, i32), from: Option<i64>, written: i32) -> Result<i32, Halt> {
    let now = now(host);
    transfer(host, list, written, |host, at, len, total| {
        let HostState { memory, fuel, wasi, .. } = host;
        let offset = offset(from, total)?;
        wasi.files.write(fuel, fd, offset, memory.slice(at, len)?, now)?;
        Ok(u64::from(len))
    })
}

fn offset(from: Option<i64>, done: u64) -> Result<Offset, Errno> {
    match from {
        None => Ok(Offset::Current),
        Some(from) => {
            let from = u64::try_from(from).map_err(|_| Errno::INVAL)?;
            Ok(Offset::At(from.checked_add(done).ok_or(Errno::INVAL)?))
        }
    }
}

pub fn fd_read(mut env: Env<'_>, fd: i32, iovs: i32, iovs_len: i32, read: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    match descriptor(host, fd) {
        Err(errno) => Ok(errno.code()),
        Ok(Descriptor::Stream(Stream::In)) => transfer(host, (iovs, iovs_len), read, |host, at, len, _| {
            let HostState { memory, fuel, wasi, .. } = host;
            let n = wasi.stdin.len().min(len as usize);
            fuel.copy(memory.slice_mut(at, n as u32)?, &wasi.stdin.split_to(n))?;
            Ok(n as u64)
        }),
        Ok(Descriptor::Stream(_)) => Ok(Errno::BADF.code()),
        Ok(Descriptor::Node(_)) => read_file(host, fd, (iovs, iovs_len), None, read),
    }
}

fn read_file(host: &mut HostState, fd: i32, list: (i32, i32), from: Option<i64>, read: i32) -> Result<i32, Halt> {
    transfer(host, list, read, |host, at, len, total| {
        let HostState { memory, fuel, wasi, .. } = host;
        let offset = offset(from, total)?;
        Ok(wasi.files.read(fuel, fd, offset, memory.slice_mut(at, len)?)? as u64)
    })
}

pub fn fd_pread(mut env: Env<'_>, fd: i32, iovs: i32, iovs_len: i32, from: i64, read: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    match descriptor(host, fd) {
        Ok(Descriptor::Node(_)) => read_file(host, fd, (iovs, iovs_len), Some(from), read),
        other => Ok(other.map_or_else(Errno::code, |_| Errno::SPIPE.code())),
    }
}

pub fn fd_pwrite(mut env: Env<'_>, fd: i32, iovs: i32, iovs_len: i32, from: i64, written: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    match descriptor(host, fd) {
        Ok(Descriptor::Node(_)) => write_file(host, fd, (iovs, iovs_len), Some(from), written),
        other => Ok(other.map_or_else(Errno::code, |_| Errno::SPIPE.code())),
    }
}

/// Runs `work` on the files of a guest whose time is not up.
fn files(env: &mut Env<'_>, work: impl FnOnce(&mut HostState) -> Result<(), Stop>) -> Result<i32, Halt> {
    let host = env.data_mut();
    host.fuel.check()?;
    answer(work(host))
}

pub fn fd_close(mut env: Env<'_>, fd: i32) -> Result<i32, Halt> {
    files(&mut env, |host| Ok(host.wasi.files.close(fd)?))
}

pub fn fd_renumber(mut env: Env<'_>, from: i32, to: i32) -> Result<i32, Halt> {
    files(&mut env, |host| Ok(host.wasi.files.renumber(from, to)?))
}

pub fn fd_seek(mut env: Env<'_>, fd: i32, by: i64, whence: i32, position: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    if let Ok(Descriptor::Stream(_)) = descriptor(host, fd) {
        return Ok(Errno::SPIPE.code());
    }
    answer((|| {
        let to = host.wasi.files.seek(fd, by, whence)?;
        Ok(host.memory.write_u64(position as u32, to)?)
    })())
}

pub fn fd_tell(env: Env<'_>, fd: i32, position: i32) -> Result<i32, Halt> {
    fd_seek(env, fd, 0, 1, position)
}

pub fn fd_fdstat_get(mut env: Env<'_>, fd: i32, stat: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    let (filetype, flags, base, inheriting) = match descriptor(host, fd) {
        Err(errno) => return Ok(errno.code()),
        Ok(Descriptor::Stream(Stream::In)) => (FILETYPE_CHARACTER_DEVICE, 0, rights::FD_READ, 0),
        Ok(Descriptor::Stream(_)) => (FILETYPE_CHARACTER_DEVICE, 0, rights::FD_WRITE, 0),
        Ok(Descriptor::Node(open)) => {
            let Open { flags, rights, inheriting, .. } = open;
            (filetype(host.wasi.files.is_folder(&open)), flags, rights, inheriting)
        }
    };
    // fdstat: filetype at 0, flags at 2, base rights at 8, inheriting rights at 16.
    let mut out = [0u8; 24];
    out[0] = filetype;
    out[2..4].copy_from_slice(&flags.to_le_bytes());
    out[8..16].copy_from_slice(&base.to_le_bytes());
    out[16..24].copy_from_slice(&inheriting.to_le_bytes());
    host.memory.write(stat as u32, &out)?;
    Ok(Errno::SUCCESS)
}

fn filetype(is_folder: bool) -> u8 {
    if is_folder { FILETYPE_DIRECTORY } else { FILETYPE_REGULAR_FILE }
}

pub fn fd_fdstat_set_flags(mut env: Env<'_>, fd: i32, flags: i32) -> Result<i32, Halt> {
    files(&mut env, |host| match descriptor(host, fd)? {
        Descriptor::Stream(_) => Ok(()),
        Descriptor::Node(_) => Ok(host.wasi.files.set_flags(fd, u16::try_from(flags).map_err(|_| Errno::INVAL)?)?),
    })
}

pub fn fd_fdstat_set_rights(mut env: Env<'_>, fd: i32, base: i64, inheriting: i64) -> Result<i32, Halt> {
    files(&mut env, |host| Ok(host.wasi.files.set_rights(fd, base as u64, inheriting as u64)?))
}

pub fn fd_filestat_get(mut env: Env<'_>, fd: i32, stat: i32) -> Result<i32, Halt> {
    let host = env.data_mut();
    if let Ok(Descriptor::Stream(_)) = descriptor(host, fd) {
        // Device, inode, size and times are 0.
        let mut out = [0u8; 64];
        out[16] = FILETYPE_CHARACTER_DEVICE;
        host.memory.write(stat as u32, &out)?;
        return Ok(Errno::SUCCESS);
    }
    answer((|| Ok(write_stat(host, stat, &host.wasi.files.stat(fd)?)?))())
}

/// filestat: device at 0, inode at 8, filetype at 16, links at 24, size at 32, times at 40 (access), 48 (modification)
/// and 56 (change).
pub fn write_stat(host: &mut HostState, to: i32, stat: &Stat) -> Result<(), Halt> {
    let Stat { device, inode, is_folder, links, size, times } = *stat;
    let kind = u64::from(filetype(is_folder));
    let mut out = [0u8; 64];
    let words = [device, inode, kind, links, size, times.accessed, times.modified, times.changed];
    for (to, word) in out.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    host.memory.write(to as u32, &out)
}

pub fn fd_filestat_set_size(mut env: Env<'_>, fd: i32, size: i64) -> Result<i32, Halt> {
    files(&mut env, |host| {
        let now = now(host);
        Ok(host.wasi.files.set_size(fd, size as u64, now)?)
    })
}

/// What `fst_flags` makes of a file's times.
pub fn new_times(accessed: i64, modified: i64, flags: i32, now: u64) -> Result<impl Fn(Times) -> Times + Copy, Errno> {
    let both = |one: i32, other: i32| flags & (one | other) == one | other;
    if both(ATIM, ATIM_NOW) || both(MTIM, MTIM_NOW) || flags & !(ATIM | ATIM_NOW | MTIM | MTIM_NOW) != 0 {
        return Err(Errno::INVAL);
    }
    let new = move |set: i32, set_now: i32, given: i64, before: u64| match flags {
        _ if flags & set != 0 => given as u64,
        _ if flags & set_now != 0 => now,
        _ => before,
    };
    Ok(move |before: Times| Times {
        accessed: new(ATIM, ATIM_NOW, accessed, before.accessed),
        modified: new(MTIM, MTIM_NOW, modified, before.modified),
        changed: now,
    })
}

pub fn fd_filestat_set_times(mut env: Env<'_>, fd: i32, accessed: i64, modified: i64, flags: i32) -> Result<i32, Halt> {
    files(&mut env, |host| {
        let new = new_times(accessed, modified, flags, now(host))?;
        Ok(host.wasi.files.set_times(fd, new)?)
    })
}

pub fn fd_advise(mut env: Env<'_>, fd: i32, _from: i64, _len: i64, advice: i32) -> Result<i32, Halt> {
    files(&mut env, |host| {
        host.wasi.files.allows(fd, rights::FD_ADVISE)?;
        if (0..=NOREUSE).contains(&advice) { Ok(()) } else { Err(Errno::INVAL.into()) }
    })
}

pub fn fd_allocate(mut env: Env<'_>, fd: i32, from: i64, len: i64) -> Result<i32, Halt> {
    files(&mut env, |host| {
        let now = now(host);
        Ok(host.wasi.files.allocate(fd, from as u64, len as u64, now)?)
    })
}

pub fn fd_sync(mut env: Env<'_>, fd: i32) -> Result<i32, Halt> {
    files(&mut env, |host| Ok(host.wasi.files.allows(fd, rights::FD_SYNC)?))
}

pub fn fd_datasync(mut env: Env<'_>, fd: i32) -> Result<i32, Halt> {
    files(&mut env, |host| Ok(host.wasi.files.allows(fd, rights::FD_DATASYNC)?))
}

fn is_preopened(host: &HostState, fd: i32) -> bool {
    matches!(descriptor(host, fd), Ok(Descriptor::Node(Open { preopened: true, .. })))
}

pub fn fd_prestat_get(mut env: Env<'_>, fd: i32, prestat: i32) -> Result<i32, Halt> {
    files(&mut env, |host| {
        if !is_preopened(host, fd) {
            return Err(Errno::BADF.into());
        }
        // prestat: 0 for a folder, the length of its name at 4.
        let mut out = [0u8; 8];
        out[4..].copy_from_slice(&(ROOT.len() as u32).to_le_bytes());
        Ok(host.memory.write(prestat as u32, &out)?)
    })
}

pub fn fd_prestat_dir_name(mut env: Env<'_>, fd: i32, path: i32, len: i32) -> Result<i32, Halt> {
    files(&mut env, |host| {
        if !is_preopened(host, fd) {
            return Err(Errno::BADF.into());
        }
        if (len as u32 as usize) < ROOT.len() {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(host.memory.write(path as u32, ROOT)?)
    })
}

/// Fills the buffer; the last entry is cut where it ends. Less than the buffer: that was all.
pub fn fd_readdir(mut env: Env<'_>, fd: i32, buffer: i32, len: i32, cookie: i64, used: i32) -> Result<i32, Halt> {
    files(&mut env, |host| {
        let HostState { memory, fuel, wasi, .. } = host;
        let mut room = memory.slice_mut(buffer as u32, len as u32)?;
        let (mut cookie, mut filled) = (cookie as u64, 0u32);
        for n in 1u32.. {
            let Some(entry) = wasi.files.entry(fd, cookie)? else { break };
            let name = entry.name.as_bytes();
            let mut head = [0u8; DIRENT];
            head[..8].copy_from_slice(&entry.next.to_le_bytes());
            head[8..16].copy_from_slice(&entry.at.inode().to_le_bytes());
            head[16..20].copy_from_slice(&(name.len() as u32).to_le_bytes());
            head[20] = filetype(entry.is_folder);
            for part in [&head[..], name] {
                let fits = part.len().min(room.len());
                let (to, rest) = room.split_at_mut(fits);
                to.copy_from_slice(&part[..fits]);
                room = rest;
                filled += fits as u32;
            }
            cookie = entry.next;
            fuel.charge(ENTRY_UNITS);
            if room.is_empty() {
                break;
            }
            if n.is_multiple_of(ENTRIES) {
                fuel.check()?;
            }
        }
        Ok(host.memory.write_u32(used as u32, filled)?)
    })
}
