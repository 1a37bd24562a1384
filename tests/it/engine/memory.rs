//! Memory, tables and stack of one guest: their bounds, and what ends a guest that passes them.

use super::*;

/// Writes its argument over its memory after looking whether all of it was zero.
const CANARY: &str = r#"(module (memory 8) (func (export "run") (param $mark i32) (result i32)
    (local $i i32) (local $seen i32)
    (loop $next
      (local.set $seen (i32.or (local.get $seen) (i32.load (local.get $i))))
      (i32.store (local.get $i) (local.get $mark))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 524288))))
    (local.get $seen)))"#;

#[tokio::test]
async fn no_owner_sees_what_another_left_in_a_slot() {
    let kit = Kit::with(wasmgate::config::Engine { threads: 1, ..config() });
    let module = kit.load(CANARY).await;
    for n in 0..50u32 {
        let owner = if n % 2 == 0 { "acme" } else { "evil" };
        let finished = kit.run_as(owner, &module, limits(), number(0xA5A5_0000 + n)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(0)], "run {n}");
    }
    // One thread and one memory: the slot came back each time. Nothing is left when no guest is.
    assert_eq!(kit.engine.stats().memory_bytes, 0);
}

#[tokio::test]
async fn growth_beyond_the_limit_gives_minus_one() {
    let kit = Kit::new();
    let module = kit.load(GROW).await;
    for (pages, want) in [(255, 1), (256, -1), (65_535, -1), (u32::MAX, -1), (0, 1)] {
        let finished = kit.run(&module, limits(), number(pages)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(want)], "{pages} pages");
        let peak = if want == 1 { u64::from(pages + 1) << 16 } else { 1 << 16 };
        assert_eq!(finished.meter.memory_peak_bytes, peak);
    }
}

#[tokio::test]
async fn declared_memory_over_the_limit_is_refused() {
    let kit = Kit::new();
    assert_refused(&kit.refusal(r#"(module (memory 257) (func (export "run")))"#), MemoryLimit, "16777216");
    assert_refused(&kit.refusal(r#"(module (table 1001 funcref) (func (export "run")))"#), MemoryLimit, "1000");
    // A caller with smaller limits than the uploader's.
    let module = kit.load(r#"(module (memory 32) (func (export "run")))"#).await;
    let finished = kit.run(&module, Limits { memory_bytes: MIB, ..limits() }, Input::default()).await;
    assert_eq!(*failure(&finished), GuestFailure::OutOfMemory);
}

#[tokio::test]
async fn the_budget_of_the_process_bounds_all_guests() {
    // One owner has half of it.
    let kit = Kit::with(wasmgate::config::Engine { memory_budget_bytes: Some(6 << 16), ..config() });
    let module = kit.load(GROW).await;
    let values = |f: Finished| f.result.unwrap().values;
    assert_eq!(values(kit.run(&module, limits(), number(3)).await), [serde_json::json!(-1)]);
    assert_eq!(values(kit.run(&module, limits(), number(2)).await), [serde_json::json!(1)]);
    let finished = kit.run_wat(r#"(module (memory 4) (func (export "run")))"#).await;
    assert_eq!(*failure(&finished), GuestFailure::OutOfMemory);
    assert_eq!(kit.engine.stats().memory_bytes, 0);
}

#[tokio::test]
async fn a_guest_calls_as_deep_as_its_own_stack_whatever_others_had() {
    let wat = r#"(module (func $deep (export "run") (call $deep)))"#;
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        // One thread: each run could have the stack of the one before.
        let kit = Kit::with(wasmgate::config::Engine { threads: 1, ..config() });
        let module = kit.try_load(wat, None, compiler).await.unwrap();
        let mut depth = Vec::new();
        for kib in [64, 1024, 64, 256, 64, 128, 1024] {
            let limits = Limits { stack_bytes: kib << 10, ..limits() };
            let finished = kit.run(&module, limits, Input::default()).await;
            assert!(matches!(failure(&finished), GuestFailure::Trap { .. }), "{:?}", finished.result);
            depth.push((kib, finished.meter.fuel));
        }
        let least = depth[0].1;
        for (kib, fuel) in depth {
            let want = least * kib / 64;
            assert!(fuel.abs_diff(want) * 20 < want, "{kib} KiB: {fuel}, not about {want}, with {compiler:?}");
        }
    }
}

#[tokio::test]
async fn traps_end_the_guest_alone() {
    let kit = Kit::new();
    for (body, reason) in [
        ("unreachable", "unreachable"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide by zero"),
        ("(drop (i32.load (i32.const 65536)))", "out of bounds"),
        ("(drop (i64.load offset=4294967295 (i32.const -1)))", "out of bounds"),
        ("(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536))", "out of bounds"),
        ("(memory.copy (i32.const 0) (i32.const 1) (i32.const 65536))", "out of bounds"),
        ("(call_indirect (i32.const 0))", "element"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", "conversion"),
        ("(call $deep)", "stack"),
    ] {
        let wat = format!(
            r#"(module (memory 1) (table 1 funcref) (func $deep (call $deep)) (func $inner {body})
               (func (export "run") (call $inner)))"#
        );
        for compiler in [Compiler::Fast, Compiler::Optimising] {
            let module = kit.try_load(&wat, None, compiler).await.unwrap();
            let finished = kit.run(&module, limits(), Input::default()).await;
            match failure(&finished) {
                GuestFailure::Trap { reason: found, backtrace } => {
                    assert!(found.contains(reason), "{body} with {compiler:?}: {found}");
                    assert!(backtrace.len() < 8_192);
                }
                other => panic!("{body}: {other:?}"),
            }
            assert!(finished.meter.fuel > 0 && finished.meter.wall > Duration::ZERO, "{body}");
        }
    }
}

#[tokio::test]
async fn a_backtrace_names_functions() {
    let kit = Kit::new();
    let finished = kit
        .run_wat(
            r#"(module (func $oops unreachable) (func $middle (call $oops)) (func (export "run") (call $middle)))"#,
        )
        .await;
    match failure(&finished) {
        GuestFailure::Trap { backtrace, .. } => {
            let (oops, middle) = (backtrace.find("oops").unwrap(), backtrace.find("middle").unwrap());
            assert!(oops < middle, "{backtrace}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bulk_instructions_in_pieces_do_what_they_did() {
    // 3 MiB, so that each works in several pieces; overlapping copies in both directions.
    let kit = Kit::new();
    let module = kit
        .load(
            r#"(module (memory 100) (data $d "wasm") (func (export "run") (result i32 i32 i32 i32 i32)
               (memory.fill (i32.const 10) (i32.const 7) (i32.const 3145728))
               (i32.store8 (i32.const 10) (i32.const 1))
               (i32.store8 (i32.const 3145737) (i32.const 9))
               (memory.copy (i32.const 11) (i32.const 10) (i32.const 3145728))
               (memory.copy (i32.const 5) (i32.const 11) (i32.const 3145728))
               (memory.init $d (i32.const 4000000) (i32.const 1) (i32.const 3))
               (i32.load8_u (i32.const 5)) (i32.load8_u (i32.const 6)) (i32.load8_u (i32.const 3145732))
               (i32.load8_u (i32.const 9)) (i32.load (i32.const 4000000))))"#,
        )
        .await;
    let finished = kit.run(&module, limits(), Input::default()).await;
    let asm = i32::from_le_bytes(*b"asm\0");
    let want = [1, 7, 9, 7, asm].map(serde_json::Value::from);
    assert_eq!(finished.result.unwrap().values, want);
    assert!(finished.meter.fuel > 3 * 3_145_728 / 64);
}
