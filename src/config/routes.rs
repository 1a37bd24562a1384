//! `[[routes]]`: matches, targets, handlers, edits.
//!
//! Invariant: no route is unreachable because another one takes exactly its requests, and nothing a route writes can
//! change how a message is framed.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use http::{Method, StatusCode};
use toml::de::DeValue;

use super::edits::{edits, header_name, pairs, rewrite};
use super::raw::{At, Doc, Kind, Table};
use super::units::{
    GIB, KIB, MIB, choice, duration, flag, from_str, int, millis, only_true, secs, size, text, text_with, type_of,
};
use super::{
    AuthMode, Handler, HandlerFail, HeaderBytes, HeaderMatch, HostPattern, Match, OPERATOR, PathPattern, ProxyWasm,
    Route, Segment, Target,
};
use crate::domain::{ModuleRef, Name, OwnerId, Scope, ScopeSet};

/// Bound of a handler's `config` and `config_file`.
const MAX_HANDLER_CONFIG: u64 = MIB;

pub fn routes(t: &Table<'_>, base: &Path) -> Vec<Route> {
    let routes = t.sections("routes", |t| Some((route(t, base)?, t.at.clone()))).unwrap_or_default();
    report_unreachable(t.doc, &routes);
    routes.into_iter().map(|(route, _)| route).collect()
}

fn route(t: &Table<'_>, base: &Path) -> Option<Route> {
    let name = t.need("name", from_str::<Name>);
    if let Some(name) = &name {
        t.doc.define(Kind::Route, name.as_str(), &t.at("name"));
    }
    let matches = t.section("match", read_match);
    let target = t.opt_section("target", |t| target(t, base));
    if target.is_none() && !t.has("target") {
        t.doc.error(
            &t.at,
            "`target` is missing; use one of `upstream`, `handler`, `api`, `health`, `redirect`, `respond`",
        );
    }
    let target = target.flatten();
    let forwards = matches!(target, Some(Target::Upstream(_) | Target::Handler(_)) | None);
    if matches!(target, Some(Target::Api)) && !(matches.path.is_prefix() && matches.path.names().next().is_none()) {
        t.error("target", "the API lives below a prefix; use `match.path_prefix`, such as `/api`");
    }

    let Access { auth, scopes, tier, limited } = access(t, target.as_ref());
    let max_body_bytes = t.get("max_body", 10 * MIB, size(0..=1024 * GIB));
    let pattern = Some(&matches.path).filter(|_| !t.doc.failed(&t.at("match").key));
    let rewrite = t.opt_section("rewrite", |t| rewrite(t, pattern)).flatten();
    if rewrite.is_some() && !forwards {
        t.error("rewrite", "only the targets `upstream` and `handler` see a path; remove it");
    }
    let request_headers = t.section("request_headers", |t| edits(t, true));
    let response_headers = t.section("response_headers", |t| edits(t, false));
    let handlers = t.sections("handlers", |t| handler(t, base)).unwrap_or_default();
    Some(Route {
        name: name?,
        matches,
        target: target?,
        auth,
        scopes,
        tier,
        limited,
        max_body_bytes,
        rewrite,
        request_headers,
        response_headers,
        handlers,
    })
}

struct Access {
    auth: AuthMode,
    scopes: ScopeSet,
    tier: Option<Name>,
    limited: bool,
}

