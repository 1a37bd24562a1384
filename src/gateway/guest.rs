//! Routes whose target is a module: it answers the request.
//!
//! Invariant: a guest gets the request as an upstream would, without credentials and without `HTTP_PROXY` (httpoxy).

use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, PROXY_AUTHORIZATION};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::answer;
use super::body;
use super::context::Context;
use super::forward::Fields;
use super::handlers::{self, Passed};
use super::pipeline::Stop;
use super::presence::while_here;
use super::proxy::Gateway;
use super::route_handler::{RouteHandler, rejection_of};
use crate::config::Segment;
use crate::domain::{Abi, GuestFailure, Phase, Rejection};
use crate::engine::{Cancel, Engine, Finished, Input, Job, Output};

pub async fn answer(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    handler: &std::sync::Arc<RouteHandler>,
    held: Option<Bytes>,
    max_body: u64,
) -> Result<(), Stop> {
    let shared = &gateway.shared;
    if handler.is_filter() {
        return transform(gateway, session, ctx, handler, max_body).await;
    }
    let (module, assets) = handler.ready(ctx, shared).await?;
    let (module, assets) = (module.clone(), assets.cloned());
    let stdin = match held {
        Some(body) => body,
        None => body::gather(session, ctx, max_body.min(handler.limits.input_bytes)).await?,
    };
    let abi = module.abi();
    let env = match abi {
        Abi::Cgi => cgi_env(session, ctx, handler, stdin.len()),
        _ => command_env(session, ctx, handler),
    };
    let cancel = Cancel::default();
    let mut input = Input { env, stdin, assets, reach: handler.reach(&shared.engine), ..Input::default() };
    let knows = input.reach.is_some();
    if knows {
        input.info = Some(ctx.info(session, &ctx.request_id().into()));
        input.values = std::mem::take(&mut ctx.values);
    }
    let job = Job {
        module,
        owner: handler.config.owner.clone(),
        label: handler.label.clone(),
        limits: handler.limits.clone(),
        input,
        cancel: cancel.clone(),
    };
    let run = shared.engine.run(job);
    let (finished, gone) = while_here(&mut session.downstream_session, &cancel, run).await;
    let Finished { result, meter, stderr, values } = finished;
    if knows {
        ctx.values = values;
    }
    let result = result.and_then(|output| match output.exit_code {
        0 => Ok(output),
        code => Err(GuestFailure::ExitCode(code).into()),
    });
    handler.record(ctx, shared, Phase::Execute, result.as_ref().err(), &meter);
    if !stderr.is_empty() {
        tracing::info!(target: "guest", handler = %handler.label, request_id = ctx.request_id(),
            stderr = %String::from_utf8_lossy(&stderr));
    }
    if let Some(error) = gone {
        return Err(Stop::Broken(error));
    }
    let output = result.map_err(rejection_of)?;
    Ok(answer::deliver(session, ctx, shared, reply(abi, output)?).await?)
}

/// A filter with nothing behind it: it has to answer by itself.
async fn transform(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    handler: &std::sync::Arc<RouteHandler>,
    max_body: u64,
) -> Result<(), Stop> {
    let shared = &gateway.shared;
    let before = ctx.chain.take();
    let passed = handlers::request_phase(session, ctx, shared, std::slice::from_ref(handler), max_body).await;
    let own = std::mem::replace(&mut ctx.chain, before);
    match passed? {
        Passed::Answered(reply) => Ok(answer::deliver(session, ctx, shared, answer::from_reply(reply)?).await?),
        Passed::On(_) => {
            drop(own);
            let detail = "it passed the request on, and this route has nothing behind it".to_owned();
            Err(Rejection::Guest(GuestFailure::BadOutput(detail)).into())
        }
    }
}

