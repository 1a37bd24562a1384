//! Living VMs of one handler: how one starts, runs a phase, and waits for its next request.
//!
//! Invariant: a VM that failed in any way never runs again, and of one handler no more exist than its cap allows: who
//! makes or uses one holds a [`Permit`], and only who finds none idle makes one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wasmer::TypedFunction;

use super::at_rest::AtRest;
use super::budget::Reserved;
use super::cancel::Cancel;
use super::failure::Ended;
use super::files::Files;
use super::guest::{Allowance, Guest};
use super::guest_log::GuestLog;
use super::host::HostState;
use super::http::{Features, HttpExchange, Verdict};
use super::instances::{self, Gate};
use super::outside::Reach;
use super::{Assets, Compiler, Engine, LoadedModule, RunError};
use crate::domain::{GuestFailure, Limits, Meter};

/// VMs that nobody needed for so long are let go when another comes back.
const IDLE: Duration = Duration::from_secs(60);

pub struct Vm {
    /// Of this compiler; a VM goes when its module has better code.
    compiler: Compiler,
    guest: AtRest,
    handle_request: TypedFunction<(), i64>,
    handle_response: TypedFunction<(i32, i32), ()>,
    requests: u64,
    memory_at_start: u64,
}

/// One turn of a guest: what it may use, and where what it prints goes.
pub struct Turn<'a> {
    pub allowance: Allowance,
    /// The thread is the guest's own for the turn.
    pub may_block: bool,
    pub log: &'a GuestLog,
}

/// How `handle_request` ended.
#[derive(Debug)]
pub struct Handled {
    pub verdict: Verdict,
    /// Handed back to `handle_response`.
    pub context: i32,
}

impl Vm {
    /// Instantiates the module and runs `_initialize`, else `_start`, once (ABI, "Guest exports").
    pub fn start(
        module: &LoadedModule,
        limits: &Limits,
        reserved: Reserved,
        reach: &Arc<Reach>,
        assets: Option<Assets>,
    ) -> Result<Box<Vm>, RunError> {
        // Others wait for it as well: it does not end with one client.
        let allowance = Allowance::from_now(limits.clone(), Cancel::default());
        // Read before: should it change meanwhile, the VM goes early rather than never.
        let compiler = module.code().compiler;
        // What a request writes is none of the next one's: a living VM has no `/tmp`.
        let files = Files::new(assets, 0, reserved.none_yet());
        let made = Guest::instantiate(module, &allowance, reserved, |host: &mut HostState| {
            host.config = reach.config.clone();
            host.reaching.reach = Some(reach.clone());
            host.wasi.files = files;
        });
        let mut guest = made.map_err(|e| {
            reach.log.printed("", &e.log);
            start_failure(e.ended)
        })?;
        let start = ["_initialize", "_start"].into_iter().find_map(|name| guest.function::<(), ()>(name));
        let ended = start.map_or(Ok(()), |start| guest.call(|store, _| start.call(store)));
        reach.log.flush("", guest.host());
        match ended {
            // ABI, "Guest exports": leaving `_start` by `proc_exit(0)` is success, and the instance stays usable.
            Ok(()) | Err(Ended::Exit(0)) => {}
            Err(ended) => return Err(start_failure(ended)),
        }
        let missing = |name| GuestFailure::NotLoadable(format!("it has no function `{name}` of http-wasm's type"));
        Ok(Box::new(Vm {
            compiler,
            handle_request: guest.function("handle_request").ok_or_else(|| missing("handle_request"))?,
            handle_response: guest.function("handle_response").ok_or_else(|| missing("handle_response"))?,
            memory_at_start: guest.memory_bytes(),
            guest: AtRest::new(guest),
            requests: 0,
        }))
    }

    /// `handle_request`. On a failure the exchange is as it was, and the VM is to be dropped.
    pub fn request(
        &mut self,
        exchange: &mut Option<Box<HttpExchange>>,
        turn: &Turn<'_>,
    ) -> (Result<Handled, GuestFailure>, Meter) {
        self.requests += 1;
        let Vm { guest, handle_request, .. } = self;
        let guest = guest.get();
        guest.begin(&turn.allowance, turn.may_block);
        let host = guest.host();
        host.http = exchange.take();
        host.http_state.begin_request();
        let ended = guest.call(|store, _| handle_request.call(store));
        let meter = guest.meter();
        *exchange = guest.host().http.take();
        let result = match (ended, exchange) {
            (Ok(next), Some(exchange)) => self.handled(next, exchange, turn.log),
            (Err(ended), _) => Err(ended.into_failure()),
            (Ok(_), None) => Err(GuestFailure::BadOutput("the exchange is gone".into())),
        };
        (result, meter)
    }

    fn handled(&mut self, next: i64, exchange: &mut HttpExchange, log: &GuestLog) -> Result<Handled, GuestFailure> {
        let host = self.guest.get().host();
        log.flush(&exchange.request_id, host);
        let mut edits = std::mem::take(&mut host.http_state.edits);
        if let Some(values) = edits.values.take() {
            exchange.values = values;
        }
        // `ctx_next`: the low word says whether to go on, the high one is the guest's own.
        let context = (next >> 32) as i32;
        let verdict = if next as u32 == 0 {
            Verdict::Respond(edits.into_reply(exchange))
        } else {
            edits.commit_request(exchange)?;
            Verdict::Continue
        };
        Ok(Handled { verdict, context })
    }

