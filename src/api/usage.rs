//! Usage of an owner's keys by UTC day. What the last seconds added comes with the next flush.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::Actor;
use super::body::Params;
use super::openapi::json;
use super::{Api, refused};
use crate::domain::{OwnerId, Rejection, Scope, Timestamp, UsageRecord};
use crate::store::Role;

const MAX_DAYS: i64 = 366;
const DEFAULT_DAYS: i64 = 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum By {
    #[default]
    Day,
    Key,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// First day, `2026-01-31` (UTC); default: 29 days before `to`.
    from: Option<String>,
    /// Last day; default: today. At most 366 days.
    to: Option<String>,
    #[param(inline)]
    by: Option<By>,
    /// Whose (admin; default: every owner's).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct UsageReport {
    from: String,
    to: String,
    by: By,
    total: UsageRecord,
    rows: Vec<UsageView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct UsageView {
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(flatten)]
    usage: UsageRecord,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Day(i64),
    Key(String, String),
}

/// Sums requests, executions, refusals, fuel, CPU time and bytes.
#[utoipa::path(get, path = "/api/usage", tag = "usage", params(UsageQuery),
    responses((status = 200, description = "sums by day, or by key", body = UsageReport)))]
pub(super) async fn usage(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<UsageQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Usage, Role::Viewer)?;
    let owner = actor.owners(query.owner.as_ref())?;
    let (from, to) = days(query.from.as_deref(), query.to.as_deref(), Timestamp::now())?;
    let stored = api.app.store.usage(owner.as_ref(), from, to).await.map_err(refused)?;
    let by = query.by.unwrap_or_default();
    let mut total = UsageRecord::default();
    let mut sums: BTreeMap<Group, UsageRecord> = BTreeMap::new();
    for row in stored {
        total.merge(&row.usage);
        let group = match by {
            By::Day => Group::Day(row.day),
            By::Key => Group::Key(row.owner.to_string(), row.key.to_string()),
        };
        sums.entry(group).or_default().merge(&row.usage);
    }
    let rows = sums
        .into_iter()
        .map(|(group, usage)| match group {
            Group::Day(day) => UsageView { day: Some(date(day)), owner: None, key: None, usage },
            Group::Key(owner, key) => UsageView { day: None, owner: Some(owner), key: Some(key), usage },
        })
        .collect();
    Ok(json(StatusCode::OK, UsageReport { from: date(from), to: date(to), by, total, rows }))
}

/// Both days included, as days since 1970-01-01.
fn days(from: Option<&str>, to: Option<&str>, now: Timestamp) -> Result<(i64, i64), Rejection> {
    let to = to.map_or(Ok(now.day()), |text| day("to", text))?;
    let from = from.map_or(Ok(to - DEFAULT_DAYS + 1), |text| day("from", text))?;
    if from > to {
        return Err(Rejection::BadRequest("`from`: is after `to`".into()));
    }
    if to - from >= MAX_DAYS {
        return Err(Rejection::BadRequest(format!("`from`, `to`: ask for at most {MAX_DAYS} days")));
    }
    Ok((from, to))
}

fn day(field: &str, text: &str) -> Result<i64, Rejection> {
    let midnight = format!("{text}T00:00:00Z").parse::<Timestamp>();
    midnight.map(Timestamp::day).map_err(|_| Rejection::BadRequest(format!("`{field}`: use a date as in `2026-01-31`")))
}

fn date(day: i64) -> String {
    let midnight = Timestamp::from_unix_millis(day.saturating_mul(86_400_000));
    midnight.map_or_else(String::new, |t| t.to_string().chars().take_while(|c| *c != 'T').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_days_and_bounded() {
        let now = "2026-03-01T23:59:59Z".parse().unwrap();
        let (from, to) = days(None, None, now).unwrap();
        assert_eq!((date(from).as_str(), date(to).as_str()), ("2026-01-31", "2026-03-01"));
        assert_eq!(days(Some("1970-01-02"), Some("1970-01-03"), now), Ok((1, 2)));
        assert!(days(Some("2026-03-02"), None, now).is_err());
        assert!(days(Some("2024-01-01"), None, now).is_err());
        assert!(days(Some("yesterday"), None, now).unwrap_err().detail().contains("`from`"));
    }
}
