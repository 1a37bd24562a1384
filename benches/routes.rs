//! Route look-up: its cost must not grow with the number of routes (10,000 within 2x of 10).

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use wasmgate::config;
use wasmgate::domain::path::{normalize_host, normalize_path};
use wasmgate::gateway::routes::{Found, Routes};

/// A tenth of the routes each on a host of its own, on paths with parameters, and as prefixes; the rest are exact.
fn routes(n: usize) -> Routes {
    let one = |i: usize| {
        let matches = match i % 10 {
            0 => format!("match.hosts = ['h{i}.example.com']\nmatch.path_prefix = '/'"),
            1 => format!("match.path = '/users/{{id}}/things{i}/{{thing}}'"),
            2 => format!("match.path_prefix = '/prefix/p{i}'"),
            _ => format!("match.path = '/api/v1/service{i}/list'"),
        };
        format!("[[routes]]\nname = 'r{i}'\ntarget.health = true\n{matches}\n")
    };
    let text: String = (0..n).map(one).collect();
    let parsed = config::parse(&text, "bench", Path::new("")).unwrap_or_else(|e| panic!("{e}"));
    Routes::compile(&parsed.routes)
}

fn look_up(c: &mut Criterion) {
    let headers = HeaderMap::new();
    let mut group = c.benchmark_group("routes");
    for n in [10, 100, 10_000] {
        let routes = routes(n);
        // The last of each kind.
        let [host, param, prefix, exact] = [10, 9, 8, 1].map(|back| n - back);
        let cases = [
            ("exact", "www.example.com".into(), format!("/api/v1/service{exact}/list"), true),
            ("param", "www.example.com".into(), format!("/users/4711/things{param}/9"), true),
            ("prefix", "www.example.com".into(), format!("/prefix/p{prefix}/a/b/c"), true),
            ("host", format!("h{host}.example.com"), "/index.html".into(), true),
            ("miss", "www.example.com".into(), "/api/v1/none/list".into(), false),
        ];
        for (name, host, path, hit) in cases {
            let found = routes.find(&host, &path, &Method::GET, &headers);
            assert_eq!(matches!(found, Found::Route { .. }), hit, "{name}: {found:?}");
            group.bench_function(format!("{name}/{n}"), |b| {
                b.iter(|| routes.find(black_box(&host), black_box(&path), &Method::GET, &headers));
            });
        }
    }
    group.finish();
}

fn normalize(c: &mut Criterion) {
    let mut group = c.benchmark_group("normalize");
    for (name, path) in [("plain", "/api/v1/users/4711/things"), ("encoded", "/api/v1/%75sers/a%2fb/things")] {
        group.bench_function(format!("path/{name}"), |b| b.iter(|| normalize_path(black_box(path))));
    }
    group.bench_function("host", |b| b.iter(|| normalize_host(black_box("www.example.com:8080"))));
    group.finish();
}

criterion_group!(benches, look_up, normalize);
criterion_main!(benches);
