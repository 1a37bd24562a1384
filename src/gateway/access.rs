//! What is told of a finished request: one access-log event, the route's metrics, the caller's usage.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::Error;
use pingora::proxy::Session;

use super::access_log::{Line, Sink};
use super::connection::RefusalLog;
use super::context::Context;
use super::identity::{Ids, address_text};
use super::service::Shared;
use super::snapshot::NO_ROUTE;
use crate::domain::{Rejection, Subject, UsageRecord};

/// The status in the log of a request whose client was gone before its answer (after nginx).
const CLIENT_GONE: u16 = 499;

/// `sink`: where JSON lines go; without it they are events of the logging framework.
pub fn finished(session: &Session, error: Option<&Error>, ctx: &mut Context, shared: &Shared, sink: Option<&Sink>) {
    if std::mem::replace(&mut ctx.logged, true) {
        return;
    }
    let took = Instant::now().saturating_duration_since(ctx.start.mono);
    let written = session.response_written().map(|h| h.status.as_u16());
    let status = written.unwrap_or(CLIENT_GONE);
    let metrics = ctx.route.as_ref().map_or(&ctx.snapshot.unmatched, |state| &state.metrics);
    metrics.observe(&ctx.method, status, took);
    let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
    let refusal = ctx.refused.as_ref().map(Rejection::code);
    if let Some(principal) = &ctx.principal
        && let Subject::Key { owner, key } = &principal.subject
    {
        let meter = &ctx.guests.meter;
        let usage = UsageRecord {
            requests: 1,
            executions: ctx.guests.runs,
            fuel: meter.fuel,
            cpu_us: u64::try_from(meter.cpu.as_micros()).unwrap_or(u64::MAX),
            bytes_in,
            bytes_out,
            errors: refusal.map(|code| BTreeMap::from([(code.to_owned(), 1)])).unwrap_or_default(),
        };
        shared.usage.record(owner, key, ctx.start.wall.day(), &usage);
    }
    if ctx.snapshot.config.log.access {
        let event = Event { status, took, bytes_in, bytes_out, refusal, error };
        match sink {
            Some(sink) if tracing::enabled!(target: "access", tracing::Level::INFO) => {
                sink.line(|l| event.json(ctx, l))
            }
            Some(_) => {}
            None => event.trace(ctx),
        }
    }
}

/// What the context itself does not know.
struct Event<'a> {
    status: u16,
    took: Duration,
    bytes_in: u64,
    bytes_out: u64,
    refusal: Option<&'static str>,
    error: Option<&'a Error>,
}

impl Event<'_> {
    fn micros(&self) -> u64 {
        u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX)
    }

    /// The same members as [`Self::trace`] gives, in the form of the JSON log.
    fn json(&self, ctx: &Context, line: &mut Line<'_>) {
        line.time("timestamp", ctx.start.wall);
        line.plain("level", "INFO");
        line.plain("target", "access");
        line.plain("method", ctx.method.as_str());
        line.text("path", ctx.uri.path());
        line.plain("route", ctx.route().map_or(NO_ROUTE, |r| r.name.as_str()));
        line.number("status", self.status.into());
        line.number("duration_us", self.micros());
        line.number("bytes_in", self.bytes_in);
        line.number("bytes_out", self.bytes_out);
        line.plain("client", std::str::from_utf8(&address_text(ctx.client)).unwrap_or_default());
        if let Some(principal) = &ctx.principal {
            if let Some(key) = principal.key_id() {
                line.plain("key", key.as_str());
            }
            line.plain("tier", principal.tier.name.as_str());
        }
        if let Some(endpoint) = &ctx.endpoint {
            line.plain("upstream", &endpoint.label);
        }
        line.number("attempts", ctx.attempts.into());
        line.plain("request_id", ctx.request_id());
        line.plain("trace_id", ctx.trace.as_str());
        if let Some(outcome) = ctx.guests.outcome {
            line.plain("handlers", outcome);
        }
        if let Some(refusal) = self.refusal {
            line.plain("refused", refusal);
        }
        if let Some(error) = self.error {
            line.text("error", &error.to_string());
        }
    }

    fn trace(&self, ctx: &Context) {
        let principal = ctx.principal.as_ref();
        tracing::info!(
            target: "access",
            method = ctx.method.as_str(),
            path = ctx.uri.path(),
            route = ctx.route().map_or(NO_ROUTE, |r| r.name.as_str()),
            status = self.status,
            duration_us = self.micros(),
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            client = %ctx.client,
            key = principal.and_then(|p| p.key_id()).map(|k| k.as_str()),
            tier = principal.map(|p| p.tier.name.as_str()),
            upstream = ctx.endpoint.as_deref().map(|e| e.label.as_str()),
            attempts = ctx.attempts,
            request_id = ctx.request_id(),
            trace_id = ctx.trace.as_str(),
            handlers = ctx.guests.outcome,
            refused = self.refusal,
            error = self.error.map(tracing::field::display),
        );
    }
}

/// Requests that never became a session.
pub struct Refusals {
    pub shared: Arc<Shared>,
    pub ids: Arc<Ids>,
}

impl RefusalLog for Refusals {
    fn refused(&self, peer: SocketAddr, rejection: &Rejection) -> String {
        let snapshot = self.shared.snapshot.load();
        let status = rejection.status();
        snapshot.unmatched.observe(&http::Method::default(), status, Duration::ZERO);
        let id = self.ids.request_id().to_str().unwrap_or_default().to_owned();
        if snapshot.config.log.access {
            let client = peer.ip().to_canonical();
            tracing::info!(target: "access", route = NO_ROUTE, status, %client, request_id = %id, refused = rejection.code());
        }
        id
    }
}
