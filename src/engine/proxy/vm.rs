//! One VM of a proxy-wasm filter: its start, its streams' callbacks, and what the guest asked for meanwhile.
//!
//! Invariant: after any failure the VM runs nothing more; every exchange that it holds has been handed back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use wasmer::{RuntimeError, Store, TypedFunction};

use crate::domain::{GuestFailure, Limits, Meter};
use crate::engine::abi::proxy_wasm::{
    ALLOCATORS, Begun, Call, CallAnswer, Callback, Event, Plugin, ProxyState, ROOT, Stream, Version, Woken,
    request_pairs, response_pairs,
};
use crate::engine::at_rest::AtRest;
use crate::engine::budget::Reserved;
use crate::engine::cancel::Cancel;
use crate::engine::failure::Ended;
use crate::engine::files::Files;
use crate::engine::grpc::GrpcEvent;
use crate::engine::guest::{Allowance, Guest};
use crate::engine::guest_log::GuestLog;
use crate::engine::host::HostState;
use crate::engine::http::{HttpExchange, Verdict};
use crate::engine::vms::{Turn, start_failure};
use crate::engine::{Assets, Compiler, LoadedModule, RunError};

pub struct Vm {
    /// Of this compiler; a VM goes when its module has better code.
    pub compiler: Compiler,
    guest: AtRest,
    exports: Exports,
    last_context: u32,
    memory_at_start: u64,
    /// The stream in whose callback it failed.
    pub failed: u32,
}

/// What a callback came to, for its stream.
pub enum Step {
    Go(Box<HttpExchange>, Verdict),
    /// The exchange stays with the guest until it is told of here. While it has it, other filters are to see the body:
    /// its twin is for them.
    Paused(oneshot::Receiver<Woken>, Option<Box<HttpExchange>>),
}

/// How a stream ended.
pub enum Closed {
    Now(Option<Box<HttpExchange>>),
    /// The guest will say when. What follows is told of the twin of its exchange.
    Later(Option<Box<HttpExchange>>),
}

/// So many streams of a VM may have their end put off.
const MAX_FINISHING: usize = 256;

/// What the guest asked of the gateway.
#[derive(Default)]
pub struct Asked {
    pub calls: Vec<Call>,
    pub rpcs: Vec<Begun>,
    pub tick: Option<Duration>,
    pub registered: Vec<u32>,
}

type Fn<Args, Rets> = Option<TypedFunction<Args, Rets>>;

struct Exports {
    create: Fn<(i32, i32), ()>,
    done: Fn<i32, i32>,
    log: Fn<i32, ()>,
    delete: Fn<i32, ()>,
    tick: Fn<i32, ()>,
    queue_ready: Fn<(i32, i32), ()>,
    call_answer: Fn<(i32, i32, i32, i32, i32), ()>,
    grpc_initial: Fn<(i32, i32, i32), ()>,
    grpc_message: Fn<(i32, i32, i32), ()>,
    grpc_trailing: Fn<(i32, i32, i32), ()>,
    grpc_close: Fn<(i32, i32, i32), ()>,
    request_headers: Headers,
    response_headers: Headers,
    request_body: Fn<(i32, i32, i32), i32>,
    response_body: Fn<(i32, i32, i32), i32>,
    response_trailers: Fn<(i32, i32), i32>,
}

/// 0.1.0 is not told of the stream's end.
enum Headers {
    New(TypedFunction<(i32, i32, i32), i32>),
    Old(TypedFunction<(i32, i32), i32>),
    None,
}

impl Headers {
    fn of(guest: &Guest, name: &str) -> Headers {
        match (guest.function(name), guest.function(name)) {
            (Some(new), _) => Headers::New(new),
            (None, Some(old)) => Headers::Old(old),
            (None, None) => Headers::None,
        }
    }

    fn call(&self, store: &mut Store, context: i32, fields: i32, end: i32) -> Result<i32, RuntimeError> {
        match self {
            Headers::New(f) => f.call(store, context, fields, end),
            Headers::Old(f) => f.call(store, context, fields),
            Headers::None => Ok(CONTINUE),
        }
    }
}

/// `proxy_action_t`.
const CONTINUE: i32 = 0;

