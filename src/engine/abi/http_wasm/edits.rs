//! What a guest changed in a phase, and how it reaches the exchange or becomes an answer.
//!
//! Invariant: nothing that could not stand on the wire gets in here, and framing stays the gateway's: a guest can
//! neither set nor remove it.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};

use crate::domain::{GuestFailure, Reply};
use crate::engine::abi::wire::{self, FIELDS, HEADER_BYTES, Message, is_gateways, is_host};
use crate::engine::failure::Halt;
use crate::engine::http::{HttpExchange, Values};

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
    request_headers: HeaderEdits,
    response_headers: HeaderEdits,
    pub request_body: Option<Vec<u8>>,
    pub response_body: Option<Vec<u8>>,
    /// The request body was read and not kept.
    pub consumed: bool,
    /// What handlers hand on, with what this one changed.
    pub values: Option<Values>,
    header_bytes: usize,
}

/// What is to be done to a message's headers. Most guests only write a few: those are noted, and nothing is copied.
/// One that looks at headers which it has changed gets a copy.
#[derive(Debug, Default)]
struct HeaderEdits {
    noted: Vec<Edit>,
    copy: Option<HeaderMap>,
}

#[derive(Debug)]
enum Edit {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl Edit {
    /// `None`: the map is full.
    fn apply(self, headers: &mut HeaderMap) -> Option<()> {
        match self {
            Edit::Set(name, value) => headers.try_insert(name, value).ok().map(drop),
            Edit::Add(name, value) => headers.try_append(name, value).ok().map(drop),
            Edit::Remove(name) => {
                headers.remove(name);
                Some(())
            }
        }
    }
}

impl HeaderEdits {
    /// The headers as the guest sees them.
    fn view<'a>(&'a mut self, given: &'a HeaderMap) -> Result<&'a HeaderMap, Halt> {
        if self.copy.is_none() && self.noted.is_empty() { Ok(given) } else { self.copied(given).map(|c| &*c) }
    }

    /// A copy with all that was noted.
    fn copied(&mut self, given: &HeaderMap) -> Result<&mut HeaderMap, Halt> {
        let copy = self.copy.get_or_insert_with(|| given.clone());
        for edit in self.noted.drain(..) {
            edit.apply(copy).ok_or(Halt::OutputTooLarge)?;
        }
        Ok(copy)
    }

    fn push(&mut self, given: &HeaderMap, edit: Edit) -> Result<(), Halt> {
        if self.copy.is_none() && given.len() + self.noted.len() < FIELDS {
            self.noted.push(edit);
            return Ok(());
        }
        let copy = self.copied(given)?;
        if copy.len() >= FIELDS && !matches!(edit, Edit::Remove(_)) {
            return Err(Halt::OutputTooLarge);
        }
        edit.apply(copy).ok_or(Halt::OutputTooLarge)
    }

    fn commit(self, headers: &mut HeaderMap) {
        if let Some(copy) = self.copy {
            *headers = copy;
        }
        for edit in self.noted {
            // Fields are bounded far below what a map holds.
            let _ = edit.apply(headers);
        }
    }
}

impl Edits {
    /// The headers as the guest sees them.
    pub fn headers<'a>(&'a mut self, exchange: &'a HttpExchange, message: Message) -> Result<&'a HeaderMap, Halt> {
        let (edits, given) = self.of(exchange, message);
        edits.view(given)
    }

    fn of<'a>(&'a mut self, exchange: &'a HttpExchange, message: Message) -> (&'a mut HeaderEdits, &'a HeaderMap) {
        match message {
            Message::Request => (&mut self.request_headers, &exchange.request.headers),
            Message::Response => (&mut self.response_headers, &exchange.response.headers),
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
        let value = wire::value(value).ok_or_else(|| bad("a header value holds control characters"))?;
        if is_gateways(&name, message) {
            return Ok(());
        }
        self.header_bytes += name.as_str().len() + value.len();
        if self.header_bytes > HEADER_BYTES {
            return Err(Halt::OutputTooLarge);
        }
        // A second `host` would make the request invalid (RFC 9110 section 7.2), so adding one replaces it.
        let names_host = message == Message::Request && name == header::HOST;
        if names_host && !is_host(value.as_bytes()) {
            return Err(bad("`host` is not a host"));
        }
        let edit = match write {
            Write::Add if !names_host => Edit::Add(name, value),
            _ => Edit::Set(name, value),
        };
        let (edits, given) = self.of(exchange, message);
        edits.push(given, edit)
    }

    /// A name that could not be there is nothing to do.
    pub fn remove_header(&mut self, exchange: &HttpExchange, message: Message, name: &[u8]) -> Result<(), Halt> {
        let Ok(name) = HeaderName::from_bytes(name) else { return Ok(()) };
        let names_host = message == Message::Request && name == header::HOST;
        if names_host || is_gateways(&name, message) {
            return Ok(());
        }
        let (edits, given) = self.of(exchange, message);
        edits.push(given, Edit::Remove(name))
    }

    /// The status as the guest sees it: 200 until one is set.
    pub fn status(&self, exchange: &HttpExchange, is_pending: bool) -> StatusCode {
        let given = if is_pending && !exchange.response_status_set { StatusCode::OK } else { exchange.response.status };
        self.status.unwrap_or(given)
    }

    /// After `handle_request` with `next`: what goes on to the next handler or the upstream.
    pub fn commit_request(self, exchange: &mut HttpExchange) -> Result<(), GuestFailure> {
        if let Some(path_and_query) = self.uri {
            // First, since it can fail: a URI of an authority alone takes no path.
            let mut parts = exchange.request.uri.clone().into_parts();
            parts.path_and_query = Some(path_and_query);
            exchange.request.uri = Uri::from_parts(parts)
                .map_err(|_| GuestFailure::BadOutput("the URI does not fit the request".into()))?;
        }
        if let Some(method) = self.method {
            exchange.request.method = method;
        }
        self.request_headers.commit(&mut exchange.request.headers);
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
        self.response_headers.commit(&mut exchange.response.headers);
        if let Some(body) = self.response_body {
            exchange.response_body = Some(body.into());
        }
        Ok(())
    }

    /// After `handle_request` without `next`: the pending response is the answer.
    pub fn into_reply(self, exchange: &mut HttpExchange) -> Reply {
        let status = self.status(exchange, true).as_u16();
        let mut pending = std::mem::take(&mut exchange.response.headers);
        self.response_headers.commit(&mut pending);
        let mut headers = Vec::with_capacity(pending.len());
        let mut last = None;
        for (name, value) in pending {
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
        self.response_headers.commit(&mut exchange.response.headers);
        if let Some(body) = self.response_body {
            exchange.response_body_replaced = Some(body);
        }
    }
}

/// Says which rule was broken, without the guest's text: clients see this.
pub fn bad(rule: &str) -> Halt {
    Halt::BadOutput(rule.to_owned())
}
