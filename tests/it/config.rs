//! The configuration file: golden errors for the mistakes people make, defaults, precedence, and that the documented
//! file documents everything.
//!
//! `BLESS=1 cargo test --test it config` writes the `.err` files anew; read the diff.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wasmgate::config::store::OnStart;
use wasmgate::config::{self, AuthMode, Balance, Config, HashOn, HostPattern, SecretSource, Target, UpstreamHttp};
use wasmgate::domain::{Scope, ScopeSet, Tier, Window};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parse(text: &str) -> Config {
    config::parse(text, "test.toml", Path::new("/etc/wasmgate")).unwrap_or_else(|e| panic!("{e}"))
}

fn errors(text: &str) -> String {
    match config::parse(text, "test.toml", Path::new("/etc/wasmgate")) {
        Ok(_) => panic!("this should be refused:\n{text}"),
        Err(e) => e.to_string(),
    }
}

fn route(lines: &str) -> config::Route {
    let text = format!("[[routes]]\nname = \"r\"\n{lines}");
    parse(&text).routes.swap_remove(0)
}

#[test]
fn every_mistake_is_reported_with_its_place_and_a_way_out() {
    let dir = root().join("tests/it/data/config/invalid");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let got = match config::parse(&text, name, Path::new("")) {
            Ok(_) => panic!("`{name}` should be refused"),
            Err(e) => format!("{e}\n"),
        };
        let golden = file.with_extension("err");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &got).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if got != expected {
            wrong.push(format!("--- {}: expected\n{expected}--- got\n{got}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn secrets_in_the_file_are_refused_and_not_repeated() {
    let shown = errors("[auth]\npepper = \"hunter2hunter2\"\n[admin]\ntoken = \"hunter2hunter2\"\n");
    assert!(shown.contains("pepper_file") && shown.contains("token_file"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn two_listeners_cannot_share_an_address() {
    let shown = errors("server.listeners = [{ address = \"127.0.0.1:9090\" }]");
    let wanted =
        "admin.address: `127.0.0.1:9090` is already a listening address: `server.listeners[0].address` in line 1";
    assert!(shown.contains(wanted), "{shown}");
    let shown = errors("admin.address = \"127.0.0.1:8080\"");
    let wanted = "`127.0.0.1:8080` is already a listening address: `server.listeners` by default";
    assert!(shown.contains(wanted), "{shown}");
    parse("server.listeners = [{ address = \"127.0.0.1:0\" }, { address = \"127.0.0.1:0\" }]");
}

#[test]
fn a_file_on_one_line_means_the_same() {
    let c =
        parse("routes = [{ name = \"r\", auth = \"none\", match = { path = \"/x\" }, target = { health = true } }]");
    assert!(matches!(c.routes[0].target, Target::Health));
    let shown = errors("upstreams = [{ name = \"u\", endpoints = [\"a:1\"], http = \"auto\" }]");
    assert!(shown.contains("test.toml:1: upstreams[0].http: `auto` needs `tls`"), "{shown}");
    parse("admin = { address = \"0.0.0.0:1\", tls = { cert_file = \"c\", key_file = \"k\" } }");
}

#[test]
fn numbers_are_written_as_toml_has_them() {
    let c = parse("server.max_connections = 1_000\nserver.max_header_fields = 0x20\nserver.max_header = 4_096\n");
    assert_eq!((c.server.max_connections, c.server.max_header_fields, c.server.max_header_bytes), (1000, 32, 4096));
}

/// Whatever a file holds, reading it ends in a configuration or in errors about lines that it has.
#[test]
fn no_file_makes_the_reader_panic() {
    let text = uncommented();
    let pieces =
        ["", "=", "[", "]]", "\"", "\n", "{", "'''", "\u{e9}", "-1", "[[routes]]\n", "target", ".", "0", "true"];
    let mut random = 7u64;
    let mut next = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    for _ in 0..1_000 {
        let mut broken: Vec<char> = text.chars().collect();
        for _ in 0..=next(3) {
            let at = next(broken.len());
            let cut = next(20).min(broken.len() - at);
            broken.splice(at..at + cut, pieces[next(pieces.len())].chars());
        }
        let broken: String = broken.into_iter().collect();
        if let Err(e) = config::parse(&broken, "broken.toml", Path::new("/c")) {
            let lines = broken.matches('\n').count() + 1;
            assert!(!e.errors.is_empty() && e.errors.iter().all(|e| e.line <= lines), "{e}");
            assert_eq!(e.to_string().lines().count(), e.errors.len(), "one line an error: {e}");
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let error = config::load_file(Path::new("no/such/wasmgate.toml"), config::files::unseen).unwrap_err();
    assert!(error.to_string().starts_with("no/such/wasmgate.toml: the configuration can't be read"), "{error}");
    assert!(config::load_file(&std::env::temp_dir(), config::files::unseen).is_err(), "a folder is no file");
}

#[test]
fn an_empty_file_is_a_safe_gateway() {
    let c = parse("");
    assert_eq!(c.server.listeners.len(), 1);
    assert_eq!(c.server.listeners[0].address, "127.0.0.1:8080".parse::<std::net::SocketAddr>().unwrap());
    assert!(c.server.listeners[0].tls.is_none() && !c.server.listeners[0].h2c);
    assert_eq!(c.admin.address, "127.0.0.1:9090".parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(c.server.header_timeout, Duration::from_secs(10));
    assert_eq!((c.server.max_header_bytes, c.server.max_header_fields), (32 << 10, 100));
    assert_eq!(c.data_dir, Path::new("/etc/wasmgate/data"));
    assert_eq!(c.admin.token_file, Path::new("/etc/wasmgate/data/admin.token"));
    assert_eq!(c.auth.pepper, SecretSource::Generated("pepper"));
    assert_eq!((c.auth.key_fresh, c.auth.key_max_stale), (Duration::from_secs(30), Duration::from_secs(60)));
    assert_eq!(c.auth.absent_ttl, Duration::from_secs(5));
    assert_eq!(c.tiers, Tier::defaults());
    assert!(c.upstreams.is_empty() && c.routes.is_empty());
}

#[test]
fn relative_paths_are_taken_from_the_folder_of_the_file() {
    let c = parse(
        "data_dir = \"/var/lib/wasmgate\"\n\
         server.listeners = [{ address = \"[::]:0\", tls = { cert_file = \"cert.pem\", key_file = \"../key.pem\" } }]\n\
         auth.pepper_file = \"pepper\"\n",
    );
    let tls = c.server.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.cert_file, Path::new("/etc/wasmgate/cert.pem"));
    assert_eq!(tls.key_file, Path::new("/etc/wasmgate/../key.pem"));
    assert_eq!(c.auth.pepper, SecretSource::File("/etc/wasmgate/pepper".into()));
    assert_eq!(c.admin.token_file, Path::new("/var/lib/wasmgate/admin.token"), "it follows `data_dir`");
    assert_eq!(parse("auth.pepper_env = \"P\"").auth.pepper, SecretSource::Env("P".into()));
}

#[test]
fn an_admin_listener_in_the_open_needs_tls() {
    for address in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:0"] {
        let shown = errors(&format!("admin.address = \"{address}\""));
        assert!(shown.contains("admin.address") && shown.contains("`admin.tls`"), "{shown}");
        parse(&format!("[admin]\naddress = \"{address}\"\ntls = {{ cert_file = \"c\", key_file = \"k\" }}"));
    }
    for address in ["127.0.0.2:9090", "[::1]:9090", "[::ffff:127.0.0.1]:9090"] {
        parse(&format!("admin.address = \"{address}\""));
    }
}

#[test]
fn keys_are_required_unless_a_route_says_otherwise() {
    let proxy: ScopeSet = [Scope::Proxy].into_iter().collect();
    let r = route("target.health = true");
    assert_eq!((r.auth, r.scopes, r.limited), (AuthMode::Key, proxy, true));
    let r = route("match.path_prefix = \"/api\"\ntarget.api = true");
    assert_eq!((r.auth, r.scopes, r.limited), (AuthMode::Key, ScopeSet::default(), true), "the API checks by endpoint");
    let r = route("target.health = true\nauth = \"optional\"");
    assert_eq!((r.auth, r.scopes, r.limited), (AuthMode::Optional, ScopeSet::default(), true));
    let r = route("target.health = true\nauth = \"none\"");
    assert_eq!((r.auth, r.scopes, r.limited), (AuthMode::None, ScopeSet::default(), false));
    let r = route("target.health = true\nscopes = []\nlimited = false");
    assert_eq!((r.scopes, r.limited), (ScopeSet::default(), false));
    let r = route("target.health = true\nscopes = [\"proxy\", \"usage\"]\ntier = \"pro\"");
    assert_eq!(r.scopes, [Scope::Proxy, Scope::Usage].into_iter().collect());
    assert_eq!(r.tier.unwrap().as_str(), "pro");
}

#[test]
fn a_tier_changes_what_it_says_and_keeps_the_rest() {
    let c = parse(
        "[tiers.pro]\nquotas = [{ name = \"hour\", requests = 7, window = \"1h\" }]\nlimits.wall = \"2s\"\n\
         [tiers.gold]\nrank = 10\nconcurrent = 50\n[tiers.enterprise]\nquotas = []\n",
    );
    let tier = |name: &str| c.tiers.iter().find(|t| t.name.as_str() == name).unwrap();
    let default = |name: &str| Tier::defaults().into_iter().find(|t| t.name.as_str() == name).unwrap();
    let mut pro = default("pro");
    pro.limits.wall_ms = Duration::from_secs(2);
    pro.quotas.truncate(1);
    pro.quotas[0].name = "hour".parse().unwrap();
    (pro.quotas[0].requests, pro.quotas[0].window, pro.quotas[0].burst) = (7, Window::Hour, None);
    assert_eq!(*tier("pro"), pro);
    assert_eq!(*tier("basic"), default("basic"));
    let gold = tier("gold");
    assert_eq!((gold.rank, gold.concurrent, &gold.limits), (10, 50, &default("free").limits));
    assert_eq!(c.tiers.len(), 6);
    assert!(errors("[tiers.gold]\n").contains("`rank` is missing"));
}

#[test]
fn upstreams_take_their_defaults_from_what_they_are() {
    let up = |lines: &str| {
        let text = format!(
            "[[upstreams]]\nname = \"u\"\nendpoints = [\"a:80\", {{ address = \"[::1]:81\", weight = 3 }}]\n{lines}"
        );
        parse(&text).upstreams.swap_remove(0)
    };
    let u = up("");
    assert_eq!(
        u.endpoints.iter().map(|e| (e.address.as_str(), e.weight)).collect::<Vec<_>>(),
        [("a:80", 1), ("[::1]:81", 3)]
    );
    assert_eq!((u.http, u.balance, u.total_timeout), (UpstreamHttp::H1, Balance::RoundRobin, None));
    assert!(u.tls.is_none() && u.health.is_none() && u.ejection.is_none());
    let u = up("tls = {}\nhealth = {}\nejection = {}\ntotal_timeout = \"5m\"\nbalance = \"consistent-hash\"");
    assert_eq!(u.http, UpstreamHttp::Auto, "with TLS, ALPN chooses");
    assert!(u.tls.unwrap().verify, "verified unless said otherwise");
    assert_eq!(u.balance, Balance::ConsistentHash(HashOn::ClientAddress));
    assert_eq!(u.health.unwrap().http_path, None);
    assert_eq!((u.ejection.unwrap().failures, u.total_timeout), (5, Some(Duration::from_secs(300))));
    let u = up("balance = \"consistent-hash\"\nhash_on = \"header:X-User\"");
    assert_eq!(u.balance, Balance::ConsistentHash(HashOn::Header("x-user".parse().unwrap())));
}

#[test]
fn matches_are_kept_in_canonical_form() {
    let r = route(
        "match.hosts = [\"Example.COM\", \"*.example.com\", \"example.com.\", \"[::1]\"]\n\
         match.path = \"/caf\u{e9}/%7Euser/{id}/%2f/{*rest}\"\nmatch.methods = [\"GET\", \"PURGE\", \"GET\"]\n\
         match.headers = { \"X-A\" = true, \"X-B\" = \"v\" }\ntarget.health = true",
    );
    let exact = |h: &str| HostPattern::Exact(h.into());
    let hosts = [exact("example.com"), HostPattern::Suffix("example.com".into()), exact("[::1]")];
    assert_eq!(r.matches.hosts, hosts);
    assert_eq!(r.matches.path.to_string(), "/caf%C3%A9/~user/{id}/%2F/{*rest}");
    assert_eq!(r.matches.methods, ["GET", "PURGE"]);
    let headers: Vec<_> = r.matches.headers.iter().map(|h| (h.name.as_str(), h.value.as_deref())).collect();
    assert_eq!(headers, [("x-a", None), ("x-b", Some("v"))]);
    assert_eq!(route("target.health = true").matches.path.to_string(), "/*", "no path: every path");
    assert_eq!(route("match.path_prefix = \"/a/\"\ntarget.health = true").matches.path.to_string(), "/a/*");
}

#[test]
fn handlers_are_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("h.conf"), b"\x00\xffbytes").unwrap();
    let text = "[[routes]]\nname = \"r\"\ntarget.handler = { module = \"acme/hello@3\", config_file = \"h.conf\", memory = \"1MiB\" }\n\
                [[routes.handlers]]\nmodule = \"hello\"\nconfig = \"text\"\nfail = \"open\"\nenv = { A = \"1\", \"b c\" = \"\" }\nwall = \"10ms\"\n";
    let c = config::parse(text, "t", dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let Target::Handler(h) = &c.routes[0].target else { panic!("{:?}", c.routes[0].target) };
    assert_eq!((h.owner.as_str(), h.module.to_string().as_str()), ("acme", "acme/hello@3"));
    assert_eq!((h.config.as_slice(), h.memory_bytes), (&b"\x00\xffbytes"[..], 1 << 20));
    let h = &c.routes[0].handlers[0];
    assert_eq!((h.owner.as_str(), h.config.as_slice(), h.wall), ("wasmgate", &b"text"[..], Duration::from_millis(10)));
    assert_eq!(h.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), [("A", "1"), ("b c", "")]);
    std::fs::write(dir.path().join("h.conf"), vec![b'x'; (1 << 20) + 1]).unwrap();
    let error = config::parse(text, "t", dir.path()).unwrap_err().to_string();
    assert!(error.contains("over the limit of 1048576 bytes"), "{error}");
}

#[test]
fn ten_thousand_routes_are_read_quickly() {
    let routes: String = (0..10_000)
        .map(|i| format!("[[routes]]\nname = \"r{i}\"\nmatch.path = \"/r{i}/{{id}}\"\ntarget.health = true\n"))
        .collect();
    assert_eq!(parse(&routes).routes.len(), 10_000);
}

/// The documented file with every commented key made live.
fn uncommented() -> String {
    let text = std::fs::read_to_string(root().join("conf/wasmgate.toml")).unwrap();
    let live = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && (!key.starts_with(' ') || key.starts_with("  ")) => key.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(live).collect::<Vec<_>>().join("\n")
}

/// The keys of a document as `config::known_keys` writes them, and also those of tables whose keys are free.
fn keys_of(value: &toml::Value, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let key = if path == "tiers" { "<name>" } else { key };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                keys.insert(path.clone());
                keys_of(value, &path, keys);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| keys_of(item, &format!("{path}[]"), keys)),
        _ => {}
    }
}

#[test]
fn the_documented_file_has_every_key() {
    let text = uncommented();
    let mut documented = BTreeSet::new();
    keys_of(&text.parse::<toml::Table>().unwrap().into(), "", &mut documented);
    let known = config::known_keys();
    assert!(known.len() > 130, "{known:#?}");
    for key in known {
        // Keys that exclude others are documented as `# key = value`.
        let last = key.rsplit('.').next().unwrap();
        let written = [format!("{last} = "), format!("{last}.")];
        let mentioned = || text.lines().any(|l| l.starts_with("# ") && written.iter().any(|w| l.contains(w)));
        let table = || text.lines().any(|l| l == format!("# [{}]", key.replace("[]", "")));
        assert!(documented.contains(&key) || mentioned() || table(), "`{key}` is not in conf/wasmgate.toml");
    }
}

#[test]
fn a_fleets_store_has_defaults() {
    let text = "[store]\nkind = \"redis\"\nredis.urls = [\"redis://127.0.0.1:6379/3\"]\n";
    let redis = parse(text).store.redis.unwrap();
    assert_eq!((redis.prefix.as_str(), redis.cluster, redis.on_start), ("wasmgate", false, OnStart::Wait));
    assert_eq!((redis.timeout, redis.record_key), (Duration::from_millis(500), SecretSource::Generated("record.key")));
    assert_eq!((redis.username, redis.password, redis.ca_file), (None, None, None));
    let sentinels = "[store]\nkind = \"redis\"\nredis = { urls = [\"redis://a:1\", \"redis://b:1\"], primary = \"main\", replicas = 1 }\n";
    let redis = parse(sentinels).store.redis.unwrap();
    assert_eq!((redis.primary.as_deref(), redis.replicas), (Some("main"), 1));
    let several = "[store]\nkind = \"redis\"\nredis = { urls = [\"rediss://a:1\", \"rediss://b:1\"], cluster = true, password_env = \"P\" }\n";
    let redis = parse(several).store.redis.unwrap();
    assert_eq!((redis.urls.len(), redis.password), (2, Some(SecretSource::Env("P".into()))));
    assert!(errors("[store.redis]\nurls = [\"redis://a\"]\n").contains("kind = \"redis\""));
}

#[test]
fn what_is_pushed_is_in_one_place() {
    let routes =
        "[tiers.gold]\nrank = 9\n[[routes]]\nname = \"r\"\nmatch.path = \"/\"\ntarget.respond = {}\ntier = \"gold\"\n";
    let push = |text: &str| config::pushed_part(text, "routes", Path::new("/etc"), config::files::unseen);
    let part = push(routes).unwrap();
    assert_eq!((part.routes.len(), part.upstreams.len()), (1, 0));
    assert!(part.tiers.iter().any(|tier| tier.name.as_str() == "gold") && part.tiers.len() > 1, "and the usual ones");
    // Every section belongs to one of the two.
    let sections = config::known_keys().into_iter().filter(|key| !key.contains('.'));
    for section in sections.map(|key| key.trim_end_matches("[]").to_owned()) {
        let said = match section.as_str() {
            "data_dir" => "data_dir = \"d\"\n".to_owned(),
            "tiers" | "upstreams" | "routes" => continue,
            own => format!("[{own}]\n"),
        };
        let errors = push(&format!("{said}{routes}")).unwrap_err().to_string();
        assert!(errors.starts_with(&format!("routes:1: {section}: is each gateway's own")), "{errors}");
    }
    assert!(push("nothing = 1\n").unwrap_err().to_string().contains("use `tiers`, `upstreams`, `routes`"));
    let in_store = "[store]\nroutes = \"store\"\n";
    assert!(parse(in_store).lacks_routes());
    assert!(errors(&format!("{in_store}{routes}")).contains("test.toml:3: tiers: is in the store"));
}

#[test]
fn the_readme_has_every_limit_of_a_tier() {
    let table: String = include_str!("../../README.md").lines().filter(|line| line.starts_with("| `")).collect();
    let known = config::known_keys();
    let limits = known.iter().filter_map(|key| key.strip_prefix("tiers.<name>."));
    for key in limits.filter(|key| !key.contains("[]") && !["rank", "limits"].contains(key)) {
        assert!(table.contains(&format!("`{key}`")), "`{key}` is not in the README's table");
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let all = config::parse(&uncommented(), "wasmgate.toml", Path::new("/c")).unwrap_or_else(|e| panic!("{e}"));
    let none = config::parse("", "", Path::new("/c")).unwrap();
    assert_eq!(format!("{:#?}", all.server), format!("{:#?}", none.server));
    assert_eq!(format!("{:#?}", all.admin), format!("{:#?}", none.admin));
    assert_eq!(format!("{:#?}", all.auth), format!("{:#?}", none.auth));
    assert_eq!(format!("{:#?}", all.log), format!("{:#?}", none.log));
    assert_eq!(all.store, none.store);
    assert_eq!(format!("{:#?}", all.engine), format!("{:#?}", none.engine));
    assert_eq!((all.tiers, all.data_dir), (none.tiers, none.data_dir));

    let least = "[[upstreams]]\nname = \"backend\"\nendpoints = [\"127.0.0.1:9000\"]\nhealth.http_path = \"/health\"\nejection = {}\n\
                 [[routes]]\nname = \"proxy\"\nmatch.path_prefix = \"/\"\ntarget.upstream = \"backend\"\n";
    let least = parse(least);
    assert_eq!(format!("{:#?}", all.upstreams[0]), format!("{:#?}", least.upstreams[0]));
    let proxy = all.routes.iter().find(|r| r.name.as_str() == "proxy").unwrap();
    assert_eq!(format!("{proxy:#?}"), format!("{:#?}", least.routes[0]));
}

#[test]
fn the_shipped_files_are_valid() {
    for name in ["wasmgate.toml", "minimal.toml", "tls.toml"] {
        let c =
            config::load_file(&root().join("conf").join(name), config::files::unseen).unwrap_or_else(|e| panic!("{e}"));
        assert!(c.data_dir.starts_with(root().join("conf")), "{:?}", c.data_dir);
    }
    let c = config::load_file(&root().join("conf/wasmgate.toml"), config::files::unseen).unwrap();
    assert_eq!(c.server.listeners[0].address, "127.0.0.1:8080".parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(c.admin.address, "127.0.0.1:9090".parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(c.upstreams[0].endpoints[0].address, "127.0.0.1:9000");
    let targets: Vec<&Target> = c.routes.iter().map(|r| &r.target).collect();
    assert!(matches!(targets.as_slice(), [Target::Health, Target::Api, Target::Upstream(_)]), "{targets:?}");
}
