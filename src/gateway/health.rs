//! Active health checks: one task an upstream, which ends with the upstream.

use std::sync::Arc;
use std::time::Duration;

use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;

use super::upstream::{Endpoint, explain};
use crate::config::HealthCheck;
use crate::domain::Name;

pub struct Checker(tokio::task::JoinHandle<()>);

impl Drop for Checker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Consecutive results that speak against the present state.
struct Watched {
    endpoint: Arc<Endpoint>,
    against: usize,
}

impl Checker {
    pub fn spawn(upstream: Name, check: HealthCheck, endpoints: Vec<Arc<Endpoint>>, connector: Arc<Connector>) -> Self {
        Self(tokio::spawn(async move {
            let mut watched: Vec<_> = endpoints.into_iter().map(|endpoint| Watched { endpoint, against: 0 }).collect();
            let mut tick = tokio::time::interval(check.interval.max(Duration::from_millis(10)));
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let probes = watched.iter().map(|w| probe(&w.endpoint, &check, &connector));
                let results = futures_util::future::join_all(probes).await;
                for (watched, result) in watched.iter_mut().zip(results) {
                    watched.observe(&upstream, &check, result);
                }
            }
        }))
    }
}

impl Watched {
    fn observe(&mut self, upstream: &Name, check: &HealthCheck, result: Result<(), String>) {
        let alive = self.endpoint.is_alive();
        if let Err(reason) = &result {
            self.endpoint.note_error(reason);
        }
        if result.is_ok() == alive {
            self.against = 0;
            return;
        }
        self.against += 1;
        let needed = if alive { check.unhealthy_after } else { check.healthy_after };
        if self.against < needed {
            return;
        }
        self.against = 0;
        self.endpoint.set_alive(!alive);
        match result {
            Ok(()) => tracing::info!(%upstream, endpoint = %self.endpoint.label, "endpoint is healthy"),
            Err(reason) => tracing::warn!(%upstream, endpoint = %self.endpoint.label, reason, "endpoint is unhealthy"),
        }
    }
}

async fn probe(endpoint: &Endpoint, check: &HealthCheck, connector: &Connector) -> Result<(), String> {
    let work = async {
        match &check.http_path {
            None => tokio::net::TcpStream::connect(endpoint.address).await.map(drop).map_err(|e| e.to_string()),
            Some(path) => http_probe(endpoint, path, connector).await.map_err(|e| explain(&e)),
        }
    };
    tokio::time::timeout(check.timeout, work).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn http_probe(endpoint: &Endpoint, path: &str, connector: &Connector) -> pingora::Result<()> {
    let mut head = RequestHeader::build_no_case(http::Method::GET, path.as_bytes(), Some(2))?;
    let host = if endpoint.peer.sni.is_empty() { endpoint.label.as_str() } else { endpoint.peer.sni.as_str() };
    head.insert_header(http::header::HOST, host)?;
    head.insert_header(http::header::USER_AGENT, "wasmgate-health")?;
    let (mut session, _) = connector.get_http_session(&endpoint.peer).await?;
    session.write_request_header(Box::new(head)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let status = session.response_header().map_or(0, |h| h.status.as_u16());
    // The connection is dropped with the session: a check also finds out whether new connections work.
    session.shutdown().await;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        pingora::Error::e_explain(pingora::ErrorType::HTTPStatus(status), "an unhealthy status")
    }
}
