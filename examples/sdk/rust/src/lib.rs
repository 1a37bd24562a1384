//! The gateway's own functions for guests: the import module `wasmgate_v1` of wasmgate, for modules with the ABI
//! `http-wasm`, `command` or `cgi`. Needs `alloc` and nothing else.
//!
//! ```ignore
//! let visits = wasmgate_guest::kv::incr(b"visits", 1, None)?;
//! wasmgate_guest::log(wasmgate_guest::Level::Info, &format!("visit {visits}"));
//! ```

#![no_std]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;

/// Why the gateway did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no such thing.
    NotFound,
    /// It is not granted here.
    Denied,
    /// It is too long, negative, malformed, or more than there will ever be.
    BadArgument,
    /// There is no room for it.
    Full,
    /// The value is another one than expected, or no number.
    Conflict,
    /// It took too long.
    Timeout,
    /// The store or the upstream fails.
    Unavailable,
    /// A number that this crate does not know.
    Unknown(i32),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Error::NotFound => "there is no such thing",
            Error::Denied => "it is not granted",
            Error::BadArgument => "an argument is bad",
            Error::Full => "there is no room",
            Error::Conflict => "the value is another one",
            Error::Timeout => "it took too long",
            Error::Unavailable => "the store or the upstream fails",
            Error::Unknown(number) => return write!(f, "the gateway answers {number}"),
        })
    }
}

impl core::error::Error for Error {}

pub type Result<T> = core::result::Result<T, Error>;

fn checked(number: i32) -> Result<u32> {
    u32::try_from(number).map_err(|_| match number {
        -1 => Error::NotFound,
        -2 => Error::Denied,
        -3 => Error::BadArgument,
        -4 => Error::Full,
        -5 => Error::Conflict,
        -6 => Error::Timeout,
        -7 => Error::Unavailable,
        number => Error::Unknown(number),
    })
}

/// As an option, where there being nothing is no error.
fn if_found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls until what there is fits.
fn read(mut call: impl FnMut(*mut u8, u32) -> i32) -> Result<Vec<u8>> {
    let mut buffer = Vec::<u8>::with_capacity(256);
    loop {
        let capacity = u32::try_from(buffer.capacity()).unwrap_or(u32::MAX);
        let length = checked(call(buffer.as_mut_ptr(), capacity))?;
        if length <= capacity {
            // SAFETY: the gateway has written so many bytes, and they are within the capacity.
            unsafe { buffer.set_len(length as usize) };
            return Ok(buffer);
        }
        buffer.reserve_exact(length as usize);
    }
}

fn len(bytes: &[u8]) -> u32 {
    // Memory is 32 bits wide where this runs.
    bytes.len() as u32
}

/// Milliseconds; 0 for ever. A shorter time is one millisecond, as it is not for ever.
fn millis(ttl: Option<Duration>) -> i64 {
    ttl.map_or(0, |ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1))
}

mod sys {
    #[link(wasm_import_module = "wasmgate_v1")]
    unsafe extern "C" {
        pub fn config(buf: *mut u8, cap: u32) -> i32;
        pub fn log(level: i32, text: *const u8, len: u32);
        pub fn principal(field: *const u8, field_len: u32, buf: *mut u8, cap: u32) -> i32;
        pub fn value_get(name: *const u8, name_len: u32, buf: *mut u8, cap: u32) -> i32;
        pub fn value_set(name: *const u8, name_len: u32, value: *const u8, len: u32) -> i32;
        pub fn kv_get(key: *const u8, key_len: u32, buf: *mut u8, cap: u32, version: *mut u64) -> i32;
        pub fn kv_set(key: *const u8, key_len: u32, value: *const u8, len: u32, ttl_ms: i64) -> i32;
        pub fn kv_cas(key: *const u8, key_len: u32, value: *const u8, len: u32, ttl_ms: i64, version: u64) -> i32;
        pub fn kv_incr(key: *const u8, key_len: u32, by: i64, ttl_ms: i64, sum: *mut i64) -> i32;
        pub fn kv_delete(key: *const u8, key_len: u32) -> i32;
        pub fn rate_check(quota: *const u8, quota_len: u32, cost: i32) -> i32;
        pub fn http_call(
            upstream: *const u8,
            upstream_len: u32,
            head: *const u8,
            head_len: u32,
            body: *const u8,
            body_len: u32,
            timeout_ms: u32,
        ) -> i32;
        pub fn http_answer_head(buf: *mut u8, cap: u32) -> i32;
        pub fn http_answer_body(buf: *mut u8, cap: u32) -> i32;
        pub fn metric_define(kind: i32, name: *const u8, name_len: u32) -> i32;
        pub fn metric_record(metric: i32, value: i64) -> i32;
        pub fn metric_increment(metric: i32, by: i64) -> i32;
    }
}

// SAFETY of every call below: pointers and lengths are those of slices and buffers that live across the call, which is
// the only time at which the gateway uses them.

/// The handler's `config`; empty in executions.
pub fn config() -> Vec<u8> {
    read(|buf, cap| unsafe { sys::config(buf, cap) }).unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug = -1,
    Info = 0,
    Warn = 1,
    Error = 2,
}

/// To the gateway's log; in executions to standard error.
pub fn log(level: Level, text: &str) {
    unsafe { sys::log(level as i32, text.as_ptr(), len(text.as_bytes())) }
}

