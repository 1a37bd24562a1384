//! Properties by path, in Envoy's encoding: text as it is, numbers as 8 bytes, truth as one, times and durations in
//! nanoseconds, maps as pairs. Beside Envoy's there are `wasmgate.key_id`, `wasmgate.owner`, `wasmgate.tier`,
//! `wasmgate.route` and `wasmgate.params.NAME`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{REFERER, USER_AGENT};
use smallvec::SmallVec;

use super::{Env, Event, Given, Parts, ProxyState, Status, bytes, call, give, pairs, parts, short};
use crate::domain::{Name, Tier};
use crate::engine::failure::Halt;
use crate::engine::http::{HttpExchange, RequestInfo, hand_on};

type Value<'a> = Option<Cow<'a, [u8]>>;

pub fn proxy_get_property(env: Env<'_>, path: i32, len: i32, data: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let path = short(memory, fuel, (path, len), Status::NOT_FOUND)?;
        let value = Given::from(&*property(proxy, path).ok_or(Status::NOT_FOUND)?);
        give(env, &value, data, size)
    })
}

/// For later handlers of the same request.
pub fn proxy_set_property(env: Env<'_>, path: i32, len: i32, value: i32, value_len: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        bytes(memory, value, value_len)?;
        let path = short(memory, fuel, (path, len), Status::BAD_ARGUMENT)?;
        let value = short(memory, fuel, (value, value_len), Status::BAD_ARGUMENT)?;
        let (exchange, _) = proxy.exchange()?;
        if is_hosts(&segments(path)) {
            return Err(Status::BAD_ARGUMENT.into());
        }
        if hand_on(&mut exchange.values, whole(path), value) { Ok(()) } else { Err(Status::INTERNAL_FAILURE.into()) }
    })
}

/// Without the NUL that some end it with.
fn whole(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"\0").unwrap_or(path)
}

fn segments(path: &[u8]) -> SmallVec<[&[u8]; 4]> {
    let path = whole(path);
    // Our own are often written with dots.
    if path.starts_with(b"wasmgate.") && !path.contains(&0) {
        return path.splitn(3, |b| *b == b'.').collect();
    }
    // None of the host's has four, so the last one may as well be all the rest.
    path.splitn(4, |b| *b == 0).collect()
}

/// What is below is the host's to say, also where it says nothing: a handler's value there would be taken for the host's.
fn is_hosts(segments: &[&[u8]]) -> bool {
    const ROOTS: [&[u8]; 11] = [
        b"request",
        b"response",
        b"source",
        b"destination",
        b"upstream",
        b"connection",
        b"wasmgate",
        b"route_name",
        b"plugin_name",
        b"plugin_root_id",
        b"plugin_vm_id",
    ];
    segments.first().is_some_and(|root| ROOTS.contains(root))
}

fn text(text: &str) -> Value<'_> {
    Some(Cow::Borrowed(text.as_bytes()))
}

fn number<'a>(n: u64) -> Value<'a> {
    Some(Cow::Owned(n.to_le_bytes().to_vec()))
}

