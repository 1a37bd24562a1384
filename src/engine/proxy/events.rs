//! What reaches VMs beside requests: answers to calls, timers, items of queues, ends of streams.
//!
//! Invariant: an event is told on a guest thread, as filters may wait for what the events' own thread does, and none is
//! lost while its VM lives.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::vm::{Asked, Vm};
use super::{Outcome, ProxyHandler, Slot, Work};
use crate::engine::abi::proxy_wasm::{Call, CallAnswer};
use crate::engine::scope::Listener;
use crate::engine::vms::Turn;
use crate::engine::{Engine, RunError};

/// An event that found no thread tries again after so long.
const AGAIN: Duration = Duration::from_millis(20);

impl ProxyHandler {
    /// Calls, timer and queues that the guest asked for.
    pub(super) fn serve(self: &Arc<Self>, slot: &Arc<Slot>, asked: Asked) {
        let Asked { calls, rpcs, tick, registered } = asked;
        for call in calls {
            self.call(slot, call);
        }
        for rpc in rpcs {
            self.rpc(slot, rpc);
        }
        if !registered.is_empty() || tick.is_some() {
            slot.serves_events.store(true, Ordering::Relaxed);
        }
        if !registered.is_empty() {
            let listener: Weak<dyn Listener> = Arc::downgrade(slot) as Weak<dyn Listener>;
            for queue in registered {
                self.plugin.scope.listen(queue, &listener);
            }
        }
        if let Some(period) = tick {
            slot.set_tick(&self.engine, period);
        }
    }

    fn call(self: &Arc<Self>, slot: &Arc<Slot>, call: Call) {
        let (handler, slot) = (self.clone(), slot.clone());
        self.engine.spawn(async move {
            let Call { id, upstream, request, timeout, ticket } = call;
            let limit = handler.limits.input_bytes;
            let calling = async {
                match handler.engine.outside() {
                    Some(outside) => tokio::time::timeout(timeout, outside.call(upstream, request, limit)).await,
                    None => Ok(Err("there are no upstreams here".to_owned())),
                }
            };
            let Some(answer) = slot.lost.or_cancelled(calling).await else { return };
            let answer = match answer {
                Ok(Ok(answer)) => {
                    let (head, body) = answer.into_parts();
                    CallAnswer { id, status: Some(head.status), headers: head.headers, body, ..CallAnswer::default() }
                }
                Ok(Err(error)) => {
                    tracing::debug!(handler = handler.plugin.reach.log.handler(), error, "a guest's call failed");
                    CallAnswer { id, ..CallAnswer::default() }
                }
                Err(_) => CallAnswer { id, ..CallAnswer::default() },
            };
            handler.event(&slot, answer, |vm, answer, turn| vm.answer(answer, turn)).await;
            drop(ticket);
        });
    }

    /// An event, on a guest thread: its own does nothing but begin them, and filters may wait for what it does. Whether the
    /// guest had it, however long that took; one for a VM that is gone is nothing.
    pub(super) async fn event<I: Send + 'static>(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        mut input: I,
        work: impl Work<I, ()> + Copy,
    ) -> bool {
        loop {
            match self.on_vm(slot, &slot.lost, input, (false, false), work).await {
                Outcome::Ran((), _) => return true,
                Outcome::NotRun(back, RunError::Busy { .. }) if !slot.lost.is_cancelled() => {
                    input = back;
                    tokio::time::sleep(AGAIN).await;
                }
                Outcome::NotRun(..) => return false,
                Outcome::Failed(_, error, _) => {
                    tracing::warn!(handler = self.plugin.reach.log.handler(), %error, "a filter failed beside requests");
                    return false;
                }
            }
        }
    }

    /// Ends a stream that nobody waits for, `after` so long at the latest.
    pub(super) fn end(self: &Arc<Self>, slot: &Arc<Slot>, context: u32, after: Duration) {
        let (handler, slot) = (self.clone(), slot.clone());
        self.engine.spawn(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let work = move |vm: &mut Vm, (), turn: &Turn<'_>| {
                let (closed, meter) = vm.close(context, None, false, turn);
                (closed.map(drop), meter)
            };
            handler.event(&slot, (), work).await;
        });
    }
}

impl Slot {
    fn set_tick(self: &Arc<Self>, engine: &Engine, period: Duration) {
        let mut ticker = self.ticker.lock();
        if let Some(old) = ticker.take() {
            old.abort();
        }
        if period.is_zero() {
            return;
        }
        let slot = Arc::downgrade(self);
        let task = engine.spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(slot) = slot.upgrade() else { return };
                let Some(handler) = slot.handler.upgrade() else { return };
                handler.event(&slot, (), |vm, (), turn| vm.tick(turn)).await;
            }
        });
        *ticker = task;
    }
}

impl Listener for Slot {
    fn queue_ready(&self, queue: u32, items: usize) {
        let Some(handler) = self.handler.upgrade() else { return };
        let slot = handler.slots.lock().iter().find(|slot| std::ptr::eq(&***slot, self)).cloned();
        let Some(slot) = slot else { return };
        if !slot.note_ready(queue, items) {
            return;
        }
        handler.clone().engine.spawn(async move {
            while let Some(queue) = slot.next_ready()
                && handler.event(&slot, queue, |vm, queue, turn| vm.queue_ready(queue, turn)).await
            {
                slot.told_ready(queue);
            }
        });
    }
}
