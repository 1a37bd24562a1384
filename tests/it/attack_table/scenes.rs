//! Attacks that take more than one request.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::arena::{Arena, Stopped};
use super::figures::Figures;
use super::row::{Attack, Code, Row, Seen, Tier, expect, timed};
use crate::support::api::{self, Form};
use crate::support::{Gateway, poll, wat};

pub fn rows() -> Vec<Row> {
    let scene = |threat, variant: &str, scene| Row { threat, variant: variant.into(), attack: Attack::Scene(scene) };
    vec![
        scene("memory of others", "canaries of two owners in one slot", canaries),
        scene("memory of others", "living VMs of two handlers", living_vms),
        scene("crash loop", "refused quickly, with Retry-After", crash_loop),
        scene("bad artifacts", "changed, cut, foreign, exchanged", bad_artifacts),
    ]
}

/// What must be so, or why it is not.
fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Reads all of its memory, then writes its mark over it.
const CANARY: &str = r#"(module (memory 128) (func (export "run") (result i32) (local $i i32) (local $seen i32)
    (loop $next
      (local.set $seen (i32.or (local.get $seen) (i32.load (local.get $i))))
      (i32.store (local.get $i) (i32.const 0xa5a5a5a5))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 8388608))))
    (local.get $seen)))"#;

fn canaries(arena: &Arena, code: Code) -> Result<Seen, String> {
    let wasm = wat(CANARY);
    let owners = [Tier::Patient, Tier::Frugal];
    for owner in owners {
        let target = format!("/api/wasm/modules/canary?owner={}", owner.name());
        let stored = arena.gw.admin("PUT", &target).header("Content-Type", "application/wasm").body(wasm.clone());
        must([200, 201].contains(&stored.send().status), || "the canary can't be stored".into())?;
    }
    if code == Code::Optimised {
        let done = || arena.gw.artifacts(Code::Fast.as_str()).is_empty();
        must(poll(Duration::from_secs(60), done), || "the canary is not optimised".into())?;
    }
    let mut last = None;
    let mut mappings = Vec::new();
    for n in 0..24 {
        let form = Form::default().field("module", "canary").end();
        // The fuel of `frugal` does not last: it is ended in the middle, with its mark in half of the memory.
        let owner = owners[n % 2];
        let (answer, took) = timed(arena.gw.request("POST", "/api/wasm/execute").key(arena.key(owner)).form(form))?;
        match owner {
            Tier::Frugal => expect(&answer, 504, "handler-out-of-fuel")?,
            _ => {
                must(answer.status == 200 && answer.json()["result"] == 0, || format!("run {n} saw a mark: {answer}"))?
            }
        }
        mappings.push(Figures::of(&arena.gw).mappings);
        last = Some(Seen::of(&answer, took));
    }
    // A slot of its own for each run would be 3 mappings each.
    let (first, last_count) = (mappings[4], mappings[23]);
    must(last_count < first + 20, || format!("the slots are not used again: {mappings:?}"))?;
    last.ok_or_else(|| "no run".into())
}

/// Two routes with one module and one configuration: each has VMs of its own.
fn living_vms(arena: &Arena, _: Code) -> Result<Seen, String> {
    let ask = |target: &str| -> Result<(u32, Seen), String> {
        let (answer, took) = timed(arena.gw.get(target))?;
        let count = answer.text().parse().map_err(|_| format!("no count: {answer}"))?;
        Ok((count, Seen::of(&answer, took)))
    };
    let mut most = 0;
    for _ in 0..20 {
        most = most.max(ask("/count/a")?.0);
    }
    must(most > 1, || "no VM served twice".into())?;
    let (first, seen) = ask("/count/b")?;
    must(first == 1, || format!("a VM of another handler answered: {first}"))?;
    Ok(seen)
}

/// Three callers; the one who asks then is a fourth.
fn crash_loop(arena: &Arena, _: Code) -> Result<Seen, String> {
    let by = |n: u32| arena.gw.get("/crash").header("X-Forwarded-For", format!("10.0.0.{n}"));
    for n in 0..12 {
        let (answer, _) = timed(by(n % 3))?;
        if answer.status == 503 {
            break;
        }
        expect(&answer, 502, "handler-trap")?;
    }
    let (answer, took) = timed(by(9))?;
    expect(&answer, 503, "handler-unavailable")?;
    must(answer.header("retry-after").is_some(), || format!("no Retry-After: {answer}"))?;
    Ok(Seen::of(&answer, took))
}

/// What becomes of a good artifact; beside it, that of another module and the same module's of another gateway.
type Spoil = fn(&[u8], &[u8], &[u8]) -> Vec<u8>;

const BAD: [Spoil; 7] = [
    |good, _, _| flipped(good, good.len() / 2),
    |good, _, _| flipped(good, 0),
    |good, _, _| good[..good.len() - 1].to_vec(),
    |_, _, _| Vec::new(),
    |good, _, _| [good, b"more"].concat(),
    |_, exchanged, _| exchanged.to_vec(),
    |_, _, foreign| foreign.to_vec(),
];

/// In gateways of its own, as one is killed.
fn bad_artifacts(_: &Arena, code: Code) -> Result<Seen, String> {
    let config = api::config("");
    let (gw, elsewhere) = (Gateway::start(&config), Gateway::start(&config));
    let key = gw.key();
    let stopped = (code == Code::Fast).then(|| [Stopped::optimiser(&gw), Stopped::optimiser(&elsewhere)]);
    let store = |gw: &Gateway, n: usize| -> PathBuf {
        let wasm = wat(&format!(r#"(module (func (export "run") (result i32) (i32.const {n})))"#));
        let made = gw.upload(&format!("acme/victim-{n}"), "core", &wasm);
        let digest = made["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).unwrap_or_default();
        gw.dir.path().join(format!("data/artifacts/{digest}.{}", code.as_str()))
    };
    let files: Vec<_> = (0..=BAD.len()).map(|n| store(&gw, n)).collect();
    let foreign = store(&elsewhere, BAD.len() - 1);
    let there = poll(Duration::from_secs(60), || files.iter().chain([&foreign]).all(|file| file.exists()));
    must(there, || "the artifacts are not there".into())?;
    let read = |file: &PathBuf| fs::read(file).expect("it is there");
    // Stopped first, killed as it is: nothing is written behind the attacker.
    gw.signal("STOP");
    for (file, bad) in files.iter().zip(BAD) {
        fs::write(file, bad(&read(file), &read(&files[BAD.len()]), &read(&foreign))).expect("it is ours");
    }
    drop(stopped);
    let gw = gw.restart(&config);
    let mut last = None;
    for n in 0..=BAD.len() {
        let body = serde_json::json!({"module": format!("acme/victim-{n}")});
        let (answer, took) = timed(gw.request("POST", "/api/wasm/execute").key(&key).json(&body))?;
        must(answer.status == 200 && answer.json()["result"] == n, || format!("victim {n}: {answer}"))?;
        last = Some(Seen::of(&answer, took));
    }
    let rejected = gw.metric("wasm_artifacts_rejected", &[]);
    must(rejected == BAD.len() as f64, || format!("{rejected} were rejected"))?;
    must(gw.log().matches("MAC does not fit").count() == BAD.len(), || "no alarm in the log".into())?;
    last.ok_or_else(|| "no run".into())
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}
