//! Artifacts and modules on disk, and loading them.

use std::path::Path;

use hmac::{Hmac, Mac};

use wasmgate::engine::Inspected;

use super::*;

fn files(kit: &Kit, folder: &str) -> Vec<PathBuf> {
    std::fs::read_dir(kit.dir.path().join(folder)).unwrap().map(|e| e.unwrap().path()).collect()
}

/// Optimised, and what answered meanwhile is gone.
async fn made_anew(artifact: &Path, before: &[u8]) {
    let fast = artifact.with_extension("cranelift-fast");
    let made = || std::fs::read(artifact).is_ok_and(|now| now != before) && !fast.exists();
    eventually_async("it is made anew", made).await;
}

#[tokio::test]
async fn a_tampered_artifact_is_never_loaded() {
    let kit = Kit::new();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = kit.engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    kit.engine.install(bytes, &inspected, Compiler::Optimising).await.unwrap();
    let [artifact] = files(&kit, "artifacts").try_into().unwrap();
    let good = std::fs::read(&artifact).unwrap();
    let mut cases: Vec<Vec<u8>> =
        vec![Vec::new(), good[..40].to_vec(), good[..good.len() - 1].to_vec(), vec![0; 5_000]];
    for at in [0, 31, 32, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        cases.push(bad);
    }
    for (n, bad) in cases.into_iter().enumerate() {
        std::fs::write(&artifact, &bad).unwrap();
        let engine = open(kit.dir.path().to_owned(), [7; 32], config());
        let module = engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
        let finished = kit.run(&module, limits(), number(100)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(25)]);
        assert_eq!(engine.stats().artifacts_rejected, 1, "case {n}");
        made_anew(&artifact, &bad).await;
    }
    // Another gateway's key is as good as tampering; the artifact of another digest too.
    let engine = open(kit.dir.path().to_owned(), [8; 32], config());
    engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    assert_eq!(engine.stats().artifacts_rejected, 1);
    made_anew(&artifact, &good).await;
    let other = kit.try_load(GROW, None, Compiler::Optimising).await.unwrap();
    let other_path = artifact.with_file_name(format!("{}.cranelift", other.digest().hex()));
    std::fs::copy(&other_path, &artifact).unwrap();
    let engine = open(kit.dir.path().to_owned(), [7; 32], config());
    engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    assert_eq!(engine.stats().artifacts_rejected, 1);
}

#[tokio::test]
async fn a_version_can_be_removed_and_temporaries_go_at_start() {
    let kit = Kit::new();
    let module = kit.try_load(SIEVE, None, Compiler::Optimising).await.unwrap();
    assert_eq!((files(&kit, "modules").len(), files(&kit, "artifacts").len()), (1, 1));
    std::fs::write(kit.dir.path().join("modules/.tmp-1-1"), b"torn").unwrap();
    let again = open(kit.dir.path().to_owned(), [7; 32], config());
    assert_eq!(files(&kit, "modules").len(), 1);
    again.remove(module.digest()).await.unwrap();
    assert_eq!((files(&kit, "modules").len(), files(&kit, "artifacts").len()), (0, 0));
    let gone = again.load(None, module.digest(), module.abi(), module.shape()).await;
    assert!(matches!(gone, Err(RunError::Guest(GuestFailure::NotLoadable(_)))));
    // A run that holds it goes on.
    assert!(kit.run(&module, limits(), number(10)).await.result.is_ok());
}

#[tokio::test]
async fn loads_are_coalesced() {
    let kit = Kit::new();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = kit.engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    let loads = (0..16).map(|_| kit.engine.load_inline(bytes.clone(), &inspected, None));
    let modules = futures_util::future::join_all(loads).await;
    let first = modules[0].as_ref().unwrap();
    assert!(modules.iter().all(|m| Arc::ptr_eq(m.as_ref().unwrap(), first)));
}

