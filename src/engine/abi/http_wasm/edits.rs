//! What a guest changed in a phase, and how it reaches the exchange or becomes an answer.
//!
//! Invariant: nothing that could not stand on the wire gets in here, and framing stays the gateway's: a guest can
//! neither set nor remove it.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode, Uri};

use crate::domain::{GuestFailure, Reply};
use crate::engine::failure::Halt;
use crate::engine::http::HttpExchange;

/// Fields of one message after a guest's writes.
const FIELDS: usize = 256;
/// Bytes of names and values that a guest may write in one phase.
const HEADER_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Request,
    Response,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replaces all values.
    Set,
    /// Appends one.
    Add,
}

#[derive(Debug, Default)]
pub struct Edits {
    pub method: Option<Method>,
    pub uri: Option<PathAndQuery>,
    pub status: Option<StatusCode>,
    /// Copied at the first write.
    request_headers: Option<HeaderMap>,
    response_headers: Option<HeaderMap>,
    pub request_body: Option<Vec<u8>>,
    pub response_body: Option<Vec<u8>>,
    /// The request body was read and not kept.
    pub consumed: bool,
    header_bytes: usize,
}

impl Edits {
    /// The headers as the guest sees them.
    pub fn headers<'a>(&'a self, exchange: &'a HttpExchange, message: Message) -> &'a HeaderMap {
        match message {
            Message::Request => self.request_headers.as_ref().unwrap_or(&exchange.request.headers),
            Message::Response => self.response_headers.as_ref().unwrap_or(&exchange.response.headers),
        }
    }

    fn headers_mut(&mut self, exchange: &HttpExchange, message: Message) -> &mut HeaderMap {
        match message {
            Message::Request => self.request_headers.get_or_insert_with(|| exchange.request.headers.clone()),
            Message::Response => self.response_headers.get_or_insert_with(|| exchange.response.headers.clone()),
        }
    }

    pub fn write_header(
        &mut self,
        exchange: &HttpExchange,
        message: Message,
        write: Write,
        (name, value): (&[u8], &[u8]),
    ) -> Result<(), Halt> {
        let name = HeaderName::from_bytes(name).map_err(|_| bad("a header name is not a token"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("a header value holds control characters"))?;
        if is_gateways(&name, message) {
            return Ok(());
        }
        self.header_bytes += name.as_str().len() + value.len();
        let headers = self.headers_mut(exchange, message);
        if headers.len() >= FIELDS || self.header_bytes > HEADER_BYTES {
            return Err(Halt::OutputTooLarge);
        }
        let headers = self.headers_mut(exchange, message);
        // A second `host` would make the request invalid (RFC 9110 section 7.2), so adding one replaces it.
        let is_host = message == Message::Request && name == header::HOST;
        if is_host && Authority::try_from(value.as_bytes()).is_err() {
            return Err(bad("`host` is not a host"));
        }
        let done = match write {
            Write::Add if !is_host => headers.try_append(name, value).map(drop),
            _ => headers.try_insert(name, value).map(drop),
        };
        done.map_err(|_| Halt::OutputTooLarge)
    }

    /// A name that is not there, or could not be, is nothing to do.
    pub fn remove_header(&mut self, exchange: &HttpExchange, message: Message, name: &str) {
        if !self.headers(exchange, message).contains_key(name) {
            return;
        }
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return };
        let is_host = message == Message::Request && name == header::HOST;
        if !is_host && !is_gateways(&name, message) {
            self.headers_mut(exchange, message).remove(name);
        }
    }

    /// The status as the guest sees it: 200 until one is set.
    pub fn status(&self, exchange: &HttpExchange, is_pending: bool) -> StatusCode {
        let given = if is_pending && !exchange.response_status_set { StatusCode::OK } else { exchange.response.status };
        self.status.unwrap_or(given)
    }

    /// After `handle_request` with `next`: what goes on to the next handler or the upstream.
    pub fn commit_request(self, exchange: &mut HttpExchange) -> Result<(), GuestFailure> {
        if let Some(path_and_query) = self.uri {
            let mut parts = std::mem::take(&mut exchange.request.uri).into_parts();
            parts.path_and_query = Some(path_and_query);
            // The authority and scheme are the ones that came with a path before, so parts stay complete.
            exchange.request.uri = Uri::from_parts(parts)
                .map_err(|_| GuestFailure::BadOutput("the URI does not fit the request".into()))?;
        }
        if let Some(method) = self.method {
            exchange.request.method = method;
        }
        if let Some(headers) = self.request_headers {
            exchange.request.headers = headers;
        }
        if let Some(body) = self.request_body {
            exchange.request_body_replaced = Some(body);
            exchange.request_body_consumed = false;
        } else if self.consumed {
            exchange.request_body_replaced = None;
            exchange.request_body_consumed = true;
        }
        if let Some(status) = self.status {
            exchange.response.status = status;
            exchange.response_status_set = true;
        }
        if let Some(headers) = self.response_headers {
            exchange.response.headers = headers;
        }
        if let Some(body) = self.response_body {
            exchange.response_body = Some(body.into());
        }
        Ok(())
    }

    /// After `handle_request` without `next`: the pending response is the answer.
    pub fn into_reply(self, exchange: &mut HttpExchange) -> Reply {
        let status = self.status(exchange, true).as_u16();
        let pending = std::mem::take(&mut exchange.response.headers);
        let mut headers = Vec::new();
        let mut last = None;
        for (name, value) in self.response_headers.unwrap_or(pending) {
            // Further values of a name come without it.
            last = name.or(last);
            if let Some(name) = last.as_ref().filter(|n| !is_gateways(n, Message::Response)) {
                headers.push((name.clone(), value));
            }
        }
        let body = match self.response_body {
            Some(body) => body.into(),
            None => exchange.response_body.take().unwrap_or_default(),
        };
        // RFC 9110 section 6.4.1: these have no content.
        let body = if matches!(status, 204 | 205 | 304) { Bytes::new() } else { body };
        Reply { status, headers, body }
    }

    /// After `handle_response`.
    pub fn commit_response(self, exchange: &mut HttpExchange) {
        if let Some(status) = self.status {
            exchange.response.status = status;
        }
        if let Some(headers) = self.response_headers {
            exchange.response.headers = headers;
        }
        if let Some(body) = self.response_body {
            exchange.response_body_replaced = Some(body);
        }
    }
}

/// Fields of connection and framing (RFC 9110 section 7.6.1): the gateway writes them itself. A guest's writes of them
/// are without effect, since guests written for other hosts set a correct `content-length`.
fn is_gateways(name: &HeaderName, message: Message) -> bool {
    match *name {
        header::CONNECTION
        | header::CONTENT_LENGTH
        | header::TRANSFER_ENCODING
        | header::TE
        | header::TRAILER
        | header::UPGRADE => true,
        header::EXPECT => message == Message::Request,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}

/// Says which rule was broken, without the guest's text: clients see this.
pub fn bad(rule: &str) -> Halt {
    Halt::BadOutput(rule.to_owned())
}