impl Exports {
    fn of(guest: &Guest) -> Exports {
        Exports {
            create: guest.function("proxy_on_context_create"),
            done: guest.function("proxy_on_done"),
            log: guest.function("proxy_on_log"),
            delete: guest.function("proxy_on_delete"),
            tick: guest.function("proxy_on_tick"),
            queue_ready: guest.function("proxy_on_queue_ready"),
            call_answer: guest.function("proxy_on_http_call_response"),
            grpc_initial: guest.function("proxy_on_grpc_receive_initial_metadata"),
            grpc_message: guest.function("proxy_on_grpc_receive"),
            grpc_trailing: guest.function("proxy_on_grpc_receive_trailing_metadata"),
            grpc_close: guest.function("proxy_on_grpc_close"),
            request_headers: Headers::of(guest, "proxy_on_request_headers"),
            response_headers: Headers::of(guest, "proxy_on_response_headers"),
            request_body: guest.function("proxy_on_request_body"),
            response_body: guest.function("proxy_on_response_body"),
            response_trailers: guest.function("proxy_on_response_trailers"),
        }
    }
}

/// A length or a number of fields, which are bounded far below.
fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl Vm {
    /// Instantiates the module, runs its start functions, makes the root context and configures it (ABI, "Context
    /// lifecycle").
    pub fn start(
        module: &LoadedModule,
        limits: &Limits,
        reserved: Reserved,
        plugin: &Arc<Plugin>,
        assets: Option<Assets>,
    ) -> Result<(Box<Vm>, Asked), RunError> {
        // Others wait for it as well: it does not end with one client.
        let allowance = Allowance::from_now(limits.clone(), Cancel::default());
        // Read before: should it change meanwhile, the VM goes early rather than never.
        let compiler = module.code().compiler;
        let reach = &plugin.reach;
        let version = Version::of(module.shape()).unwrap_or(Version::V0_2);
        let files = Files::new(assets, 0, reserved.none_yet());
        let made = Guest::instantiate(module, &allowance, reserved, |host: &mut HostState| {
            host.proxy = Some(Box::new(ProxyState::new(plugin.clone(), version)));
            host.reaching.reach = Some(reach.clone());
            host.wasi.files = files;
            host.wasi.env = plugin.env.clone();
        });
        let mut guest = made.map_err(|e| {
            reach.log.printed("", &e.log);
            start_failure(e.ended)
        })?;
        let allocate = ALLOCATORS.iter().find_map(|name| guest.function::<i32, i32>(name));
        if let Some(proxy) = &mut guest.host().proxy {
            proxy.allocate = allocate;
        }
        let exports = Exports::of(&guest);
        let memory_at_start = guest.memory_bytes();
        let mut vm = Box::new(Vm {
            compiler,
            exports,
            memory_at_start,
            guest: AtRest::new(guest),
            last_context: ROOT,
            failed: 0,
        });
        let started = vm.configure(plugin);
        reach.log.flush("", vm.guest.get().host());
        started.map_err(start_failure)?;
        let asked = vm.asked();
        Ok((vm, asked))
    }

    fn configure(&mut self, plugin: &Plugin) -> Result<(), Ended> {
        let guest = self.guest.get();
        let mut run = |name: &str| match guest.function::<(), ()>(name) {
            Some(start) => guest.call(|store, _| start.call(store)).map(|()| true),
            None => Ok(false),
        };
        // Leaving `_start` by `proc_exit(0)` is success, and the instance stays usable.
        let exited = |ended| if ended == Ended::Exit(0) { Ok(true) } else { Err(ended) };
        if run("_initialize").or_else(exited)? {
            if let Some(main) = guest.function::<(i32, i32), i32>("main") {
                guest.call(|store, _| main.call(store, 0, 0)).map(drop).or_else(|e| exited(e).map(drop))?;
            } else if let Some(main) = guest.function::<(), i32>("__main_void") {
                guest.call(|store, _| main.call(store)).map(drop).or_else(|e| exited(e).map(drop))?;
            }
        } else {
            run("_start").or_else(exited)?;
        }
        self.create(ROOT, 0)?;
        let phases = [
            (Callback::VmStart, "proxy_on_vm_start", plugin.vm_config.len()),
            (Callback::Configure, "proxy_on_configure", plugin.reach.config.len()),
        ];
        for (callback, name, len) in phases {
            let guest = self.guest.get();
            let Some(f) = guest.function::<(i32, i32), i32>(name) else { continue };
            let accepted = self.callback(callback, ROOT, |store, _| f.call(store, ROOT as i32, count(len)))?;
            if accepted == 0 {
                let why = format!("`{name}` refused its configuration");
                return Err(Ended::Failed(GuestFailure::NotLoadable(why)));
            }
        }
        Ok(())
    }

    fn callback<R>(
        &mut self,
        callback: Callback,
        context: u32,
        call: impl FnOnce(&mut Store, &Exports) -> Result<R, RuntimeError>,
    ) -> Result<R, Ended> {
        let guest = self.guest.get();
        if let Some(proxy) = &mut guest.host().proxy {
            proxy.begin(callback, context);
        }
        guest.call(|store, _| call(store, &self.exports))
    }

    fn create(&mut self, context: u32, parent: u32) -> Result<(), Ended> {
        self.callback(Callback::Other, context, |store, exports| match &exports.create {
            Some(create) => create.call(store, context as i32, parent as i32),
            None => Ok(()),
        })
    }

    fn state(&mut self) -> &mut ProxyState {
        let proxy = &mut self.guest.get().host().proxy;
        proxy.as_deref_mut().expect("a VM of proxy-wasm is made with it")
    }

    /// The number of a new stream. Its context is made by its first callback.
    pub fn open(&mut self) -> u32 {
        self.last_context = self.last_context.wrapping_add(1).max(ROOT + 1);
        let context = self.last_context;
        self.state().streams.insert(context, Stream::default());
        context
    }

    /// Tells the guest of what came for a stream. The exchange: `None` where the guest has it since a pause. The bytes:
    /// more of the answer's body.
    pub fn event(
        &mut self,
        context: u32,
        (event, end): (Event, bool),
        (exchange, more): (Option<Box<HttpExchange>>, Bytes),
        turn: &Turn<'_>,
    ) -> (Result<Step, GuestFailure>, Meter) {
        self.guest.get().begin(&turn.allowance, turn.may_block);
        let result = self.told(context, event, end, (exchange, more));
        (result, self.ended(context, turn.log))
    }

    fn told(
        &mut self,
        context: u32,
        event: Event,
        end: bool,
        (exchange, more): (Option<Box<HttpExchange>>, Bytes),
    ) -> Result<Step, GuestFailure> {
        let Some(stream) = self.state().streams.get_mut(&context) else {
            let reason = "its stream has ended in the guest".to_owned();
            return Err(GuestFailure::Trap { reason, backtrace: String::new() });
        };
        let is_new = !std::mem::replace(&mut stream.is_created, true);
        stream.lend(event, exchange);
        if is_new {
            self.create(context, ROOT).map_err(Ended::into_failure)?;
        }
        let stream = self.state().streams.get_mut(&context);
        let size = stream.and_then(|stream| stream.exchange.as_deref_mut()).map_or(0, |exchange| {
            if !more.is_empty() {
                exchange.append(event.is_request(), more);
            }
            size_of(exchange, event)
        });
        let (id, end) = (context as i32, i32::from(end));
        let action = self.callback(Callback::Stream(event), context, |store, exports| match event {
            Event::RequestHeaders => exports.request_headers.call(store, id, size, end),
            Event::ResponseHeaders => exports.response_headers.call(store, id, size, end),
            Event::RequestBody => exports.request_body.as_ref().map_or(Ok(CONTINUE), |f| f.call(store, id, size, end)),
            Event::ResponseBody => {
                exports.response_body.as_ref().map_or(Ok(CONTINUE), |f| f.call(store, id, size, end))
            }
            Event::ResponseTrailers => {
                exports.response_trailers.as_ref().map_or(Ok(CONTINUE), |f| f.call(store, id, size))
            }
        });
        let action = action.and_then(|action| self.end_done().map(|()| action)).map_err(Ended::into_failure)?;
        Ok(self.decided(context, action))
    }

    /// What the callback and the calls in it decided for its stream.
    fn decided(&mut self, context: u32, action: i32) -> Step {
        let stream = self.state().streams.entry(context).or_default();
        let decision = verdict(stream).or_else(|| {
            // Other hosts' further kinds of pausing are pauses.
            (action == CONTINUE || stream.resumed).then_some(Verdict::Continue)
        });
        if let Some(verdict) = decision
            && let Some(exchange) = stream.hand_back()
        {
            return Step::Go(exchange, verdict);
        }
        let (waiter, receiver) = oneshot::channel();
        stream.waiter = Some(waiter);
        let is_passing = matches!(stream.event, Event::ResponseBody | Event::ResponseTrailers);
        let twin = stream.exchange.as_ref().filter(|_| is_passing).map(|exchange| exchange.twin());
        Step::Paused(receiver, twin)
    }

    /// After every row of callbacks: other streams that the guest decided about, logs, figures.
    fn ended(&mut self, context: u32, log: &GuestLog) -> Meter {
        while let Some(touched) = self.state().touched.pop_first() {
            self.wake(touched);
        }
        let guest = self.guest.get();
        let meter = guest.meter();
        let host = guest.host();
        if !host.has_printed() {
            return meter;
        }
        let stream = host.proxy.as_ref().and_then(|proxy| proxy.streams.get(&context));
        let request_id = stream.and_then(|stream| stream.request_id.clone());
        log.flush(request_id.as_deref().unwrap_or_default(), host);
        meter
    }

    /// Hands a paused stream back, if it was decided about.
    fn wake(&mut self, context: u32) {
        let Some(stream) = self.state().streams.get_mut(&context) else { return };
        let Some(verdict) = verdict(stream).or(stream.resumed.then_some(Verdict::Continue)) else { return };
        if let Some(waiter) = stream.waiter.take()
            && let Some(exchange) = stream.hand_back()
        {
            // Where nobody waits any more, more has come for it: it finds its exchange here, and an answer at once.
            if let Err(Woken { exchange, result }) = waiter.send(Woken { exchange, result: Ok(verdict) }) {
                stream.exchange = Some(exchange);
                match result {
                    Ok(Verdict::Respond(reply)) => stream.reply = Some(reply),
                    Ok(Verdict::Close) => stream.closed = true,
                    _ => {}
                }
            }
        }
    }

    /// It has waited for something outside.
    pub fn waited(&mut self) -> bool {
        self.guest.get().host().waited
    }

    pub fn asked(&mut self) -> Asked {
        let state = self.state();
        Asked {
            calls: std::mem::take(&mut state.calls),
            rpcs: std::mem::take(&mut state.rpcs.begun),
            tick: state.tick.take(),
            registered: std::mem::take(&mut state.registered),
        }
    }

    /// The answer to a call, for the root context.
    pub fn answer(&mut self, answer: CallAnswer, turn: &Turn<'_>) -> (Result<(), GuestFailure>, Meter) {
        self.guest.get().begin(&turn.allowance, turn.may_block);
        let (id, fields, body) = (answer.id as i32, count(answer.fields()), count(answer.body.len()));
        let trailers = count(answer.trailers.len());
        let state = self.state();
        state.answer = Some(answer);
        let told = self.callback(Callback::Call, ROOT, |store, exports| match &exports.call_answer {
            Some(f) => f.call(store, ROOT as i32, id, fields, body, trailers),
            None => Ok(()),
        });
        self.state().answer = None;
        let told = told.and_then(|()| self.end_done());
        (told.map_err(Ended::into_failure), self.ended(ROOT, turn.log))
    }

    /// What came of a gRPC call, for the root context; of one that the guest has given up it is told nothing.
    pub fn grpc(&mut self, (id, event): (u32, GrpcEvent), turn: &Turn<'_>) -> (Result<(), GuestFailure>, Meter) {
        let about = match &event {
            GrpcEvent::Initial(fields) | GrpcEvent::Trailing(fields) => count(fields.len()),
            GrpcEvent::Message(message) => count(message.len()),
            GrpcEvent::Closed(status) => status.code as i32,
        };
        let exports = &self.exports;
        let callback = match &event {
            GrpcEvent::Initial(_) => &exports.grpc_initial,
            GrpcEvent::Message(_) => &exports.grpc_message,
            GrpcEvent::Trailing(_) => &exports.grpc_trailing,
            GrpcEvent::Closed(_) => &exports.grpc_close,
        };
        let callback = callback.clone();
        if !self.state().rpcs.tell(id, event) {
            return (Ok(()), Meter::default());
        }
        self.guest.get().begin(&turn.allowance, turn.may_block);
        let told = self.callback(Callback::Call, ROOT, |store, _| {
            callback.map_or(Ok(()), |f| f.call(store, ROOT as i32, id as i32, about))
        });
        self.state().rpcs.told = None;
        let told = told.and_then(|()| self.end_done());
        (told.map_err(Ended::into_failure), self.ended(ROOT, turn.log))
    }

    pub fn tick(&mut self, turn: &Turn<'_>) -> (Result<(), GuestFailure>, Meter) {
        self.root(turn, |store, exports| exports.tick.as_ref().map_or(Ok(()), |f| f.call(store, ROOT as i32)))
    }

    pub fn queue_ready(&mut self, queue: u32, turn: &Turn<'_>) -> (Result<(), GuestFailure>, Meter) {
        self.root(turn, |store, exports| {
            exports.queue_ready.as_ref().map_or(Ok(()), |f| f.call(store, ROOT as i32, queue as i32))
        })
    }

    fn root(
        &mut self,
        turn: &Turn<'_>,
        call: impl FnOnce(&mut Store, &Exports) -> Result<(), RuntimeError>,
    ) -> (Result<(), GuestFailure>, Meter) {
        self.guest.get().begin(&turn.allowance, turn.may_block);
        let told = self.callback(Callback::Other, ROOT, call).and_then(|()| self.end_done());
        (told.map_err(Ended::into_failure), self.ended(ROOT, turn.log))
    }

    /// The end of a stream: done, log, delete. `waits`: the guest may put the last two off until it says so.
    pub fn close(
        &mut self,
        context: u32,
        exchange: Option<Box<HttpExchange>>,
        waits: bool,
        turn: &Turn<'_>,
    ) -> (Result<Closed, GuestFailure>, Meter) {
        let Some(stream) = self.state().streams.get_mut(&context) else {
            return (Ok(Closed::Now(exchange)), Meter::default());
        };
        stream.lend(Event::ResponseTrailers, exchange);
        self.guest.get().begin(&turn.allowance, turn.may_block);
        let closed = self.closed(context, waits);
        let meter = self.ended(context, turn.log);
        (closed.map_err(Ended::into_failure), meter)
    }

    fn closed(&mut self, context: u32, waits: bool) -> Result<Closed, Ended> {
        let id = context as i32;
        if self.state().streams.get(&context).is_some_and(|stream| stream.finishing) {
            // It has been asked, and never said.
            return self.log_and_delete(context).map(Closed::Now);
        }
        let done = self.callback(Callback::Other, context, |store, exports| {
            exports.done.as_ref().map_or(Ok(1), |f| f.call(store, id))
        })?;
        let state = self.state();
        if done == 0
            && waits
            && state.finishing < MAX_FINISHING
            && let Some(stream) = state.streams.get_mut(&context)
        {
            stream.finishing = true;
            state.finishing += 1;
            return Ok(Closed::Later(stream.exchange.as_ref().map(|exchange| exchange.twin())));
        }
        self.log_and_delete(context).map(Closed::Now)
    }

    fn log_and_delete(&mut self, context: u32) -> Result<Option<Box<HttpExchange>>, Ended> {
        let id = context as i32;
        self.callback(Callback::Other, context, |store, exports| {
            exports.log.as_ref().map_or(Ok(()), |f| f.call(store, id))?;
            exports.delete.as_ref().map_or(Ok(()), |f| f.call(store, id))
        })?;
        let state = self.state();
        let Some(mut stream) = state.streams.remove(&context) else { return Ok(None) };
        state.finishing -= usize::from(stream.finishing);
        Ok(stream.hand_back())
    }

    /// The ends that the guest has said since.
    fn end_done(&mut self) -> Result<(), Ended> {
        while let Some(context) = self.state().done.pop() {
            self.log_and_delete(context)?;
        }
        Ok(())
    }

    /// Hands all paused streams back: the VM has failed.
    pub fn abandon(&mut self, error: &RunError) {
        for stream in self.state().streams.values_mut() {
            if let Some(waiter) = stream.waiter.take()
                && let Some(exchange) = stream.hand_back()
            {
                // Nobody may wait any more.
                let _ = waiter.send(Woken { exchange, result: Err(error.clone()) });
            }
        }
    }

    /// What a stream's guest holds, after a failure or when nobody waits any longer.
    pub fn take_back(&mut self, context: u32) -> Option<Box<HttpExchange>> {
        self.state().streams.get_mut(&context)?.hand_back()
    }

    pub fn is_worn(&mut self, memory_limit: u64) -> bool {
        self.guest.get().has_grown(self.memory_at_start, memory_limit)
    }
}

/// What the guest is told of an event beside whose it is.
fn size_of(exchange: &HttpExchange, event: Event) -> i32 {
    count(match event {
        Event::RequestHeaders => request_pairs(exchange).count(),
        Event::ResponseHeaders => response_pairs(exchange).count(),
        Event::RequestBody | Event::ResponseBody => exchange.body_len(event.is_request()),
        Event::ResponseTrailers => exchange.response_trailers.as_ref().map_or(0, http::HeaderMap::len),
    })
}

/// An answer or an end that the guest decided on.
fn verdict(stream: &mut Stream) -> Option<Verdict> {
    if stream.closed {
        return Some(Verdict::Close);
    }
    stream.reply.take().map(Verdict::Respond)
}
