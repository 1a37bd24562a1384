//! Which route a request takes. Pure: no proxy types, no I/O.
//!
//! The order, most specific first; at each step the next less specific one is tried when nothing below fits:
//! 1. **Host**: exact, then `*.suffix` (the longest first), then routes for every host.
//! 2. **Path**, segment by segment from the left: a literal, then `{param}`, then the end of a prefix or `{*rest}`. So a
//!    longer match wins over a shorter one, and an exact path over the prefix that ends where it does.
//! 3. **Headers**: more header matches first; of as many, more that ask for a value and not for presence alone.
//! 4. **Methods**: a route that names methods before one that does not.
//! 5. The order in the file.
//!
//! Invariant: the cost of a look-up grows with the path and the host, not with the number of routes. Each host has a
//! segment trie; a look-up visits a node at most once and goes no deeper than the longest pattern
//! (`config::pattern::MAX_SEGMENTS`). Only routes with the very same host and path are tried one after another.

use std::cmp::Reverse;
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
            let values = matches.headers.iter().filter(|h| h.value.is_some()).count();
            (Reverse((matches.headers.len(), values)), matches.methods.is_empty(), *i)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::domain::path::{normalize_host, normalize_path};

    /// Routes of these `match` lines, named by their place.
    fn compile(matches: &[&str]) -> (Vec<Route>, Routes) {
        let route = |(i, lines): (usize, &&str)| {
            format!("[[routes]]\nname = \"r{i}\"\ntarget.handler = {{ module = 'm' }}\n{lines}\n")
        };
        let text: String = matches.iter().enumerate().map(route).collect();
        let parsed = config::parse(&text, "t", std::path::Path::new("")).unwrap_or_else(|e| panic!("{e}"));
        let compiled = Routes::compile(&parsed.routes);
        (parsed.routes, compiled)
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    /// The index of the route, `None` for no match.
    fn find(routes: &Routes, method: &Method, host: &str, path: &str, with: &HeaderMap) -> Option<usize> {
        let (host, path) = (normalize_host(host).unwrap(), normalize_path(path).unwrap());
        match routes.find(&host, &path, method, with) {
            Found::Route { route, .. } => Some(route),
            Found::NoMatch => None,
            Found::MethodNotAllowed { allow } => panic!("405 {allow}"),
        }
    }

    fn get(routes: &Routes, host: &str, path: &str) -> Option<usize> {
        find(routes, &Method::GET, host, path, &HeaderMap::new())
    }

    #[test]
    fn the_more_exact_path_wins_whatever_the_order() {
        let (_, routes) = compile(&[
            "match.path_prefix = '/'",
            "match.path = '/a/{*rest}'",
            "match.path_prefix = '/a/b'",
            "match.path = '/a/{id}'",
            "match.path = '/a/b'",
            "match.path = '/a/b/'",
            "match.path = '/a/{id}/c/d'",
        ]);
        for (path, route) in [
            ("/", 0),
            ("/x/y/z", 0),
            ("/ab", 0),
            ("/A", 0),
            ("/a", 1),
            ("/a/", 1),
            ("/a/c/d", 1),
            ("/a/b", 4),
            ("/a/%62", 4),
            ("/a/b/", 5),
            ("/a/b/c", 2),
            ("/a/b/c/e", 2),
            ("/a/c", 3),
            // The literal `b` is tried first, and its prefix fits: leftmost segments decide.
            ("/a/b/c/d", 2),
            ("/a/x/c/d", 6),
            ("/a/a%2Fb", 3),
        ] {
            assert_eq!(get(&routes, "x", path), Some(route), "{path}");
        }
    }

    #[test]
    fn dead_ends_lead_back_to_less_specific_paths() {
        let (_, routes) = compile(&[
            "match.path = '/a/b/c'",
            "match.path = '/a/{x}/d'",
            "match.path = '/{x}/b/e'",
            "match.path = '/{x}/{y}/{*rest}'",
        ]);
        for (path, route) in [
            ("/a/b/c", Some(0)),
            ("/a/b/d", Some(1)),
            ("/a/b/e", Some(2)),
            ("/a/b/f", Some(3)),
            ("/a/b", Some(3)),
            ("/a", None),
            ("/a/", None),
        ] {
            assert_eq!(get(&routes, "x", path), route, "{path}");
        }
    }

    #[test]
    fn the_more_exact_host_wins_and_falls_back() {
        let (_, routes) = compile(&[
            "match.path = '/x'",
            "match.path_prefix = '/'\nmatch.hosts = ['*.example.com']",
            "match.path_prefix = '/'\nmatch.hosts = ['*.deep.example.com', '[::1]']",
            "match.path_prefix = '/only'\nmatch.hosts = ['www.example.com']",
        ]);
        for (host, path, route) in [
            ("www.example.com", "/only/a", Some(3)),
            ("WWW.Example.COM.:8080", "/only/a", Some(3)),
            ("www.example.com", "/x", Some(1)),
            ("a.b.example.com", "/x", Some(1)),
            ("a.deep.example.com", "/x", Some(2)),
            ("deep.example.com", "/x", Some(1)),
            ("example.com", "/x", Some(0)),
            ("notexample.com", "/x", Some(0)),
            ("[::1]:80", "/y", Some(2)),
            ("example.com", "/y", None),
        ] {
            assert_eq!(get(&routes, host, path), route, "{host}{path}");
        }
    }

    #[test]
    fn headers_then_methods_then_order_decide_between_equal_paths() {
        let (_, routes) = compile(&[
            "match.path = '/a'",
            "match.path = '/a'\nmatch.methods = ['POST']",
            "match.path = '/a'\nmatch.headers = { x-a = true }",
            "match.path = '/a'\nmatch.headers = { x-a = '1' }",
            "match.path = '/a'\nmatch.headers = { x-a = '1', x-b = true }",
            "match.path = '/a'\nmatch.methods = ['POST', 'PUT']",
        ]);
        let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
        for (method, with, route) in [
            (&get, headers(&[]), 0),
            (&post, headers(&[]), 1),
            (&put, headers(&[]), 5),
            (&get, headers(&[("x-a", "2")]), 2),
            (&post, headers(&[("x-a", "1")]), 3),
            (&get, headers(&[("x-a", "1"), ("x-b", "")]), 4),
            (&get, headers(&[("x-b", "1")]), 0),
        ] {
            assert_eq!(find(&routes, method, "x", "/a", &with), Some(route), "{method} {with:?}");
        }
        let mut twice = headers(&[("x-a", "0")]);
        twice.append("x-a", "1".parse().unwrap());
        assert_eq!(find(&routes, &get, "x", "/a", &twice), Some(3), "any field of the name may have the value");
    }

    #[test]
    fn a_method_that_does_not_fit_falls_back_before_it_is_refused() {
        let (_, routes) = compile(&[
            "match.path = '/a/b'\nmatch.methods = ['PUT', 'GET']",
            "match.path_prefix = '/a'\nmatch.methods = ['POST', 'GET']\nmatch.hosts = ['x']",
            "match.path_prefix = '/h'\nmatch.methods = ['GET']\nmatch.headers = { x-a = true }",
        ]);
        let none = HeaderMap::new();
        assert_eq!(find(&routes, &Method::POST, "x", "/a/b", &none), Some(1));
        assert_eq!(
            find(&routes, &Method::PUT, "x", "/a/b", &none),
            Some(0),
            "another host's route has the path but not the method"
        );
        let refused = |allow: &str| Found::MethodNotAllowed { allow: allow.into() };
        assert_eq!(routes.find("x", "/a/b", &Method::DELETE, &none), refused("GET, POST, PUT"));
        assert_eq!(routes.find("y", "/a/b", &Method::DELETE, &none), refused("GET, PUT"));
        assert_eq!(routes.find("y", "/h", &Method::POST, &none), Found::NoMatch, "without the header it is no match");
        assert_eq!(routes.find("y", "/h", &Method::POST, &headers(&[("x-a", "")])), refused("GET"));
    }

    #[test]
    fn parameters_are_slices_of_the_path() {
        let (_, routes) =
            compile(&["match.path = '/u/{id}/f/{*rest}'", "match.path = '/p/{a}/{b}'", "match.path = '/plain'"]);
        let params = |path: &'static str| match routes.find("x", path, &Method::GET, &HeaderMap::new()) {
            Found::Route { params, .. } => params.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>(),
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(params("/u/7/f/a/b/"), ["id=7", "rest=a/b/"]);
        assert_eq!(params("/u/a%2Fb/f/"), ["id=a%2Fb", "rest="]);
        assert_eq!(params("/u/7/f"), ["id=7", "rest="]);
        assert_eq!(params("/p/1/2"), ["a=1", "b=2"]);
        assert!(params("/plain").is_empty());
        assert_eq!(
            routes.find("x", "/p/1/", &Method::GET, &HeaderMap::new()),
            Found::NoMatch,
            "a parameter is not empty"
        );
    }

    #[test]
    fn rewrites() {
        let strip = |prefix: &str| Rewrite::StripPrefix(prefix.into());
        let replace = |from: &str, to: &str| Rewrite::ReplacePrefix { from: from.into(), to: to.into() };
        for (how, path, expected) in [
            (strip("/api"), "/api/x/y", "/x/y"),
            (strip("/api"), "/api/", "/"),
            (strip("/api"), "/api", "/"),
            (replace("/old", "/new/place"), "/old/x", "/new/place/x"),
            (replace("/old", "/new"), "/old", "/new"),
            (replace("/old", "/new"), "/old/", "/new/"),
            (replace("/old", ""), "/old", "/"),
            (replace("", "/v2"), "/x", "/v2/x"),
            (replace("", "/v2"), "/", "/v2/"),
        ] {
            assert_eq!(rewrite(&how, path, &Params::default()), expected, "{how:?} {path}");
        }
        let params = Params(vec![("id", "7"), ("rest", "a/b")]);
        let template = Rewrite::Path("/users/{id}/x-{rest}".into());
        assert_eq!(rewrite(&template, "/whatever", &params), "/users/7/x-a/b");
        assert_eq!(rewrite(&Rewrite::Path("/fixed".into()), "/", &Params::default()), "/fixed");
    }

    /// Whatever a checked rewrite makes of a canonical path is a canonical path.
    #[test]
    fn rewritten_paths_stay_canonical() {
        let (routes, compiled) = compile(&[
            "match.path_prefix = '/s'\nrewrite.strip_prefix = '/s/'",
            "match.path_prefix = '/r/x'\nrewrite.replace_prefix = { from = '/r', to = '/' }",
            "match.path = '/t/{id}/{*rest}'\nrewrite.path = '/a/{id}/{rest}'",
            "match.path = '/e/{*rest}'\nrewrite.path = '/{rest}'",
        ]);
        for path in ["/s", "/s/", "/s/a/", "/r/x", "/r/x/", "/t/1", "/t/1/", "/t/a%2Fb/c/d/", "/e", "/e/", "/e/x/"] {
            let Found::Route { route, params } = compiled.find("x", path, &Method::GET, &HeaderMap::new()) else {
                panic!("{path}")
            };
            let new = rewrite(routes[route].rewrite.as_ref().unwrap(), path, &params);
            assert!(matches!(normalize_path(&new), Ok(std::borrow::Cow::Borrowed(_))), "{path} -> {new}");
        }
    }

    /// The order of the module's documentation, computed from all routes by comparing whole patterns.
    fn reference(routes: &[Route], host: &str, path: &str, method: &Method) -> Option<usize> {
        let segments: Vec<&str> = path[1..].split('/').collect();
        let rank = |(index, route): (usize, &Route)| {
            let matches = &route.matches;
            let host_rank = if matches.hosts.is_empty() { Some(usize::MAX) } else { None };
            let by_host = matches.hosts.iter().filter_map(|pattern| match pattern {
                HostPattern::Exact(h) => (h == host).then_some(0),
                HostPattern::Suffix(s) => host.strip_suffix(s.as_str())?.ends_with('.').then_some(1000 - s.len()),
            });
            let host_rank = by_host.chain(host_rank).min()?;
            let mut path_rank = Vec::new();
            let mut ends = true;
            for (i, segment) in matches.path.segments.iter().enumerate() {
                let at = segments.get(i);
                path_rank.push(match segment {
                    Segment::Literal(text) => (at? == text).then_some(0)?,
                    Segment::Param(_) => (!at?.is_empty()).then_some(1)?,
                    Segment::Rest(_) => {
                        ends = false;
                        3
                    }
                });
            }
            if ends {
                path_rank.push((matches.path.segments.len() == segments.len()).then_some(2)?);
            }
            let fits = matches.methods.is_empty() || matches.methods.contains(method);
            fits.then_some((host_rank, path_rank, matches.methods.is_empty(), index))
        };
        routes.iter().enumerate().filter_map(rank).min().map(|(.., index)| index)
    }

    #[test]
    fn the_trie_agrees_with_comparing_every_route() {
        let mut random = 11u64;
        let mut next = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound
        };
        let hosts = ["", "match.hosts = ['a.b.c']", "match.hosts = ['*.b.c']", "match.hosts = ['*.c', 'x']"];
        let methods = ["", "match.methods = ['GET']", "match.methods = ['POST']"];
        let pieces = ["a", "b", "{p}", "{q}"];
        let (mut found, mut missed) = (0, 0);
        for _ in 0..60 {
            let mut seen = std::collections::HashSet::new();
            let mut lines = Vec::new();
            for _ in 0..40 {
                let mut path: String =
                    (0..=next(3)).map(|i| format!("/{}", pieces[next(4)].replace('}', &format!("{i}}}")))).collect();
                let key = if next(3) == 0 { "path_prefix" } else { "path" };
                if key == "path" && next(4) == 0 {
                    path.push('/');
                }
                let (host, method) = (hosts[next(4)], methods[next(3)]);
                let shape = path.replace(|c: char| c == 'p' || c == 'q' || c.is_ascii_digit(), "");
                if seen.insert((shape, key, host, method)) {
                    lines.push(format!("match.{key} = '{path}'\n{host}\n{method}"));
                }
            }
            let (routes, compiled) = compile(&lines.iter().map(String::as_str).collect::<Vec<_>>());
            for _ in 0..300 {
                let mut path: String = (0..=next(4)).map(|_| format!("/{}", ["a", "b", "z"][next(3)])).collect();
                if next(5) == 0 {
                    path.push('/');
                }
                let host = ["a.b.c", "z.b.c", "z.c", "x", "y"][next(5)];
                let method = [Method::GET, Method::POST, Method::PUT][next(3)].clone();
                let got = match compiled.find(host, &path, &method, &HeaderMap::new()) {
                    Found::Route { route, .. } => Some(route),
                    _ => None,
                };
                let expected = reference(&routes, host, &path, &method);
                assert_eq!(got, expected, "{method} {host}{path} in {lines:#?}");
                if got.is_some() { found += 1 } else { missed += 1 }
            }
        }
        assert!(found > 5_000 && missed > 1_000, "{found} {missed}");
    }

    #[test]
    fn very_long_paths_cost_no_stack() {
        let (_, routes) = compile(&["match.path = '/a/{*rest}'", "match.path = '/{x}/a/a/a/a/a/a/a'"]);
        assert_eq!(get(&routes, "x", &"/a".repeat(16_000)), Some(0));
    }
}
