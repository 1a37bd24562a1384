//! What streams, VMs and handlers share: data, queues, metrics, and who does not share them.

use super::*;
use crate::support::toml::route;

#[test]
fn data_is_shared_by_streams_and_handlers_of_a_vm_id() {
    let up = Upstream::text("answer");
    let routes = filter("run", "", "vm_id = \"team\"")
        + &filter("same", "", "vm_id = \"team\"")
        + &filter("other", "", "vm_id = \"else\"")
        + &filter("none", "", "");
    let gw = gateway(&up, "", &routes);
    assert_eq!(run(&gw, "request_headers: set_shared_data s:k%00ey s:v%00alue 0"), ["set_shared_data=0"]);
    let read = |path: &str| {
        let script = "request_headers: get_shared_data s:k%00ey b u";
        told(&gw.get(path).header("X-Run", script).send().expect(200)).remove(0)
    };
    for path in ["/run", "/same"] {
        assert!(read(path).starts_with("get_shared_data=0 [v%00alue] "), "{path}");
    }
    for path in ["/other", "/none"] {
        assert_eq!(read(path), "get_shared_data=1 - -", "{path}");
    }
}

/// The same name and the same id, but another owner.
#[test]
fn owners_share_nothing() {
    let up = Upstream::text("answer");
    let config = upstream("up", up.addr, "");
    let entry = |owner: &str| {
        let lines = format!(
            "match.path_prefix = \"/{owner}\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{{ module = \"{owner}/proxy\", vm_id = \"one\" }}]"
        );
        route(owner, lines)
    };
    let wasm = c_guest("proxy");
    let modules = [("acme/proxy", "proxy-wasm", &wasm[..]), ("rival/proxy", "proxy-wasm", &wasm[..])];
    let gw = Gateway::with_modules(&config, &modules, &(entry("acme") + &entry("rival")));
    let ask = |path: &str, script: &str| told(&gw.get(path).header("X-Run", script).send().expect(200));
    let sets = "request_headers: set_shared_data s:key s:secret 0; request_headers: register_shared_queue s:q u; request_headers: enqueue_shared_queue $ s:secret";
    let id = ask("/acme", sets)[1].rsplit(' ').next().expect("an id").to_owned();
    let reads = format!(
        "request_headers: get_shared_data s:key b u; request_headers: resolve_shared_queue s:one s:q u; request_headers: dequeue_shared_queue {id} b; \
         request_headers: enqueue_shared_queue {id} s:evil"
    );
    assert_eq!(
        ask("/rival", &reads),
        ["get_shared_data=1 - -", "resolve_shared_queue=1 -", "dequeue_shared_queue=1 -", "enqueue_shared_queue=1"]
    );
    assert_eq!(
        ask("/acme", &format!("request_headers: dequeue_shared_queue {id} b"))[0],
        "dequeue_shared_queue=0 [secret]"
    );
}

/// Counting up with compare-and-swap from many streams and VMs loses nothing.
#[test]
fn compare_and_swap_loses_no_update() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    run(&gw, "request_headers: set_shared_data s:log s:- 0");
    // Each stream writes its own number; the swap succeeds only on what it has read.
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let gw = &gw;
                scope.spawn(move || {
                    let swap = format!("request_headers: get_shared_data s:log b u; request_headers: set_shared_data s:log s:{thread} $");
                    (0..25).filter(|_| run(gw, &swap)[1] == "set_shared_data=0").count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum()
    });
    assert!(won > 0);
    // The number of a value that was replaced is of no use any more.
    let stale = "request_headers: get_shared_data s:log b u; request_headers: set_shared_data s:log s:new $; request_headers: set_shared_data s:log s:lost $; \
                 request_headers: get_shared_data s:log b u";
    let results = run(&gw, stale);
    assert_eq!(results[1..3], ["set_shared_data=0", "set_shared_data=8"]);
    assert!(results[3].starts_with("get_shared_data=0 [new] "), "{results:?}");
}

