//! Helpers of the system tests: the real binary, real sockets, real upstreams. Nothing of the gateway is imported.
//!
//! Invariant: every port is 0, every file is in a folder of the test's own, and nothing waits without a deadline.

pub mod admin;
pub mod api;
pub mod cluster;
pub mod gateway;
pub mod guest;
pub mod h2c;
pub mod http1;
pub mod redis;
pub mod smith;
pub mod tls;
pub mod toml;
pub mod upstream;

use std::time::{Duration, Instant};

pub use gateway::{Gateway, try_serve};
pub use guest::{c_example, c_guest, c_source, wasix_guest, wat};
pub use http1::{Conn, Request, Response};
pub use upstream::Upstream;

/// Long enough for a debug build on a busy machine; a test that meets it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until `cond` holds. With its other forms below, the only place in the tests that sleeps.
#[track_caller]
pub fn eventually(what: &str, mut cond: impl FnMut() -> bool) {
    assert!(poll(DEADLINE, &mut cond), "not within {DEADLINE:?}: {what}");
}

/// As `eventually`, for tests on a runtime.
pub async fn eventually_async(what: &str, cond: impl FnMut() -> bool) {
    assert!(poll_async(DEADLINE, cond).await, "not within {DEADLINE:?}: {what}");
}

/// As `poll`, for tests on a runtime.
pub async fn poll_async(deadline: Duration, mut cond: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !cond() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Whether `cond` came to hold within `deadline`.
pub fn poll(deadline: Duration, mut cond: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if cond() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Room for thousands of connections in this process; the gateway raises its own limit.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a `rlimit` that lives across them.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    assert!(raised, "the limit of open files: {}", std::io::Error::last_os_error());
}
