//! What a route changes in a message: its path and its headers.
//!
//! Invariant: no edit changes how a message is framed, and a rewritten canonical path is a canonical path.

use http::header::{self, HeaderName, HeaderValue};
use toml::de::DeValue;

use super::raw::{Item, Table};
use super::units::text_with;
use super::{HeaderEdits, PathPattern, Rewrite, Segment};

/// `pattern` is `None` when the route's own could not be read: then only the syntax is checked.
pub fn rewrite(t: &Table<'_>, pattern: Option<&PathPattern>) -> Option<Rewrite> {
    let one = t.exactly_one(&["strip_prefix", "replace_prefix", "path"]);
    let strip = t.opt("strip_prefix", text_with(|s| prefix_of(s, pattern)));
    if strip.as_deref() == Some("") {
        t.error("strip_prefix", "`/` strips nothing; remove it");
    }
    let replace = t
        .opt_section("replace_prefix", |t| {
            let from = t.need("from", text_with(|s| prefix_of(s, pattern)));
            let to = t.need("to", text_with(literal_path));
            Some(Rewrite::ReplacePrefix { from: from?, to: to? })
        })
        .flatten();
    let path = t.opt("path", text_with(|s| path_template(s, pattern))).map(Rewrite::Path);
    one?;
    strip.map(Rewrite::StripPrefix).or(replace).or(path)
}

/// A path without parameters, without its trailing slash.
fn literal_path(s: &str) -> Result<String, String> {
    let pattern = PathPattern::exact(s)?;
    if pattern.segments.iter().any(|s| !matches!(s, Segment::Literal(_))) {
        return Err(format!("`{s}`: a prefix to put in place has no parameters; use `path`"));
    }
    Ok(pattern.literal_prefix())
}

/// A path that everything the pattern matches begins with.
fn prefix_of(s: &str, pattern: Option<&PathPattern>) -> Result<String, String> {
    let prefix = literal_path(s)?;
    let Some(pattern) = pattern else { return Ok(prefix) };
    let literal = pattern.literal_prefix();
    match literal.strip_prefix(&prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(prefix),
        _ if literal.is_empty() => Err(format!("`{s}` is not what all paths of `{pattern}` begin with; use `/`")),
        _ => Err(format!("`{s}` is not what the paths of `{pattern}` begin with; use `{literal}` or less of it")),
    }
}

fn path_template(s: &str, pattern: Option<&PathPattern>) -> Result<String, String> {
    let template = PathPattern::exact(s)?;
    let Some(pattern) = pattern else { return Ok(template.to_string()) };
    let last = template.segments.len() - 1;
    for (i, segment) in template.segments.iter().enumerate() {
        let name = match segment {
            Segment::Literal(_) => continue,
            Segment::Rest(_) => return Err(format!("`{s}`: write `{{name}}`, also for a parameter `{{*name}}`")),
            Segment::Param(name) => name,
        };
        match pattern.segments.iter().find(|p| p.name() == Some(name)) {
            None => return Err(format!("`{s}`: `{pattern}` has no parameter `{{{name}}}`")),
            // It can be empty or end in a slash, which would make an empty segment here.
            Some(Segment::Rest(_)) if i != last => {
                return Err(format!("`{s}`: `{{{name}}}` stands for several segments; put it last"));
            }
            Some(_) => {}
        }
    }
    Ok(template.to_string())
}

/// Headers that decide about the connection or the framing of a message (RFC 9110 section 7.6.1, RFC 9112 section 6).
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

pub fn header_name(s: &str) -> Result<HeaderName, String> {
    s.parse().map_err(|_| format!("`{s}` is not a header name"))
}

fn editable(s: &str, host_allowed: bool) -> Result<HeaderName, String> {
    let name = header_name(s)?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!("`{name}` belongs to the connection or the framing, which the gateway decides; remove it"));
    }
    if name == header::HOST && !host_allowed {
        return Err("`host` can only be set, in `request_headers.set`".into());
    }
    Ok(name)
}

pub fn edits(t: &Table<'_>, is_request: bool) -> HeaderEdits {
    HeaderEdits {
        remove: t.list("remove", text_with(|s| editable(s, false))),
        set: pairs(t, "set", is_request),
        add: pairs(t, "add", false),
    }
}

/// A table of header fields; a list of values stands for several fields of one name.
pub fn pairs(t: &Table<'_>, key: &'static str, host_allowed: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = Vec::new();
    for (name, item) in t.entries(key) {
        let Ok(name) = editable(name, host_allowed).map_err(|e| item.doc.error(&item.at, e)) else { continue };
        let mut field = |item: &Item<'_>| fields.extend(item.read(text_with(header_value)).map(|v| (name.clone(), v)));
        match item.value {
            DeValue::Array(_) if key != "set" => item.elements().iter().for_each(field),
            _ => field(&item),
        }
    }
    fields
}

fn header_value(s: &str) -> Result<HeaderValue, String> {
    // Field values have no leading or trailing whitespace (RFC 9110 section 5.5); receivers would drop it.
    let ok = s.trim() == s && s.is_ascii();
    let value = HeaderValue::from_str(s).ok().filter(|_| ok);
    value.ok_or_else(|| {
        format!("`{}` is not a header value; use visible ASCII without spaces around it", s.escape_debug())
    })
}