/// Who may use a route. Denied by default: a key with the scope `proxy`; the API checks scopes by endpoint.
fn access(t: &Table<'_>, target: Option<&Target>) -> Access {
    let modes = [("key", AuthMode::Key), ("optional", AuthMode::Optional), ("none", AuthMode::None)];
    let auth = t.get("auth", AuthMode::Key, choice(&modes));
    let usual = if auth == AuthMode::Key && !matches!(target, Some(Target::Api)) { &[Scope::Proxy][..] } else { &[] };
    let scopes = t.item("scopes").map(|i| i.elements().iter().filter_map(|e| e.read(scope)).collect::<ScopeSet>());
    let tier = t.opt("tier", from_str::<Name>);
    if let Some(tier) = &tier {
        t.doc.refer(Kind::Tier, tier.as_str(), &t.at("tier"));
    }
    let limited = t.opt("limited", flag);
    if auth == AuthMode::None {
        let needs = "needs a caller; use `auth = \"key\"` or `auth = \"optional\"`, or remove it";
        let said = [
            ("scopes", scopes.is_some_and(|s| !s.is_empty())),
            ("tier", tier.is_some()),
            ("limited", limited == Some(true)),
        ];
        for (key, _) in said.iter().filter(|(_, said)| *said) {
            t.error(key, format!("`{key}` {needs}"));
        }
    }
    Access {
        auth,
        scopes: scopes.unwrap_or_else(|| usual.iter().copied().collect()),
        tier,
        limited: limited.unwrap_or(auth != AuthMode::None),
    }
}

fn scope(value: &DeValue<'_>) -> Result<Scope, String> {
    choice(&Scope::ALL.map(|s| (s.as_str(), s)))(value)
}

fn read_match(t: &Table<'_>) -> Match {
    let exact = t.opt("path", text_with(PathPattern::exact));
    let prefix = t.opt("path_prefix", text_with(PathPattern::prefix));
    if exact.is_some() && prefix.is_some() {
        t.error("path_prefix", "`path` and `path_prefix` exclude each other; keep one");
    }
    let mut hosts = t.list("hosts", from_str::<HostPattern>);
    dedup(&mut hosts);
    let mut methods = t.list("methods", text_with(method));
    dedup(&mut methods);
    let headers = t.entries("headers").into_iter().filter_map(|(name, item)| {
        let name = header_name(name).map_err(|e| item.doc.error(&item.at, e)).ok()?;
        let value = item.read(|v| match v {
            DeValue::Boolean(true) => Ok(None),
            DeValue::String(s) => Ok(Some(s.to_string())),
            other => Err(format!("expected a string, or `true` for presence, found {}", type_of(other))),
        })?;
        Some(HeaderMatch { name, value })
    });
    Match { headers: headers.collect(), hosts, path: exact.or(prefix).unwrap_or_default(), methods }
}

