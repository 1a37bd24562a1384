//! An artifact of some ten megabytes from its file to a module that can be instantiated: read, or mapped.
//!
//! `cargo bench --bench artifact`. Wall time, the fastest of the rounds; the MAC is over all bytes, as when the gateway loads.

use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use wasmer::sys::NativeEngineExt;

const ROUNDS: u32 = 30;

fn main() {
    let artifact = artifact();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("artifact");
    std::fs::write(&file, &artifact).expect("the folder is ours");
    println!("artifact of {} bytes", artifact.len());
    let read = || Bytes::from(std::fs::read(&file).expect("it is there"));
    let mapped = || Bytes::from_owner(Mapped::of(&file));
    let verify = |bytes: Bytes| {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&[7; 32]).expect("HMAC takes keys of any length");
        mac.update(&bytes);
        black_box(mac.finalize());
        bytes
    };
    let load = |bytes: Bytes| {
        let engine = wasmer::Engine::headless();
        // SAFETY: these are the bytes that were just serialised.
        let module = unsafe { wasmer::Module::deserialize_unchecked(&engine, bytes) };
        black_box(module.expect("it is whole"));
    };
    // By turns: what else the machine does meets all.
    let mut best = [Duration::MAX; 6];
    for _ in 0..ROUNDS {
        let steps: [&dyn Fn(); 6] = [
            &|| drop(black_box(read())),
            &|| drop(verify(read())),
            &|| load(verify(read())),
            &|| drop(black_box(mapped())),
            &|| drop(verify(mapped())),
            &|| load(verify(mapped())),
        ];
        for (best, step) in best.iter_mut().zip(steps) {
            let began = Instant::now();
            step();
            *best = began.elapsed().min(*best);
        }
    }
    let names = ["read", "read, MAC", "read, MAC, module", "mapped", "mapped, MAC", "mapped, MAC, module"];
    for (name, best) in names.iter().zip(best) {
        println!("{name:<24} {:>10.1} us", best.as_secs_f64() * 1e6);
    }
}

fn artifact() -> Bytes {
    let body =
        "(i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (i32.load offset=4 (local.get 0))))".repeat(40);
    let functions = format!("(func (param i32) {body})").repeat(3_750);
    let wasm = wat::parse_str(format!("(module (memory 1) {functions})")).expect("the guest's text is valid");
    let mut cranelift = wasmer::sys::Cranelift::new();
    cranelift.opt_level(wasmer::sys::CraneliftOptLevel::None);
    let engine: wasmer::Engine = wasmer::sys::EngineBuilder::new(cranelift).engine().into();
    let module = wasmer::Module::new(&engine, wasm).expect("the guest compiles");
    module.serialize().expect("it was compiled here")
}

struct Mapped {
    at: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: it is only read.
unsafe impl Send for Mapped {}

impl Mapped {
    fn of(path: &Path) -> Mapped {
        let file = std::fs::File::open(path).expect("it is there");
        let bytes = file.metadata().expect("a file").len() as usize;
        // SAFETY: a new mapping, of a file that nobody changes.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "it can be mapped");
        Mapped { at, bytes }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: it is mapped until the drop.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, once.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}
