//! Several executions in one request, one after the other.
//!
//! Invariant: each run is counted against the quotas as a request is, all of them before the first one starts; and all
//! outputs together stay within the output limit of one.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::Api;
use super::access::Actor;
use super::body::{self, Params, parse_json};
use super::bounded::BoundedVec;
use super::call::{self, ExecuteRequest};
use super::execute::{self, Failure, Figures};
use super::openapi::{Problem, json};
use crate::domain::{OwnerId, Rejection, Scope, UsageRecord};
use crate::gateway::Caller;
use crate::limit::limiter::Now;
use crate::store::Role;

pub(super) const MAX_ITEMS: usize = 32;

#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchQuery {
    /// Whose modules bare names mean (admin).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
}

/// What came of one execution.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum BatchItem {
    /// It ran, whatever its exit code.
    Ran {
        /// 200.
        status: u16,
        #[serde(flatten)]
        figures: Figures,
    },
    Refused {
        /// As of an execution on its own.
        status: u16,
        #[schema(value_type = Problem)]
        problem: serde_json::Value,
    },
}

/// Runs up to 32 executions in order; each counts as a request and has a status of its own.
#[utoipa::path(post, path = "/api/wasm/batch", tag = "wasm", params(BatchQuery), request_body = Vec<ExecuteRequest>,
    responses(
        (status = 200, description = "as many items as executions, in their order", body = Vec<BatchItem>),
        (status = 429, description = "the quota does not hold all of them; none ran"),
    ))]
pub(super) async fn batch(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<BatchQuery>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need(Scope::Execute, Role::Operator)?;
    let (parts, body) = request.into_parts();
    if body::media_type(&parts.headers) != "application/json" {
        return Err(Rejection::UnsupportedMediaType("`Content-Type`: use `application/json`".into()));
    }
    let tier = actor.tier(&api)?;
    let bytes = call::json_body(&api, &tier, &parts, body).await?;
    let BoundedVec(requests) = parse_json::<BoundedVec<ExecuteRequest, MAX_ITEMS>>(&bytes)?;
    drop(bytes);
    if requests.is_empty() {
        return Err(Rejection::BadRequest(format!("the array is empty, send 1 to {MAX_ITEMS} executions")));
    }

    if let Some(principal) = actor.principal() {
        // The first execution was counted when the request was admitted.
        api.app.shared.limiter.charge(principal, requests.len() as u64 - 1, Now::read()).await?;
    }

    let mut limits = tier.limits.clone();
    let mut items = Vec::with_capacity(requests.len());
    for request in requests {
        let outcome = match request.into_call(&api, &tier) {
            Ok(call) => {
                execute::run(&api, &actor, query.owner.as_ref(), call, limits.clone(), false, &caller.gone).await
            }
            Err(rejection) => Err(rejection.into()),
        };
        items.push(match outcome {
            Ok(ran) => {
                limits.output_bytes = limits.output_bytes.saturating_sub(ran.output.stdout.len() as u64);
                let figures = Figures::new(ran, &caller.request_id);
                BatchItem::Ran { status: StatusCode::OK.as_u16(), figures }
            }
            Err(failure) => refused(&api, &actor, failure, &caller.request_id),
        });
    }
    Ok(json(StatusCode::OK, items))
}

/// The answer as a whole is a 200, so the gateway can't count this one.
fn refused(api: &Api, actor: &Actor, failure: Failure, request_id: &str) -> BatchItem {
    let rejection = failure.rejection;
    if let Some((owner, key)) = actor.usage_of() {
        let errors = [(rejection.code().to_owned(), 1)].into();
        let add = UsageRecord { errors, ..UsageRecord::default() };
        api.app.shared.usage.record(&owner, &key, Now::read().wall.day(), &add);
    }
    BatchItem::Refused { status: rejection.status(), problem: rejection.problem(request_id) }
}
