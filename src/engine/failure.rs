//! How a guest ends before its own end, and what each way is called outside.
//!
//! Invariant: every Wasmer error becomes exactly one [`GuestFailure`]; nothing of the host shows in its text.

use wasmer::{FrameInfo, InstantiationError, LinkError, RuntimeError};

use crate::domain::GuestFailure;

/// Raised by host functions to end the guest. Passes through its frames as a user error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// `proc_exit`; 0 is success.
    #[error("exit({0})")]
    Exit(i32),
    #[error("out of fuel")]
    OutOfFuel,
    #[error("deadline")]
    Deadline,
    /// Nobody waits for the guest any more.
    #[error("cancelled")]
    Cancelled,
    #[error("output too large")]
    OutputTooLarge,
    #[error("{0}")]
    BadOutput(String),
    /// A misuse of the ABI: a bad pointer, a call in the wrong phase.
    #[error("{0}")]
    Trap(String),
}

/// Frames shown of a guest's stack; the rest is counted.
const FRAMES: usize = 32;
/// Bytes shown of a function's name: names are the guest's own text.
const NAME_BYTES: usize = 96;

/// How a call into a guest ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// `proc_exit(n)`.
    Exit(i32),
    Failed(GuestFailure),
}

impl Ended {
    /// For ABIs where exiting is no way to end a call.
    pub fn into_failure(self) -> GuestFailure {
        match self {
            Ended::Exit(code) => GuestFailure::ExitCode(code),
            Ended::Failed(failure) => failure,
        }
    }
}

/// `growth_refused`: a `memory.grow` was refused before, which makes an `unreachable` out-of-memory in all languages
/// whose allocators abort.
pub fn classify(error: &RuntimeError, growth_refused: bool) -> Ended {
    let failure = match error.downcast_ref::<Halt>() {
        Some(Halt::Exit(code)) => return Ended::Exit(*code),
        Some(Halt::OutOfFuel) => GuestFailure::OutOfFuel,
        Some(Halt::Deadline) => GuestFailure::Deadline,
        Some(Halt::Cancelled) => GuestFailure::Cancelled,
        Some(Halt::OutputTooLarge) => GuestFailure::OutputTooLarge,
        Some(Halt::BadOutput(why)) => GuestFailure::BadOutput(why.clone()),
        Some(Halt::Trap(why)) => GuestFailure::Trap { reason: why.clone(), backtrace: backtrace(error.trace()) },
        None => {
            let code = error.clone().to_trap();
            if growth_refused && code == Some(wasmer_types::TrapCode::UnreachableCodeReached) {
                GuestFailure::OutOfMemory
            } else {
                let reason = code.map_or_else(|| "the guest was stopped".to_owned(), |c| c.message().to_owned());
                GuestFailure::Trap { reason, backtrace: backtrace(error.trace()) }
            }
        }
    };
    Ended::Failed(failure)
}

pub fn classify_instantiation(error: &InstantiationError, growth_refused: bool) -> Ended {
    match error {
        InstantiationError::Start(e) | InstantiationError::Link(LinkError::Trap(e)) => classify(e, growth_refused),
        // The only resources that a module asks for are memories and tables, both under limits.
        InstantiationError::Link(LinkError::Resource(_)) => Ended::Failed(GuestFailure::OutOfMemory),
        other => Ended::Failed(GuestFailure::NotLoadable(other.to_string())),
    }
}

/// Function names or indices, innermost first, bounded.
fn backtrace(frames: &[FrameInfo]) -> String {
    let mut out = String::new();
    for frame in frames.iter().take(FRAMES) {
        let name = frame.function_name().unwrap_or("<unnamed>");
        let shown: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).take(NAME_BYTES).collect();
        out.push_str(&format!("  at {shown} (function {})\n", frame.func_index()));
    }
    if frames.len() > FRAMES {
        out.push_str(&format!("  and {} more\n", frames.len() - FRAMES));
    }
    out
}
