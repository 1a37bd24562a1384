//! The routers of both faces and the OpenAPI 3.1 document that comes out of them.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    self, Content, Header, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::edge::Face;
use super::{Api, admin, batch, execute, health, keys, modules, upload, usage, validate};
use crate::domain::problem::CONTENT_TYPE;

/// The document as text, made once.
#[derive(Clone)]
pub(super) struct Document(Arc<str>);

impl Document {
    pub(super) fn new(mut document: OpenApi, face: Face) -> Self {
        let components = document.components.get_or_insert_default();
        components.schemas.insert("Problem".to_owned(), Problem::schema());
        for (status, description, _) in REFUSALS {
            let mut answer = problem(description);
            if matches!(status, 429 | 503) {
                let seconds = Header::new(ObjectBuilder::new().schema_type(Type::Integer).build());
                answer.headers.insert("Retry-After".to_owned(), seconds.into());
            }
            components.responses.insert(refusal_name(status), answer.into());
        }
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.security_schemes.insert("bearer".to_owned(), SecurityScheme::Http(bearer).into());
        let mut either = vec![SecurityRequirement::new::<_, [&str; 0], &str>("bearer", [])];
        if face == Face::Tenant {
            let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Api-Key")));
            components.security_schemes.insert("api_key".to_owned(), header.into());
            either.push(SecurityRequirement::new::<_, [&str; 0], &str>("api_key", []));
        }
        document.security = Some(either);
        for (path, item) in &mut document.paths.paths {
            let PathItem { get, put, post, patch, delete, .. } = item;
            for (method, operation) in
                [("get", get), ("put", put), ("post", post), ("patch", patch), ("delete", delete)]
            {
                if let Some(operation) = operation {
                    operation.operation_id = Some(operation_id(method, path));
                    tell_refusals(operation, face, method != "get");
                }
            }
        }
        // Only non-string map keys could fail, and the document has none.
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// The handlers' own names, the default, are not unique: several are called `list`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(['/', '.', '-', '{', '}']).filter(|word| !word.is_empty() && *word != "api");
    words.fold(method.to_owned(), |id, word| format!("{id}_{word}"))
}

/// From which operations a refusal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comes {
    Any,
    /// Those with a body.
    Body,
    /// Those that store something.
    Write,
    /// Those of the admin listener.
    Admin,
}

/// Refusals that do not depend on what an operation does. One that says more of a status has its own words.
const REFUSALS: [(u16, &str, Comes); 12] = [
    (400, "the path, a parameter or a field is wrong; the detail names it", Comes::Any),
    (401, "no valid credential", Comes::Any),
    (403, "the credential does not reach so far, or the thing is somebody else's", Comes::Any),
    (408, "the body did not arrive in time", Comes::Body),
    (413, "the body is over its limit", Comes::Body),
    (415, "another media type; the detail names those that are taken", Comes::Body),
    (421, "the admin listener is not known by this `Host`", Comes::Admin),
    (
        429,
        "over a quota, or too many wrong credentials from this address; `Retry-After` tells when to come again",
        Comes::Any,
    ),
    (431, "the request's head is over its limits", Comes::Any),
    (500, "the gateway failed; its log has the reason under the request id", Comes::Any),
    (
        503,
        "no capacity now, the store is away, or the gateway is shutting down; `Retry-After` tells when to come again. A change with \
         `unreplicated` was done, and too few replicas of the store have it",
        Comes::Any,
    ),
    (507, "the gateway's storage is full", Comes::Write),
];

fn refusal_name(status: u16) -> String {
    format!("Problem{status}")
}

fn problem(description: &str) -> openapi::Response {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    openapi::ResponseBuilder::new().description(description).content(CONTENT_TYPE, content).build()
}

/// Completes an operation's own words, and adds the refusals that it does not mention.
fn tell_refusals(operation: &mut Operation, face: Face, writes: bool) {
    // Probes are answered before anything is looked at.
    if operation.security.is_some() {
        return;
    }
    let answers = &mut operation.responses.responses;
    for (status, answer) in answers.iter_mut() {
        if let RefOr::T(own) = answer
            && status.as_str() >= "400"
            && own.content.is_empty()
        {
            *own = problem(&own.description);
        }
    }
    for (status, _, comes) in REFUSALS {
        let told = match comes {
            Comes::Any => true,
            Comes::Body => operation.request_body.is_some(),
            Comes::Write => writes,
            Comes::Admin => face == Face::Admin,
        };
        if told {
            let refusal = || Ref::from_response_name(refusal_name(status)).into();
            answers.entry(status.to_string()).or_insert_with(refusal);
        }
    }
}

/// An error answer (RFC 9457); the documentation's form of what `Rejection::problem` writes.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Problem {
    /// `/problems/<slug>`.
    r#type: String,
    title: String,
    status: u16,
    /// What is wrong, and what to do about it.
    detail: String,
    request_id: String,
    /// 402: the lowest tier that suffices.
    #[schema(nullable = false)]
    needs_tier: Option<String>,
    /// 429: the policies that the request is over.
    #[serde(rename = "violated-policies")]
    #[schema(nullable = false)]
    violated_policies: Option<Vec<String>>,
    /// A failed run's error output, with `?trace=1` and for the module's owner.
    #[schema(nullable = false)]
    stderr: Option<String>,
    /// As `stderr`: where the guest trapped.
    #[schema(nullable = false)]
    backtrace: Option<String>,
}

/// The bytes of a module.
pub(super) struct Wasm;

/// Bytes of any kind.
pub(super) struct Binary;

fn binary(media: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).content_media_type(media).into()
}

impl PartialSchema for Wasm {
    fn schema() -> RefOr<Schema> {
        binary("application/wasm")
    }
}

impl ToSchema for Wasm {}

impl PartialSchema for Binary {
    fn schema() -> RefOr<Schema> {
        binary("application/octet-stream")
    }
}

impl ToSchema for Binary {}

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
        .routes(routes!(validate::validate))
        .routes(routes!(modules::list))
        .routes(routes!(modules::get, modules::change, modules::delete, upload::put))
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
