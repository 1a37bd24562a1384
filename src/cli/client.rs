//! The admin API's client.
//!
//! Invariant: the token goes to the address that was named and nowhere else: no redirects, no proxies.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http::Method;
use serde_json::Value;

use super::Failure;

/// A large upload is compiled before it is answered.
const TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Connect {
    /// The gateway's admin listener; default: the variable WASMGATE_ADMIN, else `http://127.0.0.1:9090`.
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
    /// File with an admin token; the variable WASMGATE_TOKEN has precedence. Default: the variable WASMGATE_TOKEN_FILE,
    /// else `./data/admin.token`.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates to trust (PEM), for https; default: those in the file that the variable WASMGATE_CA_FILE names.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

pub(super) struct Client {
    agent: ureq::Agent,
    base: String,
    token: String,
    /// Where the token was found, for a message.
    token_from: String,
}

/// A request body and its media type.
pub(super) enum Body {
    None,
    Json(Value),
    Wasm(Vec<u8>),
    Toml(Vec<u8>),
    /// Fields of a form.
    Form(Vec<(&'static str, Vec<u8>)>),
}

impl Connect {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        self.open().map_err(|error| Failure { code: 2, error })
    }

    /// What fails here is a mistake in the settings.
    fn open(&self) -> anyhow::Result<Client> {
        // Not by clap, which would show them as typed in its messages about usage.
        let admin = self.admin.clone().or_else(|| std::env::var("WASMGATE_ADMIN").ok());
        let base = admin.as_deref().unwrap_or("http://127.0.0.1:9090").trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            bail!("`{base}` is not an address: use `http://host:port` or `https://host:port`");
        }
        let ca_file = self.ca_file.clone().or_else(|| Some(std::env::var_os("WASMGATE_CA_FILE")?.into()));
        let roots = match &ca_file {
            None => ureq::tls::RootCerts::WebPki,
            Some(file) => {
                let pem = std::fs::read(file).with_context(|| format!("`--ca-file {}`", file.display()))?;
                let certs = ureq::tls::parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(ureq::tls::PemItem::Certificate(cert)) => Some(Ok(cert)),
                        Ok(_) => None,
                        Err(e) => Some(Err(e)),
                    })
                    .collect::<Result<Vec<_>, _>>()
                    .with_context(|| format!("`--ca-file {}` is not PEM", file.display()))?;
                ureq::tls::RootCerts::Specific(Arc::new(certs))
            }
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build())
            .build()
            .new_agent();
        let (token, token_from) = self.token()?;
        Ok(Client { agent, base, token, token_from })
    }

    /// The token, and where it was found.
    fn token(&self) -> anyhow::Result<(String, String)> {
        if let Ok(token) = std::env::var("WASMGATE_TOKEN") {
            return Ok((token, "WASMGATE_TOKEN".into()));
        }
        let file = self.token_file.clone().or_else(|| Some(std::env::var_os("WASMGATE_TOKEN_FILE")?.into()));
        let path = file.unwrap_or_else(|| "./data/admin.token".into());
        let file = path.display();
        let token = std::fs::read_to_string(&path).with_context(|| {
            format!("no admin token in `{file}`: name its file with `--token-file`, or set WASMGATE_TOKEN")
        })?;
        Ok((token.trim().to_owned(), format!("`{file}`")))
    }
}

impl Client {
    pub(super) fn get(&self, path: &str, query: &[(&str, Option<String>)]) -> anyhow::Result<Value> {
        self.call(Method::GET, path, query, Body::None)
    }

    /// The answer's JSON (`null` when it has none), or the problem it names.
    pub(super) fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, Option<String>)],
        body: Body,
    ) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, query, body)?;
        match status {
            _ if status.is_success() => Ok(answer),
            http::StatusCode::UNAUTHORIZED => Err(anyhow!(
                "{}; the token is that of {}: use `--token-file` with the file that the gateway logs at its start",
                problem(status, &answer),
                self.token_from
            )),
            _ => Err(problem(status, &answer)),
        }
    }

    /// As [`Self::call`], whatever the status is.
    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, Option<String>)],
        body: Body,
    ) -> anyhow::Result<(http::StatusCode, Value)> {
        let mut url = format!("{}{path}", self.base);
        for (i, (name, value)) in query.iter().filter_map(|(n, v)| v.as_ref().map(|v| (n, v))).enumerate() {
            url.push_str(&format!("{}{name}={}", if i == 0 { '?' } else { '&' }, encoded(value)));
        }
        let request = http::Request::builder()
            .uri(&url)
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/json");
        let sends = matches!(method, Method::POST | Method::PUT);
        let request = request.method(method);
        let answer = match body {
            Body::Json(value) => {
                let request = request.header("content-type", "application/json").body(value.to_string().into_bytes());
                self.agent.run(request?)
            }
            Body::Wasm(bytes) => self.agent.run(request.header("content-type", "application/wasm").body(bytes)?),
            Body::Toml(bytes) => self.agent.run(request.header("content-type", "application/toml").body(bytes)?),
            Body::Form(fields) => {
                let (kind, body) = form(fields)?;
                self.agent.run(request.header("content-type", kind).body(body)?)
            }
            Body::None if sends => self.agent.run(request.body(Vec::new())?),
            Body::None => self.agent.run(request.body(())?),
        };
        let mut answer = answer.map_err(|e| self.unreachable(e))?;
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string()?;
        let value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text)
                .with_context(|| format!("`{}` did not answer with JSON: is it an admin listener?", self.base))?
        };
        Ok((answer.status(), value))
    }

    fn unreachable(&self, error: ureq::Error) -> anyhow::Error {
        match &error {
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => anyhow!(
                "nothing listens on `{}`: start the gateway with `wasmgate serve`, or name another one with `--admin`",
                self.base
            ),
            ureq::Error::Io(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) if self.base.starts_with("https:") => {
                anyhow!("`{}`: {error} (for a certificate of your own, use `--ca-file`)", self.base)
            }
            _ => anyhow!("`{}`: {error}", self.base),
        }
    }
}

/// As RFC 7578 has it: the media type, and the body.
fn form(fields: Vec<(&'static str, Vec<u8>)>) -> anyhow::Result<(String, Vec<u8>)> {
    // Nothing can hold it by chance.
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|e| anyhow!("no random bytes: {e}"))?;
    let boundary = random.iter().fold("wasmgate".to_owned(), |text, b| format!("{text}{b:02x}"));
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
        body.extend_from_slice(format!("content-disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
        body.extend_from_slice(&value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok((format!("multipart/form-data; boundary={boundary}"), body))
}

/// `title: detail (request id ...)`, from an RFC 9457 problem.
fn problem(status: http::StatusCode, answer: &Value) -> anyhow::Error {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(super::output::printable);
    match (text("title"), text("detail"), text("request_id")) {
        (Some(title), Some(detail), Some(id)) => anyhow!("{title}: {detail} (request id {id})"),
        _ => anyhow!("the gateway answered {status}"),
    }
}

/// Percent-encoded as a query's value or a path's segment (RFC 3986 section 2.3: only unreserved ones stay).
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded() {
        assert_eq!(encoded("a b&c=d/é@1"), "a%20b%26c%3Dd%2F%C3%A9%401");
    }

    #[test]
    fn problems_are_one_line() {
        let answer = serde_json::json!({"title": "Not Found", "detail": "no\nsuch", "request_id": "r1"});
        assert_eq!(
            problem(http::StatusCode::NOT_FOUND, &answer).to_string(),
            "Not Found: no\u{fffd}such (request id r1)"
        );
    }
}
