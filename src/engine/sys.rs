//! The few calls of the operating system that the engine needs and std has not, behind safe functions.
//!
//! Invariant: every `unsafe` here is one libc call on memory that the function itself owns.

// libc has no safe form of these calls.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;
use std::time::Duration;

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is valid for writes and outlives the call.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut ts) };
    if rc != 0 {
        return Duration::ZERO;
    }
    Duration::new(ts.tv_sec as u64, ts.tv_nsec as u32)
}

/// Ends the process by SIGPROF once it has used so much more CPU time.
pub fn end_after_cpu_time(left: Duration) {
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // Zero would switch it off.
    let micros = left.as_micros().max(1);
    let value = libc::timeval { tv_sec: (micros / 1_000_000) as _, tv_usec: (micros % 1_000_000) as _ };
    let timer = libc::itimerval { it_interval: zero, it_value: value };
    // SAFETY: `timer` is valid for reads and outlives the call; the old value is not asked for.
    unsafe {
        libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut());
    }
}

thread_local! {
    static THREAD_TIMER: io::Result<libc::timer_t> = thread_timer();
}

fn thread_timer() -> io::Result<libc::timer_t> {
    // SAFETY: all zero is a valid `sigevent`, a structure of numbers and pointers.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGPROF;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: `event` is valid for reads, `timer` for writes, and both outlive the call.
    match unsafe { libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &mut event, &mut timer) } {
        0 => Ok(timer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process by SIGPROF once the calling thread has used so much more CPU time; a later call in the same thread
/// takes the place of this one.
pub fn end_after_thread_cpu_time(left: Duration) -> io::Result<()> {
    THREAD_TIMER.with(|timer| {
        let timer = *timer.as_ref().map_err(|e| io::Error::from(e.kind()))?;
        // Zero would switch it off.
        let left = left.max(Duration::from_nanos(1));
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the timer lives as long as the process; `spec` is valid for reads and outlives the call.
        match unsafe { libc::timer_settime(timer, 0, &spec, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// Lowers the calling thread's priority, so that guests give way to the proxy's own threads. Best effort.
pub fn nice_this_thread(by: i32) {
    // SAFETY: `setpriority` reads its arguments only; on Linux id 0 of PRIO_PROCESS is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, by);
    }
}

/// Soft and hard limit of the calling process.
pub fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` is valid for reads and outlives the call.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of address space that this process has mapped (proc(5), `statm`).
pub fn address_space() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    // SAFETY: `sysconf` takes its argument by value.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = u64::try_from(page).ok();
    pages.zip(page).map(|(n, size)| n * size).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Memory that this process may use: the machine's, or the least bound of its control groups (cgroups(7), version 2, and
/// the root that containers see of version 1).
pub fn memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let meminfo = read(Path::new("/proc/meminfo"))?;
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let total: u64 = total.map(|kib: u64| kib << 10)?;
    let group = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let own = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let groups = root.join(own);
    let bounds = groups.ancestors().filter(|path| path.starts_with(root)).map(|path| path.join("memory.max"));
    let bounds = bounds.chain([root.join("memory/memory.limit_in_bytes")]);
    Some(bounds.filter_map(|path| read(&path)?.trim().parse().ok()).fold(total, u64::min))
}

/// Closes every descriptor but the standard ones.
pub fn close_inherited() {
    // SAFETY: nothing in a process that has just begun holds a descriptor above 2 that it counts on.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
}
