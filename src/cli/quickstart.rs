//! `wasmgate` without arguments: a whole gateway in the current folder, with something to look at behind every route.
//!
//! Invariant: what is printed works when pasted; the demo key of the last start is revoked.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use bytes::Bytes;

use crate::app::Opened;
use crate::config::{self, Config};
use crate::domain::{Abi, ApiKey, KeyId, ModuleVersion, Name, Scope, Timestamp};
use crate::engine::{Compiler, Engine};
use crate::store::{NewVersion, Store};

const CONFIG: &str = include_str!("quickstart.toml");
const OWNER: &str = "wasmgate";
const KEY_LABEL: &str = "quickstart demo key";

/// Name, ABI and source of the modules that come with the binary.
const MODULES: [(&str, Abi, &str); 3] = [
    ("upper", Abi::Command, include_str!("../../examples/command-upper/upper.wat")),
    ("env", Abi::Cgi, include_str!("../../examples/cgi-env/env.wat")),
    ("header", Abi::HttpWasm, include_str!("../../examples/http-wasm-header/header.wat")),
];

/// Where the proxy and the admin API listen, unless something else does; then a free port is taken.
const PROXY: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9090";

/// `demo_upstream`: where the demo upstream will listen. The ports come with what holds them until the gateway does.
pub fn config(
    demo_upstream: SocketAddr,
    folder: &Path,
) -> Result<(Config, Vec<std::net::TcpListener>), config::ConfigErrors> {
    let mut text = CONFIG.replace("127.0.0.1:1\"", &format!("{demo_upstream}\""));
    let mut held = Vec::new();
    for usual in [PROXY, ADMIN] {
        match std::net::TcpListener::bind(usual) {
            Ok(listener) => held.push(listener),
            Err(_) => text = text.replace(usual, "127.0.0.1:0"),
        }
    }
    Ok((config::parse(&text, "quickstart", folder)?, held))
}

/// Stores the demo modules (again is harmless) and mints the demo key, revoking that of the last start.
pub async fn prepare(opened: &Opened) -> anyhow::Result<String> {
    let owner: Name = OWNER.parse()?;
    let tier = opened.config.tiers.iter().find(|tier| tier.name.as_str() == "free");
    let tier = tier.ok_or_else(|| anyhow!("the quickstart needs the tier `free`"))?;
    for (name, abi, wat) in MODULES {
        let bytes = Bytes::from(wat::parse_str(wat).with_context(|| format!("the demo module `{name}`"))?);
        store_module(&opened.engine, &*opened.store, &owner, name, abi, bytes, &tier.limits)
            .await
            .with_context(|| format!("the demo module `{name}`"))?;
    }
    let now = Timestamp::now();
    for mut key in opened.store.keys(Some(&owner)).await? {
        if key.label == KEY_LABEL && key.revoked_at.is_none() {
            key.revoked_at = Some(now);
            let hash = opened.store.update_key(&key).await?;
            opened.auth.invalidate(&hash);
        }
    }
    let minted = opened.auth.mint()?;
    let key = ApiKey {
        id: KeyId::random()?,
        owner,
        tier: tier.name.clone(),
        scopes: [Scope::Proxy, Scope::Execute, Scope::Modules, Scope::Usage].into_iter().collect(),
        label: KEY_LABEL.into(),
        pepper: minted.pepper,
        created_at: now,
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
    };
    opened.store.put_key(minted.hash, &key, None).await?;
    Ok(minted.secret)
}

async fn store_module(
    engine: &Arc<Engine>,
    store: &dyn Store,
    owner: &Name,
    name: &str,
    abi: Abi,
    bytes: Bytes,
    limits: &crate::domain::Limits,
) -> anyhow::Result<()> {
    let inspected = engine.inspect(&bytes, Some(abi), bytes.len() as u64, limits)?;
    engine.install(bytes.clone(), &inspected, Compiler::Fast).await?;
    let version = ModuleVersion {
        version: 0,
        digest: inspected.digest,
        abi: inspected.abi,
        size_bytes: bytes.len() as u64,
        uploaded_at: Timestamp::now(),
        shape: inspected.shape,
        assets: None,
    };
    let new = NewVersion {
        owner: owner.clone(),
        name: name.parse()?,
        description: Some("demo module of the quickstart".into()),
        public: Some(true),
        limits: None,
        version,
        activate: true,
    };
    store.add_version(new, None).await?;
    Ok(())
}

/// What is printed once everything listens.
pub fn welcome(proxy: SocketAddr, admin: SocketAddr, key: &str, token_file: &Path) -> String {
    let mut out = String::from("\nwasmgate is running.\n\n");
    for (usual, taken) in [(PROXY, proxy), (ADMIN, admin)] {
        if usual != taken.to_string() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {usual} is in use, so this is on {taken}:");
        }
        let what = if usual == PROXY { "proxy  " } else { "admin  " };
        let _ = writeln!(out, "  {what}      http://{taken}");
    }
    if admin.to_string() != ADMIN {
        let _ = writeln!(out, "\n  For wasmgate's other commands:\n\n  export WASMGATE_ADMIN=http://{admin}\n");
    }
    let _ = write!(
        out,
        "  token        in {token}
  demo key     {key}   (tier `free`: 10 requests a minute)

1. A request to the demo upstream, transformed on its way by the http-wasm module `header`:

  curl -si -H 'X-Api-Key: {key}' http://{proxy}/hello

2. An answer made by the CGI module `env`, no upstream behind it:

  curl -s -H 'X-Api-Key: {key}' 'http://{proxy}/env/some/path?a=1'

3. The uploaded module `upper`, executed with an input:

  curl -s -H 'X-Api-Key: {key}' -F module=upper -F input='hello from wasm' http://{proxy}/api/wasm/execute

4. The tier's limit: the last answers are 429, with Retry-After:

  for i in $(seq 11); do curl -s -o /dev/null -w '%{{http_code}} ' -H 'X-Api-Key: {key}' http://{proxy}/hello; done; echo

Stop it with Ctrl-C. For a deployment of your own: wasmgate serve -c conf/wasmgate.toml
",
        token = token_file.display(),
    );
    out
}

/// The demo upstream: answers with what reached it, so that a transformation can be seen.
pub async fn serve_demo_upstream(listener: tokio::net::TcpListener) -> std::io::Result<()> {
    axum::serve(listener, axum::Router::new().fallback(echo)).await
}

async fn echo(request: axum::extract::Request) -> axum::response::Response {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let document = serde_json::json!({
        "from": "the demo upstream",
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map_or("/", |p| p.as_str()),
        "headers": headers,
    });
    let mut response = axum::response::Response::new(format!("{document:#}\n").into());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
