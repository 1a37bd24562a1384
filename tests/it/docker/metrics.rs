//! Alerts and panels against `/metrics` of a gateway that was driven until its families showed.
//!
//! Invariant: a selector has to find a sample, by name and labels; what a gateway never shows is a mistake in the alert.

use serde_json::Value;
use tempfile::TempDir;
use toml::Value as Toml;

use super::files::{self, at, entries, list, text, yaml};
use super::promql::{self, Expression, Selector};
use super::running::local;
use crate::support::{DEADLINE, Gateway, Upstream, eventually, poll, wat};

/// An expression, where it stands, and the labels that its texts show.
struct Use {
    place: String,
    expression: Expression,
    shown: Vec<String>,
}

/// The names behind `{{` and `$labels.`.
fn shown(text: &str) -> Vec<String> {
    let inner = text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(inner, _)| inner.trim());
    let labels = inner.filter_map(|inner| match inner.strip_prefix("$labels.") {
        Some(label) => Some(label),
        None if inner.starts_with('$') => None,
        None => Some(inner),
    });
    labels.map(str::to_owned).collect()
}

fn alerts() -> Vec<Use> {
    let rules = yaml("prometheus/alerts.yml").remove(0);
    let rules = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect::<Vec<_>>();
    let of = |rule: &Value| Use {
        place: text(&rule["alert"]).to_owned(),
        expression: promql::parse(text(&rule["expr"])),
        shown: entries(&rule["annotations"]).flat_map(|(_, annotation)| shown(text(annotation))).collect(),
    };
    rules.iter().map(of).collect()
}

fn panels(board: &Value) -> Vec<Use> {
    let panels = list(&board["panels"]).iter().filter(|panel| panel["type"] != "row");
    let targets = panels.flat_map(|panel| list(&panel["targets"]).iter().map(move |target| (panel, target)));
    let of = |(panel, target): (&Value, &Value)| Use {
        place: text(&panel["title"]).to_owned(),
        expression: promql::parse(text(&target["expr"])),
        shown: shown(text(&target["legendFormat"])),
    };
    targets.map(of).collect()
}

fn board() -> Value {
    serde_json::from_str(&files::read("grafana/dashboards/wasmgate.json")).expect("JSON")
}

/// A trap for every request.
fn trap() -> Vec<u8> {
    wat(r#"(module (memory (export "memory") 1)
      (func (export "handle_request") (result i64) unreachable)
      (func (export "handle_response") (param i32 i32)))"#)
}

fn table(text: &str) -> Toml {
    Toml::Table(text.parse().expect("TOML"))
}

/// The fleet's configuration, with an upstream that nobody is and a module that fails.
fn driven() -> (Gateway, Upstream) {
    let (dir, up) = (TempDir::new().expect("a temporary folder"), Upstream::echo());
    let mut config = local(dir.path(), up.addr, None);
    config.remove("auth");
    config.insert("admin".into(), table("address = \"127.0.0.1:0\""));
    config["server"]["trusted_proxies"] = Toml::Array(vec!["127.0.0.0/8".into()]);
    config["engine"]
        .as_table_mut()
        .expect("it is one")
        .insert("breaker".into(), table("failures = 3\nwindow = \"1h\""));
    config.insert("tiers".into(), table("free.quotas = [{ name = \"day\", requests = 1, window = \"1d\" }]"));
    let dead = format!("name = \"dead\"\nendpoints = [\"{}\"]", Upstream::nobody());
    config["upstreams"].as_array_mut().expect("it is one").push(table(&dead));
    let mut route = |lines: &str| config["routes"].as_array_mut().expect("it is one").push(table(lines));
    route("name = \"dead\"\nmatch.path_prefix = \"/dead\"\ntarget.upstream = \"dead\"\nauth = \"none\"");
    let before = config.to_string();
    let mut route = |lines: &str| config["routes"].as_array_mut().expect("it is one").push(table(lines));
    route(
        "name = \"trap\"\nmatch.path_prefix = \"/trap\"\ntarget.upstream = \"app\"\nauth = \"none\"\nhandlers = [{ module = \"acme/m\" }]",
    );
    let gw = Gateway::start_in(dir, &before);
    gw.upload("acme/m", "http-wasm", &trap());
    gw.write_config(&config.to_string());
    gw.reload().expect(200);
    (gw, up)
}

fn drive(gw: &Gateway) {
    gw.get("/").key(&gw.key()).send().expect(200);
    gw.get("/").key("wg_live_of_nobody").send().expect(401);
    gw.get("/dead").send().expect(502);
    for caller in 0..3 {
        gw.get("/trap").header("X-Forwarded-For", format!("10.0.0.{caller}")).send().expect(502);
    }
    let free = gw.key_of("free");
    eventually("a key has no requests left", || gw.get("/").key(&free).send().status == 429);
}

