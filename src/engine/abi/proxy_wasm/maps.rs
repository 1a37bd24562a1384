//! Header maps: of the request, the response, and of what came of a call. Pseudo headers stand for what HTTP/1 has in
//! its first line and in `Host`.
//!
//! Invariant: nothing that could not stand on the wire gets into a head, and framing stays the gateway's. A map that
//! is not there reads as empty; only writing it is an error.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};
use smallvec::{SmallVec, smallvec};

use super::pairs::{self, Pair};
use super::{Done, Env, Given, Parts, ProxyState, Status, Version, bytes, call, give, parts, put_u32, short};
use crate::engine::abi::wire::{self, FIELDS, HEADER_BYTES, Message, is_gateways};
use crate::engine::failure::Halt;
use crate::engine::grpc::GrpcEvent;
use crate::engine::http::HttpExchange;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    Request,
    /// The request's trailers, which nobody gives us.
    Absent,
    Response,
    ResponseTrailers,
    /// Of a gRPC call.
    Metadata,
    TrailingMetadata,
    Answer,
    AnswerTrailers,
}

impl Map {
    fn of(id: i32) -> Done<Map> {
        Ok(match id {
            0 => Map::Request,
            1 => Map::Absent,
            2 => Map::Response,
            3 => Map::ResponseTrailers,
            4 => Map::Metadata,
            5 => Map::TrailingMetadata,
            6 => Map::Answer,
            7 => Map::AnswerTrailers,
            _ => return Err(Status::BAD_ARGUMENT.into()),
        })
    }
}

/// A map as it is now.
struct View<'a> {
    pseudo: SmallVec<[Pair<'a>; 4]>,
    fields: Option<&'a HeaderMap>,
    /// `Host` is shown as `:authority`.
    hides_host: bool,
}

impl<'a> View<'a> {
    fn empty() -> View<'a> {
        View { pseudo: SmallVec::new(), fields: None, hides_host: false }
    }

    fn fields(fields: Option<&'a HeaderMap>) -> View<'a> {
        View { fields, ..View::empty() }
    }

    fn into_pairs(self) -> impl Iterator<Item = Pair<'a>> {
        let hides_host = self.hides_host;
        let fields = self.fields.into_iter().flatten();
        let fields = fields.filter(move |(name, _)| !hides_host || *name != header::HOST);
        self.pseudo.into_iter().chain(fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        if let [b':', ..] = name {
            return self.pseudo.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        }
        let name = HeaderName::from_bytes(name).ok()?;
        self.fields?.get(name).map(HeaderValue::as_bytes)
    }
}

fn request(exchange: &HttpExchange) -> View<'_> {
    let head = &exchange.request;
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut pseudo: SmallVec<[Pair<'_>; 4]> = SmallVec::new();
    if let Some(host) = head.headers.get(header::HOST) {
        pseudo.push((b":authority", host.as_bytes()));
    }
    pseudo.push((b":path", path.as_bytes()));
    pseudo.push((b":method", head.method.as_str().as_bytes()));
    pseudo.push((b":scheme", exchange.scheme.as_bytes()));
    View { pseudo, fields: Some(&head.headers), hides_host: true }
}

fn response(exchange: &HttpExchange) -> View<'_> {
    let head = &exchange.response;
    let status: Pair<'_> = (b":status", head.status.as_str().as_bytes());
    View { pseudo: smallvec![status], fields: Some(&head.headers), hides_host: false }
}

/// `None`: it is not there in this callback.
fn view(proxy: &mut ProxyState, map: Map) -> View<'_> {
    if let Map::Metadata | Map::TrailingMetadata = map {
        return match (map, &proxy.rpcs.told) {
            (Map::Metadata, Some(GrpcEvent::Initial(fields))) => View::fields(Some(fields)),
            (Map::TrailingMetadata, Some(GrpcEvent::Trailing(fields))) => View::fields(Some(fields)),
            _ => View::empty(),
        };
    }
    if let Map::Answer | Map::AnswerTrailers = map {
        let Some(answer) = &proxy.answer else { return View::empty() };
        return match map {
            Map::Answer => {
                let status = answer.status.as_ref().map(|s| (&b":status"[..], s.as_str().as_bytes()));
                View { pseudo: status.into_iter().collect(), fields: Some(&answer.headers), hides_host: false }
            }
            _ => View::fields(Some(&answer.trailers)),
        };
    }
    let Ok((exchange, event)) = proxy.exchange() else { return View::empty() };
    match map {
        Map::Request => request(exchange),
        Map::Response if !event.is_request() => response(exchange),
        Map::ResponseTrailers if !event.is_request() => View::fields(exchange.response_trailers.as_ref()),
        _ => View::empty(),
    }
}