/// What is known of the caller: `key_id`, `owner`, `tier`, `route`, `params.NAME`.
pub fn principal(field: &str) -> Option<Vec<u8>> {
    read(|buf, cap| unsafe { sys::principal(field.as_ptr(), len(field.as_bytes()), buf, cap) }).ok()
}

/// A value that an earlier handler of the request handed on.
pub fn value(name: &[u8]) -> Option<Vec<u8>> {
    read(|buf, cap| unsafe { sys::value_get(name.as_ptr(), len(name), buf, cap) }).ok()
}

/// Hands a value on to later handlers of the request.
pub fn set_value(name: &[u8], value: &[u8]) -> Result<()> {
    checked(unsafe { sys::value_set(name.as_ptr(), len(name), value.as_ptr(), len(value)) }).map(drop)
}

/// Charges a quota of the caller's tier. `Ok(None)`: there was room; `Ok(Some(wait))`: there is after so long, and nothing
/// was charged.
pub fn rate_check(quota: &str, cost: u32) -> Result<Option<Duration>> {
    let cost = i32::try_from(cost).map_err(|_| Error::BadArgument)?;
    let seconds = checked(unsafe { sys::rate_check(quota.as_ptr(), len(quota.as_bytes()), cost) })?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

/// Values that the module's owner keeps, for all of its modules. A write is on the disk when it returns.
pub mod kv {
    use super::*;

    /// A value, and its number for [`replace`].
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Value {
        pub bytes: Vec<u8>,
        pub version: u64,
    }

    pub fn get(key: &[u8]) -> Result<Option<Value>> {
        let mut version = 0;
        let bytes = read(|buf, cap| unsafe { sys::kv_get(key.as_ptr(), len(key), buf, cap, &raw mut version) });
        if_found(bytes.map(|bytes| Value { bytes, version }))
    }

    pub fn set(key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<()> {
        checked(unsafe { sys::kv_set(key.as_ptr(), len(key), value.as_ptr(), len(value), millis(ttl)) }).map(drop)
    }

    /// Writes while the value still has this number; 0: while there is none. [`Error::Conflict`] where it has not.
    pub fn replace(key: &[u8], value: &[u8], ttl: Option<Duration>, version: u64) -> Result<()> {
        let (ttl, value_len) = (millis(ttl), len(value));
        checked(unsafe { sys::kv_cas(key.as_ptr(), len(key), value.as_ptr(), value_len, ttl, version) }).map(drop)
    }

    /// Adds to a number in one step and gives the sum; one that is not there is 0 and gets the time to live.
    pub fn incr(key: &[u8], by: i64, ttl: Option<Duration>) -> Result<i64> {
        let mut sum = 0;
        checked(unsafe { sys::kv_incr(key.as_ptr(), len(key), by, millis(ttl), &raw mut sum) })?;
        Ok(sum)
    }

    /// Whether there was a value.
    pub fn delete(key: &[u8]) -> Result<bool> {
        if_found(checked(unsafe { sys::kv_delete(key.as_ptr(), len(key)) })).map(|found| found.is_some())
    }
}

/// Requests to the upstreams that the handler's `upstreams` name.
pub mod http {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Answer {
        pub status: u16,
        /// `name: value` lines.
        pub head: Vec<u8>,
        pub body: Vec<u8>,
    }

    impl Answer {
        /// The first value of a field, by its name in lower case.
        pub fn header(&self, name: &str) -> Option<&[u8]> {
            let lines = self.head.split(|b| *b == b'\n');
            lines.filter_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b": ")).next()
        }
    }

    /// `head` is `METHOD /path`, then `name: value`, each on a line of its own; without a `host` it is the upstream's name.
    /// `timeout`: 60 s without; never past the end of the guest's own time.
    pub fn call(upstream: &str, head: &str, body: &[u8], timeout: Option<Duration>) -> Result<Answer> {
        let timeout = u32::try_from(millis(timeout)).unwrap_or(u32::MAX);
        let (name_len, head_len) = (len(upstream.as_bytes()), len(head.as_bytes()));
        let (name, head) = (upstream.as_ptr(), head.as_ptr());
        let called = unsafe { sys::http_call(name, name_len, head, head_len, body.as_ptr(), len(body), timeout) };
        let status = u16::try_from(checked(called)?).map_err(|_| Error::Unknown(called))?;
        let head = read(|buf, cap| unsafe { sys::http_answer_head(buf, cap) })?;
        let body = read(|buf, cap| unsafe { sys::http_answer_body(buf, cap) })?;
        Ok(Answer { status, head, body })
    }
}

/// Metrics of the handler, at `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric(i32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

impl Metric {
    pub fn define(kind: Kind, name: &str) -> Result<Metric> {
        let number = unsafe { sys::metric_define(kind as i32, name.as_ptr(), len(name.as_bytes())) };
        checked(number).map(|_| Metric(number))
    }

    /// Adds to a counter, sets a gauge, observes in a histogram.
    pub fn record(self, value: u64) -> Result<()> {
        let value = i64::try_from(value).map_err(|_| Error::BadArgument)?;
        checked(unsafe { sys::metric_record(self.0, value) }).map(drop)
    }

    pub fn increment(self, by: i64) -> Result<()> {
        checked(unsafe { sys::metric_increment(self.0, by) }).map(drop)
    }
}
