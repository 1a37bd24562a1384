//! Which route a request takes. Pure: no proxy types, no I/O.
//!
//! The order, most specific first; at each step the next less specific one is tried when nothing below fits:
//! 1. **Host**: exact, then `*.suffix` (the longest first), then routes for every host.
//! 2. **Path**, segment by segment from the left: a literal, then `{param}`, then the end of a prefix or `{*rest}`. So a
//!    longer match wins over a shorter one, and an exact path over the prefix that ends where it does.
//! 3. **Headers**: more header matches first.
//! 4. **Methods**: a route that names methods before one that does not.
//! 5. The order in the file.
//!
//! Invariant: the cost of a look-up grows with the path and the host, not with the number of routes. Each host has a
//! segment trie; a look-up visits a node at most once and goes no deeper than the longest pattern
//! (`config::pattern::MAX_SEGMENTS`). Only routes with the very same host and path are tried one after another.

use std::collections::{BTreeSet, HashMap};

use http::{HeaderMap, Method};

use crate::config::{HeaderMatch, HostPattern, PathPattern, Rewrite, Route, Segment};

/// The matcher over all routes of a configuration, in the order of the file.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Compiled>,
    exact: HashMap<String, Node>,
    /// By what follows `*.`.
    suffix: HashMap<String, Node>,
    any: Node,
}

/// What of a route its look-up needs.
#[derive(Debug)]
struct Compiled {
    path: PathPattern,
    has_params: bool,
    methods: Vec<Method>,
    headers: Vec<HeaderMatch>,
}

/// A place in the trie: the segments so far. Lists hold route indices, most specific first.
#[derive(Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    param: Option<Box<Node>>,
    /// Patterns that end here.
    ends: Vec<usize>,
    /// Patterns whose last segment takes all that follows, also nothing.
    rests: Vec<usize>,
}

#[derive(Debug, PartialEq)]
pub enum Found<'p> {
    Route {
        /// Index in the configuration's routes.
        route: usize,
        params: Params<'p>,
    },
    /// Host, path and headers fit a route, the method fits none: 405. `allow` is the value of `Allow`.
    MethodNotAllowed {
        allow: String,
    },
    NoMatch,
}

/// What the route's `{name}` segments matched. Values are as in the canonical path: reserved characters stay encoded.
#[derive(Debug, Default, PartialEq)]
pub struct Params<'p>(Vec<(&'p str, &'p str)>);

impl<'p> Params<'p> {
    pub fn get(&self, name: &str) -> Option<&'p str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// In the order of the pattern.
    pub fn iter(&self) -> impl Iterator<Item = (&'p str, &'p str)> {
        self.0.iter().copied()
    }
}

impl Routes {
    pub fn compile(routes: &[Route]) -> Self {
        let compiled = routes.iter().map(|route| Compiled {
            path: route.matches.path.clone(),
            has_params: route.matches.path.names().next().is_some(),
            methods: route.matches.methods.clone(),
            headers: route.matches.headers.clone(),
        });
        let mut all =
            Self { routes: compiled.collect(), exact: HashMap::new(), suffix: HashMap::new(), any: Node::default() };
        // In order of precedence at equal host and path, so that every list comes out sorted.
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_key(|i| {
            let matches = &routes[*i].matches;
            (std::cmp::Reverse(matches.headers.len()), matches.methods.is_empty(), *i)
        });
        for index in order {
            let matches = &routes[index].matches;
            if matches.hosts.is_empty() {
                all.any.insert(&matches.path.segments, index);
            }
            for host in &matches.hosts {
                let trie = match host {
                    HostPattern::Exact(host) => all.exact.entry(host.clone()).or_default(),
                    HostPattern::Suffix(host) => all.suffix.entry(host.clone()).or_default(),
                };
                trie.insert(&matches.path.segments, index);
            }
        }
        all
    }

    /// `host` and `path` in the form that `domain::path` gives them. Allocates for parameters and for a 405 only.
    pub fn find<'p>(&'p self, host: &str, path: &'p str, method: &Method, headers: &HeaderMap) -> Found<'p> {
        let mut query = Query { routes: &self.routes, method, headers, refused: Vec::new() };
        let found = self.tries(host).find_map(|trie| trie.find(path.strip_prefix('/'), &mut query));
        match found {
            Some(route) => Found::Route { route, params: self.params(route, path) },
            None if query.refused.is_empty() => Found::NoMatch,
            None => Found::MethodNotAllowed { allow: self.allowed(&query.refused) },
        }
    }

