//! Modules made to keep a compiler busy; the attack table has each of them refused. Ordinary code of many times the size
//! compiles.

use std::fmt::Write;

use crate::support::api::{self, Form};
use crate::support::{Conn, Gateway, Request, wat};

fn upload(gw: &Gateway, key: &str, wasm: &[u8]) -> Request {
    gw.request("POST", "/api/wasm/validate").key(key).form(Form::default().file("wasm", wasm).end())
}

fn function(locals: &str, body: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module (memory 1) (global $g (mut i32) (i32.const 0)) (func (export "run"))
        (func $bomb (local {locals}) {body}))"#
    ))
}

/// Refused by their counts, before any compiler: with a word of what they have too many of.
pub fn shapes() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let run = |body: &str| wat(&format!(r#"(module (func (export "run") {body}))"#));
    let beside = |more: &str| wat(&format!(r#"(module {more} (func (export "run")))"#));
    let types = (0..10_001).fold(String::new(), |mut text, n| {
        let _ = write!(text, "(type (func (param {})))", "i32 ".repeat(n % 100));
        text
    });
    vec![
        (
            "a huge function",
            run(&format!("(drop (i32.const 0) {})", "(i32.const 1) (i32.add)".repeat(1_500_000))),
            "bytes",
        ),
        ("50k locals", run(&format!("(local {})", "i64 ".repeat(50_001))), "locals"),
        ("a huge `br_table`", run(&format!("(block (br_table {} (i32.const 0)))", "0 ".repeat(400_000))), "br_table"),
        ("a million functions", beside(&"(func)".repeat(1_000_001)), "functions"),
        ("a million types", beside(&"(type (func))".repeat(1_000_001)), "types"),
        ("many different types", beside(&types), "types"),
        ("deep nesting", run(&format!("{}{}", "block ".repeat(5_000), "end ".repeat(5_000))), "nested"),
        ("a high stack", run(&format!("{}unreachable", "(i32.const 0) ".repeat(5_000))), "stack"),
        ("many globals", beside(&"(global i32 (i32.const 0))".repeat(10_001)), "globals"),
        ("many data segments", beside(&format!("(memory 1) {}", "(data \"\")".repeat(100_001))), "data segments"),
    ]
}

/// The compiler's time for it grows with the square of the number.
fn blocks(n: usize) -> Vec<u8> {
    let block = "(block (br_if 0 (local.get 0)) (local.set 1 (i32.add (local.get 1) (i32.const 1))))";
    function("i32 i32", &block.repeat(n))
}

/// Refused by the time that the compiler takes for them.
pub fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let i32s = |n: usize| "i32 ".repeat(n);
    let increments = |n: usize| {
        (0..n).fold(String::new(), |mut text, i| {
            let _ = write!(text, "(local.set {i} (i32.add (local.get {i}) (i32.const 1)))");
            text
        })
    };
    let loops = |depth: usize, locals: usize| {
        let (open, close) = ("(loop ".repeat(depth), "(br_if 0 (global.get $g)))".repeat(depth));
        function(&i32s(locals), &format!("{open}{}{close}", increments(locals)))
    };
    // Each operand is any of many, all of them alive to the end.
    let mixed = |locals: usize, steps: usize, around: &dyn Fn(String) -> String| {
        let mut text = increments(locals);
        let mut at = 1usize;
        let mut any = || {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (at >> 33) % locals
        };
        for _ in 0..steps {
            let step = format!("(local.set {} (i32.mul (local.get {}) (local.get {})))", any(), any(), any());
            text += &around(step);
        }
        (0..locals).for_each(|i| text += &format!("(global.set $g (local.get {i}))"));
        function(&i32s(locals), &text)
    };
    let plain = |step: String| step;
    let in_loop = |step: String| format!("(loop (block (br_if 1 (global.get $g)) (br_if 0 (global.get $g)) {step}))");
    let mut tables = String::new();
    for _ in 0..20 {
        let targets: String = (0..1_000).map(|n| format!("{n} ")).collect();
        let arms: String =
            (0..1_000).map(|n| format!(") (local.set {0} (i32.add (local.get {0}) (i32.const 1)))", n % 500)).collect();
        tables += &format!("{}(br_table {targets} (global.get $g)){arms}", "(block ".repeat(1_000));
    }
    let signatures: String = (0..9_900usize)
        .map(|n| {
            let params: String = (0..100).map(|bit| if n >> (bit % 14) & 1 == 0 { "i32 " } else { "i64 " }).collect();
            format!("(type (func (param {params})))")
        })
        .collect();
    vec![
        ("loops around many locals", loops(1_000, 100)),
        ("deep loops around many locals", loops(4_000, 4_000)),
        ("blocks that set a local", blocks(25_000)),
        ("jump tables", function(&i32s(500), &tables)),
        ("many values alive", mixed(6_000, 35_000, &plain)),
        ("values alive across loops", mixed(500, 12_000, &in_loop)),
        ("functions", wat(&format!(r#"(module (func (export "run")) {})"#, "(func)".repeat(99_000)))),
        ("signatures", wat(&format!(r#"(module {signatures} (func (export "run")))"#))),
    ]
}

#[test]
fn ordinary_code_of_megabytes_compiles() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let body = "(local.set 1 (i32.add (i32.load (local.get 0)) (local.get 1)))
        (if (i32.gt_u (local.get 1) (i32.const 100)) (then (i32.store (local.get 0) (local.get 1))))
        (loop (local.set 0 (i32.sub (local.get 0) (i32.const 4))) (br_if 0 (local.get 0)))"
        .repeat(8);
    let functions = format!("(func (param i32 i32) (result i32) {body} (local.get 1))").repeat(4_000);
    let wasm = wat(&format!(r#"(module (memory 1) (func (export "run") (result i32) (i32.const 7)) {functions})"#));
    assert!(wasm.len() > 1 << 20, "{} bytes", wasm.len());
    assert_eq!(gw.execute(&key, &wasm, b"").expect(200).json()["result"], 7);
}

/// Of two threads that compile, the one that has come to the small functions says nothing about the other's large one.
#[test]
fn a_large_function_has_the_time_of_its_size_beside_small_ones() {
    let gw = Gateway::start(&api::config("[engine.compile]\nper_mib = \"100s\"\n"));
    let wasm = blocks(15_000);
    let answer = upload(&gw, &gw.key(), &wasm).send().expect(200);
    assert_eq!(answer.json()["size_bytes"], wasm.len());
}

/// One owner's compiles take turns among themselves, so that another's begin at once.
#[test]
fn one_owner_does_not_hold_every_compiler() {
    let gw = Gateway::start(&api::config("[engine.compile]\nprocesses = 2\nper_mib = \"1h\"\ncpu = \"10m\"\n"));
    let (evil, acme) = (gw.key(), gw.new_key(&crate::support::admin::NewKey { owner: "other", ..Default::default() }));
    let slow = blocks(37_000);
    // A compile goes on for as long as its client is there.
    let clients: Vec<Conn> = (0..4u8)
        .map(|n| {
            // A custom section makes the bytes differ.
            let wasm = [slow.as_slice(), &[0, 3, 1, b'n', n]].concat();
            let mut conn = Conn::connect(gw.proxy);
            conn.send(upload(&gw, &evil, &wasm).bytes());
            conn
        })
        .collect();
    let engine = || gw.admin("GET", "/api/state").send().expect(200).json()["engine"].clone();
    crate::support::eventually("one compiles and others wait", || {
        let engine = engine();
        engine["compiling"] == 1 && engine["compiles"]["waiting"].as_array().is_some_and(|waiting| !waiting.is_empty())
    });
    gw.execute(&acme.text, &wat(r#"(module (func (export "run")))"#), b"").expect(200);
    let engine = engine();
    assert_eq!(engine["compiling"], 1, "and still only one of that owner");
    let compiles = &engine["compiles"];
    let of = |state: &str| compiles[state].as_array().expect("a list").clone();
    assert_eq!((of("running").len(), &compiles["processes"]), (1, &serde_json::json!(2)), "{compiles}");
    assert_eq!(compiles["waiting_total"], of("waiting").len(), "{compiles}");
    for compile in of("running").iter().chain(&of("waiting")) {
        assert_eq!((&compile["owner"], &compile["compiler"]), (&"acme".into(), &"cranelift-fast".into()));
        assert_eq!(compile["size_bytes"], slow.len() + 5, "{compile}");
        assert!(compile["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")) && compile["since"].is_string());
    }
    drop(clients);
}
