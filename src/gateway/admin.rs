//! The admin listener: the same connection handling and head guard as the proxy's, and the admin API behind it.
//!
//! Invariant: nothing but the admin API answers here, and it alone decides who may call it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Version};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;

use super::answer::has_body;
use super::bridge;
use super::connection::{self, Incoming};
use super::exchange::frame_answer;
use super::forward::Fields;
use super::identity::{self, Ids, REQUEST_ID};
use super::pipeline::Stop;
use super::service::{ApiService, Caller};
use crate::domain::{Rejection, problem};
use crate::engine::Cancel;

/// The largest body an admin request may have: a module of the largest tier, as multipart.
const MAX_BODY: u64 = 256 << 20;

pub struct AdminApp {
    api: Arc<dyn ApiService>,
    ids: Arc<Ids>,
    body_timeout: Duration,
    options: HttpServerOptions,
    h2: H2Options,
}

impl AdminApp {
    pub fn new(api: Arc<dyn ApiService>, ids: Arc<Ids>, body_timeout: Duration, h2: H2Options) -> Self {
        let mut options = HttpServerOptions::default();
        // Refused below, in the one form that refusals have.
        options.allow_connect_method_proxying = true;
        Self { api, ids, body_timeout, options, h2 }
    }

    async fn answer(&self, session: &mut ServerSession, request_id: &HeaderValue) -> Result<(), Stop> {
        let head = session.req_header();
        if head.method == http::Method::CONNECT {
            return Err(Rejection::MethodNotAllowed("another method: CONNECT is not served here").into());
        }
        let peer = session.client_addr().and_then(|a| a.as_inet()).copied().ok_or(Rejection::Internal)?;
        let id = request_id.to_str().unwrap_or_default().into();
        let local = session.server_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let caller = Caller { principal: None, request_id: id, peer, local, gone: Cancel::default() };
        let request = bridge::request(session, caller)?;
        let (method, version) = (request.method().clone(), request.version());
        let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| n > MAX_BODY) {
            return Err(Rejection::PayloadTooLarge { limit: MAX_BODY }.into());
        }
        if request.headers().get(EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            session.write_continue_response().await?;
        }
        let answer = bridge::call(&*self.api, session, request, None, MAX_BODY, self.body_timeout).await?;
        let (parts, mut body) = answer.into_parts();
        let mut head = ResponseHeader::from(parts);
        head.set(&REQUEST_ID, request_id.clone())?;
        let with_body = has_body(&method, head.status);
        frame_answer(&mut head, version, with_body, 0)?;
        if version == Version::HTTP_10 && with_body && !head.headers.contains_key(CONTENT_LENGTH) {
            session.set_keepalive(None);
        }
        session.write_response_header(Box::new(head)).await?;
        if with_body {
            bridge::copy(session, &mut body, None, || ()).await?;
        }
        Ok(session.finish_body().await?)
    }

    async fn refuse(
        session: &mut ServerSession,
        rejection: &Rejection,
        request_id: &HeaderValue,
    ) -> pingora::Result<()> {
        let body = rejection.problem(request_id.to_str().unwrap_or_default()).to_string();
        let mut head = super::answer::head(rejection.status())?;
        head.set(&http::header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE))?;
        head.set(&CONTENT_LENGTH, HeaderValue::from(body.len()))?;
        head.set(&REQUEST_ID, request_id.clone())?;
        session.set_keepalive(None);
        session.write_response_header(Box::new(head)).await?;
        session.write_response_body(body.into(), true).await?;
        session.finish_body().await
    }
}

impl connection::App for AdminApp {
    async fn bodyless(self: &Arc<Self>, request: Incoming<'_>, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        self.process_new_http(request.session(), shutdown).await
    }
}

#[async_trait]
impl HttpServerApp for AdminApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            // The guard let the head pass; what is left to go wrong is the connection.
            Ok(false) | Err(_) => return None,
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let request_id =
            identity::sane_request_id(&session.req_header().headers).unwrap_or_else(|| self.ids.request_id());
        match self.answer(&mut session, &request_id).await {
            Ok(()) => {}
            Err(Stop::Reject(rejection)) if session.response_written().is_none() => {
                Self::refuse(&mut session, &rejection, &request_id).await.ok()?;
            }
            Err(Stop::Reject(_) | Stop::Broken(_)) => {
                session.shutdown().await;
                return None;
            }
        }
        // Whoever sends all of a body before it reads an answer would get a reset in the place of a refusal.
        let _ = session.drain_request_body().await;
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }
}
