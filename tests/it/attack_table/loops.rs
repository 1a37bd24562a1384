//! Guests that do not end.

/// Every shape of a loop, with the text of a whole module.
pub const LOOPS: &[(&str, &str)] = &[
    ("loop br", r#"(module (func (export "run") (loop (br 0))))"#),
    ("loop br_if", r#"(module (func (export "run") (loop (br_if 0 (i32.const 1)))))"#),
    ("br_table back edge", r#"(module (func (export "run") (block (loop (br_table 0 0 1 (i32.const 1))))))"#),
    ("outer loop only", r#"(module (func (export "run") (loop (block (block (br 2))))))"#),
    (
        "nested loops",
        r#"(module (func (export "run") (local i32)
        (loop (local.set 0 (i32.const 3))
            (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0)))
            (br 0))))"#,
    ),
    (
        "loop with a value",
        r#"(module (func (export "run") (result i32) (i32.const 1) (loop (param i32) (result i32) (br 0))))"#,
    ),
    ("loop in an if", r#"(module (func (export "run") (if (i32.const 1) (then (loop (br 0))) (else))))"#),
    ("loop in an else", r#"(module (func (export "run") (if (i32.const 0) (then) (else (loop (br 0))))))"#),
    (
        "loop after unreachable code",
        r#"(module (func (export "run") (block (br 0) (loop (br 0)) (unreachable)) (loop (br 0))))"#,
    ),
    ("loop in start", r#"(module (func $s (loop (br 0))) (start $s) (func (export "run")))"#),
    (
        "tail of mutual recursion in a loop",
        r#"(module (func $a (param i32) (if (local.get 0) (then (call $b (i32.sub (local.get 0) (i32.const 1))))))
           (func $b (param i32) (if (local.get 0) (then (call $a (i32.sub (local.get 0) (i32.const 1))))))
           (func (export "run") (loop (call $a (i32.const 40)) (br 0))))"#,
    ),
    (
        "recursion without depth",
        r#"(module (func $f (param i32) (result i32)
             (if (result i32) (i32.lt_u (local.get 0) (i32.const 2)) (then (i32.const 1))
               (else (i32.add (call $f (i32.sub (local.get 0) (i32.const 1)))
                              (call $f (i32.sub (local.get 0) (i32.const 2)))))))
           (func (export "run") (result i32) (call $f (i32.const 80))))"#,
    ),
    (
        "call_indirect in a loop",
        r#"(module (type $t (func)) (table 1 funcref) (elem (i32.const 0) $f) (func $f)
           (func (export "run") (loop (call_indirect (type $t) (i32.const 0)) (br 0))))"#,
    ),
    (
        "mutual call_indirect",
        r#"(module (type $t (func (param i32) (result i32))) (table 2 funcref) (elem (i32.const 0) $f $g)
           (func $f (type $t) (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0))
             (else (i32.add (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1))
                            (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1))))))
           (func $g (type $t) (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0))
             (else (i32.add (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))
                            (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))))))
           (func (export "run") (result i32) (call_indirect (type $t) (i32.const 70) (i32.const 0))))"#,
    ),
    (
        "around memory.fill",
        r#"(module (memory 200) (func (export "run")
           (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 13107200)) (br 0))))"#,
    ),
    (
        "around memory.copy",
        r#"(module (memory 200) (func (export "run")
           (loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 13107199)) (br 0))))"#,
    ),
    (
        "around memory.grow 0",
        r#"(module (memory 1) (func (export "run") (loop (drop (memory.grow (i32.const 0))) (br 0))))"#,
    ),
    (
        "around a refused memory.grow",
        r#"(module (memory 1) (func (export "run") (loop (drop (memory.grow (i32.const 1))) (br 0))))"#,
    ),
    (
        "around table.fill",
        r#"(module (table 1000 funcref) (func (export "run")
           (loop (table.fill (i32.const 0) (ref.null func) (i32.const 1000)) (br 0))))"#,
    ),
    (
        "around host calls",
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32))) (memory 1)
           (func (export "_start") (loop (drop (call $y)) (br 0))))"#,
    ),
    (
        "around random_get",
        r#"(module (import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32))) (memory 200)
           (func (export "_start") (loop (drop (call $r (i32.const 0) (i32.const 13107200))) (br 0))))"#,
    ),
    (
        "a recursion that returns",
        r#"(module (func $f (param i32) (if (local.get 0) (then
             (call $f (i32.sub (local.get 0) (i32.const 1))) (call $f (i32.sub (local.get 0) (i32.const 1))))))
           (func (export "run") (call $f (i32.const 60))))"#,
    ),
    (
        "around a table.grow of nothing",
        r#"(module (table 1 funcref) (func (export "run")
           (loop (drop (table.grow (ref.null func) (i32.const 0))) (br 0))))"#,
    ),
    (
        "around a log that is cut",
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32))) (memory 1)
           (func (export "_start") (i32.store (i32.const 4) (i32.const 60000))
             (loop (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))))"#,
    ),
    (
        "around writes of nothing",
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32))) (memory 4)
           (func (export "_start")
             (loop (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 9000))) (br 0))))"#,
    ),
    (
        "around reads of the clock",
        r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $c (param i32 i64 i32) (result i32))) (memory 1)
           (func (export "_start") (loop (drop (call $c (i32.const 0) (i64.const 0) (i32.const 0))) (br 0))))"#,
    ),
    (
        "a long sleep",
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $p (param i32 i32 i32 i32) (result i32)))
           (memory 1) (func (export "_start")
             (i64.store (i32.const 24) (i64.const 3600000000000))
             (drop (call $p (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#,
    ),
];
