//! What a row is, and how its attack is sent.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::arena::Arena;
use crate::support::api::Form;
use crate::support::{DEADLINE, Request, Response, poll};

/// The code that the guest of a row runs with. What is refused at upload never has any.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Fast,
    Optimised,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Fast => "cranelift-fast",
            Code::Optimised => "cranelift",
        }
    }
}

pub struct Row {
    /// The row of the threat table.
    pub threat: &'static str,
    pub variant: String,
    pub attack: Attack,
}

pub enum Attack {
    /// Refused by the upload, by `validate` and by an inline execution alike. `named`: words of the detail.
    Upload { wasm: Vec<u8>, abi: &'static str, slug: &'static str, named: &'static str },
    /// Executed under this tier: inline with fast code, by name with optimised code.
    Run { tier: Tier, wasm: Vec<u8>, args: &'static str, ends: Ends },
    /// A handler of a route, asked once.
    Route { module: Module, place: Place, ends: Ends },
    /// More than one request. What went wrong, or the last answer.
    Scene(fn(&Arena, Code) -> Result<Seen, String>),
}

/// Each has an owner of the same name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Little wall time.
    Hasty,
    /// Wall time enough that something else ends the guest.
    Patient,
    /// Little fuel, and wall time enough to use it up.
    Frugal,
}

impl Tier {
    pub const ALL: [Tier; 3] = [Tier::Hasty, Tier::Patient, Tier::Frugal];

    pub fn name(self) -> &'static str {
        match self {
            Tier::Hasty => "hasty",
            Tier::Patient => "patient",
            Tier::Frugal => "frugal",
        }
    }
}

pub struct Module {
    pub abi: &'static str,
    pub wasm: Vec<u8>,
    pub config: &'static str,
}

/// Where a handler stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It answers.
    Target,
    /// In front of the upstream.
    Filter,
    /// As `Filter`, and it begins to fail in its start function only after the gateway took it: its `wasm` is text in which
    /// `DUE` stands for the time.
    TimeBomb,
}

/// The wall time of the tier `hasty` and of handlers: a guest that does not end is answered for within this and `GRACE`.
pub const WALL: Duration = Duration::from_millis(100);
pub const GRACE: Duration = Duration::from_millis(10);

