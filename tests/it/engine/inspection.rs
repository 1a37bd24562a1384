//! What an upload is, and what is too much for the compiler. The refusals are rows of the attack table.

use super::*;

#[test]
fn abis_are_found_by_shape() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let found = |wat: &str, declared| {
        let bytes = wat::parse_str(wat).unwrap();
        kit.engine.inspect(&bytes, declared, MIB, &limits()).unwrap().abi
    };
    assert_eq!(found(r#"(module (func (export "_start")))"#, None), Abi::Command);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Cgi)), Abi::Cgi);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Core)), Abi::Core);
    assert_eq!(found(r#"(module (func (export "add") (param i32 i32) (result i32) (i32.const 0)))"#, None), Abi::Core);
}

#[tokio::test]
async fn a_compiler_without_time_or_memory_refuses_the_module() {
    let work = "(local.set 0 (i64.mul (i64.add (local.get 0) (i64.const 1)) (local.get 1)))".repeat(20_000);
    let functions = format!("(func (param i64 i64) (result i64) {work} (local.get 0))").repeat(40);
    let bytes = Bytes::from(wat::parse_str(format!(r#"(module (func (export "run")) {functions})"#)).unwrap());
    for compile in [
        wasmgate::config::Compile {
            processes: 1,
            cpu: Duration::from_secs(1),
            per_mib: Duration::from_secs(2),
            memory_bytes: 4 << 30,
        },
        wasmgate::config::Compile {
            processes: 1,
            cpu: Duration::from_secs(60),
            per_mib: Duration::from_secs(2),
            memory_bytes: 64 * MIB,
        },
    ] {
        let kit = Kit::with(wasmgate::config::Engine { compile, ..config() });
        let inspected = kit.engine.inspect(&bytes, None, 64 * MIB, &limits()).unwrap();
        match kit.engine.install(bytes.clone(), &inspected, Compiler::Optimising).await {
            Err(InstallError::NotLoadable(e)) => assert_refused(&e, CompileLimit, "compile"),
            other => panic!("{other:?}"),
        }
        assert_eq!(kit.engine.stats().compiling, 0);
    }
}
