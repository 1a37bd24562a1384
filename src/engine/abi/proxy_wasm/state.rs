//! What proxy-wasm keeps in a guest: its streams, what it asked for in the callback under way, what it is configured
//! with.
//!
//! Invariant: a stream's exchange is here exactly while a callback for it runs or it is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use wasmer::TypedFunction;

use super::calls::{Call, CallAnswer, Calls};
use super::grpc::Rpcs;
use super::{Done, Status, Version};
use crate::domain::Reply;
use crate::engine::RunError;
use crate::engine::guest_metrics::HandlerMetrics;
use crate::engine::http::{HttpExchange, Verdict};
use crate::engine::outside::Reach;
use crate::engine::scope::Scope;

/// What a filter is configured with, the same for all VMs of a handler.
pub struct Plugin {
    pub name: String,
    pub root_id: String,
    pub vm_id: String,
    pub vm_config: Bytes,
    pub env: Vec<(String, String)>,
    /// Writing the head of a request that has gone on is an error.
    pub strict: bool,
    /// Data and queues that it shares with the handlers of its owner that have the same `vm_id`.
    pub scope: Arc<Scope>,
    pub metrics: Arc<HandlerMetrics>,
    /// Its configuration, the upstreams that it may call and its log among what it reaches.
    pub reach: Arc<Reach>,
    pub calls: Arc<Calls>,
}

/// The root context of every VM.
pub const ROOT: u32 = 1;

/// What the guest is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Callback {
    /// `_initialize`, `_start`, `main`.
    #[default]
    Start,
    VmStart,
    Configure,
    /// A stream's own.
    Stream(Event),
    /// What came of a call.
    Call,
    /// Tick, queue, creation and end of contexts.
    Other,
}

/// What a stream's guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    RequestHeaders,
    RequestBody,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
}

impl Event {
    pub fn is_request(self) -> bool {
        self < Event::ResponseHeaders
    }
}

/// How a paused stream goes on.
pub struct Woken {
    pub exchange: Box<HttpExchange>,
    /// The error: its VM has failed.
    pub result: Result<Verdict, RunError>,
}

/// One HTTP stream, a context of the guest's.
pub struct Stream {
    pub request_id: Option<Arc<str>>,
    /// The guest has made its context.
    pub is_created: bool,
    pub exchange: Option<Box<HttpExchange>>,
    /// The last thing that it was told of.
    pub event: Event,
    /// Answered, or to be, by `proxy_send_local_response`.
    pub reply: Option<Reply>,
    pub replied: bool,
    pub resumed: bool,
    pub closed: bool,
    /// `proxy_on_done` asked to wait for `proxy_done`.
    pub finishing: bool,
    pub waiter: Option<oneshot::Sender<Woken>>,
}

impl Stream {
    /// What it is to be told of, here and now.
    pub fn lend(&mut self, event: Event, exchange: Option<Box<HttpExchange>>) {
        self.event = event;
        self.resumed = false;
        self.waiter = None;
        if let Some(exchange) = exchange {
            self.request_id.get_or_insert_with(|| exchange.request_id.clone());
            self.exchange = Some(exchange);
        }
    }

    /// Takes the exchange out of the guest's hands.
    pub fn hand_back(&mut self) -> Option<Box<HttpExchange>> {
        let mut exchange = self.exchange.take()?;
        exchange.restore_passed();
        Some(exchange)
    }
}

impl Default for Stream {
    fn default() -> Stream {
        Stream {
            request_id: None,
            is_created: false,
            exchange: None,
            event: Event::RequestHeaders,
            reply: None,
            replied: false,
            resumed: false,
            closed: false,
            finishing: false,
            waiter: None,
        }
    }
}

pub struct ProxyState {
    pub plugin: Arc<Plugin>,
    pub version: Version,
    /// Known from the instance on.
    pub allocate: Option<TypedFunction<i32, i32>>,
    pub allocating: bool,
    pub callback: Callback,
    pub effective: u32,
    pub streams: BTreeMap<u32, Stream>,
    /// Streams that may go on, since the callback began.
    pub touched: BTreeSet<u32>,
    /// Streams whose end the guest has said.
    pub done: Vec<u32>,
    /// The answer that the guest is told of.
    pub answer: Option<CallAnswer>,
    pub calls: Vec<Call>,
    /// Streams whose end the guest puts off.
    pub finishing: usize,
    pub rpcs: Rpcs,
    pub last_call: u32,
    /// `Some` where the guest set it in this callback; zero for none.
    pub tick: Option<Duration>,
    /// Queues of this VM, registered in this callback.
    pub registered: Vec<u32>,
}

impl ProxyState {
    pub fn new(plugin: Arc<Plugin>, version: Version) -> ProxyState {
        ProxyState {
            plugin,
            version,
            allocate: None,
            allocating: false,
            callback: Callback::Start,
            effective: 0,
            streams: BTreeMap::new(),
            touched: BTreeSet::new(),
            done: Vec::new(),
            answer: None,
            calls: Vec::new(),
            finishing: 0,
            rpcs: Rpcs::default(),
            last_call: 0,
            tick: None,
            registered: Vec::new(),
        }
    }

    pub fn begin(&mut self, callback: Callback, context: u32) {
        self.callback = callback;
        self.effective = context;
    }

    /// A call's number: never zero, and not one that is under way. Requests are over long before numbers come again.
    pub fn next_call(&mut self) -> u32 {
        loop {
            self.last_call = self.last_call.wrapping_add(1).max(1);
            if !self.rpcs.has(self.last_call) {
                return self.last_call;
            }
        }
    }

    /// The stream that the guest acts on.
    pub fn stream(&mut self) -> Option<&mut Stream> {
        self.streams.get_mut(&self.effective)
    }

    /// Of the request that the guest acts for.
    pub fn request_id(&mut self) -> Option<Arc<str>> {
        self.stream()?.request_id.clone()
    }

    /// As [`Self::stream`], where its exchange can be seen.
    pub fn exchange(&mut self) -> Done<(&mut HttpExchange, Event)> {
        let stream = self.stream().ok_or(Status::NOT_FOUND)?;
        let event = stream.event;
        match stream.exchange.as_deref_mut() {
            Some(exchange) => Ok((exchange, event)),
            None => Err(Status::NOT_FOUND.into()),
        }
    }
}
