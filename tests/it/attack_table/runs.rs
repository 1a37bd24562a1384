//! Guests that the execute endpoint runs: those that do not end, that want too much, that trap and that pry.

use super::loops::LOOPS;
use super::row::{Attack, Ends, Row, Tier};
use crate::support::{c_guest, wat};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |threat, variant: &str, tier, wasm: Vec<u8>, args, ends| {
        rows.push(Row { threat, variant: variant.into(), attack: Attack::Run { tier, wasm, args, ends } });
    };
    for (variant, text) in LOOPS {
        row("infinite loop", variant, Tier::Hasty, wat(text), "", Ends::Timeout);
    }
    let out_of_fuel = Ends::Problem(504, "handler-out-of-fuel");
    row("infinite loop", "with little fuel", Tier::Frugal, wat(LOOPS[0].1), "", out_of_fuel);
    for (variant, text, result) in WANTS {
        row("memory and tables without end", variant, Tier::Patient, wat(text), "", Ends::Result(result));
    }
    for (variant, text) in
        [("deep recursion", DEEP), ("through a table", DEEP_INDIRECT), ("in the start function", DEEP_START)]
    {
        row("stack overflow", variant, Tier::Patient, wat(text), "", TRAP);
    }
    for (locals, variant) in [(100, "with frames of 1.6 KB"), (2_000, "with frames of 32 KB")] {
        row("stack overflow", variant, Tier::Patient, large_frames(locals), "", TRAP);
    }
    let command = || c_guest("command");
    let too_much = || Ends::Problem(502, "handler-output-too-large");
    row("output without end", "of a command", Tier::Patient, command(), r#"["flood"]"#, too_much());
    row(
        "logs without end",
        "cut at the limit",
        Tier::Patient,
        wat(LOGS),
        "",
        Ends::Holds(|answer| answer.json()["stderr"].as_str().is_some_and(|log| log.len() == 4 << 10)),
    );
    for (variant, text) in TRAPS {
        row("trap", variant, Tier::Patient, wat(text), "", TRAP);
    }
    row("trap", "abort() of a C program", Tier::Patient, command(), r#"["abort"]"#, TRAP);
    row("trap", "a refused memory.grow", Tier::Patient, wat(GIVES_UP), "", Ends::Problem(502, "handler-out-of-memory"));
    row(
        "host files",
        "opened by path",
        Tier::Patient,
        command(),
        r#"["reach"]"#,
        Ends::Holds(|answer| {
            answer.json()["output"].as_str().is_some_and(|output| output.matches("denied").count() == 4)
        }),
    );
    row(
        "host environment",
        "printed",
        Tier::Patient,
        command(),
        r#"["env"]"#,
        Ends::Holds(|answer| answer.json()["output"] == ""),
    );
    row(
        "clock as a side channel",
        "finer than a millisecond",
        Tier::Patient,
        wat(CLOCK),
        "",
        Ends::Holds(|answer| answer.json()["exit_code"] == 0),
    );
    rows
}

const TRAP: Ends = Ends::Problem(502, "handler-trap");

/// Recurses without end, with so many vectors alive in each frame.
fn large_frames(locals: usize) -> Vec<u8> {
    let declared = "v128 ".repeat(locals);
    let each = |text: &dyn Fn(usize) -> String| (0..locals).map(text).collect::<String>();
    let made = each(&|n| format!("(local.set {n} (i32x4.splat (i32.add (global.get $g) (i32.const {n}))))"));
    let used = each(&|n| {
        format!("(global.set $g (i32x4.extract_lane 1 (i32x4.add (i32x4.splat (global.get $g)) (local.get {n}))))")
    });
    wat(&format!(
        r#"(module (global $g (mut i32) (i32.const 0))
             (func $f (export "run") (local {declared}) {made} (call $f) {used}))"#
    ))
}

