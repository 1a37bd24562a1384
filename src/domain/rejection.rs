//! The closed set of refusals that a client can see. Each has one status and one slug, here and nowhere else.

use std::time::Duration;

use super::{GuestFailure, Name, Scope};

/// Why a module's bytes are refused (422).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct NotLoadable {
    pub kind: NotLoadableKind,
    /// Names the limit, feature, import or export.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLoadableKind {
    InvalidModule,
    UnsupportedFormat,
    UnsupportedFeature,
    UnknownImport,
    MissingExport,
    AmbiguousAbi,
    CompileLimit,
    MemoryLimit,
    /// The archive beside the module.
    BadBundle,
}

impl NotLoadable {
    pub fn new(kind: NotLoadableKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// 400. The detail names the field.
    BadRequest(String),
    /// 400. Dot segments, empty segments, encoded control characters: origins disagree on what they mean.
    AmbiguousPath,
    /// 400. Two different keys in one request.
    ConflictingCredentials,
    /// 401, word for word the same for missing, malformed, unknown, revoked and expired keys.
    Unauthorized,
    /// 402.
    TierRequired { needs: Name },
    /// 402: over a bound of the caller's tier that another one has higher.
    OverTier { needs: Name, detail: String },
    /// 403.
    ScopeRequired(Scope),
    /// 403.
    Forbidden(String),
    /// 404.
    NotFound(String),
    /// 405, with what is allowed.
    MethodNotAllowed(&'static str),
    /// 408.
    RequestTimeout,
    /// 409.
    Conflict(String),
    /// 413, with the limit in bytes.
    PayloadTooLarge { limit: u64 },
    /// 413. The detail names the limit and whose it is.
    TooLarge(String),
    /// 415.
    UnsupportedMediaType(String),
    /// 421.
    MisdirectedRequest,
    /// 422.
    NotLoadable(NotLoadable),
    /// 429: the violated policies, and when to come again.
    QuotaExceeded { policies: Vec<Name>, retry_after: Duration },
    /// 429.
    TooManyConcurrent { limit: u32 },
    /// 429: too many failed authentications from one address.
    TooManyFailures { retry_after: Duration },
    /// 431.
    HeadersTooLarge,
    /// 500.
    Internal,
    /// 502 or 504 (500 when not loadable).
    Guest(GuestFailure),
    /// 502.
    UpstreamUnavailable,
    /// 502.
    UpstreamInvalid(&'static str),
    /// 502: a buffered answer over the limit.
    UpstreamTooLarge { limit: u64 },
    /// 504.
    UpstreamTimeout,
    /// 503: the guest pool or its queue is full.
    Busy { retry_after: Duration },
    /// 503: as many modules as may wait for inspection or the compiler do.
    CompilerBusy { retry_after: Duration },
    /// 503: a handler's module did nothing but fail.
    HandlerUnavailable { retry_after: Duration },
    /// 503.
    StoreUnavailable,
    /// 503: it was done, and fewer replicas of the store have it than are to have it.
    Unreplicated { have: u32, of: u32 },
    /// 503: a key's tier is not configured.
    TierMissing(Name),
    /// 503: its routes are in the store, and it has none yet.
    NoRoutes,
    /// 503.
    Draining,
    /// 507.
    StorageFull,
}

impl Rejection {
    pub fn status(&self) -> u16 {
        use Rejection::*;
        match self {
            BadRequest(_) | AmbiguousPath | ConflictingCredentials => 400,
            Unauthorized => 401,
            TierRequired { .. } | OverTier { .. } => 402,
            ScopeRequired(_) | Forbidden(_) => 403,
            NotFound(_) => 404,
            MethodNotAllowed(_) => 405,
            RequestTimeout => 408,
            Conflict(_) => 409,
            PayloadTooLarge { .. } | TooLarge(_) => 413,
            UnsupportedMediaType(_) => 415,
            MisdirectedRequest => 421,
            NotLoadable(_) => 422,
            QuotaExceeded { .. } | TooManyConcurrent { .. } | TooManyFailures { .. } => 429,
            HeadersTooLarge => 431,
            Internal => 500,
            Guest(failure) => failure.status(),
            UpstreamUnavailable | UpstreamInvalid(_) | UpstreamTooLarge { .. } => 502,
            Busy { .. } | CompilerBusy { .. } | HandlerUnavailable { .. } => 503,
            StoreUnavailable | Unreplicated { .. } | TierMissing(_) | NoRoutes | Draining => 503,
            UpstreamTimeout => 504,
            StorageFull => 507,
        }
    }

    /// The slug behind `/problems/`, and the label in metrics and logs.
    pub fn code(&self) -> &'static str {
        use Rejection::*;
        match self {
            BadRequest(_) => "bad-request",
            AmbiguousPath => "ambiguous-path",
            ConflictingCredentials => "conflicting-credentials",
            Unauthorized => "unauthorized",
            TierRequired { .. } | OverTier { .. } => "tier-required",
            ScopeRequired(_) => "scope-required",
            Forbidden(_) => "forbidden",
            NotFound(_) => "not-found",
            MethodNotAllowed(_) => "method-not-allowed",
            RequestTimeout => "request-timeout",
            Conflict(_) => "conflict",
            PayloadTooLarge { .. } | TooLarge(_) => "payload-too-large",
            UnsupportedMediaType(_) => "unsupported-media-type",
            MisdirectedRequest => "misdirected-request",
            NotLoadable(e) => match e.kind {
                NotLoadableKind::InvalidModule => "invalid-module",
                NotLoadableKind::UnsupportedFormat => "unsupported-format",
                NotLoadableKind::UnsupportedFeature => "unsupported-feature",
                NotLoadableKind::UnknownImport => "unknown-import",
                NotLoadableKind::MissingExport => "missing-export",
                NotLoadableKind::AmbiguousAbi => "ambiguous-abi",
                NotLoadableKind::CompileLimit => "compile-limit",
                NotLoadableKind::MemoryLimit => "memory-limit",
                NotLoadableKind::BadBundle => "bad-bundle",
            },
            QuotaExceeded { .. } => "quota-exceeded",
            TooManyConcurrent { .. } => "concurrency-exceeded",
            TooManyFailures { .. } => "too-many-failures",
            HeadersTooLarge => "headers-too-large",
            Internal => "internal",
            Guest(failure) => failure.kind(),
            UpstreamUnavailable => "upstream-unavailable",
            UpstreamInvalid(_) => "upstream-invalid",
            UpstreamTooLarge { .. } => "upstream-too-large",
            UpstreamTimeout => "upstream-timeout",
            Busy { .. } | CompilerBusy { .. } => "busy",
            HandlerUnavailable { .. } => "handler-unavailable",
            StoreUnavailable => "store-unavailable",
            Unreplicated { .. } => "unreplicated",
            TierMissing(_) => "tier-missing",
            NoRoutes => "no-routes",
            Draining => "draining",
            StorageFull => "storage-full",
        }
    }

    /// One sentence for the client, without internals.
    pub fn detail(&self) -> String {
        use Rejection::*;
        match self {
            BadRequest(d) | Forbidden(d) | NotFound(d) | Conflict(d) | TooLarge(d) | UnsupportedMediaType(d) => {
                d.clone()
            }
            AmbiguousPath => {
                "the path has empty or dot segments, or encoded control characters; send it normalised".into()
            }
            ConflictingCredentials => "`Authorization` and `X-Api-Key` hold different keys; send one".into(),
            Unauthorized => "send a valid API key in `X-Api-Key` or `Authorization: Bearer`".into(),
            OverTier { detail, .. } => detail.clone(),
            TierRequired { needs } => format!("this needs the tier `{needs}` or a higher one"),
            ScopeRequired(scope) => format!("this key lacks the scope `{}`", scope.as_str()),
            MethodNotAllowed(allowed) => format!("use {allowed}"),
            RequestTimeout => "the request did not arrive in time".into(),
            PayloadTooLarge { limit } => format!("the request body is over the limit of {limit} bytes"),
            MisdirectedRequest => "this connection does not serve that host".into(),
            NotLoadable(e) => e.detail.clone(),
            QuotaExceeded { policies, .. } => {
                let names: Vec<_> = policies.iter().map(|p| format!("`{p}`")).collect();
                format!("over the limit of the policy {}", names.join(", "))
            }
            TooManyConcurrent { limit } => {
                format!("more than the {limit} requests at once that the tier allows (`concurrent`)")
            }
            TooManyFailures { .. } => "too many requests with invalid credentials from this address".into(),
            HeadersTooLarge => "the request head is over its limit of bytes or fields".into(),
            Internal => "the gateway failed; the request id finds the reason in its log".into(),
            Guest(failure) => failure.to_string(),
            UpstreamUnavailable => "no upstream endpoint could be reached".into(),
            UpstreamInvalid(what) => format!("the upstream's answer is invalid: {what}"),
            UpstreamTooLarge { limit } => format!(
                "the upstream's answer is over the limit of {limit} bytes that a handler of this route can take"
            ),
            UpstreamTimeout => "the upstream did not answer in time".into(),
            Busy { .. } => "no capacity to run the module now".into(),
            CompilerBusy { .. } => "too many modules are being compiled now".into(),
            HandlerUnavailable { .. } => "the module failed again and again; it is tried anew in a while".into(),
            StoreUnavailable => "the store of the gateways can't be reached".into(),
            Unreplicated { have, of } => format!(
                "it was done, but only {have} of {of} replicas of the store have it, so that a failover may lose it: look before you \
                 repeat what makes something new"
            ),
            TierMissing(tier) => format!("this key's tier `{tier}` is not there any more: tell the gateway's operator"),
            NoRoutes => "the gateway has no routes yet".into(),
            Draining => "the gateway is shutting down".into(),
            StorageFull => "the gateway's storage is full".into(),
        }
    }

    /// `Retry-After`, where waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        use Rejection::*;
        match self {
            QuotaExceeded { retry_after, .. }
            | TooManyFailures { retry_after }
            | Busy { retry_after }
            | CompilerBusy { retry_after }
            | HandlerUnavailable { retry_after } => Some(*retry_after),
            TooManyConcurrent { .. } | StoreUnavailable | NoRoutes | Draining => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Whole seconds, rounded up and never 0 (RFC 9110 section 10.2.3).
pub fn retry_after_seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}
