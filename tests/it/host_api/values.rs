//! Values that owners keep.

use super::*;
use crate::support::api::{self, Form};
use crate::support::eventually;

#[test]
fn values_are_kept_for_all_modules_of_an_owner() {
    let gw = gateway("", "", "");
    for (n, abi) in ABIS.iter().enumerate() {
        let path = format!("/{abi}");
        let lines =
            format!("kv_get {abi}; kv_set {abi} first 0; kv_get {abi}; kv_set {abi} - 0; kv_get {abi}; kv_incr n 1 0");
        let results = run(&gw, &path, lines);
        let sum = n + 1;
        assert_eq!(
            results,
            ["kv_get=-1", "kv_set=0", "kv_get=5 [first]", "kv_set=0", "kv_get=0 []", &format!("kv_incr=0 [{sum}]")],
            "{abi}"
        );
    }
    assert_eq!(run(&gw, "/http", "kv_get n; kv_get cgi"), ["kv_get=1 [3]", "kv_get=0 []"]);
    assert_eq!(run(&gw, "/cgi", "kv_delete n; kv_delete n; kv_get n"), ["kv_delete=0", "kv_delete=-1", "kv_get=-1"]);
}

/// Nothing is cut: what does not fit is not written, and its length told.
#[test]
fn buffers_are_as_in_http_wasm() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        let results =
            run(&gw, &format!("/{abi}"), "kv_set k abcd 0; kv_peek k 0; kv_peek k 3; kv_peek k 4; kv_peek k 9");
        let expected = ["kv_set=0", "kv_peek=4 [~~~~]", "kv_peek=4 [~~~~]", "kv_peek=4 [abcd]", "kv_peek=4 [abcd]"];
        assert_eq!(results, expected, "{abi}");
    }
}

#[test]
fn owners_never_meet() {
    let gw = gateway("", "", "");
    run(&gw, "/command", "kv_set k of-acme 0");
    assert_eq!(
        run(&gw, "/other", "kv_get k; kv_cas k of-other 0 0; kv_get k"),
        ["kv_get=-1", "kv_cas=0", "kv_get=8 [of-other]"]
    );
    assert_eq!(run(&gw, "/http", "kv_get k; kv_delete k"), ["kv_get=7 [of-acme]", "kv_delete=0"]);
    assert_eq!(run(&gw, "/other", "kv_get k"), ["kv_get=8 [of-other]"]);
}

#[test]
fn compare_and_set_goes_by_the_number() {
    let gw = gateway("", "", "");
    let lines = "kv_cas k 1 0 7; kv_cas k 1 0 0; kv_cas k 2 0 0; kv_recas k 2 0; kv_get k; kv_delete k; kv_cas k 3 0 0";
    let expected = ["kv_cas=-5", "kv_cas=0", "kv_cas=-5", "kv_recas=0", "kv_get=1 [2]", "kv_delete=0", "kv_cas=0"];
    assert_eq!(run(&gw, "/command", lines), expected);
}

/// Guests that run at once lose no update, neither by `kv_cas` nor by `kv_incr`.
#[test]
fn no_update_is_lost_between_guests() {
    let gw = gateway("", "", "");
    std::thread::scope(|scope| {
        for n in 0..6 {
            let gw = &gw;
            scope.spawn(move || {
                run(gw, &format!("/{}", ABIS[n % 3]), "cas_add cas 5; kv_incr incr 1 0; kv_incr incr 1 0")
            });
        }
    });
    assert_eq!(run(&gw, "/command", "kv_get cas; kv_get incr"), ["kv_get=2 [30]", "kv_get=2 [12]"]);
}

/// A run that has effects is never begun on a worker and then run again on the pool.
#[test]
fn every_call_has_its_effect_once() {
    let gw = gateway("", "", "");
    for n in 1..=200 {
        assert_eq!(run(&gw, "/http", "kv_incr n 1 0"), [format!("kv_incr=0 [{n}]")]);
    }
}

#[test]
fn numbers_are_decimal_text() {
    let gw = gateway("", "", "");
    let lines = "kv_set n -41 0; kv_incr n -1 0; kv_get n; kv_set n text 0; kv_incr n 1 0; kv_set n 9223372036854775807 0; \
                 kv_incr n 1 0; kv_get n";
    let expected = [
        "kv_set=0",
        "kv_incr=0 [-42]",
        "kv_get=3 [-42]",
        "kv_set=0",
        "kv_incr=-5",
        "kv_set=0",
        "kv_incr=-5",
        "kv_get=19 [9223372036854775807]",
    ];
    assert_eq!(run(&gw, "/http", lines), expected);
}

