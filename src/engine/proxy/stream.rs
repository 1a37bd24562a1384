//! A request's stream in a VM of a filter: what it is told, how its pauses end, how it ends itself.
//!
//! Invariant: a stream that was opened is closed in its VM once, whatever becomes of its request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{self, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::oneshot;

use super::vm::{Closed, Step, Vm};
use super::{INLINE_BODY, Outcome, ProxyHandler, Slot, Work, gone};
use crate::domain::{GuestFailure, Meter};
use crate::engine::RunError;
use crate::engine::abi::proxy_wasm::{Event, Woken};
use crate::engine::cancel::Cancel;
use crate::engine::http::{HttpExchange, Verdict};
use crate::engine::vms::Turn;

/// A request's place in a VM.
pub struct ProxyStream {
    handler: Arc<ProxyHandler>,
    slot: Arc<Slot>,
    /// 0 until its first callback.
    context: u32,
    paused: Option<oneshot::Receiver<Woken>>,
    ended: bool,
}

/// What an event came to.
pub struct Told {
    /// `None`: the guest has it, as the stream is paused.
    pub exchange: Option<Box<HttpExchange>>,
    /// In its place, while the answer's body passes.
    pub twin: Option<Box<HttpExchange>>,
    pub result: Result<Verdict, RunError>,
    pub meter: Meter,
}

/// An event that did not come to its end at once.
pub enum Later {
    NotTold(Shown),
    Paused(Pause),
}

/// The guest has its exchange now; the twin is as [`Told::twin`].
pub struct Pause {
    twin: Option<Box<HttpExchange>>,
    meter: Meter,
}

/// What a stream is shown: its exchange, unless the guest has that since a pause, and more of a body behind it.
type Shown = (Option<Box<HttpExchange>>, Bytes);

impl Told {
    fn of(exchange: Option<Box<HttpExchange>>, result: Result<Verdict, RunError>, meter: Meter) -> Told {
        Told { exchange, twin: None, result, meter }
    }

    /// Its VM is gone, with what it held.
    fn gone() -> Told {
        Told::of(None, Err(gone()), Meter::default())
    }
}

impl From<Woken> for Told {
    fn from(Woken { exchange, result }: Woken) -> Told {
        Told::of(Some(exchange), result, Meter::default())
    }
}

impl ProxyStream {
    pub(super) fn new(handler: Arc<ProxyHandler>, slot: Arc<Slot>) -> ProxyStream {
        ProxyStream { handler, slot, context: 0, paused: None, ended: false }
    }

    pub fn handler(&self) -> &Arc<ProxyHandler> {
        &self.handler
    }

    /// The guest has its exchange, and may go on by itself.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Tells the filter of what came at once on this thread, where it is known to be short, and gives what it decided. The
    /// error is for [`Self::to_its_end`]. No `exchange`: the guest has it since a pause.
    pub fn tell_now(&mut self, exchange: Option<Box<HttpExchange>>, event: (Event, bool)) -> Result<Told, Later> {
        self.now((exchange, Bytes::new()), event)
    }

