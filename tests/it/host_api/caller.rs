//! What a guest knows and counts of its request: configuration, log, caller, quotas, metrics, values handed on.

use super::*;
use crate::support::eventually;
use crate::support::toml::tier;

#[test]
fn a_guest_has_its_configuration() {
    let gw = gateway("", ", config = \"the config\"", "");
    for abi in ABIS {
        assert_eq!(run(&gw, &format!("/{abi}"), "config"), ["config=10 [the config]"], "{abi}");
    }
    assert_eq!(run(&gw, "/other", "config"), ["config=0 []"]);
}

#[test]
fn a_guest_knows_its_caller() {
    let routes: String = ABIS
        .iter()
        .map(|abi| {
            let lines = format!("match.path = \"/for/{{who}}/{abi}\"\ntarget.handler = {{ module = \"acme/{abi}\" }}\nauth = \"optional\"");
            route(&format!("for-{abi}"), lines)
        })
        .collect();
    let gw = gateway("", "", &routes);
    let key = gw.new_key(&crate::support::admin::NewKey { owner: "caller", tier: "pro", ..Default::default() });
    let fields = "principal owner; principal tier; principal key_id; principal route; principal params.who; principal params.x; \
                  principal key; principal -; principal *600";
    for abi in ABIS {
        let path = format!("/for/me/{abi}");
        let known = script(&gw, &path, fields).key(&key.text).send().expect(200).text();
        let expected = [
            "principal=6 [caller]".to_owned(),
            "principal=3 [pro]".to_owned(),
            format!("principal={} [{}]", key.id.len(), key.id),
            format!("principal={} [for-{abi}]", abi.len() + 4),
            "principal=2 [me]".to_owned(),
        ];
        assert_eq!(told(&known)[..5], expected, "{abi}");
        assert_eq!(told(&known)[5..], ["principal=-1"; 4], "{abi}");
        assert!(!known.contains(&key.text));
        let anonymous = run(&gw, &path, "principal owner; principal key_id; principal route");
        assert_eq!(anonymous[..2], ["principal=-1"; 2], "{abi}");
    }
}

/// What only looks may run on the worker once it is known to be short, and says the same there.
#[test]
fn short_runs_know_the_same() {
    let gw = gateway("", ", config = \"c\"", "");
    for n in 0..300 {
        let results = run(&gw, "/http", "config; principal route; value_set a 1; value_get a");
        assert_eq!(results, ["config=1 [c]", "principal=4 [http]", "value_set=0", "value_get=1 [1]"], "{n}");
    }
}

#[test]
fn a_guest_logs() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        run(&gw, &format!("/{abi}"), format!("log 1 warned-{abi}; log -1 debug-{abi}; log 9 nothing-{abi}"));
    }
    eventually("all are logged", || ABIS.iter().all(|abi| gw.log().contains(&format!("warned-{abi}"))));
    assert!(!gw.log().contains("debug-") && !gw.log().contains("nothing-"), "{}", gw.log());
    // An execution's log is what its caller gets.
    let api = Gateway::start(&crate::support::api::config(""));
    let answer = api.execute(&api.key(), &c_guest("host_api_command"), b"log 1 told; log -1 too").expect(200).json();
    assert!(answer.to_string().contains("warn: told\\ndebug: too\\n"), "{answer}");
    assert!(!api.log().contains("told"), "{}", api.log());
}

/// A guest can charge a quota of its caller more than the one request.
#[test]
fn a_guest_charges_a_quota() {
    let server = tier("small", "quotas = [{ name = \"minute\", requests = 20, window = \"3599s\", burst = 20 }]");
    let keyed: String =
        ABIS.iter().map(|abi| answers(&format!("keyed-{abi}"), &format!("acme/{abi}"), "", "key")).collect();
    let gw = gateway(&server, "", &keyed);
    for abi in ABIS {
        let key = gw.new_key(&crate::support::admin::NewKey {
            owner: &format!("of-{abi}"),
            tier: "small",
            ..Default::default()
        });
        let lines = "rate_check minute 10; rate_check minute 8; rate_check minute 5; rate_check minute 21; rate_check minute 0; \
                     rate_check minute -1; rate_check hour 1; rate_check - 1";
        let results = told(&script(&gw, &format!("/keyed-{abi}"), lines).key(&key.text).send().expect(200).text());
        assert_eq!(results[..2], ["rate_check=0", "rate_check=0"], "{abi}");
        // Nineteen of twenty are used with the request itself; one comes back every three minutes.
        let wait: i32 = results[2].strip_prefix("rate_check=").and_then(|n| n.parse().ok()).expect("a number");
        assert!((1..=900).contains(&wait), "{abi}: {results:?}");
        assert_eq!(
            results[3..],
            ["rate_check=-3", "rate_check=-3", "rate_check=-3", "rate_check=-1", "rate_check=-1"],
            "{abi}"
        );
        // What it was charged the next requests feel, and what was refused they do not.
        gw.get(&format!("/keyed-{abi}")).key(&key.text).header("X-Answer", "yes").send().expect(200);
    }
    assert_eq!(run(&gw, "/command", "rate_check minute 1"), ["rate_check=-1"], "nobody's quota");
}

