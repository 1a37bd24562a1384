//! The routers of both faces and the OpenAPI 3.1 document that comes out of them.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::edge::Face;
use super::{Api, admin, batch, execute, health, keys, modules, upload, usage};

/// The document as text, made once.
#[derive(Clone)]
pub(super) struct Document(Arc<str>);

impl Document {
    pub(super) fn new(mut document: OpenApi) -> Self {
        document.components.get_or_insert_default().security_schemes.insert(
            "bearer".to_owned(),
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()).into(),
        );
        document.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("bearer", [])]);
        // Only non-string map keys could fail, and the document has none.
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// An error answer (RFC 9457); the documentation's form of what `Rejection::problem` writes.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Problem {
    /// `/problems/<slug>`.
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    request_id: String,
}

/// All routes of a face, each with its entry in the document.
pub(super) fn routes(face: Face) -> OpenApiRouter<Arc<Api>> {
    let title = match face {
        Face::Tenant => "wasmgate tenant API",
        Face::Admin => "wasmgate admin API",
    };
    let info = InfoBuilder::new().title(title).version(env!("CARGO_PKG_VERSION")).build();
    let shared = OpenApiRouter::with_openapi(OpenApiBuilder::new().info(info).build())
        .routes(routes!(document))
        .routes(routes!(execute::execute))
        .routes(routes!(batch::batch))
        .routes(routes!(upload::upload))
        .routes(routes!(upload::validate))
        .routes(routes!(modules::list))
        .routes(routes!(modules::get, modules::delete, upload::put))
        .routes(routes!(modules::activate))
        .routes(routes!(usage::usage))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::get, keys::revoke))
        .routes(routes!(keys::rotate));
    match face {
        Face::Tenant => shared,
        Face::Admin => shared.merge(admin::routes()).merge(health::routes()),
    }
}

/// This API's description.
#[utoipa::path(get, path = "/api/openapi.json", tag = "meta",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub(super) async fn document(Extension(document): Extension<Document>) -> Response {
    ([(http::header::CONTENT_TYPE, "application/json")], document.0.to_string()).into_response()
}

/// A JSON answer with a status of its own.
pub(super) fn json<T: Serialize>(status: http::StatusCode, value: T) -> Response {
    (status, Json(value)).into_response()
}
