//! Modules with WASIX imports: what works, what is denied, and that nothing in wasmer-wasix outlasts or outgrows a run.

use super::*;

use crate::support::wasix_guest;

#[tokio::test]
async fn files_live_as_long_as_the_run() {
    let kit = Kit::new();
    let bytes = Bytes::from(wasix_guest("files"));
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.load_bytes(bytes.clone(), None, compiler).await.unwrap();
        assert_eq!(module.abi(), Abi::Command);
        for _ in 0..2 {
            let input = Input {
                args: vec!["one".into()],
                env: vec![("NAME".into(), "value".into())],
                stdin: Bytes::from_static(b"first\nsecond\n"),
                ..Input::default()
            };
            let finished = kit.run(&module, limits(), input).await;
            let output = finished.result.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "ok value one first\n", "{:?}", finished.stderr);
            assert_eq!((output.exit_code, &finished.stderr[..]), (7, b"done\n".as_slice()));
            assert_eq!(finished.meter.output_bytes, 19);
        }
    }
}
