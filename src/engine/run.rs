//! One run of a command, cgi or core module, from its input to its end.
//!
//! Invariant: every run gives a meter and its standard error, however it ended.

use bytes::Bytes;
use wasmer::Value;

use crate::domain::{Abi, GuestFailure, Meter};

use super::abi::wasi::{Stdout, WasiState};
use super::abi::{command, core};
use super::budget::Reserved;
use super::failure::Ended;
use super::files::Files;
use super::guest::{Allowance, Guest};
use super::host::HostState;
use super::outside::Reaching;
use super::{Finished, Input, LoadedModule, Output, RunError, Values};

/// A call that fits its module; nothing of the guest has run yet.
pub enum Call {
    Command { entry: String },
    Core { entry: String, args: Vec<Value> },
}

impl Call {
    pub fn prepare(module: &LoadedModule, input: &Input) -> Result<Call, RunError> {
        match module.abi() {
            Abi::Command | Abi::Cgi => Ok(Call::Command { entry: command::prepare(module.shape(), input)? }),
            Abi::Core => {
                let (entry, args) = core::prepare(module.shape(), input)?;
                Ok(Call::Core { entry, args })
            }
            abi @ (Abi::HttpWasm | Abi::ProxyWasm) => Err(RunError::BadCall(format!(
                "modules of the ABI `{abi}` handle requests on a route; none can be executed"
            ))),
        }
    }
}

/// Runs on the calling thread. `may_block`: the thread is the guest's own. A panic (a fault of ours) ends the run, not
/// the thread.
pub fn execute(
    module: &LoadedModule,
    label: &str,
    input: &Input,
    call: &Call,
    allowance: &Allowance,
    reserved: Reserved,
    may_block: bool,
) -> Finished {
    let run = || {
        let files = Files::new(input.assets.clone(), allowance.limits.file_bytes, reserved.none_yet());
        let prepare = |host: &mut HostState| {
            host.may_block = may_block;
            host.wasi = WasiState {
                args: std::iter::once(label.to_owned()).chain(input.args.iter().cloned()).collect(),
                env: input.env.clone(),
                stdin: input.stdin.clone(),
                stdout: Stdout::Kept(Vec::new()),
                files,
            };
            host.config = input.reach.as_ref().map(|reach| reach.config.clone()).unwrap_or_default();
            host.reaching = Reaching {
                reach: input.reach.clone(),
                info: input.info.clone(),
                values: input.values.clone(),
                answer: None,
            };
        };
        let mut guest = match Guest::instantiate(module, allowance, reserved, prepare) {
            Ok(guest) => guest,
            Err(stillborn) => {
                // A start function that exits has ended the whole run by itself.
                let result = match stillborn.ended {
                    Ended::Exit(exit_code) => Ok(Output { exit_code, stdout: stillborn.stdout, values: Vec::new() }),
                    Ended::Failed(failure) => Err(RunError::Guest(failure)),
                };
                let values = input.values.clone();
                return Finished { result, meter: stillborn.meter, stderr: stillborn.log, values };
            }
        };
        let ended = match call {
            Call::Command { entry } => command::call(&mut guest, entry).map(|code| (code, Vec::new())),
            Call::Core { entry, args } => core::call(&mut guest, entry, args).map(|values| (0, values)),
        };
        let meter = guest.meter();
        let host = guest.host();
        let stderr = host.log.take();
        let stdout = host.wasi.take_stdout();
        let values = std::mem::take(&mut host.reaching.values);
        if let Some(reach) = &input.reach {
            reach.log.flush(input.info.as_ref().map_or("", |info| &info.request_id), host);
        }
        let result = match ended {
            Ok((exit_code, values)) => Ok(Output { stdout, exit_code, values }),
            Err(ended) => Err(RunError::Guest(ended.into_failure())),
        };
        Finished { result, meter, stderr, values }
    };
    // Everything that the run touched is dropped with it.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        tracing::error!(module = label, "the engine panicked in a run");
        let reason = "the gateway failed in this run".to_owned();
        refused(RunError::Guest(GuestFailure::Trap { reason, backtrace: String::new() }))
    })
}

/// A run that never began.
pub fn refused(error: RunError) -> Finished {
    Finished { result: Err(error), meter: Meter::default(), stderr: Bytes::new(), values: Values::new() }
}