    /// As [`Self::tell_now`], of a piece of a body beside what the filter has of it since a pause; then there is no
    /// `exchange`.
    pub fn show_now(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        piece: Bytes,
        event: (Event, bool),
    ) -> Result<Told, Later> {
        if let Some(mut exchange) = exchange {
            exchange.set_body(event.0.is_request(), piece);
            return self.now((Some(exchange), Bytes::new()), event);
        }
        // It may have ended the pause just now.
        let exchange = match self.paused.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(Woken { exchange, result: Ok(Verdict::Continue) })) => Some(exchange),
            Some(Ok(woken)) => return Ok(woken.into()),
            _ => None,
        };
        self.now((exchange, piece), event)
    }

    /// What an event comes to, from what it came to at once. A pause lasts until the filter ends it, or too long; one that is
    /// not waited for is given back as such, as there is more to come.
    pub async fn to_its_end(
        &mut self,
        at_once: Result<Told, Later>,
        event: (Event, bool),
        waits: bool,
        cancel: &Cancel,
    ) -> Told {
        let told = match at_once {
            Ok(told) => Ok(told),
            Err(Later::NotTold(shown)) => self.on_pool(shown, event, cancel).await,
            Err(Later::Paused(pause)) => Err(pause),
        };
        match told {
            Ok(told) => told,
            Err(Pause { twin, meter }) if waits => Told { twin, meter, ..self.woken(cancel).await },
            Err(Pause { twin, meter }) => Told { twin, ..Told::of(None, Ok(Verdict::Continue), meter) },
        }
    }

    /// As [`Self::tell_now`], to its end.
    pub async fn tell(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        event: (Event, bool),
        waits: bool,
        cancel: &Cancel,
    ) -> Told {
        let at_once = self.tell_now(exchange, event);
        self.to_its_end(at_once, event, waits, cancel).await
    }

    /// As [`Self::show_now`], to its end.
    pub async fn show(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        piece: Bytes,
        event: (Event, bool),
        cancel: &Cancel,
    ) -> Told {
        let at_once = self.show_now(exchange, piece, event);
        self.to_its_end(at_once, event, event.1, cancel).await
    }

    /// What follows the answer's body, for a filter that may have some of that since a pause. A further pause is waited
    /// for.
    pub async fn trailers(&mut self, exchange: Option<Box<HttpExchange>>, fields: HeaderMap, cancel: &Cancel) -> Told {
        let held = match self.paused.take() {
            Some(mut receiver) => match receiver.try_recv() {
                Ok(Woken { exchange, result: Ok(Verdict::Continue) }) => Some(exchange),
                Ok(woken) => return woken.into(),
                Err(_) => self.take_back(receiver).await,
            },
            None => None,
        };
        let Some(mut exchange) = exchange.or(held) else { return Told::gone() };
        exchange.response_trailers = Some(fields);
        self.tell(Some(exchange), (Event::ResponseTrailers, true), true, cancel).await
    }

    /// Whether a pause that was not waited for has ended, and how.
    pub fn poll_woken(&mut self, cx: &mut task::Context<'_>) -> Poll<Told> {
        let Some(receiver) = &mut self.paused else { return Poll::Pending };
        let woken = ready!(Pin::new(receiver).poll(cx));
        self.paused = None;
        Poll::Ready(match woken {
            Ok(woken) => woken.into(),
            Err(_) => {
                self.ended = true;
                Told::gone()
            }
        })
    }

    fn now(&mut self, shown: Shown, event: (Event, bool)) -> Result<Told, Later> {
        self.paused = None;
        if !is_short(&shown, event.0) {
            return Err(Later::NotTold(shown));
        }
        match self.handler.on_vm_now(&self.slot, shown, callback(self.context, event)) {
            Ok(outcome) => self.decided(outcome).map_err(Later::Paused),
            Err((shown, _)) => Err(Later::NotTold(shown)),
        }
    }

    async fn on_pool(&mut self, mut shown: Shown, event: (Event, bool), cancel: &Cancel) -> Result<Told, Pause> {
        let (starts, may_inline) = (self.context == 0, is_short(&shown, event.0));
        loop {
            let work = callback(self.context, event);
            match self.handler.on_vm(&self.slot, cancel, shown, (starts, may_inline), work).await {
                // The VM was lost before this stream began in it.
                Outcome::NotRun(back, _) if starts && self.slot.lost.is_cancelled() => {
                    shown = back;
                    self.take_place(self.handler.pick());
                }
                outcome => return self.decided(outcome),
            }
        }
    }

    fn take_place(&mut self, slot: Arc<Slot>) {
        self.slot.streams.fetch_sub(1, Ordering::Relaxed);
        slot.streams.fetch_add(1, Ordering::Relaxed);
        self.slot = slot;
    }

    fn decided(&mut self, outcome: Outcome<Shown, (u32, Step)>) -> Result<Told, Pause> {
        match outcome {
            Outcome::Ran((context, step), meter) => {
                self.context = context;
                match step {
                    Step::Go(exchange, verdict) => Ok(Told::of(Some(exchange), Ok(verdict), meter)),
                    Step::Paused(receiver, twin) => {
                        self.paused = Some(receiver);
                        Err(Pause { twin, meter })
                    }
                }
            }
            Outcome::Failed(vm, error, meter) => {
                self.ended = true;
                let exchange = vm.and_then(|mut vm| {
                    let failed = vm.failed;
                    vm.take_back(failed)
                });
                Ok(Told::of(exchange, Err(error), meter))
            }
            Outcome::NotRun((exchange, _), error) => Ok(Told::of(exchange, Err(error), Meter::default())),
        }
    }

    /// The end of a pause.
    async fn woken(&mut self, cancel: &Cancel) -> Told {
        let Some(mut receiver) = self.paused.take() else { return Told::gone() };
        let woken = tokio::time::timeout(self.handler.pause, cancel.or_cancelled(&mut receiver)).await;
        match woken {
            Ok(Some(Ok(woken))) => woken.into(),
            Ok(Some(Err(_))) => {
                self.ended = true;
                Told::gone()
            }
            late => {
                let why = match late {
                    Ok(_) => GuestFailure::Cancelled,
                    Err(_) => GuestFailure::PausedTooLong(self.handler.pause),
                };
                let exchange = self.take_back(receiver).await;
                Told::of(exchange, Err(RunError::Guest(why)), Meter::default())
            }
        }
    }

    /// Out of a pause that lasted too long.
    async fn take_back(&mut self, mut receiver: oneshot::Receiver<Woken>) -> Option<Box<HttpExchange>> {
        let mut guard = self.handler.lock(&self.slot).await.ok()?;
        // It may have ended in the last moment.
        if let Ok(Woken { exchange, .. }) = receiver.try_recv() {
            return Some(exchange);
        }
        guard.as_mut()?.take_back(self.context)
    }

    /// The request is over: the filter is told, and its context goes.
    pub async fn finish(mut self, exchange: Option<Box<HttpExchange>>) -> (Option<Box<HttpExchange>>, Meter) {
        if self.context == 0 || self.ended {
            return (exchange, Meter::default());
        }
        self.ended = true;
        let context = self.context;
        let work = move |vm: &mut Vm, exchange: Option<_>, turn: &Turn<'_>| vm.close(context, exchange, true, turn);
        let (handler, slot) = (&self.handler, &self.slot);
        let outcome = match handler.on_vm_now(slot, exchange, work) {
            Ok(outcome) => outcome,
            Err((exchange, work)) => Box::pin(handler.on_vm(slot, &handler.never, exchange, (false, true), work)).await,
        };
        match outcome {
            Outcome::Ran(Closed::Now(exchange), meter) => (exchange, meter),
            Outcome::Ran(Closed::Later(twin), meter) => {
                handler.end(slot, context, handler.pause);
                (twin, meter)
            }
            Outcome::Failed(vm, _, meter) => (vm.and_then(|mut vm| vm.take_back(context)), meter),
            Outcome::NotRun(exchange, _) => {
                handler.end(slot, context, Duration::ZERO);
                (exchange, Meter::default())
            }
        }
    }
}