fn dedup<T: PartialEq>(list: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(list.len());
    for item in list.drain(..) {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    *list = kept;
}

/// Methods are case-sensitive (RFC 9110 section 9.1), so `get` would match nothing.
fn method(s: &str) -> Result<Method, String> {
    match s.parse::<Method>() {
        Ok(Method::CONNECT) => Err("`CONNECT` is not forwarded; remove it".into()),
        Ok(method) if !s.bytes().any(|b| b.is_ascii_lowercase()) => Ok(method),
        Ok(_) => Err(format!("`{s}` is not a method; use upper case, `{}`", s.to_ascii_uppercase())),
        Err(_) => Err(format!("`{s}` is not a method; use one such as `GET`")),
    }
}

fn target(t: &Table<'_>, base: &Path) -> Option<Target> {
    let one = t.exactly_one(&["upstream", "handler", "api", "health", "redirect", "respond"]);
    let upstream = t.opt("upstream", from_str::<Name>);
    if let Some(name) = &upstream {
        t.doc.refer(Kind::Upstream, name.as_str(), &t.at("upstream"));
    }
    let handler = t.opt_section("handler", |t| handler(t, base)).flatten();
    if handler.as_ref().is_some_and(|h| h.fail == HandlerFail::Open) {
        t.error("handler", "a handler that answers can't `fail` open: there is nothing to go on with; remove it");
    }
    let api = t.opt("api", only_true);
    let health = t.opt("health", only_true);
    let redirect = t.opt_section("redirect", redirect).flatten();
    let respond = t.opt_section("respond", respond).flatten();
    one?;
    upstream
        .map(Target::Upstream)
        .or(handler.map(|handler| Target::Handler(Box::new(handler))))
        .or(api.map(|()| Target::Api))
        .or(health.map(|()| Target::Health))
        .or(redirect)
        .or(respond)
}

fn redirect(t: &Table<'_>) -> Option<Target> {
    let location = t.need(
        "location",
        text_with(|s| {
            let plain = s.bytes().all(|b| b.is_ascii_graphic());
            let known = s.starts_with('/') || s.starts_with("https://") || s.starts_with("http://");
            let wanted = "use an absolute path or URL in ASCII, such as `https://example.com/`";
            if plain && known { Ok(s.to_owned()) } else { Err(format!("`{s}` is not a location; {wanted}")) }
        }),
    );
    let statuses = [301u16, 302, 303, 307, 308];
    let status = t.get("status", 302, |v| {
        let status = int(0..=999)(v)?;
        if statuses.contains(&status) {
            return Ok(status);
        }
        Err(format!("`{status}` is not a redirect; use 301, 302, 303, 307 or 308"))
    });
    Some(Target::Redirect { location: location?, status })
}

fn respond(t: &Table<'_>) -> Option<Target> {
    let status = t.get("status", 200, int(200..=599));
    let body = t.get("body", String::new(), text);
    let headers = pairs(t, "headers", false);
    // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5.
    let no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    if !body.is_empty() && no_body.iter().any(|s| s.as_u16() == status) {
        t.error("body", format!("an answer with status `{status}` has no body; remove it"));
    }
    Some(Target::Respond { status, headers, body })
}

fn handler(t: &Table<'_>, base: &Path) -> Option<Handler> {
    let module = t.need("module", from_str::<ModuleRef>);
    let inline = t.opt("config", guest_text).map(String::into_bytes);
    // Else whoever may push could have any file of the machine handed to a guest.
    if t.doc.is_pushed {
        t.refuse("config_file", "files of a gateway are not for what is pushed: write the text in `config`");
    }
    let from_file = (!t.doc.is_pushed).then(|| t.opt("config_file", text_with(|s| handler_config(&base.join(s)))));
    let from_file = from_file.flatten();
    if inline.is_some() && from_file.is_some() {
        t.error("config_file", "`config` and `config_file` exclude each other; keep one");
    }
    let fail =
        t.get("fail", HandlerFail::Closed, choice(&[("closed", HandlerFail::Closed), ("open", HandlerFail::Open)]));
    let env = t.entries("env").into_iter().filter_map(|(name, item)| {
        if name.is_empty() || name.contains(['=', '\0']) {
            item.doc.error(&item.at, format!("`{name}` is not the name of a variable"));
        }
        let value = item.read(text_with(|s| match s.contains('\0') {
            false => Ok(s.to_owned()),
            true => Err("a variable may not hold a NUL character".into()),
        }))?;
        Some((name.to_owned(), value))
    });
    let env = env.collect();
    let wall = t.get("wall", secs(1), duration(millis(1)..=secs(3600)));
    let memory_bytes = t.get("memory", 64 * MIB, size(64 * KIB..=4 * GIB));
    let max_buffer_bytes = t.get("max_buffer", 4 * MIB, size(0..=GIB));
    let upstreams = t.list("upstreams", from_str::<Name>);
    for upstream in &upstreams {
        t.doc.refer(Kind::Upstream, upstream.as_str(), &t.at("upstreams"));
    }
    let proxy = proxy_wasm(t);
    let module = module?;
    let owner: Option<OwnerId> = module.owner.clone().or_else(|| OPERATOR.parse().ok());
    let config = inline.or(from_file).unwrap_or_default();
    Some(Handler { owner: owner?, module, config, fail, env, wall, memory_bytes, max_buffer_bytes, upstreams, proxy })
}

/// What is handed to guests as it is. Many take JSON, which TOML's tables look like.
fn guest_text(value: &DeValue<'_>) -> Result<String, String> {
    let hint =
        if matches!(value, DeValue::Table(_)) { "; write JSON in a string: '{\"realm\": \"shop\"}'" } else { "" };
    text(value).map_err(|message| message + hint)
}

fn proxy_wasm(t: &Table<'_>) -> ProxyWasm {
    let bytes = [("reject", HeaderBytes::Reject), ("drop", HeaderBytes::Drop), ("lossy", HeaderBytes::Lossy)];
    let defaults = ProxyWasm::default();
    ProxyWasm {
        plugin: t.opt("plugin", text),
        root_id: t.opt("root_id", text).unwrap_or(defaults.root_id),
        vm_id: t.opt("vm_id", text).unwrap_or(defaults.vm_id),
        vm_config: t.opt("vm_config", guest_text).map_or(defaults.vm_config, String::into_bytes),
        hold_headers: t.get("hold_headers", defaults.hold_headers, flag),
        strict: t.get("strict", defaults.strict, flag),
        header_bytes: t.get("header_bytes", defaults.header_bytes, choice(&bytes)),
        pause: t.get("pause", defaults.pause, duration(millis(1)..=secs(3600))),
    }
}

impl ProxyWasm {
    /// The keys that say something else than by default.
    pub fn set(&self) -> impl Iterator<Item = &'static str> {
        let ProxyWasm { plugin, root_id, vm_id, vm_config, hold_headers, strict, header_bytes, pause } = self;
        let usual = ProxyWasm::default();
        let keys = [
            ("plugin", *plugin != usual.plugin),
            ("root_id", *root_id != usual.root_id),
            ("vm_id", *vm_id != usual.vm_id),
            ("vm_config", *vm_config != usual.vm_config),
            ("hold_headers", *hold_headers != usual.hold_headers),
            ("strict", *strict != usual.strict),
            ("header_bytes", *header_bytes != usual.header_bytes),
            ("pause", *pause != usual.pause),
        ];
        keys.into_iter().filter(|(_, set)| *set).map(|(key, _)| key)
    }
}

