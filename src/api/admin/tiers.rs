//! Tiers as they are in force: configured ones with their stored overrides.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::access::Actor;
use crate::api::body::JsonBody;
use crate::api::openapi::{Problem, json as answer};
use crate::api::{Api, refused};
use crate::domain::{FailMode, LimitsChange, Name, Quota, Rejection, Tier};
use crate::store::Role;

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct TierList {
    /// By rank.
    tiers: Vec<TierView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct TierView {
    #[serde(flatten)]
    #[schema(value_type = Object)]
    tier: Tier,
    /// `file` (or built in), or `api`: set here, which wins over the file until it is reset.
    source: &'static str,
}

/// Fields of a tier to change; others stay.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct TierChange {
    /// `[{name, requests, window: "30s" | "1m" | "1h" | "1d" | "1mo", burst}]`; empty: no rate limit.
    #[schema(value_type = Option<Vec<Object>>)]
    quotas: Option<Vec<Quota>>,
    /// Fuel units a day; 0: no limit.
    fuel_per_day: Option<u64>,
    concurrent: Option<u32>,
    module_bytes: Option<u64>,
    /// Of all versions of an owner's modules together, archives of their files included.
    module_storage_bytes: Option<u64>,
    modules: Option<u32>,
    keys: Option<u32>,
    limits: Option<LimitsChange>,
    /// While the fleet's limits can't be reached: `share`, `open` or `closed`.
    #[schema(value_type = Option<String>)]
    fail: Option<FailMode>,
}

/// Lists the tiers in force.
#[utoipa::path(get, path = "/api/tiers", tag = "admin",
    responses((status = 200, description = "the tiers", body = TierList)))]
pub(in crate::api) async fn list(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let set = api.app.store.tiers().await.map_err(refused)?;
    let source = |tier: &Tier| if set.iter().any(|t| t.name == tier.name) { "api" } else { "file" };
    let snapshot = api.app.snapshot();
    let mut tiers: Vec<_> =
        snapshot.tiers.values().map(|t| TierView { tier: (**t).clone(), source: source(t) }).collect();
    tiers.sort_by_key(|view| view.tier.rank);
    Ok(answer(StatusCode::OK, TierList { tiers }))
}

/// Changes a tier for all its keys at once. The change is stored and outlives the configuration file's value.
#[utoipa::path(put, path = "/api/tiers/{name}", tag = "admin",
    params(("name" = String, Path, description = "the tier")), request_body = TierChange,
    responses(
        (status = 200, description = "the tier as it is now", body = TierView),
        (status = 404, description = "no such tier", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn set(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(name): Path<String>,
    JsonBody(change): JsonBody<TierChange>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let (name, before) = existing(&api, &name)?;
    let tier = change.apply(&before)?;
    api.app.store.put_tier(&tier).await.map_err(refused)?;
    api.refresh().await?;
    api.audit(&actor, "tier.set", name.as_str(), changes(&before, &tier)).await;
    Ok(answer(StatusCode::OK, TierView { tier, source: "api" }))
}

/// Goes back to the tier as the configuration has it, for all its keys at once.
#[utoipa::path(delete, path = "/api/tiers/{name}", tag = "admin",
    params(("name" = String, Path, description = "the tier")),
    responses(
        (status = 200, description = "the tier as it is now", body = TierView),
        (status = 404, description = "no such tier", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "the configuration has no such tier", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn reset(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(name): Path<String>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let (name, before) = existing(&api, &name)?;
    let configured = api.app.config().tiers.iter().find(|tier| tier.name == name).cloned();
    let tier = configured.ok_or_else(|| {
        Rejection::Conflict(format!("the configuration has no tier `{name}` to go back to: put it there first"))
    })?;
    if api.app.store.delete_tier(&name).await.map_err(refused)? {
        api.refresh().await?;
        api.audit(&actor, "tier.reset", name.as_str(), changes(&before, &tier)).await;
    }
    Ok(answer(StatusCode::OK, TierView { tier, source: "file" }))
}

fn existing(api: &Api, name: &str) -> Result<(Name, Arc<Tier>), Rejection> {
    let found = name.parse::<Name>().ok().and_then(|name| api.app.tier(&name).map(|tier| (name, tier)));
    found.ok_or_else(|| Rejection::NotFound(format!("there is no tier of this name; use {}", api.tier_names(|_| true))))
}

/// The fields that differ, as `concurrent: 1 -> 5, limits.wall_ms: 5000 -> 1000`.
fn changes(before: &Tier, after: &Tier) -> String {
    fn walk(path: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
        if let (Value::Object(old), Value::Object(new)) = (before, after) {
            for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(&path, &before[name], &after[name], out);
            }
        } else if before != after {
            out.push(format!("{path}: {before} -> {after}"));
        }
    }
    let mut out = Vec::new();
    walk("", &json!(before), &json!(after), &mut out);
    if out.is_empty() { "no change".into() } else { out.join(", ") }
}

impl TierChange {
    fn apply(self, before: &Tier) -> Result<Tier, Rejection> {
        let bad = |field: &str, why: &str| Err(Rejection::BadRequest(format!("`{field}`: {why}")));
        let mut tier = before.clone();
        if let Some(quotas) = self.quotas {
            if quotas.len() > Tier::MOST_QUOTAS {
                return bad("quotas", &format!("more than {}", Tier::MOST_QUOTAS));
            }
            for (i, quota) in quotas.iter().enumerate() {
                if quota.requests == 0 || quota.burst == Some(0) {
                    return bad(&format!("quotas[{i}]"), "`requests` and `burst` are numbers from 1");
                }
                if let Err(why) = quota.window.check_burst(quota.burst) {
                    return bad(&format!("quotas[{i}].burst"), why);
                }
                if quotas[..i].iter().any(|q| q.name == quota.name) {
                    return bad(&format!("quotas[{i}].name"), "comes more than once");
                }
            }
            tier.quotas = quotas;
        }
        if let Some(fuel) = self.fuel_per_day {
            tier.fuel_per_day = (fuel > 0).then_some(fuel);
        }
        if let Some(change) = self.limits {
            let limits = change.apply(&before.limits);
            if let Err((field, why)) = limits.check() {
                return bad(&format!("limits.{field}"), &why);
            }
            tier.limits = limits;
        }
        if self.concurrent == Some(0) {
            return bad("concurrent", "is a number from 1");
        }
        for (field, value, most) in [
            ("module_bytes", self.module_bytes, Tier::MOST_MODULE_BYTES),
            ("module_storage_bytes", self.module_storage_bytes, Tier::MOST_STORAGE_BYTES),
        ] {
            if let Some(value) = value.filter(|value| *value > most) {
                return bad(field, &format!("is {value}, use at most {most}"));
            }
        }
        tier.concurrent = self.concurrent.unwrap_or(tier.concurrent);
        tier.module_bytes = self.module_bytes.unwrap_or(tier.module_bytes);
        tier.module_storage_bytes = self.module_storage_bytes.unwrap_or(tier.module_storage_bytes);
        tier.modules = self.modules.unwrap_or(tier.modules);
        tier.keys = self.keys.unwrap_or(tier.keys);
        tier.fail = self.fail.unwrap_or(tier.fail);
        Ok(tier)
    }
}