#[test]
fn queues_keep_order_and_bytes() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let id =
        run(&gw, "request_headers: register_shared_queue s:jobs u")[0].rsplit(' ').next().expect("an id").to_owned();
    assert_ne!(id, "0", "0 is no queue");
    for item in ["one", "t%00wo", ""] {
        run(&gw, format!("request_headers: enqueue_shared_queue {id} s:{item}"));
    }
    let takes = format!("request_headers: dequeue_shared_queue {id} b; ").repeat(4);
    let expected = ["[one]", "[t%00wo]", "[]"].map(|item| format!("dequeue_shared_queue=0 {item}"));
    let results = run(&gw, takes);
    assert_eq!((&results[..3], results[3].as_str()), (&expected[..], "dequeue_shared_queue=7 -"));
}

#[test]
fn a_queues_registrant_is_told_of_items() {
    let up = Upstream::text("answer");
    let consumer = "configure: register_shared_queue s:jobs u; queue: dequeue_shared_queue $1 b; queue: args";
    let routes = filter("consumer", consumer, "vm_id = \"team\"") + &filter("run", "", "vm_id = \"sender\"");
    let gw = gateway(&up, ONE_VM, &routes);
    let sends = "request_headers: resolve_shared_queue s:team s:jobs u; request_headers: enqueue_shared_queue $ s:job";
    let taken = || kept(&gw, "/consumer", "queue");
    eventually("the consumer took a job", || {
        let sent = run(&gw, sends);
        assert!(
            sent.first()
                .is_none_or(|r| !r.starts_with("resolve_shared_queue=0") || sent[1] == "enqueue_shared_queue=0"),
            "{sent:?}"
        );
        taken().first().is_some_and(|r| r == "dequeue_shared_queue=0 [job]")
    });
}

/// However often a queue is registered, its listener is told of each item once.
#[test]
fn wake_ups_are_as_many_as_items() {
    let up = Upstream::text("answer");
    let counts = "queue: define_metric 0 s:woken u; queue: increment_metric $ 1";
    let gw = lasting(&up, ONE_VM, &filter("run", counts, ""));
    let registers = "request_headers: register_shared_queue s:q u; ";
    let enqueues = "request_headers: enqueue_shared_queue $ s:x; ";
    run(&gw, registers.to_owned() + &enqueues.repeat(50) + &registers.repeat(100));
    let woken =
        || -> u32 { samples(&gw, "woken").iter().filter_map(|l| l.rsplit(' ').next()?.parse::<u32>().ok()).sum() };
    eventually("all items are told of", || woken() >= 50);
    // As many again, so that there is time for those that are too many.
    for _ in 0..50 {
        run(&gw, registers.to_owned() + enqueues);
    }
    eventually("all later items are told of", || woken() >= 100);
    assert_eq!(woken(), 100);
}

/// A thousand items of a mebibyte each, from one filter: refused with a status long before.
#[test]
fn what_is_shared_is_bounded() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", "wall = \"20s\""));
    for flood in ["flood_queue", "flood_data"] {
        let results = run(&gw, format!("request_headers: register_shared_queue s:q u; request_headers: {flood}"));
        let kept = results[1].strip_prefix(&format!("{flood}=")).and_then(|n| n.parse::<u32>().ok());
        assert!(kept.is_some_and(|n| n < 1000), "{results:?}");
    }
    // Names as well, however small what they name is.
    for i in 0..100 {
        let names = (0..50).map(|j| {
            format!(
                "request_headers: register_shared_queue s:{i}.{j} u; request_headers: define_metric 0 s:m_{i}_{j} u; "
            )
        });
        assert_eq!(run(&gw, names.collect::<String>()).len(), 100);
    }
    let text = gw.admin("GET", "/metrics").send().expect(200).text();
    assert!(text.len() < 1 << 20, "the names of metrics are bounded: {} bytes", text.len());
}

