//! The proxy-wasm filters of `examples/`, built with the `proxy-wasm` crate and with Go, do what their READMEs say.

use super::guest;
use crate::support::toml::{route, upstream};
use crate::support::upstream::{Seen, respond};
use crate::support::{Gateway, Request, Upstream, eventually};

/// The example's module at `/run`, with these keys of its handler, before `up`.
fn example(name: &str, up: &Upstream, server: &str, keys: &str) -> Gateway {
    let config = format!("{server}\n{}", upstream("up", up.addr, ""));
    let wasm = guest(&format!("proxy_wasm_{name}"));
    Gateway::with_modules(&config, &[("acme/example", "proxy-wasm", &wasm)], &run(keys))
}

fn run(keys: &str) -> String {
    let handlers = format!("handlers = [{{ module = \"acme/example\", wall = \"20s\"{keys} }}]");
    route(
        "run",
        format!(
            "match.path_prefix = \"/run\"\ntarget.upstream = \"up\"\nauth = \"optional\"\nlimited = false\n{handlers}"
        ),
    )
}

#[test]
fn the_abi_is_told_by_the_shape() {
    let gw = Gateway::start("");
    for name in ["auth", "body", "config", "headers", "state", "go"] {
        let request = gw.admin("PUT", "/api/wasm/modules/it?owner=acme&activate=true");
        let wasm = guest(&format!("proxy_wasm_{name}"));
        let response = request.header("Content-Type", "application/wasm").body(wasm).send();
        assert!(matches!(response.status, 200 | 201), "{name}: {response}");
        assert_eq!(response.json()["abi"], "proxy-wasm", "{name}");
    }
}

#[test]
fn headers() {
    let up = Upstream::start(|_, stream| {
        respond(stream, 203, &[("Server", "secret/1.0"), ("X-Powered-By", "it")], b"answer")
    });
    let gw = example("headers", &up, "", "");
    for _ in 0..10 {
        let response = gw.get("/run").header("X-Internal", "forged").header("Via", "1.1 client").send().expect(203);
        let seen = up.last();
        assert_eq!((seen.header("x-route"), seen.header("x-tier")), (Some("run"), Some("anonymous")));
        assert_eq!(seen.header("x-internal"), None);
        assert_eq!(seen.all("via"), ["1.1 client", "1.1 filter", "1.1 edge"]);
        assert_eq!((response.header("server"), response.header("x-powered-by")), (None, None));
        assert_eq!((response.header("x-upstream-status"), response.text().as_str()), (Some("203"), "answer"));
    }
}

#[test]
fn bodies() {
    let answer = "card 4111111111111111, order 12345\n".repeat(2000);
    let masked = answer.replace("411111111111", "************") + "\n-- masked\n";
    let up = Upstream::start(move |_, stream| respond(stream, 200, &[], answer.as_bytes()));
    let gw = example("body", &up, "", ", max_buffer = \"1MiB\"");
    for body in ["fine".to_owned(), "long ".repeat(100_000)] {
        let response = gw.post("/run", body.as_str()).send().expect(200);
        assert!(response.text() == masked, "{response}");
        assert!(up.last().body == body.as_bytes());
    }
    let passed = up.seen().len();
    let refused = gw.post("/run", "this is forbidden, ".repeat(1000)).send().expect(403);
    assert!(refused.text().starts_with("not with that word\n"), "{refused}");
    assert_eq!(up.seen().len(), passed);
}

#[test]
fn configurations() {
    let up = Upstream::text("answer");
    let gw = example("config", &up, "", ", config = \"x-one: 1\\n\\n  x-two : two words \\n\"");
    let response = gw.get("/run").send().expect(200);
    assert_eq!((response.header("x-one"), response.header("x-two")), (Some("1"), Some("two words")));
    gw.write_config(&format!("{}{}", upstream("up", up.addr, ""), run(", config = \"no colon here\"")));
    assert!(gw.reload().status >= 400, "a configuration that it does not take is refused");
    assert_eq!(gw.get("/run").send().expect(200).header("x-one"), Some("1"), "and the one before goes on");
}

/// Who may decide: 200 for Alice, 401 for others, nothing for Hector.
fn decides(seen: &Seen, stream: &mut std::net::TcpStream) -> bool {
    assert_eq!((seen.target.as_str(), seen.header("host")), ("/check", Some("auth")));
    match seen.header("authorization") {
        Some("alice") => respond(stream, 200, &[("X-User", "alice")], b""),
        Some("hector") => false,
        _ => respond(stream, 401, &[], b"who are you?\n"),
    }
}

