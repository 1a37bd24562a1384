//! Core functions: numbers in and out, entries, SIMD.

use super::*;

#[tokio::test]
async fn core_functions_take_and_give_numbers() {
    let kit = Kit::new();
    let module = kit
        .load(
            r#"(module
               (func (export "add") (param i32 i64) (result i64) (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)))
               (func (export "half") (param f32 f64) (result f64)
                 (f64.mul (f64.promote_f32 (local.get 0)) (local.get 1)))
               (func (export "both") (result i32 f32) (i32.const -1) (f32.const 0.5))
               (func (export "nan") (result f64) (f64.const nan))
               (func (export "reference") (param externref)))"#,
        )
        .await;
    let call = async |entry: &str, args: &[&str]| {
        let function_args = args.iter().map(|s| (*s).to_owned()).collect();
        let input = Input { entry: Some(entry.into()), function_args, ..Input::default() };
        kit.run(&module, limits(), input).await.result.map(|o| o.values)
    };
    assert_eq!(call("add", &["-5", "0xff"]).await.unwrap(), [serde_json::json!(250)]);
    assert_eq!(call("half", &["3", "0.5"]).await.unwrap(), [serde_json::json!(1.5)]);
    assert_eq!(call("both", &[]).await.unwrap(), [serde_json::json!(-1), serde_json::json!(0.5)]);
    assert_eq!(call("nan", &[]).await.unwrap(), [serde_json::json!("NaN")]);
    for (entry, args) in [
        ("add", vec!["1"]),
        ("add", vec!["1", "2", "3"]),
        ("add", vec!["x", "1"]),
        ("add", vec!["4294967296", "1"]),
        ("missing", vec![]),
        ("reference", vec!["1"]),
    ] {
        assert!(matches!(call(entry, &args).await, Err(RunError::BadCall(_))), "{entry} {args:?}");
    }
}

#[tokio::test]
async fn a_core_module_has_a_fixed_entry_order() {
    let kit = Kit::new();
    let answer = async |wat: &str| {
        let module = kit.try_load(wat, Some(Abi::Core), Compiler::Fast).await.unwrap();
        kit.run(&module, limits(), Input::default()).await.result.map(|o| o.values)
    };
    let f = |name: &str, n: i32| format!(r#"(func (export "{name}") (result i32) (i32.const {n}))"#);
    let wat = |names: &[(&str, i32)]| format!("(module {})", names.iter().map(|(s, n)| f(s, *n)).collect::<String>());
    assert_eq!(answer(&wat(&[("run", 3), ("main", 2), ("_start", 1)])).await.unwrap(), [serde_json::json!(1)]);
    assert_eq!(answer(&wat(&[("run", 3), ("main", 2)])).await.unwrap(), [serde_json::json!(2)]);
    assert_eq!(answer(&wat(&[("run", 3)])).await.unwrap(), [serde_json::json!(3)]);
    assert!(matches!(answer(&wat(&[("other", 1)])).await, Err(RunError::BadCall(_))));
}

#[tokio::test]
async fn simd_runs_at_both_levels() {
    let kit = Kit::new();
    let wat = r#"(module (func (export "run") (param i32) (result i32)
        (i32x4.extract_lane 2 (i32x4.add (i32x4.splat (local.get 0)) (i32x4.splat (i32.const 1))))))"#;
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.try_load(wat, None, compiler).await.unwrap();
        let values = kit.run(&module, limits(), number(41)).await.result.unwrap().values;
        assert_eq!(values, [serde_json::json!(42)], "{compiler:?}");
    }
}