fn reply(abi: Abi, output: Output) -> Result<(ResponseHeader, Bytes), Stop> {
    if abi == Abi::Cgi {
        let reply = Engine::cgi_reply(output.stdout).map_err(Rejection::Guest)?;
        return Ok(answer::from_reply(reply)?);
    }
    let mut head = answer::head(200)?;
    let (kind, body) = if abi == Abi::Core {
        ("application/json", Bytes::from(serde_json::Value::from(output.values).to_string()))
    } else if std::str::from_utf8(&output.stdout).is_ok() {
        ("text/plain; charset=utf-8", output.stdout)
    } else {
        ("application/octet-stream", output.stdout)
    };
    head.set(&CONTENT_TYPE, HeaderValue::from_static(kind))?;
    Ok((head, body))
}

type Env = Vec<(String, String)>;

/// What both kinds of command are told about the request.
fn request_env(session: &Session, ctx: &Context, handler: &RouteHandler) -> Env {
    let head = session.req_header();
    let mut env: Env = handler.config.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut add = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
    add("REQUEST_METHOD", head.method.as_str());
    add("QUERY_STRING", head.uri.query().unwrap_or_default());
    add("REMOTE_ADDR", &ctx.client.to_string());
    add("REQUEST_ID", ctx.request_id());
    env
}

fn command_env(session: &Session, ctx: &Context, handler: &RouteHandler) -> Env {
    let mut env = request_env(session, ctx, handler);
    env.push(("REQUEST_PATH".into(), session.req_header().uri.path().into()));
    env
}

/// How much of the path names the program (RFC 3875 section 4.1.13): what a prefix route matches by its literal segments.
/// None of it when the route is no prefix or a rewrite has changed the path.
fn script_length(ctx: &Context, path: &str) -> usize {
    let segments = ctx.route().map_or(&[][..], |route| &route.matches.path.segments);
    let Some((Segment::Rest(None), literals)) = segments.split_last() else { return 0 };
    let mut length = 0;
    for segment in literals {
        let Segment::Literal(text) = segment else { return 0 };
        let rest = path[length..].strip_prefix('/').and_then(|rest| rest.strip_prefix(text.as_str()));
        match rest {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => length = path.len() - rest.len(),
            _ => return 0,
        }
    }
    length
}

/// RFC 3875 section 4.1.
fn cgi_env(session: &Session, ctx: &Context, handler: &RouteHandler, length: usize) -> Env {
    let head = session.req_header();
    let mut env = request_env(session, ctx, handler);
    let host = ctx.host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or_default();
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
        _ => (host, if ctx.tls { "443" } else { "80" }),
    };
    let path = head.uri.path();
    let (script, info) = path.split_at(script_length(ctx, path));
    let protocol = match head.version {
        http::Version::HTTP_2 => "HTTP/2.0",
        http::Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let fixed = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", "wasmgate"),
        ("SERVER_NAME", name),
        ("SERVER_PORT", port),
        ("SERVER_PROTOCOL", protocol),
        ("SCRIPT_NAME", script),
        ("PATH_INFO", info),
        ("REQUEST_URI", head.uri.path_and_query().map_or(path, |p| p.as_str())),
    ];
    env.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if ctx.tls {
        env.push(("HTTPS".into(), "on".into()));
    }
    if length > 0 {
        env.push(("CONTENT_LENGTH".into(), length.to_string()));
    }
    for (name, value) in &head.headers {
        let Ok(value) = value.to_str() else { continue };
        // Section 4.1.18: credentials stay out. `Proxy` would become HTTP_PROXY.
        if [AUTHORIZATION, PROXY_AUTHORIZATION, CONTENT_LENGTH].contains(name) || name == "proxy" {
            continue;
        }
        if *name == CONTENT_TYPE {
            env.push(("CONTENT_TYPE".into(), value.to_owned()));
            continue;
        }
        let variable = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
        match env.iter_mut().find(|(known, _)| *known == variable) {
            Some((_, list)) => *list = format!("{list}, {value}"),
            None => env.push((variable, value.to_owned())),
        }
    }
    env
}