#[test]
fn authorisation() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(decides));
    let gw = example("auth", &up, &upstream("auth", auth.addr, ""), ", upstreams = [\"auth\"], pause = \"20s\"");
    let ask = |name: &str| gw.post("/run/a?b", "body").header("Authorization", name).header("X-User", "forged").send();
    // The filter gives a call two seconds, which may be too short on a busy machine.
    let decided = |name: &str| {
        let mut response = None;
        eventually("it is decided", || {
            let answer = ask(name);
            let decided = answer.status != 503;
            response = Some(answer);
            decided
        });
        response.expect("it was asked")
    };
    for _ in 0..5 {
        decided("alice").expect(200);
        let seen = up.last();
        assert_eq!((seen.all("x-user"), &seen.body[..]), (vec!["alice"], &b"body"[..]));
        assert_eq!(auth.last().header("x-path"), Some("/run/a?b"));
    }
    assert_eq!(decided("mallory").expect(401).text(), "who are you?\n");
    assert_eq!(ask("hector").expect(503).header("retry-after"), Some("1"));
    let passed = up.seen().len();
    assert!(up.seen().iter().all(|seen| seen.header("x-user") == Some("alice")), "only what may pass did");
    // Without the grant nobody is asked, and nothing passes.
    gw.write_config(&format!("{}{}{}", upstream("auth", auth.addr, ""), upstream("up", up.addr, ""), run("")));
    gw.reload().expect(200);
    let asked = auth.seen().len();
    ask("alice").expect(503);
    assert_eq!((auth.seen().len(), up.seen().len()), (asked, passed));
}

#[test]
fn many_wait_for_the_authorisation_at_once() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(decides));
    let server = format!("[engine]\nvms_per_handler = 1\n{}", upstream("auth", auth.addr, ""));
    let gw = example("auth", &up, &server, ", upstreams = [\"auth\"], pause = \"60s\"");
    let send = |name: &str| {
        let request: Request = gw.get("/run").header("Authorization", name);
        std::thread::spawn(move || request.send())
    };
    let waiting: Vec<_> =
        (0..10).map(|i| (if i % 2 == 0 { 200 } else { 401 }, send(if i % 2 == 0 { "alice" } else { "eve" }))).collect();
    // The filter gives a call two seconds: what is late on a busy machine is a 503.
    for (status, thread) in waiting {
        let response = thread.join().expect("it was answered");
        assert!(response.status == status || response.status == 503, "{response}");
    }
}

#[test]
fn ticks_queues_and_shared_data() {
    let up = Upstream::text("answer");
    let gw = example("state", &up, "", ", vm_id = \"counts\"");
    for i in 0..30 {
        gw.get(&format!("/run/{}", i % 3)).send().expect(200);
    }
    let counts = || gw.get("/run/counts").send().expect(200).text();
    eventually("all are counted, and it ticks", || {
        let text = counts();
        let ticks = text.lines().last().and_then(|line| line.strip_prefix("ticks ")?.parse::<u32>().ok()).unwrap_or(0);
        (0..3).all(|i| text.contains(&format!("/run/{i} 10\n"))) && ticks >= 3
    });
    assert_eq!(counts().lines().count(), 4, "nothing else");
}

#[test]
fn go() {
    let up = Upstream::text("answer");
    let gw = example(
        "go",
        &up,
        "[engine]\nvms_per_handler = 1\n",
        ", config = \"hello from the edge\", memory = \"128MiB\"",
    );
    let mut last = 0;
    for _ in 0..50 {
        let response = gw.get("/run").send().expect(200);
        assert_eq!(up.last().header("x-go-greeting"), Some("hello from the edge"));
        let count: u32 = response.header("x-go-requests").and_then(|n| n.parse().ok()).expect("a number");
        // A VM with optimised code begins anew, once.
        assert!(count == last + 1 || count == 1, "{count} after {last}");
        last = count;
    }
    let text = "shout ".repeat(20_000);
    // Enough for its garbage collector to run, also in its allocator.
    for _ in 0..50 {
        assert!(gw.post("/run/shout", text.as_str()).send().expect(200).text() == text.to_uppercase());
    }
    assert_eq!(gw.post("/run/pass", "as it is").send().expect(200).text(), "answer");
    assert_eq!(up.last().body, b"as it is");
}
