//! Buffers: bodies while their callbacks run, configuration, what came of a call.
//!
//! Invariant: a body's buffer is all of it that the filter has not let go, and never more than its handler's limit.

use bytes::Bytes;

use super::{Callback, Done, Env, Event, Parts, ProxyState, Status, bytes, call, give, parts, put_u32};
use crate::engine::failure::Halt;
use crate::engine::grpc::GrpcEvent;
use crate::engine::http::HttpExchange;

/// The highest that the ABI knows.
const LAST: i32 = 8;

#[derive(Clone, Copy)]
enum Buffer {
    RequestBody,
    ResponseBody,
    Answer,
    Grpc,
    VmConfig,
    PluginConfig,
}

impl Buffer {
    fn of(id: i32) -> Done<Buffer> {
        Ok(match id {
            0 => Buffer::RequestBody,
            1 => Buffer::ResponseBody,
            4 => Buffer::Answer,
            5 => Buffer::Grpc,
            6 => Buffer::VmConfig,
            7 => Buffer::PluginConfig,
            // Connections and arguments of foreign functions: known, and never there.
            2 | 3 | LAST => return Err(Status::NOT_FOUND.into()),
            _ => return Err(Status::BAD_ARGUMENT.into()),
        })
    }
}

/// The body of one direction, while it is in the filter's hands.
fn body(proxy: &mut ProxyState, of_request: bool) -> Done<&mut HttpExchange> {
    let (exchange, event) = proxy.exchange()?;
    let is_there = match of_request {
        true => event == Event::RequestBody,
        false => matches!(event, Event::ResponseBody | Event::ResponseTrailers),
    };
    if is_there { Ok(exchange) } else { Err(Status::NOT_FOUND.into()) }
}

fn written(exchange: &mut HttpExchange, of_request: bool) -> (&mut Option<Vec<u8>>, &Option<Bytes>) {
    match of_request {
        true => (&mut exchange.request_body_replaced, &exchange.request_body),
        false => (&mut exchange.response_body_replaced, &exchange.response_body),
    }
}

fn content(proxy: &mut ProxyState, buffer: Buffer) -> Done<&[u8]> {
    match buffer {
        Buffer::RequestBody | Buffer::ResponseBody => {
            let of_request = matches!(buffer, Buffer::RequestBody);
            let (written, given) = written(body(proxy, of_request)?, of_request);
            Ok(written.as_deref().or(given.as_deref()).unwrap_or_default())
        }
        Buffer::Answer => Ok(&proxy.answer.as_ref().ok_or(Status::NOT_FOUND)?.body),
        Buffer::Grpc => match &proxy.rpcs.told {
            Some(GrpcEvent::Message(message)) => Ok(message),
            _ => Err(Status::NOT_FOUND.into()),
        },
        Buffer::VmConfig if proxy.callback == Callback::VmStart => Ok(&proxy.plugin.vm_config),
        Buffer::VmConfig => Err(Status::NOT_FOUND.into()),
        Buffer::PluginConfig => Ok(&proxy.plugin.reach.config),
    }
}

/// `max` bytes from `start` on, as far as there are.
fn part(content: &[u8], start: i32, max: i32) -> Done<&[u8]> {
    let (start, max) = (start as u32, max as u32);
    let end = start.checked_add(max).ok_or(Status::BAD_ARGUMENT)?;
    let clamp = |at: u32| usize::try_from(at).map_or(content.len(), |at| at.min(content.len()));
    Ok(&content[clamp(start)..clamp(end)])
}

pub fn proxy_get_buffer_bytes(
    env: Env<'_>,
    buffer: i32,
    start: i32,
    max: i32,
    data: i32,
    size: i32,
) -> Result<i32, Halt> {
    call(env, |env| {
        let asked = part(content(parts(env)?.proxy, Buffer::of(buffer)?)?, start, max)?.to_vec();
        give(env, &asked, data, size)
    })
}

pub fn proxy_get_buffer_status(env: Env<'_>, buffer: i32, size: i32, flags: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, proxy, .. } = parts(env)?;
        let len = content(proxy, Buffer::of(buffer)?)?.len();
        bytes(memory, flags, 4)?;
        put_u32(memory, size, u32::try_from(len).unwrap_or(u32::MAX))?;
        put_u32(memory, flags, 0)
    })
}

/// Replaces `size` bytes from `start` on: before the first, behind the last, or any between.
pub fn proxy_set_buffer_bytes(
    mut env: Env<'_>,
    buffer: i32,
    start: i32,
    size: i32,
    data: i32,
    len: i32,
) -> Result<i32, Halt> {
    let limit = usize::try_from(env.data_mut().output.limit).unwrap_or(usize::MAX);
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let given = bytes(memory, data, len)?;
        let of_request = match Buffer::of(buffer)? {
            Buffer::RequestBody => true,
            Buffer::ResponseBody => false,
            _ => return Err(Status::BAD_ARGUMENT.into()),
        };
        let (written, old) = written(body(proxy, of_request)?, of_request);
        let text = written.take().unwrap_or_else(|| old.as_deref().unwrap_or_default().to_vec());
        fuel.spend(given.len() + text.len())?;
        let start = usize::try_from(start as u32).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(usize::try_from(size as u32).unwrap_or(usize::MAX)).min(text.len());
        let new = text.len() - (end - start) + given.len();
        if new > limit {
            *written = Some(text);
            return Err(Halt::OutputTooLarge.into());
        }
        let mut text = text;
        text.splice(start..end, given.iter().copied());
        *written = Some(text);
        Ok(())
    })
}
