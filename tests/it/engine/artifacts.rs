//! Artifacts and modules on disk, and loading them.

use std::path::Path;

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
        let module = engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
        let finished = kit.run(&module, limits(), number(100)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(25)]);
        assert_eq!(engine.stats().artifacts_rejected, 1, "case {n}");
        made_anew(&artifact, &bad).await;
    }
    // Another gateway's key is as good as tampering; the artifact of another digest too.
    let engine = open(kit.dir.path().to_owned(), [8; 32], config());
    engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    assert_eq!(engine.stats().artifacts_rejected, 1);
    made_anew(&artifact, &good).await;
    let other = kit.try_load(GROW, None, Compiler::Optimising).await.unwrap();
    let other_path = artifact.with_file_name(format!("{}.cranelift", other.digest().hex()));
    std::fs::copy(&other_path, &artifact).unwrap();
    let engine = open(kit.dir.path().to_owned(), [7; 32], config());
    engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
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
    let gone = again.load(module.digest(), module.abi(), module.shape()).await;
    assert!(matches!(gone, Err(GuestFailure::NotLoadable(_))));
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
