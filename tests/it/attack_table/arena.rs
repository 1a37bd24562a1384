//! The server under attack, with every guest of the table on it, and the other callers.
//!
//! Invariant: in the first turn no guest has optimised code, as the optimising compiler is stopped with a module of ours in
//! its hands; in the second one, of a process started anew, every stored guest has it.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::figures::Figures;
use super::others::Others;
use super::row::{Attack, Code, Ends, Module, Place, Row, Tier, WALL, module_name, path};
use crate::support::admin::NewKey;
use crate::support::toml::{route, tier, upstream as upstream_lines};
use crate::support::upstream::echo;
use crate::support::{Gateway, Response, Upstream, api, c_guest, eventually, wat};

/// The owner of the guests that are handlers.
const EVIL: &str = "evil";

pub struct Arena {
    pub others: Others,
    stopped: Option<Stopped>,
    pub gw: Gateway,
    pub idle: Figures,
    keys: Vec<String>,
    good_key: String,
    config: String,
    _upstream: Upstream,
    forged: Arc<AtomicBool>,
}

impl Arena {
    pub fn start(rows: &[Row]) -> Arena {
        let forged = Arc::new(AtomicBool::new(false));
        let noted = forged.clone();
        let upstream = Upstream::start(move |seen, stream| {
            noted.fetch_or(seen.mentions("forged"), Ordering::Relaxed);
            echo(seen, stream)
        });
        let config = config(&upstream);
        let gw = Gateway::start(&config);
        let key = |owner: &str, tier: &str| gw.new_key(&NewKey { owner, tier, ..NewKey::default() }).text;
        let keys = Tier::ALL.iter().map(|tier| key(tier.name(), tier.name())).collect();
        let good_key = key("good", "enterprise");
        let stopped = Stopped::optimiser(&gw);
        gw.upload("good/upper", "command", &c_guest("command"));
        gw.upload("good/http", "http-wasm", &c_guest("http"));
        gw.upload("evil/crash", "core", &wat(r#"(module (func (export "run") (param) unreachable))"#));
        for last in [false, true] {
            let rows = rows.iter().enumerate().filter(|(_, row)| is_time_bomb(row) == last);
            rows.for_each(|(number, row)| upload(&gw, number, row));
        }
        let config = config + &routes(rows);
        gw.write_config(&config);
        gw.reload().expect(200);
        let others = Others::start(gw.proxy, &good_key);
        others.turn();
        let idle = Figures::of(&gw);
        Arena { others, stopped: Some(stopped), gw, idle, keys, good_key, config, _upstream: upstream, forged }
    }

    /// The same guests with optimised code, in a new process, as after a crash.
    pub fn optimised(self) -> Arena {
        let Arena { others, stopped, gw, keys, good_key, config, _upstream, forged, .. } = self;
        let optimised = gw.artifacts(Code::Optimised.as_str());
        assert!(optimised.is_empty(), "the first turn was to be without: {optimised:?}");
        drop((others, stopped));
        let gw = gw.optimised(&config);
        let others = Others::start(gw.proxy, &good_key);
        others.turn();
        let idle = Figures::of(&gw);
        Arena { others, stopped: None, gw, idle, keys, good_key, config, _upstream, forged }
    }

    pub fn key(&self, tier: Tier) -> &str {
        let at = Tier::ALL.iter().position(|t| *t == tier);
        &self.keys[at.expect("`ALL` has all")]
    }

    /// Whether the upstream was sent what a guest forged, since the last time.
    pub fn forged(&self) -> bool {
        self.forged.swap(false, Ordering::Relaxed)
    }
}

fn config(upstream: &Upstream) -> String {
    let bounds = "quotas = []\nmodules = 1000\nmodule_size = \"16MiB\"\nlimits.memory = \"16MiB\"\nlimits.output = \"64KiB\"\n\
                  limits.log = \"4KiB\"\n";
    let wall = WALL.as_millis();
    let tiers = tier("hasty", &format!("{bounds}limits.wall = \"{wall}ms\""))
        + &tier("patient", &format!("{bounds}limits.wall = \"20s\""))
        + &tier("frugal", &format!("{bounds}limits.wall = \"20s\"\nlimits.fuel = 100000"));
    // Callers are told apart by the address that a proxy names; a compiler is stopped for as long as a turn takes.
    let engine = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n[engine.compile]\ncpu = \"1000s\"\n";
    let plain = "match.path = \"/plain\"\nauth = \"none\"\ntarget.upstream = \"up\"";
    api::config(&format!("{engine}{tiers}{}", upstream_lines("up", upstream.addr, ""))) + &route("plain", plain)
}

fn routes(rows: &[Row]) -> String {
    let good =
        "match.path = \"/good\"\nauth = \"none\"\ntarget.handler = { module = \"good/http\", config = \"answer\" }";
    let count = |name: &str| {
        format!(
            "match.path = \"/count/{name}\"\nauth = \"none\"\ntarget.handler = {{ module = \"good/http\", config = \"count\" }}"
        )
    };
    let crash = "match.path = \"/crash\"\nauth = \"none\"\ntarget.handler = { module = \"evil/crash\" }";
    let mut text = [("good", good), ("a", &count("a")), ("b", &count("b")), ("crash", crash)]
        .map(|(name, lines)| route(name, lines))
        .concat();
    for (number, row) in rows.iter().enumerate() {
        let Attack::Route { module: Module { config, .. }, place, ends } = &row.attack else { continue };
        let wall = if matches!(ends, Ends::Timeout) { WALL } else { Duration::from_secs(20) }.as_millis();
        let handler =
            format!("{{ module = \"{EVIL}/{}\", config = \"{config}\", wall = \"{wall}ms\" }}", module_name(number));
        let target = match place {
            Place::Target => format!("target.handler = {handler}"),
            Place::Filter | Place::TimeBomb => format!("target.upstream = \"up\"\nhandlers = [{handler}]"),
        };
        let lines = format!("match.path = \"{}\"\nauth = \"none\"\n{target}", path(number));
        _ = write!(text, "{}", route(&module_name(number), lines));
    }
    text
}

/// From the upload on; by then the gateway has taken what goes off.
const FUSE: Duration = Duration::from_secs(30);

fn is_time_bomb(row: &Row) -> bool {
    matches!(row.attack, Attack::Route { place: Place::TimeBomb, .. })
}

fn upload(gw: &Gateway, number: usize, row: &Row) {
    let (owner, abi, wasm) = match &row.attack {
        Attack::Run { tier, wasm, .. } => (tier.name(), String::new(), wasm),
        Attack::Route { module, .. } => (EVIL, format!("&abi={}", module.abi), &module.wasm),
        Attack::Upload { .. } | Attack::Scene(_) => return,
    };
    let wasm = if is_time_bomb(row) {
        let due = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970") + FUSE;
        let text = String::from_utf8(wasm.clone()).expect("it is text");
        wat(&text.replace("DUE", &due.as_nanos().to_string()))
    } else {
        wasm.clone()
    };
    let target = format!("/api/wasm/modules/{}?owner={owner}{abi}", module_name(number));
    let answer: Response = gw.admin("PUT", &target).header("Content-Type", "application/wasm").body(wasm).send();
    assert_eq!(answer.status, 201, "{}, {}: {answer}", row.threat, row.variant);
}

/// A process that is stopped, until this is dropped.
pub struct Stopped(u32);

impl Stopped {
    /// Gives the gateway a module that takes long to optimise, and stops the process that does.
    pub fn optimiser(gw: &Gateway) -> Stopped {
        let body = "(local.set 1 (i32.add (i32.load (local.get 0)) (local.get 1)))
            (loop (local.set 0 (i32.sub (local.get 0) (i32.const 4))) (br_if 0 (local.get 0)))"
            .repeat(20);
        let functions = format!("(func (param i32 i32) (result i32) {body} (local.get 1))").repeat(1_500);
        gw.upload("good/ballast", "core", &wat(&format!("(module (memory 1) (func (export \"run\")) {functions})")));
        let mut found = None;
        eventually("the optimising compiler is at work", || {
            found = gw.children().into_iter().find(|child| niceness(*child) == Some(19));
            found.is_some()
        });
        let child = found.expect("it was found");
        signal(child, "STOP");
        Stopped(child)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn signal(pid: u32, name: &str) {
    Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().ok();
}

/// Fields of proc(5), `stat`, from the one behind the name on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

fn niceness(pid: u32) -> Option<i32> {
    stat(pid)?[16].parse().ok()
}
