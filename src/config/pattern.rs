//! Host and path patterns: their syntax, and nothing about how they are matched.
//!
//! Invariant: literals are kept in the canonical form of `domain::path`, so a pattern is compared byte by byte.

use std::fmt;
use std::str::FromStr;

use super::{HostPattern, PathPattern, Segment};
use crate::domain::path::{normalize_host, normalize_path};

/// Bound of a pattern, and thereby of the depth of route matching.
pub const MAX_SEGMENTS: usize = 64;

impl PathPattern {
    /// `/api/{id}/files/{*rest}`: `{name}` is one segment that is not empty, `{*name}` all that follows, also nothing.
    /// A trailing slash counts.
    pub fn exact(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err(format!("`{text}` is not a path; it begins with `/`"));
        };
        let mut segments = Vec::new();
        for part in inner.split('/') {
            if matches!(segments.last(), Some(Segment::Rest(_))) {
                return Err(format!("`{text}`: `{{*name}}` takes all that follows; put it last"));
            }
            segments.push(segment(part, text)?);
        }
        let mut names: Vec<&str> = segments.iter().filter_map(Segment::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("`{text}` names `{{{}}}` twice", twice[0]));
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(format!("`{text}` has more than {MAX_SEGMENTS} segments"));
        }
        // Empty segments but a last one are in no canonical path.
        if segments.iter().rev().skip(1).any(|s| *s == Segment::Literal(String::new())) {
            return Err(format!("`{text}` has an empty segment; requests with `//` are refused"));
        }
        Ok(Self { segments })
    }

    /// The path itself and all below it, by segments: `/api` covers `/api`, `/api/` and `/api/x`, but not `/apix`.
    pub fn prefix(text: &str) -> Result<Self, String> {
        let mut pattern = Self::exact(text)?;
        if matches!(pattern.segments.last(), Some(Segment::Rest(_))) {
            return Err(format!("`{text}`: a prefix has no `{{*name}}`; use `path`"));
        }
        if pattern.segments.last() == Some(&Segment::Literal(String::new())) {
            pattern.segments.pop();
        }
        pattern.segments.push(Segment::Rest(None));
        Ok(pattern)
    }

    pub fn is_prefix(&self) -> bool {
        matches!(self.segments.last(), Some(Segment::Rest(None)))
    }

    /// The names of its parameters, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// The leading literals as a path without trailing slash; empty when it begins with a parameter.
    pub fn literal_prefix(&self) -> String {
        let literals = self.segments.iter().map_while(|s| match s {
            Segment::Literal(text) if !text.is_empty() => Some(text.as_str()),
            _ => None,
        });
        literals.fold(String::new(), |path, text| path + "/" + text)
    }
}

/// Every path, so that a `Match::default()` matches every request.
impl Default for PathPattern {
    fn default() -> Self {
        Self { segments: vec![Segment::Rest(None)] }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Param(name) => write!(f, "/{{{name}}}")?,
                Segment::Rest(Some(name)) => write!(f, "/{{*{name}}}")?,
                Segment::Rest(None) => f.write_str("/*")?,
            }
        }
        Ok(())
    }
}

impl Segment {
    pub fn name(&self) -> Option<&str> {
        match self {
            Segment::Param(name) | Segment::Rest(Some(name)) => Some(name),
            Segment::Literal(_) | Segment::Rest(None) => None,
        }
    }
}

fn segment(part: &str, whole: &str) -> Result<Segment, String> {
    if let Some(inner) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
        let (name, rest) = inner.strip_prefix('*').map_or((inner, false), |name| (name, true));
        let ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !ok {
            return Err(format!("`{whole}`: `{part}` is not a parameter; use `{{name}}` of letters, digits and `_`"));
        }
        return Ok(if rest { Segment::Rest(Some(name.into())) } else { Segment::Param(name.into()) });
    }
    if part.contains(['{', '}']) {
        return Err(format!("`{whole}`: a parameter takes a whole segment, such as `/{{name}}/`"));
    }
    // The habits of other routers; as literals they would match nothing anybody sends.
    if part == "*" || part == "**" {
        return Err(format!(
            "`{whole}`: `{part}` is not a wildcard here; use `{{name}}`, `{{*name}}` or `path_prefix`"
        ));
    }
    if let Some(name) = part.strip_prefix(':') {
        return Err(format!("`{whole}`: write the parameter `:{name}` as `{{{name}}}`"));
    }
    if part.contains(['?', '#']) {
        return Err(format!("`{whole}`: a path has no query and no fragment; requests are matched without"));
    }
    match normalize_path(&format!("/{part}")) {
        Ok(path) => Ok(Segment::Literal(path[1..].to_owned())),
        Err(_) => Err(format!("`{whole}`: requests with the segment `{part}` are refused as ambiguous")),
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "*" {
            return Err("`*` is not a host; leave `hosts` out to match every host".into());
        }
        let (name, suffix) = s.strip_prefix("*.").map_or((s, false), |name| (name, true));
        if name.contains('*') {
            return Err(format!("`{s}` is not a host; `*.` stands in front only, such as `*.example.com`"));
        }
        let host = normalize_host(name)
            .map_err(|_| format!("`{s}` is not a host; use `example.com`, `*.example.com` or an address"))?;
        let has_port = !name.starts_with('[') && name.contains(':') || name.contains("]:");
        if has_port {
            return Err(format!("`{s}` has a port; hosts are matched without, use `{host}`"));
        }
        let host = host.into_owned();
        Ok(if suffix { HostPattern::Suffix(host) } else { HostPattern::Exact(host) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Suffix(host) => write!(f, "*.{host}"),
        }
    }
}