#[test]
fn values_have_a_time_to_live() {
    let gw = gateway("", "", "");
    let lines = "kv_set short 1 1; kv_set long 1 3600000; kv_incr n 5 1; kv_incr m 5 3600000; kv_set never 1 0; kv_set k 1 -1; kv_incr k 1 -1";
    let results = run(&gw, "/command", lines);
    assert_eq!(results[5..], ["kv_set=-3", "kv_incr=-3"]);
    eventually("they are gone", || run(&gw, "/cgi", "kv_get short; kv_get n") == ["kv_get=-1", "kv_get=-1"]);
    assert_eq!(
        run(&gw, "/http", "kv_get long; kv_get m; kv_get never"),
        ["kv_get=1 [1]", "kv_get=1 [5]", "kv_get=1 [1]"]
    );
    assert_eq!(run(&gw, "/http", "kv_cas short 2 0 0; kv_incr n 1 0"), ["kv_cas=0", "kv_incr=0 [1]"]);
}

#[test]
fn keys_and_values_are_bounded() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        let lines = "kv_set - 1 0; kv_set *512 1 0; kv_set *513 1 0; kv_set k *65536 0; kv_set k *65537 0; kv_get *513; \
                     kv_incr *513 1 0; kv_delete -; kv_cas - 1 0 0; kv_delete k";
        let expected = [
            "kv_set=-3",
            "kv_set=0",
            "kv_set=-3",
            "kv_set=0",
            "kv_set=-3",
            "kv_get=-3",
            "kv_incr=-3",
            "kv_delete=-3",
            "kv_cas=-3",
            "kv_delete=0",
        ];
        assert_eq!(run(&gw, &format!("/{abi}"), lines), expected, "{abi}");
    }
}

/// 16 MiB an owner; who has none left is told so, and nobody else notices.
#[test]
fn an_owner_that_fills_its_room_fills_nobody_elses() {
    let gw = gateway("", "", "");
    // With its key, a value is a little over 64 KiB.
    for (prefix, filled) in [("key", "fill=90 [0]"), ("b", "fill=90 [0]"), ("c", "fill=75 [-4]")] {
        assert_eq!(run(&gw, "/command", format!("fill {prefix} 90 65536")), [filled]);
    }
    assert_eq!(run(&gw, "/other", "kv_set k *65536 0; kv_delete k"), ["kv_set=0", "kv_delete=0"]);
    let lines = "kv_set one-more *65536 0; kv_cas one-more *65536 0 0; kv_set key0 small 0; kv_set one-more *65536 0; kv_delete key1";
    let expected = ["kv_set=-4", "kv_cas=-4", "kv_set=0", "kv_set=0", "kv_delete=0"];
    assert_eq!(run(&gw, "/http", lines), expected);
}

#[test]
fn values_outlive_the_process() {
    let config = || answers("command", "acme/command", "", "none");
    let gw = Gateway::with_modules("", &[("acme/command", "command", &c_guest("host_api_command"))], &config());
    run(&gw, "/command", "kv_set k kept 0; kv_incr n 7 0; kv_set short 1 1");
    let gw = gw.restart(&config());
    assert_eq!(
        run(&gw, "/command", "kv_get k; kv_incr n 1 0; kv_get short"),
        ["kv_get=4 [kept]", "kv_incr=0 [8]", "kv_get=-1"]
    );
}