/// One line a handler, however many metrics it defines.
#[test]
fn metrics_beyond_the_bound_are_logged_once() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", ""));
    for i in 0..10 {
        let names = (0..50).map(|j| format!("request_headers: define_metric 0 s:m_{i}_{j} u; "));
        assert_eq!(run(&gw, names.collect::<String>()).len(), 50);
    }
    eventually("the log says so", || gw.log().contains("it has 100 metrics"));
    assert_eq!(gw.log().matches("it has 100 metrics").count(), 1);
}

/// Lines of /metrics that have this in their name.
fn samples(gw: &Gateway, name: &str) -> Vec<String> {
    let text = gw.admin("GET", "/metrics").send().expect(200).text();
    text.lines().filter(|line| !line.starts_with('#') && line.contains(name)).map(str::to_owned).collect()
}

#[test]
fn metrics_of_filters_are_exported() {
    let up = Upstream::text("answer");
    let config = "configure: define_metric 0 s:jobs_done u; request_headers: define_metric 0 s:jobs_done u; request_headers: increment_metric $ 2; \
                  request_headers: define_metric 1 s:queue.depth-now u; request_headers: record_metric $ 41; request_headers: increment_metric $ 1; \
                  request_headers: define_metric 2 s:job_size u; request_headers: record_metric $ 3; request_headers: record_metric $ 300";
    let gw = gateway(&up, "", &filter("run", config, ""));
    for _ in 0..3 {
        let results = told(&gw.get("/run").send().expect(200));
        assert!(results.iter().all(|r| r.contains("=0")), "{results:?}");
    }
    let value = |lines: &[String]| {
        lines.iter().map(|l| l.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a number")).sum::<f64>()
    };
    let jobs = samples(&gw, "jobs_done");
    assert_eq!((jobs.len(), value(&jobs)), (1, 6.0), "{jobs:?}");
    let depth = [samples(&gw, "queue_depth_now"), samples(&gw, "queue.depth-now")].concat();
    assert_eq!((depth.len(), value(&depth)), (1, 42.0), "{depth:?}");
    let sizes = samples(&gw, "job_size");
    let of = |end: &str| sizes.iter().filter(|l| l.contains(end)).cloned().collect::<Vec<_>>();
    assert_eq!((value(&of("_count")), value(&of("_sum"))), (6.0, 909.0), "{sizes:?}");
    assert!(of("_bucket").len() > 1, "{sizes:?}");
}

/// A name is data: it can't end its line, take another's labels or one of the gateway's own metrics.
#[test]
fn names_of_metrics_are_made_harmless() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for name in
        ["evil%0aevil_total 1", "evil%22%7d 1", "", "%ff%fe", "wasmgate_requests_total", "a%00b", &"x".repeat(5000)]
    {
        let name = name.replace(' ', "%20");
        let results =
            run(&gw, format!("request_headers: define_metric 0 s:{name} u; request_headers: increment_metric $ 77777"));
        assert!(results[0].starts_with("define_metric="), "{name}: {results:?}");
    }
    let text = gw.admin("GET", "/metrics").send().expect(200).text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        assert!(value.parse::<f64>().is_ok(), "no sample: {line}");
        assert!(!name.starts_with("evil") && line.len() < 1000, "{line}");
        assert!(!(name.starts_with("wasmgate_requests_total") && value.contains("77777")), "{line}");
    }
}

/// Another type under a name that is taken gives no way into the first one.
#[test]
fn a_name_taken_by_another_type_is_no_way_in() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_headers: define_metric 0 s:mixed u; request_headers: increment_metric $ 3; request_headers: define_metric 1 s:mixed u; \
                  request_headers: record_metric $ 1; request_headers: define_metric 0 s:mixed u; request_headers: get_metric $ U";
    let results = run(&gw, script);
    let count = results.last().expect("a result");
    assert!(count == "get_metric=0 3" || !results[2].starts_with("define_metric=0"), "{results:?}");
    gw.admin("GET", "/metrics").send().expect(200);
}
