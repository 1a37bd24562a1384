//! Targets that need neither an upstream nor a module: redirects, fixed answers, health.

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::answer;
use super::context::Context;
use super::forward::Fields;
use super::pipeline::Stop;
use super::proxy::Gateway;
use crate::config::Target;
use crate::domain::Rejection;

pub async fn own(gateway: &Gateway, session: &mut Session, ctx: &mut Context, target: &Target) -> Result<(), Stop> {
    let answer = match target {
        Target::Health => health(gateway, ctx.uri.path())?,
        Target::Redirect { location, status } => {
            let mut head = answer::head(*status)?;
            // Checked with the configuration.
            head.set(&LOCATION, HeaderValue::from_str(location).map_err(|_| Rejection::Internal)?)?;
            (head, Bytes::new())
        }
        Target::Respond { status, headers, body } => {
            let mut head = answer::head(*status)?;
            for (name, value) in headers {
                head.add(name, value.clone())?;
            }
            if !body.is_empty() && !head.headers.contains_key(CONTENT_TYPE) {
                head.set(&CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
            }
            (head, Bytes::copy_from_slice(body.as_bytes()))
        }
        _ => return Err(Rejection::Internal.into()),
    };
    Ok(answer::deliver(session, ctx, &gateway.shared, answer).await?)
}

/// `.../live` and `.../healthz`: the process answers. Anything else: it is ready for traffic. No details here; the
/// admin listener has them.
fn health(gateway: &Gateway, path: &str) -> pingora::Result<(ResponseHeader, Bytes)> {
    let live = ["/live", "/healthz"].iter().any(|suffix| path.ends_with(suffix));
    let (status, text) = match (live, gateway.shared.is_ready()) {
        (true, _) => (200, "ok"),
        (_, true) if gateway.shared.lacks().is_empty() => (200, "ok"),
        (_, true) => (200, "degraded"),
        (false, false) => (503, if gateway.shared.is_draining() { "draining" } else { "starting" }),
    };
    let mut head = answer::head(status)?;
    head.set(&CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
    head.set(&CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    Ok((head, Bytes::from(format!("{{\"status\":\"{text}\"}}"))))
}
