//! gRPC calls under way: what comes of them is told to the VM that made them, one event after the other.
//!
//! Invariant: a call reads no more while its guest has not had the last event, and keeps no VM alive.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::{ProxyHandler, Slot};
use crate::engine::abi::proxy_wasm::Begun;
use crate::engine::grpc::{GrpcEvent, GrpcStatus};

impl ProxyHandler {
    pub(super) fn rpc(self: &Arc<Self>, slot: &Arc<Slot>, begun: Begun) {
        let slot = Arc::downgrade(slot);
        let Begun { id, unary, mut call, mut events, ticket } = begun;
        call.limit = self.limits.input_bytes;
        let gone = call.gone.clone();
        let calling = match self.engine.outside() {
            Some(outside) => outside.grpc(call),
            None => Box::pin(async move {
                call.end(GrpcStatus::unavailable("there are no upstreams here")).await;
            }),
        };
        self.engine.spawn(async move {
            let telling = async {
                let mut message = None;
                while let Some(event) = events.recv().await {
                    let event = if unary { whole(&mut message, event) } else { Some(event) };
                    if let Some(event) = event
                        && !told(&slot, id, event).await
                    {
                        // It would miss something: the call ends here.
                        gone.cancel();
                        return;
                    }
                }
            };
            tokio::join!(calling, telling);
            drop(ticket);
        });
    }
}

/// A unary call has one event: its message, or the status of its failure.
fn whole(message: &mut Option<Bytes>, event: GrpcEvent) -> Option<GrpcEvent> {
    match event {
        GrpcEvent::Message(first) => {
            message.get_or_insert(first);
            None
        }
        GrpcEvent::Closed(status) if status.code == 0 => Some(match message.take() {
            Some(message) => GrpcEvent::Message(message),
            None => GrpcEvent::Closed(GrpcStatus::without_message()),
        }),
        GrpcEvent::Closed(_) => Some(event),
        GrpcEvent::Initial(_) | GrpcEvent::Trailing(_) => None,
    }
}

/// Whether its VM is there and had it.
async fn told(slot: &Weak<Slot>, id: u32, event: GrpcEvent) -> bool {
    let Some(slot) = slot.upgrade() else { return false };
    let Some(handler) = slot.handler.upgrade() else { return false };
    handler.event(&slot, (id, event), |vm, event, turn| vm.grpc(event, turn)).await
}
