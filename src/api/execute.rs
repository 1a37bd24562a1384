//! Running a module once.
//!
//! Invariant: whatever way a run ends, its fuel, CPU time and count are charged to the caller.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::access::Actor;
use super::body::{Params, flag};
use super::call::{self, Call, ExecuteForm, ExecuteQuery, ExecuteRequest, Source};
use super::edge::Members;
use super::incoming::{self, Incoming};
use super::openapi::{Binary, Wasm, json};
use super::{Api, modules};
use crate::domain::{Abi, GuestFailure, Limits, Meter, Name, OwnerId, Phase, Rejection, Scope, UsageRecord};
use crate::engine::outside::uses_host_api;
use crate::engine::{Assets, Cancel, Input, Job, LoadedModule, Output, RequestInfo, RunError};
use crate::gateway::Caller;
use crate::limit::limiter::Now;
use crate::store::Role;

/// A run that came to its own end.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Execution {
    /// `ok`, or `failed` with an exit code other than 0.
    status: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

/// What a run gave and used.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Figures {
    /// Standard output; `null` when it is not UTF-8.
    output: Option<String>,
    /// Standard output when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    stderr: String,
    exit_code: i32,
    /// What a core function returned: a number, or an array of several.
    result: Option<serde_json::Value>,
    execution_time_ms: f64,
    cpu_ms: f64,
    fuel: u64,
    memory_peak_bytes: u64,
    request_id: String,
}

pub(super) struct Ran {
    pub output: Output,
    pub meter: Meter,
    pub stderr: Bytes,
}

/// A refusal, with what the module's owner may see of a failed run.
pub(super) struct Failure {
    pub rejection: Rejection,
    pub members: Vec<(&'static str, serde_json::Value)>,
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, members: Vec::new() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.rejection.into_response();
        response.extensions_mut().insert(Members(self.members));
        response
    }
}

/// Runs a module once.
///
/// The module is stored (`module`) or sent along; `/api/execute` is the same. With `Accept: application/octet-stream`
/// the answer is the standard output, its figures are in `x-wasmgate-*` headers.
#[utoipa::path(post, path = "/api/wasm/execute", tag = "wasm", params(ExecuteQuery),
    request_body(content(
        (ExecuteRequest = "application/json"),
        (ExecuteForm = "multipart/form-data"),
        (Wasm = "application/wasm"),
    )),
    responses(
        (status = 200, description = "it ran, whatever its exit code",
            content((Execution = "application/json"), (Binary = "application/octet-stream")),
            headers(
                ("x-wasmgate-exit-code" = i32, description = "of the raw answer, as all that follow"),
                ("x-wasmgate-execution-time-ms" = f64),
                ("x-wasmgate-cpu-ms" = f64),
                ("x-wasmgate-fuel" = u64),
                ("x-wasmgate-memory-peak-bytes" = u64),
                ("x-wasmgate-result" = String, description = "JSON; what a core function returned"),
            )),
        (status = 402, description = "the module is over the caller's tier"),
        (status = 404, description = "no such module"),
        (status = 413, description = "the input is too large"),
        (status = 422, description = "the module can't be loaded"),
        (status = 500, description = "a stored module can't be loaded, or the gateway failed"),
        (status = 502, description = "the module trapped, or broke a limit of memory or output"),
        (status = 504, description = "the module ran out of time or fuel"),
    ))]
pub(super) async fn execute(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<ExecuteQuery>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Failure> {
    actor.need(Scope::Execute, Role::Operator)?;
    let (parts, body) = request.into_parts();
    let trace = flag("trace", query.trace.clone())?.unwrap_or(false);
    let owner = query.owner.clone();
    let call = call::read(&api, &actor, &parts, query, body).await?;
    let limits = actor.tier(&api)?.limits.clone();
    let ran = run(&api, &actor, owner.as_ref(), call, limits, trace, &caller.gone).await?;
    if wants_raw(&parts.headers) {
        Ok(raw_answer(ran))
    } else {
        Ok(json(StatusCode::OK, Execution::new(ran, &caller.request_id)))
    }
}

impl Execution {
    fn new(ran: Ran, request_id: &str) -> Self {
        let status = if ran.output.exit_code == 0 { "ok" } else { "failed" };
        Self { status, figures: Figures::new(ran, request_id) }
    }
}

impl Figures {
    pub(super) fn new(ran: Ran, request_id: &str) -> Self {
        let Ran { output, meter, stderr } = ran;
        let (text, base64) = match std::str::from_utf8(&output.stdout) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(&output.stdout))),
        };
        Self {
            output: text,
            output_base64: base64,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            exit_code: output.exit_code,
            result: output.result(),
            execution_time_ms: meter.wall_ms(),
            cpu_ms: meter.cpu_ms(),
            fuel: meter.fuel,
            memory_peak_bytes: meter.memory_peak_bytes,
            request_id: request_id.to_owned(),
        }
    }
}

