//! Bodies, queries and JSON as they come in.
//!
//! Invariant: a body is gathered up to its own limit and within the budget of all bodies, which is given back when
//! the last copy of its bytes is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Json, Query, Request};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::Api;
use crate::domain::Rejection;

/// Bound of JSON bodies that carry no module.
pub(super) const JSON_BYTES: u64 = 64 << 10;

/// What all gathered bodies may hold together.
pub(super) struct Budget {
    free: AtomicU64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { free: AtomicU64::new(bytes) })
    }

    pub(super) fn buffer(self: &Arc<Self>) -> Buffer {
        Buffer { bytes: Vec::new(), held: 0, budget: self.clone() }
    }
}

/// A growing body, paid for out of the budget.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    held: u64,
    budget: Arc<Budget>,
}

impl Buffer {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), Rejection> {
        let n = chunk.len() as u64;
        self.budget
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |free| free.checked_sub(n))
            .map_err(|_| Rejection::Busy { retry_after: Duration::from_secs(1) })?;
        self.held += n;
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.budget.free.fetch_add(self.held, Ordering::AcqRel);
    }
}

/// Reads a body of at most `limit` bytes; `over` is the refusal of a longer one, given its declared length if it has one.
pub(super) async fn gather(
    api: &Api,
    headers: &http::HeaderMap,
    body: Body,
    limit: u64,
    over: impl Fn(Option<u64>) -> Rejection,
) -> Result<Bytes, Rejection> {
    let declared = content_length(headers);
    if declared.is_some_and(|n| n > limit) {
        return Err(over(declared));
    }
    let (mut buffer, mut chunks) = (api.bodies.buffer(), body.into_data_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| cut_short())?;
        if buffer.len() + chunk.len() as u64 > limit {
            return Err(over(declared));
        }
        buffer.push(&chunk)?;
    }
    Ok(buffer.freeze())
}

pub(super) fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whatever the gateway knows of it, such as that it came too late, it tells the client itself.
pub(super) fn cut_short() -> Rejection {
    Rejection::BadRequest("the body ended before its end".into())
}

/// The media type of the request, lower case, without its parameters.
pub(super) fn media_type(headers: &http::HeaderMap) -> String {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A refusal that names the field.
pub(super) fn bad(field: &str, why: impl std::fmt::Display) -> Rejection {
    Rejection::BadRequest(format!("`{field}`: {why}"))
}

pub(super) fn flag(field: &str, text: Option<String>) -> Result<Option<bool>, Rejection> {
    match text.as_deref() {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        Some(_) => Err(bad(field, "use `true` or `false`")),
    }
}

/// JSON with the path of the field in every message.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Rejection> {
    Json::from_bytes(bytes).map(|Json(value)| value).map_err(|e| Rejection::BadRequest(cause(&e)))
}

/// As [`parse_json`], for what is documented as an object: serde takes an array of a struct's fields as well.
pub(super) fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Rejection> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') => parse_json(bytes),
        _ => Err(Rejection::BadRequest("the body is not a JSON object".into())),
    }
}

/// A JSON body of at most [`JSON_BYTES`].
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for JsonBody<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Rejection> {
        let (parts, body) = request.into_parts();
        let media = media_type(&parts.headers);
        if media != "application/json" {
            return Err(Rejection::UnsupportedMediaType("`Content-Type`: use `application/json`".into()));
        }
        let over = |_| Rejection::PayloadTooLarge { limit: JSON_BYTES };
        parse_object(&gather(api, &parts.headers, body, JSON_BYTES, over).await?).map(Self)
    }
}

/// The query, unknown parameters refused where `T` denies them.
pub(super) struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(e) => Err(Rejection::BadRequest(cause(&e))),
        }
    }
}

/// The innermost message that still has the field's path: axum puts a sentence of its own before it.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_back_with_the_last_copy() {
        let budget = Budget::new(10);
        let mut buffer = budget.buffer();
        buffer.push(b"12345678").unwrap();
        let bytes = buffer.freeze();
        let copy = bytes.slice(2..4);
        drop(bytes);
        assert!(matches!(budget.buffer().push(b"123"), Err(Rejection::Busy { .. })));
        drop(copy);
        assert_eq!(budget.buffer().push(b"1234567890"), Ok(()));
    }

    #[test]
    fn json_errors_name_the_field() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            #[serde(rename = "inner")]
            _inner: Vec<u32>,
        }
        let detail = |text: &str| parse_json::<Body>(text.as_bytes()).unwrap_err().detail();
        assert!(detail(r#"{"inner":[1,"x"]}"#).starts_with("inner[1]: "), "{}", detail(r#"{"inner":[1,"x"]}"#));
        assert!(detail(r#"{"other":1}"#).contains("`other`"));
        assert!(detail("{}").contains("`inner`"));
    }
}