pub fn request_pairs(exchange: &HttpExchange) -> impl Iterator<Item = Pair<'_>> {
    request(exchange).into_pairs()
}

pub fn response_pairs(exchange: &HttpExchange) -> impl Iterator<Item = Pair<'_>> {
    response(exchange).into_pairs()
}

pub fn request_value<'a>(exchange: &'a HttpExchange, name: &[u8]) -> Option<&'a [u8]> {
    request(exchange).get(name)
}

pub fn response_value<'a>(exchange: &'a HttpExchange, name: &[u8]) -> Option<&'a [u8]> {
    response(exchange).get(name)
}

pub fn proxy_get_header_map_size(env: Env<'_>, map: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, proxy, .. } = parts(env)?;
        let bytes: usize = view(proxy, Map::of(map)?).into_pairs().map(|(name, value)| name.len() + value.len()).sum();
        put_u32(memory, size, u32::try_from(bytes).unwrap_or(u32::MAX))
    })
}

pub fn proxy_get_header_map_pairs(env: Env<'_>, map: i32, data: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let view = view(parts(env)?.proxy, Map::of(map)?);
        let encoded = pairs::encode(&view.into_pairs().collect::<Vec<_>>());
        give(env, &encoded, data, size)
    })
}

pub fn proxy_get_header_map_value(
    env: Env<'_>,
    map: i32,
    name: i32,
    name_len: i32,
    data: i32,
    size: i32,
) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let name = short(memory, fuel, (name, name_len), Status::NOT_FOUND)?;
        let old = proxy.version == Version::V0_1;
        let value = match view(proxy, Map::of(map)?).get(name) {
            Some(value) => Given::from(value),
            None if old => Given::new(),
            None => return Err(Status::NOT_FOUND.into()),
        };
        give(env, &value, data, size)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    Set,
    Add,
}

pub fn proxy_add_header_map_value(env: Env<'_>, map: i32, n: i32, nl: i32, v: i32, vl: i32) -> Result<i32, Halt> {
    call(env, |env| write_one(env, map, Write::Add, (n, nl), (v, vl)))
}

pub fn proxy_replace_header_map_value(env: Env<'_>, map: i32, n: i32, nl: i32, v: i32, vl: i32) -> Result<i32, Halt> {
    call(env, |env| write_one(env, map, Write::Set, (n, nl), (v, vl)))
}

fn write_one(env: &mut Env<'_>, map: i32, write: Write, name: (i32, i32), value: (i32, i32)) -> Done {
    let Parts { memory, fuel, proxy } = parts(env)?;
    let (name, value) = (bytes(memory, name.0, name.1)?, bytes(memory, value.0, value.1)?);
    fuel.spend(name.len() + value.len())?;
    if name.len() + value.len() > HEADER_BYTES {
        return Err(Status::BAD_ARGUMENT.into());
    }
    let mut target = Target::of(proxy, Map::of(map)?)?;
    target.write(write, name, value)
}

pub fn proxy_remove_header_map_value(env: Env<'_>, map: i32, name: i32, len: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        // No field has a longer name: there is nothing to do.
        let name = short(memory, fuel, (name, len), Status::OK)?;
        let mut target = Target::of(proxy, Map::of(map)?)?;
        target.remove(name)
    })
}

pub fn proxy_set_header_map_pairs(env: Env<'_>, map: i32, at: i32, len: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let given = bytes(memory, at, len)?;
        fuel.spend(given.len())?;
        let given = pairs::decode(given)?;
        let mut target = Target::of(proxy, Map::of(map)?)?;
        target.replace(&given)
    })
}

/// Small ones are not counted, as [`FIELDS`] of them are no more than the bound: a map never has twice of it.
fn has_room(fields: &HeaderMap, write: Write, name: &HeaderName, value: &HeaderValue) -> bool {
    let size = |name: &HeaderName, value: &HeaderValue| name.as_str().len() + value.len();
    let added = size(name, value);
    if added <= HEADER_BYTES / FIELDS {
        return true;
    }
    let stays = |(known, _): &(&HeaderName, &HeaderValue)| write == Write::Add || *known != name;
    let staying: usize = fields.iter().filter(stays).map(|(name, value)| size(name, value)).sum();
    staying + added <= HEADER_BYTES
}