fn samples(gw: &Gateway) -> Vec<Selector> {
    let shown = gw.admin("GET", "/metrics").send().expect(200).text();
    let lines = shown.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let samples = lines.map(|line| line.rsplit_once(' ').expect("a value").0);
    samples.map(|sample| promql::parse(sample).selectors.remove(0)).collect()
}

/// Labels that Prometheus gives to what it scrapes.
const OF_TARGETS: [&str; 2] = ["job", "instance"];

/// Whether a sample is one that the selector is for. A dashboard's variable may be anything.
fn finds(selector: &Selector, sample: &Selector) -> bool {
    let has = |(label, operator, value): &(String, String, String)| {
        let own = sample.matchers.iter().find(|(l, _, _)| l == label).map(|(_, _, v)| v.as_str());
        match (own, operator.as_str()) {
            _ if OF_TARGETS.contains(&label.as_str()) => true,
            (Some(_), _) if value.contains('$') => true,
            (Some(own), "=") => own == value,
            (Some(own), "=~") => value.split('|').any(|one| one == own),
            (None, _) => false,
            (_, other) => panic!("`{other}` is not looked at here: {selector:?}"),
        }
    };
    sample.metric == selector.metric && selector.matchers.iter().all(has)
}

/// What is wrong with a use, given what a gateway shows.
fn mistakes(Use { place, expression, shown }: &Use, samples: &[Selector], job: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut labels: Vec<_> = OF_TARGETS.to_vec();
    for selector in &expression.selectors {
        if !selector.matchers.iter().any(|(l, o, v)| l == "job" && o == "=" && v == job) {
            wrong.push(format!("{place}: `{}` is not bound to the job `{job}`", selector.metric));
        }
        let found: Vec<_> = samples.iter().filter(|sample| finds(selector, sample)).collect();
        if found.is_empty() {
            wrong.push(format!("{place}: no gateway shows {selector:?}"));
        }
        labels.extend(found.iter().flat_map(|s| &s.matchers).map(|(label, _, _)| label.as_str()));
    }
    // What an aggregation leaves is all that a text can show.
    let named = || expression.labels.iter().map(String::as_str);
    let left: Vec<_> = if expression.labels.is_empty() { labels.clone() } else { named().collect() };
    let lost = shown.iter().map(String::as_str).filter(|label| !left.contains(label));
    let unknown = named().filter(|label| !labels.contains(label));
    wrong.extend(lost.chain(unknown).map(|label| format!("{place}: there is no label `{label}`")));
    wrong
}

#[test]
fn every_metric_of_alerts_and_panels_is_one_that_a_gateway_shows() {
    let prometheus = yaml("prometheus/prometheus.yml").remove(0);
    let job = text(&list(&prometheus["scrape_configs"])[0]["job_name"]);
    let (gw, _up) = driven();
    drive(&gw);
    let mut uses = alerts();
    uses.extend(panels(&board()));
    let mut wrong = Vec::new();
    // Some families show a moment later: what requests counted at their end, and the time of the next write to the store.
    poll(DEADLINE, || {
        let mut samples = samples(&gw);
        // Prometheus' own of every target.
        samples.push(Selector { metric: "up".into(), matchers: Vec::new() });
        wrong = uses.iter().flat_map(|used| mistakes(used, &samples, job)).collect();
        wrong.is_empty()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_board_is_of_the_provisioned_source() {
    let sources = yaml("grafana/provisioning/datasources/prometheus.yml").remove(0);
    let source = &list(&sources["datasources"])[0];
    let board = board();
    let panels = list(&board["panels"]).iter().filter(|panel| panel["type"] != "row").collect::<Vec<_>>();
    assert!(panels.len() > 10);
    let targets = panels.iter().flat_map(|panel| list(&panel["targets"]));
    for used in panels.iter().copied().chain(targets).chain(list(at(&board, "/templating/list"))) {
        assert_eq!(
            [&used["datasource"]["uid"], &used["datasource"]["type"]],
            [&source["uid"], &source["type"]],
            "{used:#}"
        );
    }
    let instances = at(&board, "/templating/list/0");
    assert_eq!(
        [&instances["name"], &instances["definition"]],
        ["instance", "label_values(up{job=\"wasmgate\"}, instance)"]
    );
    let mut ids: Vec<_> = list(&board["panels"]).iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    ids.dedup();
    assert_eq!(ids.len(), list(&board["panels"]).len(), "{ids:?}");
}
