use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|verb| verb == wasmgate::engine::compile::VERB) {
        return ExitCode::from(wasmgate::engine::compile::child_main() as u8);
    }
    ExitCode::SUCCESS
}
