//! The gateways of the fleet.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use crate::api::access::Actor;
use crate::api::openapi::json;
use crate::api::{Api, refused};
use crate::domain::{Digest, Rejection, Timestamp};
use crate::store::{LiveNode, Node, RefusedRoutes, Role};

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct NodeList {
    nodes: Vec<NodeView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct NodeView {
    /// Of one run of the process.
    id: String,
    /// `server.name`, or the machine's.
    name: String,
    /// Whether it is the gateway that answers.
    this: bool,
    /// `ready`, `degraded`, `starting` or `draining`, as its health says.
    state: &'static str,
    /// What it does without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    version: String,
    #[schema(value_type = String)]
    started_at: Timestamp,
    /// Of the configuration in use; counts up with every swap.
    generation: u64,
    /// Of the configuration file in use.
    #[schema(value_type = String)]
    config_digest: Digest,
    /// `file` or `store`.
    routes_from: &'static str,
    /// Of the pushed routes that it has in use; `null`: they are in its file, or it has none.
    routes_version: Option<u64>,
    #[schema(value_type = Option<String>)]
    routes_digest: Option<Digest>,
    /// The newest pushed routes, if it can't use them, and why.
    routes_refused: Option<RefusedRoutes>,
    /// Since it was last heard of, by the store's clock.
    silent_ms: u64,
}

impl NodeView {
    fn new(LiveNode { node, silent }: LiveNode, this: &str) -> Self {
        let Node { id, name, version, started_at, state, lacks, generation, config, .. } = node;
        let (routes_from, routes) = (if node.follows_routes { "store" } else { "file" }, node.routes);
        let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        Self {
            this: id == this,
            id,
            name,
            state: state.told(!lacks.is_empty()),
            reasons: lacks,
            version,
            started_at,
            generation,
            config_digest: config,
            routes_from,
            routes_version: routes.map(|routes| routes.version),
            routes_digest: routes.map(|routes| routes.digest),
            routes_refused: node.refused,
            silent_ms,
        }
    }
}

/// Lists the gateways that share the store, this one among them: those heard of in the last ten seconds.
#[utoipa::path(get, path = "/api/nodes", tag = "admin",
    responses((status = 200, description = "the gateways, by their names", body = NodeList)))]
pub(in crate::api) async fn list(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let nodes = api.app.beat().await.map_err(refused)?;
    let nodes = nodes.into_iter().map(|node| NodeView::new(node, &api.app.node_id)).collect();
    Ok(json(StatusCode::OK, NodeList { nodes }))
}