/// By the layout of `artifacts.rs`: what another release, Wasmer or machine wrote under the same key.
#[tokio::test]
async fn artifacts_of_other_formats_engines_and_machines_are_made_anew() {
    let kit = Kit::new();
    let module = kit.try_load(SIEVE, None, Compiler::Optimising).await.unwrap();
    let [artifact] = files(&kit, "artifacts").try_into().unwrap();
    let good = std::fs::read(&artifact).unwrap();
    let target = format!("{} {:?}", wasmer_types::target::Triple::host(), wasmer_types::target::CpuFeature::for_host());
    let digest = module.digest().0;
    let signed = |parts: [&[u8]; 5]| {
        let mut mac = <Hmac<sha2::Sha256> as hmac::KeyInit>::new_from_slice(&[7; 32]).unwrap();
        for part in parts.into_iter().chain([&good[32..]]) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        [&mac.finalize().into_bytes(), &good[32..]].concat()
    };
    let of = |format: u32, wasmer: &str, target: &str| {
        let format = format!("wasmgate artifact {format}");
        signed([format.as_bytes(), wasmer.as_bytes(), target.as_bytes(), &digest, b"cranelift"])
    };
    let wasmer = "wasmer 7.4.2";
    let ours =
        (1..100).find(|format| of(*format, wasmer, &target) == good).expect("the test signs as the gateway does");
    for (what, foreign) in [
        ("format", of(ours + 1, wasmer, &target)),
        ("engine", of(ours, "wasmer 7.4.1", &target)),
        ("machine", of(ours, wasmer, "riscv64gc-unknown-linux-gnu {}")),
    ] {
        std::fs::write(&artifact, &foreign).unwrap();
        let engine = open(kit.dir.path().to_owned(), [7; 32], config());
        engine.load(None, module.digest(), module.abi(), module.shape()).await.unwrap();
        assert_eq!(engine.stats().artifacts_rejected, 1, "{what}");
        made_anew(&artifact, &foreign).await;
    }
}

/// Distinct modules, whose artifacts have about the same size.
async fn install_some(engine: &Arc<Engine>, numbers: std::ops::Range<u32>) -> Vec<Inspected> {
    let mut all = Vec::new();
    for n in numbers {
        let wat = format!(r#"(module (func (export "run") (result i32) (i32.const {})))"#, 1_000_000 + n);
        let bytes = Bytes::from(wat::parse_str(wat).unwrap());
        let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
        engine.install(bytes, &inspected, Compiler::Optimising).await.unwrap();
        all.push(inspected);
    }
    all
}

#[tokio::test]
async fn over_their_bound_artifacts_go_in_the_order_of_use() {
    let kit = Kit::new();
    let path = |of: &Inspected| kit.dir.path().join(format!("artifacts/{}.cranelift", of.digest.hex()));
    let mut all = install_some(&kit.engine, 0..6).await;
    let one = files(&kit, "artifacts").iter().map(|f| f.metadata().unwrap().len()).max().unwrap();
    let hours_ago = |hours: u64| std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
    for (n, inspected) in all.iter().enumerate() {
        let file = std::fs::File::open(path(inspected)).unwrap();
        file.set_modified(hours_ago(20 - n as u64)).unwrap();
    }
    // Another process: the oldest is used again, the second oldest is in memory as well, and so is what is used next.
    let bound = 6 * one + one / 2;
    let again =
        open(kit.dir.path().to_owned(), [7; 32], wasmgate::config::Engine { artifact_disk_bytes: bound, ..config() });
    let load = async |of: &Inspected| again.load(None, of.digest, of.abi, &of.shape).await.unwrap();
    let held = load(&all[1]).await;
    load(&all[0]).await;
    std::fs::File::open(path(&all[1])).unwrap().set_modified(hours_ago(19)).unwrap();
    let there = |all: &[Inspected]| all.iter().map(|of| path(of).exists()).collect::<Vec<_>>();
    all.extend(install_some(&again, 6..7).await);
    // Down to nine tenths of the bound, which is less than six.
    assert_eq!(there(&all), [true, true, false, false, true, true, true]);
    let stats = again.stats();
    assert_eq!(stats.artifacts_evicted, 2);
    assert!(stats.artifact_disk_bytes <= bound && stats.artifact_disk_bytes >= 5 * one - one / 2, "{stats:?}");
    assert_eq!(files(&kit, "modules").len(), 7, "modules are no cache");
    // What is gone is compiled anew, and then kept in place of another.
    let module = load(&all[2]).await;
    assert_eq!(
        kit.run(&module, limits(), Input::default()).await.result.unwrap().values,
        [serde_json::json!(1_000_002)]
    );
    eventually_async("it is kept again", || path(&all[2]).exists()).await;
    drop(held);
}

#[tokio::test]
async fn an_artifact_over_the_whole_bound_is_not_kept() {
    let kit = Kit::with(wasmgate::config::Engine { artifact_disk_bytes: 100, ..config() });
    let [one] = install_some(&kit.engine, 0..1).await.try_into().unwrap();
    assert!(files(&kit, "artifacts").is_empty());
    let module = kit.engine.load(None, one.digest, one.abi, &one.shape).await.unwrap();
    assert!(kit.run(&module, limits(), Input::default()).await.result.is_ok());
    assert_eq!(kit.engine.stats().artifact_disk_bytes, 0);
}
