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
use super::{INLINE_BODY, Outcome, ProxyHandler, Slot, gone};
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
    pub result: Result<Verdict, RunError>,
    pub meter: Meter,
}

impl Told {
    /// Its VM is gone, with what it held.
    fn gone() -> Told {
        Told { exchange: None, result: Err(gone()), meter: Meter::default() }
    }
}

impl From<Woken> for Told {
    fn from(Woken { exchange, result }: Woken) -> Told {
        Told { exchange: Some(exchange), result, meter: Meter::default() }
    }
}

impl ProxyStream {
    pub(super) fn new(handler: Arc<ProxyHandler>, slot: Arc<Slot>) -> ProxyStream {
        ProxyStream { handler, slot, context: 0, paused: None, ended: false }
    }

    pub fn handler(&self) -> &Arc<ProxyHandler> {
        &self.handler
    }

    /// Tells the filter of what came, and gives what it decided. A pause lasts until the filter ends it, or too long: of
    /// the body before its end it is given back as such, as there is more to come.
    ///
    /// `exchange`: `None` where the filter has it since such a pause.
    pub async fn tell(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        (event, end): (Event, bool),
        waits: bool,
        cancel: &Cancel,
    ) -> Told {
        self.told(exchange, Bytes::new(), (event, end), waits, cancel).await
    }

    /// A piece of a body, beside what the filter has of it since a pause; then there is no `exchange`. At the end a pause
    /// is waited for.
    pub async fn show(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        piece: Bytes,
        (event, end): (Event, bool),
        cancel: &Cancel,
    ) -> Told {
        if let Some(mut exchange) = exchange {
            exchange.set_body(event.is_request(), piece);
            return self.tell(Some(exchange), (event, end), end, cancel).await;
        }
        // It may have ended the pause just now.
        let exchange = match self.paused.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(Woken { exchange, result: Ok(Verdict::Continue) })) => Some(exchange),
            Some(Ok(woken)) => return woken.into(),
            _ => None,
        };
        self.told(exchange, piece, (event, end), end, cancel).await
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

    async fn told(
        &mut self,
        exchange: Option<Box<HttpExchange>>,
        more: Bytes,
        (event, end): (Event, bool),
        waits: bool,
        cancel: &Cancel,
    ) -> Told {
        let first = self.context == 0;
        self.paused = None;
        let context = self.context;
        let is_body = matches!(event, Event::RequestBody | Event::ResponseBody);
        let shown = more.len() + exchange.as_ref().map_or(0, |exchange| exchange.body_len(event.is_request()));
        let may_inline = !is_body || shown <= INLINE_BODY;
        let work = move |vm: &mut Vm, exchange: Option<Box<HttpExchange>>, turn: &Turn<'_>| {
            let context = if first { vm.open() } else { context };
            let (result, meter) = vm.event(context, (event, end), (exchange, more), turn);
            match result {
                Ok(step) => (Ok((context, step)), meter),
                // For whoever takes the exchange out of it.
                Err(failure) => {
                    vm.failed = context;
                    (Err(failure), meter)
                }
            }
        };
        let handler = self.handler.clone();
        let slot = self.slot.clone();
        match handler.on_vm(&slot, cancel, exchange, (first, may_inline), work).await {
            Outcome::Ran((context, step), meter) => {
                self.context = context;
                self.decided(step, waits, cancel, meter).await
            }
            Outcome::Failed(vm, error, meter) => {
                self.ended = true;
                let exchange = vm.and_then(|mut vm| {
                    let failed = vm.failed;
                    vm.take_back(failed)
                });
                Told { exchange, result: Err(error), meter }
            }
            Outcome::NotRun(exchange, error) => Told { exchange, result: Err(error), meter: Meter::default() },
        }
    }

    async fn decided(&mut self, step: Step, waits: bool, cancel: &Cancel, meter: Meter) -> Told {
        let mut receiver = match step {
            Step::Go(exchange, verdict) => return Told { exchange: Some(exchange), result: Ok(verdict), meter },
            Step::Paused(receiver) => receiver,
        };
        if !waits {
            self.paused = Some(receiver);
            return Told { exchange: None, result: Ok(Verdict::Continue), meter };
        }
        let woken = tokio::time::timeout(self.handler.pause, cancel.or_cancelled(&mut receiver)).await;
        match woken {
            Ok(Some(Ok(woken))) => Told { meter, ..woken.into() },
            Ok(Some(Err(_))) => {
                self.ended = true;
                Told { meter, ..Told::gone() }
            }
            late => {
                let why = if late.is_ok() { GuestFailure::Cancelled } else { GuestFailure::Deadline };
                let exchange = self.take_back(receiver).await;
                Told { exchange, result: Err(RunError::Guest(why)), meter }
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
        let work = move |vm: &mut Vm, exchange, turn: &Turn<'_>| vm.close(context, exchange, true, turn);
        let (handler, slot) = (self.handler.clone(), self.slot.clone());
        match handler.on_vm(&slot, &Cancel::default(), exchange, (false, true), work).await {
            Outcome::Ran(Closed::Now(exchange), meter) => (exchange, meter),
            Outcome::Ran(Closed::Later(context), meter) => {
                handler.end(&slot, context, handler.pause);
                (None, meter)
            }
            Outcome::Failed(_, _, meter) => (None, meter),
            Outcome::NotRun(exchange, _) => (exchange, Meter::default()),
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