pub enum Ends {
    /// This problem.
    Problem(u16, &'static str),
    /// 504 `handler-timeout` in time.
    Timeout,
    /// 200 with this `result`.
    Result(i64),
    /// 200 of which this holds.
    Holds(fn(&Response) -> bool),
}

/// How an attack was answered.
#[derive(Clone)]
pub struct Seen {
    pub status: u16,
    pub slug: String,
    pub took: Duration,
}

impl Seen {
    pub fn of(answer: &Response, took: Duration) -> Seen {
        Seen { status: answer.status, slug: slug(answer), took }
    }
}

/// Of a problem; of another answer nothing.
pub fn slug(answer: &Response) -> String {
    let doc: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    doc["type"].as_str().and_then(|t| t.strip_prefix("/problems/")).unwrap_or_default().to_owned()
}

pub fn timed(request: Request) -> Result<(Response, Duration), String> {
    let begun = Instant::now();
    let answer = request.try_send().map_err(|e| format!("no answer: {e}"))?;
    Ok((answer, begun.elapsed()))
}

/// Whether it is this problem, whole; nothing of what the guests of these rows forge may be in any answer.
pub fn expect(answer: &Response, status: u16, slug: &str) -> Result<(), String> {
    let is = self::slug(answer);
    if answer.status != status || is != slug {
        return Err(format!("expected {status} {slug}: {answer}"));
    }
    if answer.header("content-type") != Some("application/problem+json") || format!("{answer}").contains("forged") {
        return Err(format!("not a problem of the gateway's own: {answer}"));
    }
    Ok(())
}

impl Row {
    pub fn run(&self, arena: &Arena, code: Code, number: usize) -> Result<Seen, String> {
        match &self.attack {
            Attack::Upload { wasm, abi, slug, named } => refused(arena, abi, wasm, slug, named),
            Attack::Run { tier, wasm, args, ends } => {
                let form = match code {
                    Code::Fast => Form::default().file("wasm", wasm),
                    Code::Optimised => Form::default().field("module", module_name(number)),
                };
                let form = form.field("args", args).end();
                let request = arena.gw.request("POST", "/api/wasm/execute").key(arena.key(*tier)).form(form);
                ended(&request, ends, WALL)
            }
            Attack::Route { place, ends, .. } => {
                let request = arena.gw.request("POST", &path(number)).body("a body");
                // In the second turn it goes off as the gateway starts.
                if *place == Place::TimeBomb && code == Code::Fast {
                    // The living VM ends with this; the next one fails in its start function.
                    let failed = || request.clone().try_send().is_ok_and(|a| a.status == 502);
                    if !poll(DEADLINE + DEADLINE, failed) {
                        return Err("the time bomb does not go off".into());
                    }
                }
                // A start that failed is remembered for a while.
                let earliest = if *place == Place::TimeBomb { Duration::ZERO } else { WALL };
                ended(&request, ends, earliest)
            }
            Attack::Scene(scene) => scene(arena, code),
        }
    }
}

pub fn module_name(number: usize) -> String {
    format!("row-{number}")
}

pub fn path(number: usize) -> String {
    format!("/row-{number}")
}

fn refused(arena: &Arena, abi: &str, wasm: &[u8], slug: &str, named: &str) -> Result<Seen, String> {
    let query = if abi.is_empty() { String::new() } else { format!("?abi={abi}") };
    let mut worst = Duration::ZERO;
    let ways = [("PUT", "/api/wasm/modules/refused"), ("POST", "/api/wasm/validate"), ("POST", "/api/wasm/execute")];
    // A compiler that is kept busy once is enough.
    for (method, target) in ways.into_iter().take(if slug == "compile-limit" { 1 } else { ways.len() }) {
        let request = arena.gw.request(method, &format!("{target}{query}")).key(arena.key(Tier::Patient));
        let (answer, took) = timed(request.header("Content-Type", "application/wasm").body(wasm))?;
        expect(&answer, 422, slug).map_err(|e| format!("{method} {target}: {e}"))?;
        let detail = answer.json()["detail"].to_string();
        if !detail.contains(named) {
            return Err(format!("`{named}` is not named: {detail}"));
        }
        worst = worst.max(took);
    }
    if worst > answered_within() {
        return Err(format!("answered after {worst:?}"));
    }
    let stored = arena.gw.get("/api/wasm/modules/refused").key(arena.key(Tier::Patient)).try_send();
    if stored.map_or(0, |answer| answer.status) != 404 {
        return Err("something of it is stored".into());
    }
    Ok(Seen { status: 422, slug: slug.into(), took: worst })
}

/// The contract is 2 s, of a release build; another one takes seconds before the compiler begins.
fn answered_within() -> Duration {
    Duration::from_secs(if std::env::var_os("WASMGATE_BIN").is_some() { 2 } else { 20 })
}

/// Asks once; again where only the time is wrong, as the machine may be busy with something else. `earliest`: when a guest
/// that does not end may be answered for.
fn ended(request: &Request, ends: &Ends, earliest: Duration) -> Result<Seen, String> {
    const TRIES: u32 = 100;
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let (answer, took) = timed(request.clone())?;
        let seen = Seen::of(&answer, took);
        match ends {
            Ends::Problem(status, slug) => expect(&answer, *status, slug)?,
            Ends::Result(result) => {
                if answer.status != 200 || answer.json()["result"] != *result {
                    return Err(format!("expected {result}: {answer}"));
                }
            }
            Ends::Holds(holds) => {
                if answer.status != 200 || !holds(&answer) {
                    return Err(format!("not as expected: {answer}"));
                }
            }
            Ends::Timeout => {
                expect(&answer, 504, "handler-timeout")?;
                if took < earliest {
                    return Err(format!("ended before its time, after {took:?}"));
                }
                best = best.min(took);
                if took > WALL + GRACE {
                    continue;
                }
            }
        }
        return Ok(seen);
    }
    Err(format!("the best of {TRIES} took {best:?}"))
}
