//! A command that uses every part of `wasmgate-guest`, and says what came of it.

use std::time::Duration;

use wasmgate_guest::{Error, Kind, Level, Metric, config, http, kv, log, principal, rate_check, set_value, value};

fn main() {
    log(Level::Warn, "from rust");
    println!("config {}", String::from_utf8_lossy(&config()));
    println!("route {:?}", principal("route").map(String::from_utf8));
    println!("owner {:?}", principal("owner"));
    kv::delete(b"k").expect("a value");
    println!("get {:?}", kv::get(b"k"));
    println!("replace {:?}", kv::replace(b"k", b"x", None, 7));
    kv::set(b"k", &[b'v'; 1000], Some(Duration::from_secs(60))).expect("room");
    let found = kv::get(b"k").expect("a store").expect("a value");
    println!("found {} {:?}", found.bytes.len(), kv::replace(b"k", b"x", None, found.version));
    println!("incr {:?} {:?}", kv::incr(b"n", 2, None), kv::incr(b"k", 1, None));
    println!("delete {:?} {:?}", kv::delete(b"k"), kv::delete(b"k"));
    println!("bounds {:?} {:?}", kv::set(b"", b"", None), rate_check("none", 1));
    set_value(b"a", b"1").expect("room");
    println!("value {:?} {:?}", value(b"a"), value(b"b"));
    match http::call("near", "POST /there\nx-from: rust\n", b"body", Some(Duration::from_secs(20))) {
        Ok(answer) => println!("call {} {:?} {}", answer.status, answer.header("x-answer"), answer.body.len()),
        Err(error) => println!("call {error}"),
    }
    println!("far {:?}", http::call("far", "GET /", b"", None).map_err(|e| e == Error::Denied));
    let metric = Metric::define(Kind::Counter, "runs").expect("a metric");
    println!("metric {:?} {:?} {:?}", metric.record(1), metric.increment(1), metric.increment(-1));
}