    /// `handle_response`, as `request`.
    pub fn response(
        &mut self,
        exchange: &mut Option<Box<HttpExchange>>,
        (context, is_error): (i32, bool),
        turn: &Turn<'_>,
    ) -> (Result<(), GuestFailure>, Meter) {
        let Vm { guest, handle_response, .. } = self;
        let guest = guest.get();
        guest.begin(&turn.allowance, turn.may_block);
        let host = guest.host();
        host.http = exchange.take();
        host.http_state.begin_response();
        let ended = guest.call(|store, _| handle_response.call(store, context, i32::from(is_error)));
        let meter = guest.meter();
        let host = guest.host();
        *exchange = host.http.take();
        let result = match (ended, exchange) {
            (Ok(()), Some(exchange)) => {
                turn.log.flush(&exchange.request_id, host);
                let mut edits = std::mem::take(&mut host.http_state.edits);
                if let Some(values) = edits.values.take() {
                    exchange.values = values;
                }
                edits.commit_response(exchange);
                Ok(())
            }
            (Err(ended), _) => Err(ended.into_failure()),
            (Ok(()), None) => Err(GuestFailure::BadOutput("the exchange is gone".into())),
        };
        (result, meter)
    }

    /// Writes out what a phase that failed had logged; one that ended by itself has already done so.
    pub fn print(&mut self, request_id: &str, log: &GuestLog) {
        log.flush(request_id, self.guest.get().host());
    }

    /// Module default and what the request under way enabled.
    pub fn features(&mut self) -> Features {
        self.guest.get().host().http_state.features
    }

    fn is_worn(&mut self, requests: u64, memory_limit: u64) -> bool {
        self.requests >= requests || self.guest.get().has_grown(self.memory_at_start, memory_limit)
    }
}

/// A module that ends itself while it starts says that it can't run, such as for a bad configuration.
pub fn start_failure(ended: Ended) -> RunError {
    RunError::Guest(match ended {
        Ended::Exit(code) => GuestFailure::NotLoadable(format!("it exited with code {code} while it started")),
        Ended::Failed(failure) => failure,
    })
}

/// The right to make or use one VM of the handler.
pub struct Permit {
    _permit: instances::Permit,
    engine: Arc<Engine>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.engine.vm_counters().1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A VM and the right to it. The VM goes first; it is large, and moves often.
pub struct Leased {
    pub vm: Box<Vm>,
    pub permit: Permit,
}

/// The VMs of one handler.
pub struct Vms {
    gate: Arc<Gate>,
    /// How many VMs there may be.
    cap: usize,
    /// The one used last is at the back.
    idle: Mutex<VecDeque<(Box<Vm>, Instant)>>,
    engine: Arc<Engine>,
    requests: u64,
    memory_limit: u64,
}

impl Vms {
    pub fn new(engine: Arc<Engine>, limits: &Limits) -> Vms {
        let own = usize::try_from(limits.instances).unwrap_or(usize::MAX);
        let cap = engine.config().vms_per_handler.min(own).max(1);
        let requests = engine.config().vm_requests;
        Vms { gate: Arc::default(), cap, idle: Mutex::default(), engine, requests, memory_limit: limits.memory_bytes }
    }

    pub async fn permit(&self) -> Result<Permit, RunError> {
        Ok(self.counted(self.gate.enter(self.cap, self.engine.config()).await?))
    }

    /// Unless others wait for one.
    pub fn permit_now(&self) -> Option<Permit> {
        self.gate.enter_now(self.cap).map(|permit| self.counted(permit))
    }

    fn counted(&self, permit: instances::Permit) -> Permit {
        self.engine.vm_counters().1.fetch_add(1, Ordering::Relaxed);
        Permit { _permit: permit, engine: self.engine.clone() }
    }

    /// An idle VM, the warmest first.
    pub fn take(&self, _permit: &Permit) -> Option<Box<Vm>> {
        let (vm, _) = self.idle.lock().pop_back()?;
        self.engine.vm_counters().0.fetch_sub(1, Ordering::Relaxed);
        Some(vm)
    }

    /// After a request that ended well. The permit goes last, so that whoever waits finds the VM.
    pub fn give_back(&self, leased: Leased, module: &LoadedModule) {
        let Leased { mut vm, permit } = leased;
        let is_current = vm.compiler == module.compiler();
        if is_current && !vm.is_worn(self.requests, self.memory_limit) {
            let now = Instant::now();
            let mut idle = self.idle.lock();
            idle.push_back((vm, now));
            let stale = idle.pop_front_if(|(_, since)| now.saturating_duration_since(*since) > IDLE);
            drop(idle);
            if stale.is_none() {
                self.engine.vm_counters().0.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(permit);
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        self.engine.vm_counters().0.fetch_sub(self.idle.get_mut().len() as u64, Ordering::Relaxed);
    }
}