/// Little enough for a worker to show.
fn is_short((exchange, more): &Shown, event: Event) -> bool {
    let is_body = matches!(event, Event::RequestBody | Event::ResponseBody);
    let before = || exchange.as_ref().map_or(0, |exchange| exchange.body_len(event.is_request()));
    !is_body || more.len() + before() <= INLINE_BODY
}

/// A stream's callback, its first for context 0; gives the stream's context.
fn callback(context: u32, event: (Event, bool)) -> impl Work<Shown, (u32, Step)> {
    move |vm: &mut Vm, shown: Shown, turn: &Turn<'_>| {
        let context = if context == 0 { vm.open() } else { context };
        let (result, meter) = vm.event(context, event, shown, turn);
        match result {
            Ok(step) => (Ok((context, step)), meter),
            // For whoever takes the exchange out of it.
            Err(failure) => {
                vm.failed = context;
                (Err(failure), meter)
            }
        }
    }
}

impl Drop for ProxyStream {
    fn drop(&mut self) {
        self.slot.streams.fetch_sub(1, Ordering::Relaxed);
        self.slot.served.fetch_add(1, Ordering::Relaxed);
        if self.ended || self.context == 0 {
            return;
        }
        // The request was broken off.
        self.handler.end(&self.slot, self.context, Duration::ZERO);
    }
}
