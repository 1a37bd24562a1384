//! What guests reach beside their request: upstreams, values that they keep, quotas, metrics and the log of their
//! handler. The layers above do the work, through [`Outside`].
//!
//! Invariant: a guest gets what its handler or its caller grants and nothing else, and a call that waits gives the run
//! permit up meanwhile and ends with its run.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::runtime::Handle;

use super::Engine;
use super::failure::Halt;
use super::grpc::GrpcCall;
use super::guest_log::GuestLog;
use super::guest_metrics::{self, HandlerMetrics};
use super::host::HostState;
use super::http::{RequestInfo, Values};
use crate::config;
use crate::domain::{ModuleShape, Name, OwnerId, Principal};
use crate::store::KvValue;

/// Why there is no answer, for the log.
pub type Failed = String;
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub type Answering = Later<Result<Response<Bytes>, Failed>>;

pub trait Outside: Send + Sync {
    /// Sends the request to the upstream of this name; an answer whose body is over `limit` bytes is none.
    fn call(&self, upstream: Name, request: Request<Bytes>, limit: u64) -> Answering;
    /// Makes a gRPC call, until it has ended or nobody waits for it any more.
    fn grpc(&self, call: GrpcCall) -> Later<()>;
    /// One operation on a value that the owner's guests keep. A write is durable when it is answered.
    fn keep(&self, owner: OwnerId, key: Vec<u8>, operation: Keep) -> Later<Result<Kept, NotKept>>;
    /// Charges a quota of the caller's tier.
    fn charge(&self, principal: Principal, quota: String, cost: u64) -> Later<Charged>;
}

/// What to do with a kept value. `ttl`: how long a new one lives, for ever without.
#[derive(Clone, Debug)]
pub enum Keep {
    Get,
    /// `expected`: the number that the value there has to have; 0: there has to be none.
    Set {
        value: Vec<u8>,
        ttl: Option<Duration>,
        expected: Option<u64>,
    },
    /// `ttl` is of a number that begins with this.
    Add {
        by: i64,
        ttl: Option<Duration>,
    },
    Delete,
}

