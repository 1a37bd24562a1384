//! `multipart/form-data` (RFC 7578) into named, bounded fields.
//!
//! Invariant: a field is known, comes once and stays within its bound, so the number of parts and the memory of a form
//! are bounded before the form has been read.

use std::collections::HashMap;
use std::fmt::Display;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;

use super::Api;
use super::body::{self, bad};
use crate::domain::Rejection;

/// Bytes that may come between two parts' contents: `multer` has no bound of its own for a part's head, and searches
/// all of it anew with every chunk.
const HEAD_BYTES: u64 = 16 << 10;

/// A field that a form may have.
pub(super) struct Field {
    pub name: &'static str,
    /// The older service's name for it.
    pub alias: Option<&'static str>,
    pub limit: u64,
}

impl Field {
    pub(super) const fn text(name: &'static str, limit: u64) -> Self {
        Self { name, alias: None, limit }
    }
}

/// The fields of a form, by their present names.
#[derive(Default)]
pub(super) struct Form(HashMap<&'static str, Bytes>);

impl Form {
    pub(super) fn take(&mut self, name: &str) -> Option<Bytes> {
        self.0.remove(name)
    }

    /// A text field; one that is not UTF-8 is refused by name.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Rejection> {
        let Some(bytes) = self.0.remove(name) else { return Ok(None) };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(bad(name, "is not UTF-8 text")),
        }
    }

    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Rejection> {
        self.text(name)?.map(|text| text.parse().map_err(|why| bad(name, why))).transpose()
    }
}

/// Reads a form. `over(name, limit)` is the refusal of a field over its bound.
pub(super) async fn read(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    fields: &[Field],
    over: impl Fn(&'static str, u64) -> Rejection,
) -> Result<Form, Rejection> {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(content_type).ok().filter(|boundary| !boundary.is_empty());
    let no_boundary = || Rejection::BadRequest("`Content-Type`: the multipart boundary is missing".into());
    let boundary = boundary.ok_or_else(no_boundary)?;
    let paced = Paced { chunks: body.into_data_stream(), give_way: false, head: Arc::default() };
    let head = paced.head.clone();
    let mut parts = multer::Multipart::new(paced, boundary);
    let mut form = Form::default();
    loop {
        head.begin();
        let part = parts.next_field().await.map_err(|e| broken(&e, "the form"))?;
        head.end();
        let Some(mut part) = part else { return Ok(form) };
        let field = match part.name() {
            None => return Err(Rejection::BadRequest("a part of the form has no `name`".into())),
            Some(name) => fields
                .iter()
                .find(|f| f.name == name || f.alias == Some(name))
                .ok_or_else(|| Rejection::BadRequest(unknown(name, fields)))?,
        };
        if form.0.contains_key(field.name) {
            return Err(Rejection::BadRequest(format!("`{}`: comes more than once; send it once", field.name)));
        }
        let mut buffer = api.bodies.buffer();
        while let Some(chunk) = part.chunk().await.map_err(|e| broken(&e, field.name))? {
            if buffer.len() + chunk.len() as u64 > field.limit {
                return Err(over(field.name, field.limit));
            }
            buffer.push(&chunk)?;
        }
        form.0.insert(field.name, buffer.freeze());
    }
}

fn unknown(name: &str, fields: &[Field]) -> String {
    let name: String = name.chars().take(64).collect();
    let known: Vec<_> = fields.iter().map(|f| format!("`{}`", f.name)).collect();
    format!("`{name}`: is not a field of this form: use {}", known.join(", "))
}

fn broken(error: &multer::Error, place: &str) -> Rejection {
    match error {
        multer::Error::StreamReadFailed(inner) => match inner.downcast_ref::<HeadTooLarge>() {
            Some(_) => Rejection::BadRequest("a part of the form has an endless head".into()),
            None => body::cut_short(),
        },
        multer::Error::IncompleteFieldData { .. } => Rejection::BadRequest(format!("`{place}`: has no end")),
        multer::Error::IncompleteStream | multer::Error::IncompleteHeaders => {
            Rejection::BadRequest(format!("{place} ends without its closing boundary"))
        }
        other => Rejection::BadRequest(format!("{place}: {other}")),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a part's head is too large")]
struct HeadTooLarge;

/// Whether a part's head is being read, and how many bytes came meanwhile.
#[derive(Default)]
struct Head {
    open: AtomicBool,
    bytes: AtomicU64,
}

impl Head {
    fn begin(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.open.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Counted with what came before, so that one large chunk with a small head passes.
    fn admits(&self, n: usize) -> bool {
        !self.open.load(Ordering::Relaxed) || self.bytes.fetch_add(n as u64, Ordering::Relaxed) <= HEAD_BYTES
    }
}

/// The body, one chunk a poll: `multer` takes whatever is there into its own buffer before it looks at it, which
/// would be the whole body when the client is faster than we are.
struct Paced<S> {
    chunks: S,
    give_way: bool,
    head: Arc<Head>,
}

impl<S, E> Stream for Paced<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    type Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.give_way) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match std::task::ready!(Pin::new(&mut self.chunks).poll_next(cx)) {
            Some(Ok(chunk)) if !self.head.admits(chunk.len()) => Poll::Ready(Some(Err(HeadTooLarge.into()))),
            Some(Ok(chunk)) => {
                self.give_way = true;
                Poll::Ready(Some(Ok(chunk)))
            }
            Some(Err(e)) => Poll::Ready(Some(Err(e.into()))),
            None => Poll::Ready(None),
        }
    }
}
