//! Handlers of proxy-wasm filters: living VMs that host many streams, events that reach them beside requests, and what
//! becomes of both when a VM fails.
//!
//! A stream is pinned to the VM that it began in. A callback has its VM alone; others for it wait in order. A VM that
//! fails is dropped with all of its streams, which learn of it at once; the next one is made when there is a use for it.
//!
//! Invariant: no stream waits for a VM that is gone, and nothing that guests do keeps one here for longer than its
//! pause may last.

mod events;
mod rpcs;
mod slot;
mod stream;
mod vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::abi::proxy_wasm::{Calls, Plugin};
use super::budget::{Account, Reserved};
use super::cancel::Cancel;
use super::guest::Allowance;
use super::lane::{Lane, took};
use super::pool::Need;
use super::restarts::{self, Restarts};
use super::vms::Turn;
use super::{Assets, Engine, LoadedModule, RunError};
use crate::domain::{GuestFailure, Limits, Meter, ModuleShape, OwnerId};

pub use super::abi::proxy_wasm::Event;
pub use stream::{Later, ProxyStream, Told};

use slot::Slot;
use vm::Vm;

/// What a callback may use of the worker that it runs on. It can't be run again elsewhere, as its VM has other streams,
/// and a garbage collector's turn must not end it; so it is long, and who needs it is let on a worker less and less often.
const INLINE_CPU: Duration = Duration::from_millis(100);
/// Of a body that is shown on a worker. How long a guest takes for more depends on the body: its past says nothing.
const INLINE_BODY: usize = 4 << 10;

/// A VM that failed in an event is there again after so long: what failed once in a timer fails often.
const REVIVED_AFTER: Duration = Duration::from_millis(250);

/// A filter on a route: its module, configuration and VMs.
pub struct ProxyHandler {
    engine: Arc<Engine>,
    module: Arc<LoadedModule>,
    assets: Option<Assets>,
    owner: OwnerId,
    account: Arc<Account>,
    plugin: Arc<Plugin>,
    limits: Limits,
    pause: Duration,
    wants: Wants,
    /// At most so many VMs take streams.
    cap: usize,
    slots: Mutex<Vec<Arc<Slot>>>,
    lane: Lane,
    /// Its guest has waited for something outside: it is shown nothing on a worker any more.
    waits: AtomicBool,
    /// A callback goes on when its client goes: ending it would end the VM for all others.
    never: Cancel,
    restarts: Mutex<Restarts>,
}

/// Whether the filter wants to see bodies of requests, bodies of answers, and what follows these.
#[derive(Clone, Copy)]
struct Wants {
    request_body: bool,
    response_body: bool,
    response_trailers: bool,
}

impl Wants {
    fn of(shape: &ModuleShape) -> Wants {
        let exports = |name| shape.export(name).is_some();
        let response_trailers = exports("proxy_on_response_trailers");
        Wants {
            request_body: exports("proxy_on_request_body"),
            response_body: response_trailers || exports("proxy_on_response_body"),
            response_trailers,
        }
    }
}

type Guard = OwnedMutexGuard<Option<Box<Vm>>>;