/// `application/octet-stream` is asked for by name, and JSON is not preferred to it.
fn wants_raw(headers: &HeaderMap) -> bool {
    let weight = |wanted: &str| {
        let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
        ranges
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts.next().filter(|media| media.eq_ignore_ascii_case(wanted))?;
                let q = parts.find_map(|p| p.strip_prefix("q="));
                Some(q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
            })
            .fold(0.0, f32::max)
    };
    let raw = weight("application/octet-stream");
    raw > 0.0 && raw >= weight("application/json")
}

fn raw_answer(ran: Ran) -> Response {
    let figures = [
        ("x-wasmgate-exit-code", ran.output.exit_code.to_string()),
        ("x-wasmgate-execution-time-ms", format!("{:.3}", ran.meter.wall_ms())),
        ("x-wasmgate-cpu-ms", format!("{:.3}", ran.meter.cpu_ms())),
        ("x-wasmgate-fuel", ran.meter.fuel.to_string()),
        ("x-wasmgate-memory-peak-bytes", ran.meter.memory_peak_bytes.to_string()),
    ];
    let result = ran.output.result();
    let mut response = ran.output.stdout.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let result = result.map(|result| ("x-wasmgate-result", result.to_string()));
    for (name, figure) in figures.into_iter().chain(result) {
        if let Ok(value) = HeaderValue::from_str(&figure) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// A module that can run now, and who owns it.
struct Ready {
    module: Arc<LoadedModule>,
    assets: Option<Assets>,
    /// For fairness in the guest pool.
    owner: OwnerId,
    label: Arc<str>,
    /// The caller may see what is inside.
    own: bool,
    stored: Option<(OwnerId, Name)>,
    /// The caller's under the module's own.
    limits: Limits,
}

pub(super) async fn run(
    api: &Arc<Api>,
    actor: &Actor,
    asked: Option<&OwnerId>,
    call: Call,
    limits: Limits,
    trace: bool,
    gone: &Cancel,
) -> Result<Ran, Failure> {
    let ready = match call.source {
        Source::Stored(reference) => stored(api, actor, asked, reference, call.abi, limits).await?,
        Source::Inline(wasm) => inline(api, actor, wasm, call.abi, limits, gone).await?,
    };
    let abi = ready.module.abi();
    if abi.is_filter() {
        let detail = format!("`module`: those of the ABI `{abi}` handle requests on a route; none can be executed");
        return Err(Rejection::BadRequest(detail).into());
    }
    let limits = ready.limits;
    if call.input.len() as u64 > limits.input_bytes {
        // A tier's limit was met when the call was read: this is the module's own.
        return Err(Rejection::TooLarge(format!(
            "`input`: is over the {} bytes that `{}` allows by its own limit (`input_bytes`)",
            limits.input_bytes, ready.label
        ))
        .into());
    }
    let (args, function_args) = if abi == Abi::Core { (Vec::new(), call.args) } else { (call.args, Vec::new()) };
    let mut input = Input {
        args,
        env: call.env,
        stdin: call.input,
        entry: call.function,
        function_args,
        assets: ready.assets,
        ..Input::default()
    };
    if uses_host_api(ready.module.shape()) {
        let owner = ready.stored.as_ref().map_or(&ready.owner, |(owner, _)| owner).clone();
        input.reach = Some(api.app.shared.engine.reach_alone(owner));
        // A module of others does not learn who runs it.
        let principal = actor.principal().filter(|_| ready.own).cloned();
        input.info = Some(Arc::new(RequestInfo::of_execution(principal)));
    }
    let job = Job {
        module: ready.module,
        owner: ready.owner,
        label: ready.label.clone(),
        limits,
        input,
        cancel: gone.clone(),
    };
    let finished = api.app.shared.engine.run(job).await;

    let failure = match &finished.result {
        Err(RunError::Guest(failure)) => Some(failure),
        // It did not run.
        Err(RunError::BadCall(detail)) => return Err(Rejection::BadRequest(detail.clone()).into()),
        Err(RunError::Busy { retry_after }) => return Err(Rejection::Busy { retry_after: *retry_after }.into()),
        Err(RunError::Unread) => return Err(Rejection::StoreUnavailable.into()),
        Ok(_) => None,
    };
    let metrics = &api.app.shared.metrics;
    metrics.execution(&metrics.module(&ready.label, abi), Phase::Execute, failure, &finished.meter);
    charge(api, actor, &finished.meter, ready.stored.as_ref());
    match finished.result {
        Ok(output) => Ok(Ran { output, meter: finished.meter, stderr: finished.stderr }),
        Err(RunError::Guest(failure)) => {
            let members = if trace && ready.own { inside(&failure, &finished.stderr) } else { Vec::new() };
            Err(Failure { rejection: Rejection::Guest(failure), members })
        }
        Err(_) => Err(Rejection::Internal.into()),
    }
}

fn charge(api: &Api, actor: &Actor, meter: &Meter, stored: Option<&(OwnerId, Name)>) {
    let shared = &api.app.shared;
    let now = Now::read();
    if let Some(principal) = actor.principal() {
        shared.limiter.charge_fuel(&principal.subject, meter.fuel, now);
    }
    if let Some((owner, key)) = actor.usage_of() {
        let cpu_us = u64::try_from(meter.cpu.as_micros()).unwrap_or(u64::MAX);
        let add = UsageRecord { executions: 1, fuel: meter.fuel, cpu_us, ..UsageRecord::default() };
        shared.usage.record(&owner, &key, now.wall.day(), &add);
    }
    if let Some((owner, name)) = stored {
        shared.usage.record_runs(owner, name, 1);
    }
}

fn inside(failure: &GuestFailure, stderr: &[u8]) -> Vec<(&'static str, serde_json::Value)> {
    let mut members = vec![("stderr", String::from_utf8_lossy(stderr).into())];
    if let GuestFailure::Trap { backtrace, .. } = failure {
        members.push(("backtrace", backtrace.as_str().into()));
    }
    members
}

async fn stored(
    api: &Arc<Api>,
    actor: &Actor,
    asked: Option<&OwnerId>,
    reference: crate::domain::ModuleRef,
    abi: Option<Abi>,
    limits: Limits,
) -> Result<Ready, Failure> {
    let owner = actor.owner_of(&reference, asked)?;
    let unknown = || Rejection::NotFound(format!("`{owner}/{}` is not a module", reference.name));
    let module = api.module(&owner, &reference.name).await?.ok_or_else(unknown)?;
    let own = modules::is_own(actor, &module);
    if !own && !module.public {
        return Err(unknown().into());
    }
    let version = modules::version(&module, reference.selector)?;
    if abi.is_some_and(|abi| abi != version.abi) {
        return Err(Rejection::BadRequest(format!("`abi`: the module's is `{}`; leave it out", version.abi)).into());
    }
    let tier = actor.tier(api)?;
    if version.total_bytes() > tier.module_bytes {
        return Err(incoming::module_too_large(api, &tier, Some(version.total_bytes())).into());
    }
    let declared = version.shape.memory_min_bytes;
    if declared > limits.memory_bytes
        && let Some(needs) = api.lowest_tier(&tier, |t| t.limits.memory_bytes >= declared)
    {
        let detail = format!(
            "`{owner}/{}` begins with {declared} bytes of memory, over the {} of the tier `{}` (`limits.memory`): \
             use the tier `{needs}`",
            module.name, limits.memory_bytes, tier.name
        );
        return Err(Rejection::OverTier { needs, detail }.into());
    }
    let label = format!("{owner}/{}@{}", module.name, version.version).into();
    let engine = &api.app.shared.engine;
    let loaded = async {
        let module = engine.load(Some(&owner), version.digest, version.abi, &version.shape).await?;
        let assets = match &version.assets {
            Some(bundle) => Some(engine.assets(bundle).await?),
            None => None,
        };
        Ok((module, assets))
    };
    let (loaded, assets) = loaded.await.map_err(|error: RunError| match error {
        RunError::Busy { retry_after } => Rejection::CompilerBusy { retry_after },
        RunError::Guest(failure) => {
            tracing::error!(module = %label, %failure, "a stored module can't be loaded");
            Rejection::Guest(failure)
        }
        RunError::Unread => Rejection::StoreUnavailable,
        RunError::BadCall(_) => Rejection::Internal,
    })?;
    let stored = Some((owner.clone(), module.name.clone()));
    let limits = module.limits.lower(&limits);
    let owner = actor.own().cloned().unwrap_or(owner);
    Ok(Ready { module: loaded, assets, owner, label, own, stored, limits })
}

async fn inline(
    api: &Arc<Api>,
    actor: &Actor,
    wasm: Bytes,
    abi: Option<Abi>,
    limits: Limits,
    gone: &Cancel,
) -> Result<Ready, Failure> {
    let tier = actor.tier(api)?;
    let owner = actor.owner(None)?;
    let incoming = Incoming { wasm, assets: None, abi };
    let (inspected, _) = incoming.look(api, &owner, &tier).await?;
    let load = api.app.shared.engine.load_inline(incoming.wasm, &inspected, Some(&owner));
    let module = incoming::compiled(gone, load).await?;
    Ok(Ready { module, assets: None, owner, label: "inline".into(), own: true, stored: None, limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_output_is_asked_for_by_name() {
        let raw = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_raw(&headers)
        };
        assert!(raw("application/octet-stream"));
        assert!(raw("application/octet-stream, */*;q=0.1"));
        assert!(raw("application/json;q=0.5, application/octet-stream"));
        assert!(!raw("*/*"));
        assert!(!raw("application/json, application/octet-stream;q=0.5"));
        assert!(!raw("application/octet-stream;q=0"));
        assert!(!wants_raw(&HeaderMap::new()));
    }
}