/// Stored modules have their owner's values whoever runs them, inline ones those of who runs them.
#[test]
fn executions_have_values_too() {
    let gw = Gateway::start(&api::config(""));
    let wasm = c_guest("host_api_command");
    let key = gw.key();
    let text = |response: crate::support::Response| {
        response.expect(200).json()["output"].as_str().unwrap_or_default().to_owned()
    };
    let inline = |input: &str| told(&text(gw.execute(&key, &wasm, input.as_bytes())));
    assert_eq!(
        inline("kv_set k inline 0; kv_get k; principal owner; principal route; config")[..4],
        ["kv_set=0", "kv_get=6 [inline]", "principal=4 [acme]", "principal=-1"]
    );
    let target = "/api/wasm/modules/command?public=true";
    gw.request("PUT", target).key(&key).header("Content-Type", "application/wasm").body(&*wasm).send().expect(201);
    let form = Form::default().field("module", "command").field("input", "kv_get k").end();
    let stored = gw.request("POST", "/api/wasm/execute").key(&key).form(form).send();
    assert_eq!(told(&text(stored)), ["kv_get=6 [inline]"]);
    // Who runs a public module of others stays unknown to it, and its values are its owner's.
    let other = gw.new_key(&crate::support::admin::NewKey { owner: "other", ..Default::default() }).text;
    let input = "kv_get k; principal owner; principal tier";
    let form = Form::default().field("module", "acme/command").field("input", input).end();
    let public = gw.request("POST", "/api/wasm/execute").key(&other).form(form).send();
    assert_eq!(told(&text(public)), ["kv_get=6 [inline]", "principal=-1", "principal=-1"]);
    // Nothing else is granted.
    let denied = inline(
        "http_call near 100 GET /; metric_define 0 hits; rate_check minute 1; config; value_set a b; value_get a",
    );
    assert_eq!(
        denied,
        ["http_call=-2", "metric_define=-2", "rate_check=-2", "config=0 []", "value_set=0", "value_get=1 [b]"]
    );
}

#[test]
fn keys_and_values_are_in_no_log() {
    let gw = gateway("[log]\nlevel = \"debug\"\n", "", "");
    run(
        &gw,
        "/command",
        "kv_set sesame-key sesame-value 0; kv_get sesame-key; kv_cas sesame-key sesame-value 0 9; kv_incr sesame-key 1 0",
    );
    run(&gw, "/http", "kv_set sesame-key sesame-value 0; kv_delete sesame-key");
    eventually("both are logged", || {
        ["/command", "/http"].iter().all(|p| gw.log().contains(&format!("\"path\":\"{p}\"")))
    });
    assert!(!gw.log().contains("sesame"), "{}", gw.log());
}

/// Filters of proxy-wasm reach the same values by foreign functions.
#[test]
fn proxy_wasm_filters_keep_values_by_foreign_functions() {
    let up = Upstream::text("answer");
    let lines = "match.path_prefix = \"/run\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/proxy\" }]";
    let routes = route("run", lines) + &answers("command", "acme/command", "", "none");
    let modules: [(&str, &str, &[u8]); 2] =
        [("acme/proxy", "proxy-wasm", &c_guest("proxy")), ("acme/command", "command", &c_guest("host_api_command"))];
    let gw = Gateway::with_modules(&upstream("up", up.addr, ""), &modules, &routes);
    // By now its callbacks are short, and run where nothing should wait.
    for _ in 0..300 {
        gw.get("/run").send().expect(200);
    }
    let call = |name: &str, arguments: &str| {
        format!("request_headers: call_foreign_function s:wasmgate_kv_{name} s:{arguments} b; ")
    };
    let zero = "%00%00%00%00%00%00%00%00";
    let one = "%01%00%00%00%00%00%00%00";
    let script = [
        call("get", "k"),
        call("set", &format!("{zero}%01%00%00%00kvalue")),
        call("cas", &format!("{zero}{zero}%01%00%00%00kother")),
        call("cas", &format!("{one}{zero}%01%00%00%00kother")),
        call("incr", &format!("{one}{zero}n")),
        call("incr", &format!("{one}{zero}k")),
        call("delete", "n"),
        call("delete", "n"),
        call("set", "short"),
        call("set", &format!("{zero}%09%00%00%00kvalue")),
        call("set", &format!("{zero}%00%00%00%00value")),
        call("list", ""),
    ]
    .concat();
    let response = gw.get("/run").header("X-Run", script).send().expect(200);
    let told = response.header("x-results").unwrap_or_default().to_owned();
    let results: Vec<_> = told.split(';').map(|r| r.trim().trim_start_matches("call_foreign_function=")).collect();
    let byte = |n: u8| format!("0 [%{n:02x}]");
    assert_eq!(results[0], "1 -", "{told}");
    assert!(results[1].starts_with("0 "), "{told}");
    assert_eq!(results[2], byte(0), "it has another number: {told}");
    assert_eq!(results[3], byte(1), "{told}");
    assert_eq!(results[4], format!("0 [{one}]"), "{told}");
    assert_eq!(results[5], "2 -", "it is no number: {told}");
    assert_eq!(results[6..8], [byte(1), byte(0)], "{told}");
    assert_eq!(results[8..11], ["2 -"; 3], "{told}");
    assert_eq!(results[11], "1 -", "{told}");
    assert_eq!(run(&gw, "/command", "kv_get k"), ["kv_get=5 [other]"]);
}