#[test]
fn a_guest_counts() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        let lines = "metric_define 0 hits; metric_define 1 level; metric_define 2 took; metric_define 3 bad; metric_define 0 -; \
                     metric_define 0 hits; metric_record 1 5; metric_increment 1 2; metric_record 2 7; metric_increment 2 -3; metric_record 3 9; \
                     metric_record 9 1; metric_record 1 -1; metric_increment 1 -1; metric_increment 3 1; metric_increment 0 1";
        let expected = [
            "metric_define=1",
            "metric_define=2",
            "metric_define=3",
            "metric_define=-3",
            "metric_define=-3",
            "metric_define=1",
            "metric_record=0",
            "metric_increment=0",
            "metric_record=0",
            "metric_increment=0",
            "metric_record=0",
            "metric_record=-1",
            "metric_record=-3",
            "metric_increment=-3",
            "metric_increment=-3",
            "metric_increment=-1",
        ];
        assert_eq!(run(&gw, &format!("/{abi}"), lines), expected, "{abi}");
    }
    let more: String = (0..100).map(|n| format!("metric_define 0 m{n};")).collect();
    let results = run(&gw, "/command", more);
    assert_eq!(results.iter().filter(|r| *r == "metric_define=-4").count(), 3, "{results:?}");
    for abi in ABIS {
        let labels = [&*format!("acme/{abi}@1")];
        assert_eq!(
            (gw.metric("wasm_guest_hits", &labels), gw.metric("wasm_guest_level", &labels)),
            (7.0, 4.0),
            "{abi}"
        );
        assert_eq!(gw.metric("wasm_guest_took_sum", &labels), 9.0, "{abi}");
    }
}

/// Values pass from handler to handler, to the module that answers, and back.
#[test]
fn handlers_hand_values_on() {
    let chain = |name: &str, target: &str| {
        let lines = format!(
            "match.path_prefix = \"/{name}\"\n{target}\nauth = \"none\"\nhandlers = [{{ module = \"acme/http\" }}, {{ module = \"acme/http\" }}]"
        );
        route(name, lines)
    };
    let up = Upstream::text("answer");
    let routes: String = ["http", "command", "cgi"]
        .iter()
        .map(|abi| chain(&format!("to-{abi}"), &format!("target.handler = {{ module = \"acme/{abi}\" }}")))
        .collect();
    let gw = gateway(&upstream("up", up.addr, ""), "", &(routes + &chain("to-up", "target.upstream = \"up\"")));
    // The handlers are of one module: the first sets what the second adds to.
    let passing = |path: &str| {
        gw.post(path, "value_get a; value_set b back")
            .header("X-Run", "value_set a there")
            .header("X-Run-After", "value_get a; value_get b")
    };
    for abi in ["command", "cgi"] {
        let response = passing(&format!("/to-{abi}")).send().expect(200);
        assert_eq!(told(&response.text()), ["value_get=5 [there]", "value_set=0"], "{abi}");
        assert_eq!(response.header("x-after"), Some("value_get=5 [there];value_get=4 [back];"), "{abi}");
    }
    let response = passing("/to-up").send().expect(200);
    assert_eq!(response.header("x-after"), Some("value_get=5 [there];value_get=-1;"));
    // Of one request alone.
    let response = gw.get("/to-up").header("X-Run-After", "value_get a").send().expect(200);
    assert_eq!(response.header("x-after"), Some("value_get=-1;"));
    // An answer on the way passes them too.
    let response = gw
        .post("/to-http", "value_get a")
        .header("X-Run", "value_set a there")
        .header("X-Answer", "yes")
        .send()
        .expect(200);
    assert_eq!(told(&response.text()), ["value_get=5 [there]"]);
}

#[test]
fn values_handed_on_are_bounded() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        let many: String = (0..65).map(|n| format!("value_set n{n} 1;")).collect();
        let results = run(&gw, &format!("/{abi}"), format!("{many} value_set n0 2; value_get n0"));
        assert_eq!(results.iter().filter(|r| *r == "value_set=-4").count(), 1, "{abi}: {results:?}");
        assert_eq!(results[64..], ["value_set=-4", "value_set=0", "value_get=1 [2]"], "{abi}");
        let results = run(&gw, &format!("/{abi}"), "value_set k *65535; value_set k *65536; value_get -");
        assert_eq!(results, ["value_set=0", "value_set=-4", "value_get=-1"], "{abi}");
    }
}