fn nanos<'a>(duration: Duration) -> Value<'a> {
    number(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

fn map<'a, 'p>(fields: impl Iterator<Item = pairs::Pair<'p>>) -> Value<'a> {
    Some(Cow::Owned(pairs::encode(&fields.collect::<Vec<_>>())))
}

fn field<'a>(fields: &'a HeaderMap, name: &[u8]) -> Value<'a> {
    let name = http::HeaderName::from_bytes(name).ok()?;
    fields.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
}

fn property<'a>(proxy: &'a mut ProxyState, path: &[u8]) -> Value<'a> {
    let segments = segments(path);
    let of_plugin = match segments[..] {
        [b"plugin_name"] => Some(&proxy.plugin.name),
        [b"plugin_root_id"] => Some(&proxy.plugin.root_id),
        [b"plugin_vm_id"] => Some(&proxy.plugin.vm_id),
        _ => None,
    };
    if let Some(value) = of_plugin {
        return Some(Cow::Owned(value.as_bytes().to_vec()));
    }
    let (exchange, event) = proxy.exchange().ok()?;
    let exchange = &*exchange;
    match segments[..] {
        [b"request", ref rest @ ..] => request(exchange, rest),
        [b"response", ref rest @ ..] if !event.is_request() => response(exchange, event, rest),
        [b"source", b"address"] => Some(Cow::Owned(exchange.peer.to_string().into_bytes())),
        [b"source", b"port"] => number(exchange.peer.port().into()),
        [b"upstream", b"address"] => text(exchange.upstream.as_deref()?),
        [b"upstream", b"port"] => number(exchange.upstream.as_deref()?.rsplit(':').next()?.parse().ok()?),
        _ if is_hosts(&segments) => of_info(exchange.info.as_deref()?, &segments),
        _ => exchange.values.get(whole(path)).map(|value| Cow::Borrowed(&value[..])),
    }
}

fn request<'a>(exchange: &'a HttpExchange, segments: &[&[u8]]) -> Value<'a> {
    let head = &exchange.request;
    match *segments {
        [b"path"] => text(head.uri.path_and_query().map_or("/", |path| path.as_str())),
        [b"url_path"] => text(head.uri.path()),
        [b"query"] => text(head.uri.query().unwrap_or_default()),
        [b"host"] => field(&head.headers, b"host"),
        [b"scheme"] => text(exchange.scheme),
        [b"method"] => text(head.method.as_str()),
        [b"headers"] => map(super::maps::request_pairs(exchange)),
        [b"headers", name] => super::maps::request_value(exchange, name).map(Cow::Borrowed),
        [b"referer"] => field(&head.headers, REFERER.as_str().as_bytes()),
        [b"useragent"] => field(&head.headers, USER_AGENT.as_str().as_bytes()),
        [b"id"] => text(&exchange.request_id),
        [b"protocol"] => text(match head.version {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            http::Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/1.1",
        }),
        [b"size"] => number(exchange.request_size),
        [b"time"] => number(u64::try_from(exchange.info.as_ref()?.wall.unix_millis()).ok()? * 1_000_000),
        [b"duration"] => nanos(exchange.info.as_ref()?.began.elapsed()),
        _ => None,
    }
}

fn response<'a>(exchange: &'a HttpExchange, event: Event, segments: &[&[u8]]) -> Value<'a> {
    let head = &exchange.response;
    match *segments {
        [b"code"] => number(head.status.as_u16().into()),
        [b"size"] if event >= Event::ResponseBody => {
            let written = exchange.response_body_replaced.as_ref().map(Vec::len);
            number(written.or(exchange.response_body.as_ref().map(Bytes::len)).unwrap_or(0) as u64)
        }
        [b"headers"] => map(super::maps::response_pairs(exchange)),
        [b"headers", name] => super::maps::response_value(exchange, name).map(Cow::Borrowed),
        _ => None,
    }
}

fn of_info<'a>(info: &'a RequestInfo, segments: &[&[u8]]) -> Value<'a> {
    match *segments {
        [b"route_name"] => text(info.route.as_ref().map_or("", Name::as_str)),
        [b"destination", b"address"] => Some(Cow::Owned(info.local?.to_string().into_bytes())),
        [b"destination", b"port"] => number(info.local?.port().into()),
        [b"connection", b"id"] => number(info.connection()),
        // Clients' certificates are not asked for.
        [b"connection", b"mtls"] => Some(Cow::Borrowed(b"\0")),
        [b"connection", b"tls_version"] => text(&info.tls.as_ref()?.version),
        [b"connection", b"requested_server_name"] => text(info.tls.as_ref()?.server_name.as_deref()?),
        [b"wasmgate", b"tier"] => text(info.field(b"tier").unwrap_or(Tier::ANONYMOUS)),
        [b"wasmgate", ref rest @ ..] => text(info.field(&rest.join(&b'.'))?),
        _ => None,
    }
}
