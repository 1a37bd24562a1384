//! What the gateway asks of the operating system beyond the standard library.

#![allow(unsafe_code)] // system calls that std does not wrap

use std::net::TcpListener;
use std::os::fd::AsRawFd;

/// Raises the soft limit of open files to the hard one; gives the limit now in force.
pub fn raise_open_files() -> std::io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a `rlimit` that lives across them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(limit.rlim_cur)
}

/// As many connections may wait to be accepted as the system allows. The standard library asks for 128, and what comes
/// beyond that in one burst is dropped and tries again only after a second.
pub fn deepen_listen_queue(socket: &TcpListener) -> std::io::Result<()> {
    // SAFETY: the descriptor is a listening socket that lives across the call, which changes nothing but its queue.
    match unsafe { libc::listen(socket.as_raw_fd(), libc::c_int::MAX) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