    /// The tries that may have a route for the host, most specific first.
    fn tries<'s>(&'s self, host: &'s str) -> impl Iterator<Item = &'s Node> {
        let mut rest = if self.suffix.is_empty() { None } else { Some(host) };
        let suffixes = std::iter::from_fn(move || {
            let (_, parent) = rest?.split_once('.')?;
            rest = Some(parent);
            Some(parent)
        });
        let suffixes = suffixes.filter_map(|parent| self.suffix.get(parent));
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        exact.into_iter().chain(suffixes).chain([&self.any])
    }

    fn params<'p>(&'p self, route: usize, path: &'p str) -> Params<'p> {
        let route = &self.routes[route];
        if !route.has_params {
            return Params::default();
        }
        let mut rest = path.strip_prefix('/');
        let mut params = Vec::with_capacity(route.path.segments.len());
        for segment in &route.path.segments {
            match segment {
                Segment::Rest(Some(name)) => params.push((name.as_str(), rest.unwrap_or_default())),
                Segment::Rest(None) => {}
                Segment::Literal(_) => rest = rest.and_then(|r| split_segment(r).1),
                Segment::Param(name) => {
                    let (value, behind) = rest.map(split_segment).unwrap_or_default();
                    params.push((name.as_str(), value));
                    rest = behind;
                }
            }
        }
        Params(params)
    }

    /// RFC 9110 section 10.2.1.
    fn allowed(&self, refused: &[usize]) -> String {
        let methods: BTreeSet<&str> =
            refused.iter().flat_map(|i| &self.routes[*i].methods).map(Method::as_str).collect();
        methods.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// The first segment, and what follows the slash behind it.
fn split_segment(rest: &str) -> (&str, Option<&str>) {
    match rest.split_once('/') {
        Some((segment, behind)) => (segment, Some(behind)),
        None => (rest, None),
    }
}

struct Query<'q> {
    routes: &'q [Compiled],
    method: &'q Method,
    headers: &'q HeaderMap,
    /// Routes that fit but for the method.
    refused: Vec<usize>,
}

impl Query<'_> {
    fn first_fit(&mut self, candidates: &[usize]) -> Option<usize> {
        for index in candidates {
            let route = &self.routes[*index];
            if !route.headers.iter().all(|wanted| has_header(self.headers, wanted)) {
                continue;
            }
            if route.methods.is_empty() || route.methods.contains(self.method) {
                return Some(*index);
            }
            self.refused.push(*index);
        }
        None
    }
}

/// Any of several fields of the name may have the value.
fn has_header(headers: &HeaderMap, wanted: &HeaderMatch) -> bool {
    match &wanted.value {
        None => headers.contains_key(&wanted.name),
        Some(value) => headers.get_all(&wanted.name).iter().any(|v| v.as_bytes() == value.as_bytes()),
    }
}

impl Node {
    fn insert(&mut self, segments: &[Segment], index: usize) {
        let mut node = self;
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::Param(_) => node.param.get_or_insert_default(),
                Segment::Rest(_) => return node.rests.push(index),
            };
        }
        node.ends.push(index);
    }

    /// `rest` is what follows the slash behind this node's segments; `None` at the end of the path. Recursion is bounded
    /// by the longest pattern.
    fn find(&self, rest: Option<&str>, query: &mut Query<'_>) -> Option<usize> {
        match rest {
            None => query.first_fit(&self.ends),
            Some(rest) => {
                let (segment, behind) = split_segment(rest);
                let literal = self.literals.get(segment).and_then(|node| node.find(behind, query));
                literal.or_else(|| match &self.param {
                    Some(node) if !segment.is_empty() => node.find(behind, query),
                    _ => None,
                })
            }
        }
        .or_else(|| query.first_fit(&self.rests))
    }
}

/// The path that the upstream or handler gets. What the rewrite names is in the path by its check and by the match.
pub fn rewrite(rewrite: &Rewrite, path: &str, params: &Params<'_>) -> String {
    match rewrite {
        Rewrite::StripPrefix(prefix) => replace_prefix(prefix, "", path),
        Rewrite::ReplacePrefix { from, to } => replace_prefix(from, to, path),
        Rewrite::Path(template) => fill(template, params),
    }
}

fn replace_prefix(from: &str, to: &str, path: &str) -> String {
    let rest = path.strip_prefix(from).unwrap_or(path);
    match (to, rest) {
        ("", "") => "/".to_owned(),
        // `/v2` for a route's own path, `/v2/` for the root with its slash: the slash is the client's.
        _ => [to, rest].concat(),
    }
}

fn fill(template: &str, params: &Params<'_>) -> String {
    let mut path = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some((literal, behind)) = rest.split_once('{') {
        path.push_str(literal);
        let (name, behind) = behind.split_once('}').unwrap_or((behind, ""));
        path.push_str(params.get(name).unwrap_or_default());
        rest = behind;
    }
    path.push_str(rest);
    path
}
