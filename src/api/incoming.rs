//! A module as it comes in, with its files: read from a form or a raw body, looked at, compiled.
//!
//! Invariant: bytes are within the caller's tier before they are looked at, and looked at in turns by owner.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::request::Parts;

use super::body::{self, bad};
use super::multipart::{self, Field, Form};
use super::{Api, INSPECTION_WAIT};
use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, Bundle, Digest, GuestFailure, NotLoadable, OwnerId, Rejection, Tier};
use crate::engine::{Assets, Cancel, Inspected, InstallError};

pub(super) struct Incoming {
    pub wasm: Bytes,
    /// An archive.
    pub assets: Option<Bytes>,
    /// Which it is said to have.
    pub abi: Option<Abi>,
}

impl Incoming {
    /// Out of a form that may have `more` fields beside a module's; those are given back.
    pub(super) async fn of_form(
        api: &Api,
        tier: &Tier,
        parts: &Parts,
        body: Body,
        more: impl IntoIterator<Item = Field>,
    ) -> Result<(Self, Form), Rejection> {
        let own = [wasm_field(tier), Field::text("assets", tier.module_bytes), Field::text("abi", 32)];
        let fields: Vec<_> = own.into_iter().chain(more).collect();
        let over = |name, limit| match name {
            "wasm" | "assets" => module_too_large(api, tier, body::content_length(&parts.headers)),
            name => bad(name, format_args!("is longer than {limit} bytes")),
        };
        let mut form = multipart::read(api, &parts.headers, body, &fields, over).await?;
        let wasm = form.take("wasm").ok_or_else(|| bad("wasm", "is missing"))?;
        if wasm.is_empty() {
            return Err(bad("wasm", "is empty"));
        }
        Ok((Incoming { wasm, assets: form.take("assets"), abi: form.parsed("abi")? }, form))
    }

    /// A raw body.
    pub(super) async fn of_body(api: &Api, tier: &Tier, request: Request, abi: Option<Abi>) -> Result<Self, Rejection> {
        let (parts, body) = request.into_parts();
        if !matches!(body::media_type(&parts.headers).as_str(), "application/wasm" | "application/octet-stream") {
            return Err(Rejection::UnsupportedMediaType("`Content-Type`: use `application/wasm`".into()));
        }
        let over = |size| module_too_large(api, tier, size);
        let wasm = body::gather(api, &parts.headers, body, tier.module_bytes, over).await?;
        if wasm.is_empty() {
            return Err(Rejection::BadRequest("the body is empty".into()));
        }
        Ok(Incoming { wasm, assets: None, abi })
    }

    /// All checks that need no compiler: of the module, and of files that fit with it into the tier.
    pub(super) async fn look(
        &self,
        api: &Api,
        owner: &OwnerId,
        tier: &Arc<Tier>,
    ) -> Result<(Inspected, Option<Bundle>), Rejection> {
        let Incoming { wasm, assets, abi } = self;
        let (wasm, archive, abi) = (wasm.clone(), assets.clone(), *abi);
        let (engine, tier) = (api.app.shared.engine.clone(), tier.clone());
        let look = move || {
            let inspected = engine.inspect(&wasm, abi, tier.module_bytes, &tier.limits).map_err(|mut why| {
                if why.kind == NotLoadableKind::MemoryLimit {
                    why.detail += &format!(", that of the tier `{}`", tier.name);
                }
                why
            })?;
            let left = tier.module_bytes.saturating_sub(wasm.len() as u64);
            Ok((inspected, archive.map(|archive| unpacked(&archive, left)).transpose()?))
        };
        let turn = api.inspections.take(Some(owner), INSPECTION_WAIT).await;
        let _turn = turn.ok_or(Rejection::CompilerBusy { retry_after: INSPECTION_WAIT })?;
        // It keeps a thread busy.
        tokio::task::spawn_blocking(look).await.map_err(|_| Rejection::Internal)?.map_err(Rejection::NotLoadable)
    }
}

pub(super) fn wasm_field(tier: &Tier) -> Field {
    Field { name: "wasm", alias: Some("wasm_file"), limit: tier.module_bytes }
}

fn unpacked(archive: &[u8], max_bytes: u64) -> Result<Bundle, NotLoadable> {
    let assets = Assets::read(archive, max_bytes)?;
    let (bytes, files) = (assets.bytes(), assets.files());
    Ok(Bundle { digest: Digest::of(archive), bytes, files, archive_bytes: archive.len() as u64 })
}

/// 402 where a higher tier takes it, else 413. `size` is what is known of it.
pub(super) fn module_too_large(api: &Api, tier: &Tier, size: Option<u64>) -> Rejection {
    let fits = |t: &Tier| t.module_bytes > tier.module_bytes && size.is_none_or(|s| s <= t.module_bytes);
    let over = format!(
        "a module with its files is over the {} bytes that the tier `{}` allows (`module_size`)",
        tier.module_bytes, tier.name
    );
    match api.lowest_tier(tier, fits) {
        Some(needs) => Rejection::OverTier { detail: format!("{over}: use the tier `{needs}`"), needs },
        None => Rejection::TooLarge(over),
    }
}

/// What the compiler makes, unless the client goes first: then the compile ends, and nobody reads the refusal.
pub(super) async fn compiled<T>(
    gone: &Cancel,
    compile: impl Future<Output = Result<T, InstallError>>,
) -> Result<T, Rejection> {
    match gone.or_cancelled(compile).await {
        Some(done) => done.map_err(not_installed),
        None => Err(Rejection::Guest(GuestFailure::Cancelled)),
    }
}

pub(super) fn not_installed(error: InstallError) -> Rejection {
    match error {
        InstallError::NotLoadable(why) => Rejection::NotLoadable(why),
        InstallError::Busy => Rejection::CompilerBusy { retry_after: INSPECTION_WAIT },
        InstallError::StorageFull => Rejection::StorageFull,
        InstallError::Unread => Rejection::StoreUnavailable,
        InstallError::Io(reason) => {
            tracing::error!(reason, "a module could not be stored");
            Rejection::Internal
        }
    }
}