/// Read here and not at start: it is configuration, and a reload takes it over with the rest or not at all.
fn handler_config(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_HANDLER_CONFIG + 1).read_to_end(&mut bytes));
    match read {
        Err(e) => Err(format!("`{}` can't be read: {e}", path.display())),
        Ok(n) if n as u64 > MAX_HANDLER_CONFIG => {
            Err(format!("`{}` is over the limit of {MAX_HANDLER_CONFIG} bytes", path.display()))
        }
        Ok(_) => Ok(bytes),
    }
}

/// Names of parameters do not tell paths apart. No literal has braces: they are encoded.
fn shape(segment: &Segment) -> Option<&str> {
    match segment {
        Segment::Literal(text) => Some(text),
        Segment::Param(_) => Some("{}"),
        Segment::Rest(_) => None,
    }
}

/// Two routes with one host, path and set of header matches are told apart by their methods alone, and of two that are
/// equal in that too the first takes all. See `gateway::routes` for the order.
fn report_unreachable(doc: &Doc, routes: &[(Route, At)]) {
    type Place<'r> = (Option<&'r HostPattern>, Vec<Option<&'r str>>, Vec<(&'r str, Option<&'r str>)>);
    let mut earlier: HashMap<Place<'_>, Vec<usize>> = HashMap::new();
    for (index, (route, at)) in routes.iter().enumerate() {
        if doc.failed(&format!("{}.match", at.key)) {
            continue;
        }
        let Match { hosts, path, methods, headers } = &route.matches;
        let mut headers: Vec<_> = headers.iter().map(|h| (h.name.as_str(), h.value.as_deref())).collect();
        headers.sort_unstable();
        let hosts: Vec<Option<&HostPattern>> =
            if hosts.is_empty() { vec![None] } else { hosts.iter().map(Some).collect() };
        for host in hosts {
            let place = (host, path.segments.iter().map(shape).collect(), headers.clone());
            let same = earlier.entry(place).or_default();
            let taken_by = same.iter().map(|i| &routes[*i]).find(|(other, _)| {
                let theirs = &other.matches.methods;
                theirs.is_empty() == methods.is_empty() && methods.iter().all(|m| theirs.contains(m))
            });
            if let Some((other, its)) = taken_by {
                let on = host.map(|h| format!(" on `{h}`")).unwrap_or_default();
                let message = format!(
                    "`{}` takes every request of this route{on} (`{}`, line {}); remove one or tell them apart",
                    other.name, its.key, its.line
                );
                doc.error(at, message);
                break;
            }
            same.push(index);
        }
    }
}
