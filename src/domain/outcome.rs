//! How an invocation ended and what it used.

use std::time::Duration;

use bytes::Bytes;

/// What every invocation reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    pub fuel: u64,
    pub cpu: Duration,
    pub wall: Duration,
    pub memory_peak_bytes: u64,
    pub output_bytes: u64,
}

impl Meter {
    /// Milliseconds to the microsecond, as answers show them.
    pub fn wall_ms(&self) -> f64 {
        millis(self.wall)
    }

    pub fn cpu_ms(&self) -> f64 {
        millis(self.cpu)
    }

    /// The sum of two runs for one request; memory is the larger peak.
    pub fn and(self, other: Meter) -> Meter {
        Meter {
            fuel: self.fuel.saturating_add(other.fuel),
            cpu: self.cpu + other.cpu,
            wall: self.wall + other.wall,
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
            output_bytes: self.output_bytes.saturating_add(other.output_bytes),
        }
    }
}

fn millis(d: Duration) -> f64 {
    d.as_micros() as f64 / 1e3
}

/// The closed set of ways in which a guest can fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFailure {
    /// The reason, and the guest's backtrace (for the module's owner alone).
    #[error("the module trapped: {reason}")]
    Trap { reason: String, backtrace: String },
    #[error("the module used up its fuel")]
    OutOfFuel,
    #[error("the module ran out of time")]
    Deadline,
    /// A filter stopped a request or its answer, and did not let it go on.
    #[error("it stayed paused for more than {} ms (the handler's `pause`)", .0.as_millis())]
    PausedTooLong(Duration),
    /// Stopped, as the client that it ran for has gone. Nobody is told.
    #[error("the client has gone")]
    Cancelled,
    #[error("the module ran out of memory")]
    OutOfMemory,
    #[error("the module wrote more output than its limit")]
    OutputTooLarge,
    /// It broke its ABI: what it handed over is not a valid answer.
    #[error("the module's answer is invalid: {0}")]
    BadOutput(String),
    #[error("the module exited with code {0}")]
    ExitCode(i32),
    /// It was stored, yet cannot be loaded now.
    #[error("the module can't be loaded: {0}")]
    NotLoadable(String),
}

impl GuestFailure {
    /// The label in metrics and the slug in problems.
    pub fn kind(&self) -> &'static str {
        match self {
            GuestFailure::Trap { .. } => "handler-trap",
            GuestFailure::OutOfFuel => "handler-out-of-fuel",
            GuestFailure::Deadline | GuestFailure::PausedTooLong(_) => "handler-timeout",
            GuestFailure::Cancelled => "handler-cancelled",
            GuestFailure::OutOfMemory => "handler-out-of-memory",
            GuestFailure::OutputTooLarge => "handler-output-too-large",
            GuestFailure::BadOutput(_) => "handler-invalid-response",
            GuestFailure::ExitCode(_) => "handler-exit-code",
            GuestFailure::NotLoadable(_) => "handler-not-loadable",
        }
    }

    pub fn status(&self) -> u16 {
        match self {
            GuestFailure::OutOfFuel | GuestFailure::Deadline | GuestFailure::PausedTooLong(_) => 504,
            GuestFailure::NotLoadable(_) => 500,
            _ => 502,
        }
    }
}

/// A complete answer made by a handler, already checked: the status is 200 to 599, names are lower-case tokens,
/// values hold no CR, LF or NUL, and there are no framing or connection headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub body: Bytes,
}