/// The limit is 16 MiB of memory and 100,000 elements of a table.
const WANTS: [(&str, &str, i64); 6] = [
    (
        "memory.grow page by page",
        r#"(module (memory 1) (func (export "run") (result i32)
             (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (memory.size)))"#,
        256,
    ),
    (
        "memory.grow of a page too much",
        r#"(module (memory 1) (func (export "run") (result i32) (memory.grow (i32.const 256))))"#,
        -1,
    ),
    (
        "memory.grow of 4 GiB",
        r#"(module (memory 1) (func (export "run") (result i32) (memory.grow (i32.const -1))))"#,
        -1,
    ),
    (
        "memory grown and all of it touched",
        r#"(module (memory 1) (func (export "run") (result i32) (local i32)
             (drop (memory.grow (i32.const 255)))
             (memory.fill (i32.const 0) (i32.const 255) (i32.const 16777216)) (memory.grow (i32.const 1))))"#,
        -1,
    ),
    (
        "table.grow by 1,000",
        r#"(module (table 1 funcref) (func (export "run") (result i32)
             (loop (br_if 0 (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1)))) (table.size)))"#,
        99_001,
    ),
    (
        "table.grow of everything",
        r#"(module (table 1 externref) (func (export "run") (result i32) (table.grow (ref.null extern) (i32.const -2))))"#,
        -1,
    ),
];

const DEEP: &str = r#"(module (func $dive (export "run") (result i32) (i32.add (i32.const 1) (call $dive))))"#;
const DEEP_INDIRECT: &str = r#"(module (type $t (func (result i32))) (table 1 funcref) (elem (i32.const 0) $dive)
    (func $dive (export "run") (result i32) (i32.add (i32.const 1) (call_indirect (type $t) (i32.const 0)))))"#;
const DEEP_START: &str = r#"(module (func $dive (result i32) (i32.add (i32.const 1) (call $dive)))
    (func $start (drop (call $dive))) (start $start) (func (export "run")))"#;

/// A mebibyte.
const LOGS: &str = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (func (export "_start") (local i32) (local.set 0 (i32.const 1024))
      (memory.fill (i32.const 16) (i32.const 97) (i32.const 1024))
      (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 1024))
      (loop (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))"#;

const TRAPS: [(&str, &str); 11] = [
    ("in a core function", r#"(module (func (export "run") unreachable))"#),
    ("in a start section", r#"(module (func $s unreachable) (start $s) (func (export "run")))"#),
    ("in a command", r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#),
    (
        "in a command's start section",
        r#"(module (memory (export "memory") 1) (func $s unreachable) (start $s) (func (export "_start")))"#,
    ),
    ("a division by zero", r#"(module (func (export "run") (drop (i32.div_u (i32.const 1) (i32.const 0)))))"#),
    ("a load beyond the memory", r#"(module (memory 1) (func (export "run") (drop (i32.load (i32.const -4)))))"#),
    (
        "a load with the largest offset",
        r#"(module (memory 1) (func (export "run") (drop (i64.load offset=4294967295 (i32.const -1)))))"#,
    ),
    ("a segment beyond the memory", r#"(module (memory 1) (data (i32.const 65535) "xx") (func (export "run")))"#),
    ("a segment beyond the table", r#"(module (table 1 funcref) (elem (i32.const 1) $f) (func $f (export "run")))"#),
    ("a call of nothing", r#"(module (table 1 funcref) (func (export "run") (call_indirect (i32.const 0))))"#),
    (
        "a bad pointer given to the host",
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1)
             (func (export "_start") (drop (call $w (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)))))"#,
    ),
];

const GIVES_UP: &str = r#"(module (memory 1) (func (export "run")
    (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))))"#;

/// Exits with what two clocks give beyond whole milliseconds, the second one as soon as it moves.
const CLOCK: &str = r#"(module
    (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
    (func (export "_start") (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 16)))
      (loop (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 24)))
        (br_if 0 (i64.eq (i64.load (i32.const 16)) (i64.load (i32.const 24)))))
      (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 32)))
      (call $exit (i32.wrap_i64 (i64.or (i64.rem_u (i64.load (i32.const 24)) (i64.const 1000000))
        (i64.rem_u (i64.load (i32.const 32)) (i64.const 1000000)))))))"#;