/// A map to be written.
enum Target<'a> {
    Request(&'a mut HttpExchange),
    Response(&'a mut HttpExchange),
    Trailers(&'a mut HeaderMap),
}

impl<'a> Target<'a> {
    fn of(proxy: &'a mut ProxyState, map: Map) -> Done<Target<'a>> {
        let not_there = Status::BAD_ARGUMENT;
        let strict = proxy.plugin.strict;
        let (exchange, event) = proxy.exchange().map_err(|_| not_there)?;
        match map {
            // What has gone on is written in vain, as in Envoy: SDKs would trap on the error that the ABI has for it.
            Map::Request if event.is_request() => Ok(Target::Request(exchange)),
            Map::Request if !strict => {
                exchange.keep_request();
                Ok(Target::Request(exchange))
            }
            Map::Response if !event.is_request() => {
                exchange.keep_response();
                Ok(Target::Response(exchange))
            }
            Map::ResponseTrailers if !event.is_request() => {
                exchange.response_trailers.as_mut().map(Target::Trailers).ok_or(not_there.into())
            }
            _ => Err(not_there.into()),
        }
    }

    fn message(&self) -> Message {
        match self {
            Target::Request(_) => Message::Request,
            Target::Response(_) | Target::Trailers(_) => Message::Response,
        }
    }

    fn fields(&mut self) -> &mut HeaderMap {
        match self {
            Target::Request(exchange) => &mut exchange.request.headers,
            Target::Response(exchange) => &mut exchange.response.headers,
            Target::Trailers(fields) => fields,
        }
    }

    fn write(&mut self, write: Write, name: &[u8], value: &[u8]) -> Done {
        let bad = Status::BAD_ARGUMENT;
        if let [b':', ..] = name {
            return self.set_pseudo(&name.to_ascii_lowercase(), value);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad)?;
        if is_gateways(&name, self.message()) {
            return Ok(());
        }
        if name == header::HOST && matches!(self, Target::Request(_)) {
            return self.set_pseudo(b":authority", value);
        }
        let value = wire::value(value).ok_or(bad)?;
        let fields = self.fields();
        if fields.len() >= FIELDS && (write == Write::Add || !fields.contains_key(&name)) {
            return Err(bad.into());
        }
        if !has_room(fields, write, &name, &value) {
            return Err(bad.into());
        }
        match write {
            Write::Set => fields.try_insert(name, value).map(drop),
            Write::Add => fields.try_append(name, value).map(drop),
        }
        .map_err(|_| bad.into())
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Done {
        let bad = Status::BAD_ARGUMENT;
        match (self, name) {
            (Target::Request(exchange), b":method") => {
                exchange.request.method = wire::method(value).ok_or(bad)?;
            }
            (Target::Request(exchange), b":path") => {
                exchange.request.uri = wire::target(value).ok_or(bad)?.into();
            }
            (Target::Request(exchange), b":authority") => {
                let value = Some(value).filter(|v| wire::is_host(v)).and_then(|v| HeaderValue::from_bytes(v).ok());
                exchange.request.headers.insert(header::HOST, value.ok_or(bad)?);
            }
            // How the upstream is reached is the operator's to say.
            (Target::Request(_), b":scheme") => {}
            (Target::Response(exchange), b":status") => {
                let code = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                exchange.response.status = code.and_then(wire::status).ok_or(bad)?;
            }
            _ => return Err(bad.into()),
        }
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) -> Done {
        if let [b':', ..] = name {
            return Err(Status::BAD_ARGUMENT.into());
        }
        // A name that could not be there is nothing to do.
        let Ok(name) = HeaderName::from_bytes(name) else { return Ok(()) };
        let is_host = name == header::HOST && matches!(self, Target::Request(_));
        if !is_host && !is_gateways(&name, self.message()) {
            self.fields().remove(name);
        }
        Ok(())
    }

    /// All or nothing.
    fn replace(&mut self, given: &[Pair<'_>]) -> Done {
        let message = self.message();
        let keeps_host = matches!(self, Target::Request(_));
        let before = (self.first_line(), self.fields().clone());
        let kept: Vec<_> = before
            .1
            .iter()
            .filter(|(name, _)| is_gateways(name, message) || (keeps_host && **name == header::HOST))
            .collect();
        self.fields().clear();
        for (name, value) in kept {
            self.fields().append(name, value.clone());
        }
        for (name, value) in given {
            let write = if name.starts_with(b":") { Write::Set } else { Write::Add };
            if let Err(stop) = self.write(write, name, value) {
                self.restore(before);
                return Err(stop);
            }
        }
        Ok(())
    }

    fn first_line(&self) -> (Method, Uri, StatusCode) {
        match self {
            Target::Request(exchange) | Target::Response(exchange) => {
                (exchange.request.method.clone(), exchange.request.uri.clone(), exchange.response.status)
            }
            Target::Trailers(_) => Default::default(),
        }
    }

    fn restore(&mut self, ((method, uri, status), fields): ((Method, Uri, StatusCode), HeaderMap)) {
        *self.fields() = fields;
        if let Target::Request(exchange) | Target::Response(exchange) = self {
            (exchange.request.method, exchange.request.uri, exchange.response.status) = (method, uri, status);
        }
    }
}
