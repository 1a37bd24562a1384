//! What only the admin face has.

mod audit;
mod config;
mod nodes;
mod pushed;
mod runtime;
mod tiers;
mod tokens;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(tiers::list))
        .routes(routes!(tiers::set, tiers::reset))
        .routes(routes!(config::routes, pushed::push))
        .routes(routes!(pushed::check))
        .routes(routes!(pushed::versions))
        .routes(routes!(pushed::version))
        .routes(routes!(pushed::rollback))
        .routes(routes!(config::check))
        .routes(routes!(config::reload))
        .routes(routes!(nodes::list))
        .routes(routes!(runtime::drain))
        .routes(routes!(runtime::log_level, runtime::set_log_level))
        .routes(routes!(runtime::state))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
        .routes(routes!(audit::list))
}