#[derive(Clone, Debug)]
pub enum Kept {
    Value(KvValue),
    Nothing,
    Written,
    Sum(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The value is another one than was expected, or no number.
    Conflict,
    Full,
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charged {
    Allowed,
    Limited(Duration),
    /// The cost is over what the quota ever admits.
    Never,
    Unknown,
}

/// Of keys and values.
const MAX_KEY: usize = 512;
const MAX_VALUE: usize = 64 << 10;
/// What a look-up is charged, in bytes moved: it takes some microseconds.
const LOOK_UP: usize = 16 << 10;
/// The longest that a call may take; also where the guest sets no time.
const MAX_CALL: Duration = Duration::from_secs(60);

/// How long a call may take for which a guest says so many milliseconds; 0: it sets no time.
pub fn call_time(millis: i32) -> Duration {
    match millis as u32 {
        0 => MAX_CALL,
        millis => Duration::from_millis(millis.into()).min(MAX_CALL),
    }
}

/// What the guests of one handler, or of one execution, reach.
pub struct Reach {
    outside: Option<Arc<dyn Outside>>,
    waits: Option<Handle>,
    /// Whose values they keep: the module's owner's.
    owner: OwnerId,
    upstreams: Vec<Name>,
    /// Bytes of an upstream's answer.
    answer_limit: u64,
    pub config: Bytes,
    /// `None`: an execution, which has no handler.
    pub metrics: Option<Arc<HandlerMetrics>>,
    pub log: GuestLog,
    /// The log has a line of a call that was refused.
    told_refused: AtomicBool,
}

impl Reach {
    /// The upstream of this name, where the handler's configuration grants it.
    pub fn granted(&self, name: &[u8]) -> Option<Name> {
        let found = self.upstreams.iter().find(|known| known.as_str().as_bytes() == name).cloned();
        if found.is_none() && !self.told_refused.swap(true, Ordering::Relaxed) {
            let name = &name[..name.len().min(64)];
            tracing::warn!(
                handler = self.log.handler(),
                "its calls to the upstream `{}` are refused: the handler's `upstreams` does not name it",
                name.escape_ascii()
            );
        }
        found
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("owner", &self.owner).field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

impl Engine {
    /// Of a handler on a route.
    pub fn reach_of(&self, label: Arc<str>, handler: &config::Handler, answer_limit: u64) -> Arc<Reach> {
        let metrics = self.guest_metrics().of(&label);
        Arc::new(Reach {
            upstreams: handler.upstreams.clone(),
            answer_limit,
            config: handler.config.clone().into(),
            metrics: Some(metrics),
            log: GuestLog::new(label, self.config().guest_log_lines),
            told_refused: AtomicBool::new(false),
            ..self.bare_reach(handler.owner.clone())
        })
    }

    /// Of an execution of a module of this owner's: nothing is granted but its values.
    pub fn reach_alone(&self, owner: OwnerId) -> Arc<Reach> {
        Arc::new(self.bare_reach(owner))
    }

    fn bare_reach(&self, owner: OwnerId) -> Reach {
        Reach {
            outside: self.outside(),
            waits: self.waits(),
            owner,
            upstreams: Vec::new(),
            answer_limit: 0,
            config: Bytes::new(),
            metrics: None,
            log: GuestLog::new("execution".into(), self.config().guest_log_lines),
            // It has no setting that could be forgotten.
            told_refused: AtomicBool::new(true),
        }
    }
}

/// It imports the gateway's own functions.
pub fn uses_host_api(shape: &ModuleShape) -> bool {
    shape.imports_from(super::abi::wasmgate::MODULE)
}

/// What one guest has of it.
#[derive(Default)]
pub struct Reaching {
    pub reach: Option<Arc<Reach>>,
    /// Of a run that answers a request; guests that see an exchange have them there.
    pub info: Option<Arc<RequestInfo>>,
    pub values: Values,
    /// The answer to its last call.
    pub answer: Option<Answer>,
}

impl Reaching {
    /// A handler's on a route; an execution has no log and no metrics, and is not to charge who runs it.
    pub fn of_handler(&self) -> bool {
        self.reach.as_ref().is_some_and(|reach| reach.metrics.is_some())
    }
}

pub struct Answer {
    /// `name: value` lines.
    pub head: Vec<u8>,
    pub body: Bytes,
}

impl From<guest_metrics::Refused> for Refusal {
    fn from(refused: guest_metrics::Refused) -> Refusal {
        match refused {
            guest_metrics::Refused::NotFound => Refusal::NotFound,
            guest_metrics::Refused::BadArgument => Refusal::BadArgument,
        }
    }
}

/// Why a guest does not get what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Denied,
    BadArgument,
    Full,
    Conflict,
    Timeout,
    Unavailable,
}

/// The outer error ends the guest.
pub type Asked<T> = Result<Result<T, Refusal>, Halt>;

impl HostState {
    /// What is known of the request under way.
    pub fn info(&self) -> Option<&RequestInfo> {
        match &self.http {
            Some(exchange) => exchange.info.as_deref(),
            None => self.reaching.info.as_deref(),
        }
    }

    pub fn handed_on(&self) -> &Values {
        match (&self.http, &self.http_state.edits.values) {
            (Some(_), Some(values)) => values,
            (Some(exchange), None) => &exchange.values,
            (None, _) => &self.reaching.values,
        }
    }

    /// To be changed. Of an exchange they are a copy, committed with the phase.
    pub fn hand_on(&mut self) -> &mut Values {
        match &self.http {
            Some(exchange) => self.http_state.edits.values.get_or_insert_with(|| exchange.values.clone()),
            None => &mut self.reaching.values,
        }
    }

    /// One operation on a value of the module's owner.
    pub fn keep(&mut self, key: Vec<u8>, operation: Keep) -> Asked<Kept> {
        let length = match &operation {
            Keep::Set { value, .. } => value.len(),
            _ => 0,
        };
        if key.is_empty() || key.len() > MAX_KEY || length > MAX_VALUE {
            return Ok(Err(Refusal::BadArgument));
        }
        let Some((reach, outside)) = self.outside() else { return Ok(Err(Refusal::Denied)) };
        self.fuel.spend(LOOK_UP)?;
        let work = outside.keep(reach.owner.clone(), key, operation);
        Ok(match self.wait_unless_done(&reach, work)? {
            Some(Ok(Kept::Nothing)) => Err(Refusal::NotFound),
            Some(Ok(kept)) => Ok(kept),
            Some(Err(NotKept::Conflict)) => Err(Refusal::Conflict),
            Some(Err(NotKept::Full)) => Err(Refusal::Full),
            Some(Err(NotKept::Unavailable)) => Err(Refusal::Unavailable),
            None => Err(Refusal::Timeout),
        })
    }

    /// A request to an upstream that the handler grants, and its answer.
    pub fn fetch(&mut self, upstream: &[u8], request: Request<Bytes>, timeout: Duration) -> Asked<StatusCode> {
        self.reaching.answer = None;
        let Some((reach, outside)) = self.outside() else { return Ok(Err(Refusal::Denied)) };
        let Some(upstream) = reach.granted(upstream) else { return Ok(Err(Refusal::Denied)) };
        let work = outside.call(upstream, request, reach.answer_limit);
        match self.wait(&reach, work, timeout)? {
            Some(Ok(answer)) => {
                let (head, body) = answer.into_parts();
                let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                    [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat()
                };
                let lines = head.headers.iter().flat_map(line).collect();
                self.reaching.answer = Some(Answer { head: lines, body });
                Ok(Ok(head.status))
            }
            Some(Err(error)) => {
                tracing::debug!(handler = reach.log.handler(), error, "a guest's call failed");
                Ok(Err(Refusal::Unavailable))
            }
            None => Ok(Err(Refusal::Timeout)),
        }
    }

    /// Charges a quota of the caller's tier; how long to wait where that is over.
    pub fn charge(&mut self, quota: &[u8], cost: u64) -> Asked<Option<Duration>> {
        let outside = self.outside().filter(|_| self.reaching.of_handler());
        let Some((reach, outside)) = outside else { return Ok(Err(Refusal::Denied)) };
        let principal = self.info().and_then(|info| info.principal.clone());
        let (Some(principal), Ok(quota)) = (principal, std::str::from_utf8(quota)) else {
            return Ok(Err(Refusal::NotFound));
        };
        let work = outside.charge(principal, quota.to_owned(), cost);
        Ok(match self.wait_unless_done(&reach, work)? {
            Some(Charged::Allowed) => Ok(None),
            Some(Charged::Limited(wait)) => Ok(Some(wait)),
            Some(Charged::Never) => Err(Refusal::BadArgument),
            Some(Charged::Unknown) => Err(Refusal::NotFound),
            None => Err(Refusal::Timeout),
        })
    }

    /// As [`Self::wait`], of what is mostly over at once.
    fn wait_unless_done<T: Send + 'static>(&mut self, reach: &Reach, mut work: Later<T>) -> Result<Option<T>, Halt> {
        // A shared store's work has deadlines from its first step on.
        let runtime = reach.waits.as_ref().map(Handle::enter);
        let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(runtime);
        match first {
            Poll::Ready(done) => Ok(Some(done)),
            Poll::Pending => self.wait(reach, work, MAX_CALL),
        }
    }

    fn outside(&self) -> Option<(Arc<Reach>, Arc<dyn Outside>)> {
        let reach = self.reaching.reach.clone()?;
        let outside = reach.outside.clone()?;
        Some((reach, outside))
    }

    /// `None`: not within its time. The deadline, or a client that has gone, ends the guest.
    fn wait<T: Send + 'static>(&mut self, reach: &Reach, work: Later<T>, limit: Duration) -> Result<Option<T>, Halt> {
        self.waited = true;
        // As with sleep: this thread is not the guest's to wait in. A filter can't be run again elsewhere: it waits here, and
        // never comes here again.
        if !self.may_block && self.proxy.is_none() {
            return Err(Halt::Deadline);
        }
        match &reach.waits {
            Some(waits) => self.fuel.wait(waits, work, limit),
            None => Ok(None),
        }
    }
}