/// What a VM is to do with an input.
trait Work<I, T>: FnOnce(&mut Vm, I, &Turn<'_>) -> (Result<T, GuestFailure>, Meter) + Send + 'static {}

impl<I, T, W> Work<I, T> for W where
    W: FnOnce(&mut Vm, I, &Turn<'_>) -> (Result<T, GuestFailure>, Meter) + Send + 'static
{
}

/// The error: it was not to be run here and now.
type Tried<I, T, W> = Result<Outcome<I, T>, (I, W)>;

impl ProxyHandler {
    pub fn new(
        engine: &Arc<Engine>,
        module: Arc<LoadedModule>,
        assets: Option<Assets>,
        label: Arc<str>,
        handler: &crate::config::Handler,
        limits: Limits,
    ) -> Arc<ProxyHandler> {
        let proxy = &handler.proxy;
        let own = usize::try_from(limits.instances).unwrap_or(usize::MAX);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cap = cores.min(engine.config().vms_per_handler).min(own).max(1);
        let account = engine.account(&handler.owner);
        let plugin = Plugin {
            name: proxy.plugin.clone().unwrap_or_else(|| handler.module.name.to_string()),
            root_id: proxy.root_id.clone(),
            vm_id: proxy.vm_id.clone(),
            vm_config: proxy.vm_config.clone().into(),
            env: handler.env.clone().into_iter().collect(),
            strict: proxy.strict,
            scope: engine.scopes().of(&handler.owner, &proxy.vm_id),
            metrics: engine.guest_metrics().of(&label),
            reach: engine.reach_of(label, handler, limits.input_bytes),
            calls: Calls::new(cap, account.clone()),
        };
        Arc::new(ProxyHandler {
            engine: engine.clone(),
            wants: Wants::of(module.shape()),
            module,
            assets,
            owner: handler.owner.clone(),
            account,
            plugin: Arc::new(plugin),
            cap,
            limits,
            pause: proxy.pause,
            slots: Mutex::default(),
            lane: Lane::new(),
            waits: AtomicBool::new(false),
            never: Cancel::default(),
            restarts: Mutex::default(),
        })
    }

    pub fn wants_request_body(&self) -> bool {
        self.wants.request_body
    }

    pub fn wants_response_body(&self) -> bool {
        self.wants.response_body
    }

    pub fn wants_response_trailers(&self) -> bool {
        self.wants.response_trailers
    }

    /// Starts one VM ahead of the first request, so that a module that refuses its configuration says so at once, and
    /// its timers run.
    pub async fn warm(self: &Arc<Self>) -> Result<(), RunError> {
        let (slot, mut guard) = loop {
            let slot = self.pick();
            let guard = self.lock(&slot).await?;
            if guard.is_some() {
                return Ok(());
            }
            // Its VM may have failed meanwhile; its streams are never to meet another one.
            if !slot.lost.is_cancelled() {
                break (slot, guard);
            }
        };
        let handler = self.clone();
        let need = self.engine.need(&self.module, &self.account, &self.limits);
        let start = move |memory| handler.start(&slot, memory).map(|vm| *guard = Some(vm));
        self.engine.pool().run(&self.owner, &Cancel::default(), need, start).await?
    }

    /// A place for a request.
    pub fn open(self: &Arc<Self>) -> ProxyStream {
        let slot = self.pick();
        slot.streams.fetch_add(1, Ordering::Relaxed);
        ProxyStream::new(self.clone(), slot)
    }

    /// The slot with the fewest streams, or a new one where that is busy.
    fn pick(self: &Arc<Self>) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        slots.retain(|slot| !slot.closed.load(Ordering::Relaxed));
        let least = slots.iter().min_by_key(|slot| slot.streams.load(Ordering::Relaxed)).cloned();
        match least {
            Some(slot) if slots.len() >= self.cap || slot.vm.try_lock().is_ok() => slot,
            _ => {
                let slot = Slot::new(self);
                slots.push(slot.clone());
                slot
            }
        }
    }

    /// The VM alone, after those that asked before.
    async fn lock(&self, slot: &Arc<Slot>) -> Result<Guard, RunError> {
        if let Ok(guard) = slot.vm.clone().try_lock_owned() {
            return Ok(guard);
        }
        let patience = self.engine.config().queue_timeout;
        let busy = RunError::Busy { retry_after: patience.max(Duration::from_secs(1)) };
        tokio::time::timeout(patience, slot.vm.clone().lock_owned()).await.map_err(|_| busy)
    }

    /// Makes a VM for the slot. On a guest thread.
    fn start(self: &Arc<Self>, slot: &Arc<Slot>, memory: Reserved) -> Result<Box<Vm>, RunError> {
        let (vm, asked) = restarts::start(&self.restarts, || {
            Vm::start(&self.module, &self.limits, memory, &self.plugin, self.assets.clone())
        })?;
        self.serve(slot, asked);
        Ok(vm)
    }

    /// A callback's limits from now on.
    fn turn(&self, inline: bool) -> Turn<'_> {
        let mut allowance = Allowance::from_now(self.limits.clone(), self.never.clone());
        allowance.worker = inline.then_some(INLINE_CPU);
        Turn { allowance, may_block: !inline, log: &self.plugin.reach.log }
    }

    /// Has the VM do something on this thread at once, where its past says that it is short and nobody else has it; else
    /// gives back what it was given.
    fn on_vm_now<I, T, W: Work<I, T>>(self: &Arc<Self>, slot: &Arc<Slot>, input: I, work: W) -> Tried<I, T, W> {
        match slot.vm.try_lock() {
            Ok(mut place) => self.inline(slot, &mut place, input, work),
            Err(_) => Err((input, work)),
        }
    }

    fn inline<I, T, W: Work<I, T>>(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        place: &mut Option<Box<Vm>>,
        input: I,
        work: W,
    ) -> Tried<I, T, W> {
        let is_short = self.lane.is_inline() && !self.waits.load(Ordering::Relaxed);
        let Some(vm) = place.as_mut().filter(|_| is_short) else { return Err((input, work)) };
        let (result, meter) = work(vm, input, &self.turn(true));
        Ok(self.settle(slot, place, result, meter, Some(true)))
    }

    /// Has the VM do something: on this thread as [`Self::on_vm_now`], else on a guest thread. The input comes back where
    /// there was no VM, or no thread took it in time.
    async fn on_vm<I: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        cancel: &Cancel,
        input: I,
        (starts, may_inline): (bool, bool),
        work: impl Work<I, T>,
    ) -> Outcome<I, T> {
        let mut guard = match self.lock(slot).await {
            Ok(guard) => guard,
            Err(busy) => return Outcome::NotRun(input, busy),
        };
        let tried = if may_inline { self.inline(slot, &mut guard, input, work) } else { Err((input, work)) };
        let (input, work) = match tried {
            Ok(outcome) => return outcome,
            Err(back) => back,
        };
        // A new VM has a new place: here it would be taken for the one that was lost, by streams that began in that.
        if guard.is_none() && (!starts || slot.lost.is_cancelled()) {
            return Outcome::NotRun(input, gone());
        }
        let need = match guard.is_some() {
            true => Need::nothing(&self.account),
            false => self.engine.need(&self.module, &self.account, &self.limits),
        };
        let (handler, slot) = (self.clone(), slot.clone());
        let job = move |(mut guard, input): (Guard, I), memory| {
            let vm = match &mut *guard {
                Some(vm) => vm,
                none => match handler.start(&slot, memory) {
                    Ok(vm) => none.insert(vm),
                    Err(error) => return Outcome::NotRun(input, error),
                },
            };
            let (result, meter) = work(vm, input, &handler.turn(false));
            handler.settle(&slot, &mut guard, result, meter, may_inline.then_some(false))
        };
        match self.engine.pool().run_with(&self.owner, cancel, need, (guard, input), job).await {
            Ok(outcome) => outcome,
            Err(((_, input), busy)) => Outcome::NotRun(input, busy.into()),
        }
    }

    /// After a callback: what the guest asked for is done, and a VM that failed goes. `inline`: `None` of one that says
    /// nothing about how long others take.
    fn settle<I, T>(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        place: &mut Option<Box<Vm>>,
        result: Result<T, GuestFailure>,
        meter: Meter,
        inline: Option<bool>,
    ) -> Outcome<I, T> {
        match inline {
            Some(true) => self.lane.record_whole(took(&meter)),
            Some(false) => self.lane.record(took(&meter)),
            None => {}
        }
        if place.as_mut().is_some_and(|vm| vm.waited()) {
            self.waits.store(true, Ordering::Relaxed);
        }
        match result {
            Ok(value) => {
                if let Some(vm) = place {
                    let asked = vm.asked();
                    self.serve(slot, asked);
                    self.retire(slot, vm);
                }
                Outcome::Ran(value, meter)
            }
            Err(failure) => {
                self.lost(slot);
                let mut vm = place.take();
                if let Some(vm) = &mut vm {
                    vm.abandon(&gone());
                }
                Outcome::Failed(vm, failure.into(), meter)
            }
        }
    }

    /// The slot's VM has failed. One with timers or queues is there for more than requests, and comes back by itself.
    fn lost(self: &Arc<Self>, slot: &Arc<Slot>) {
        slot.close();
        slot.lost.cancel();
        if !slot.serves_events.load(Ordering::Relaxed) {
            return;
        }
        let handler = Arc::downgrade(self);
        self.engine.spawn(async move {
            let mut pause = REVIVED_AFTER;
            loop {
                tokio::time::sleep(pause).await;
                let Some(handler) = handler.upgrade() else { return };
                if handler.warm().await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(restarts::LONGEST);
            }
        });
    }

    /// A VM that has served its share, or that better code is there for, takes no more streams.
    fn retire(&self, slot: &Arc<Slot>, vm: &mut Vm) {
        let served = slot.served.load(Ordering::Relaxed) >= self.engine.config().vm_requests;
        if served || vm.compiler != self.module.compiler() || vm.is_worn(self.limits.memory_bytes) {
            slot.closed.store(true, Ordering::Relaxed);
        }
    }
}

/// What became of work on a VM.
enum Outcome<I, T> {
    Ran(T, Meter),
    /// The VM, to take exchanges out of before it is dropped.
    Failed(Option<Box<Vm>>, RunError, Meter),
    NotRun(I, RunError),
}

/// The failure of streams whose VM failed for another reason.
fn gone() -> RunError {
    let reason = "the filter's VM failed in another request or event".to_owned();
    RunError::Guest(GuestFailure::Trap { reason, backtrace: String::new() })
}

const _: () = {
    const fn travels<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    travels::<ProxyStream>();
    is_shared::<ProxyHandler>();
};
