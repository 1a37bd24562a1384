//! Metrics of guests in Prometheus' text format: `wasm_guest_NAME` with the handler as its label.
//!
//! Invariant: a family has one type. Where guests disagree about that, the later kind has its name at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::engine::guest_metrics::{BUCKETS, Kind, Metric};

/// Handlers with their metric of this name.
type Family<'a> = (Kind, Vec<(&'a str, &'a Metric)>);

pub fn render(metrics: &[(Arc<str>, Metric)]) -> String {
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    let mut families: BTreeMap<String, Family<'_>> = BTreeMap::new();
    for (handler, metric) in metrics {
        let name = family(&metric.name);
        let first = *kinds.entry(name.clone()).or_insert(metric.kind);
        let name = if first == metric.kind { name } else { format!("{name}_{}", kind(metric.kind)) };
        families.entry(name).or_insert_with(|| (metric.kind, Vec::new())).1.push((handler, metric));
    }
    let mut out = String::new();
    for (name, (of, metrics)) in &families {
        // Writing to a string can't fail.
        let _ = writeln!(out, "# HELP {name} counted by guests\n# TYPE {name} {}", kind(*of));
        for (handler, metric) in metrics {
            let _ = sample(&mut out, name, handler, metric);
        }
    }
    out
}

/// Handlers' names have nothing to be escaped in a label.
fn sample(out: &mut String, name: &str, handler: &str, metric: &Metric) -> std::fmt::Result {
    let Metric { kind, value, count, buckets, .. } = metric;
    match kind {
        Kind::Counter | Kind::Gauge => writeln!(out, "{name}{{handler=\"{handler}\"}} {value}"),
        Kind::Histogram => {
            for (bound, n) in BUCKETS.iter().zip(buckets) {
                writeln!(out, "{name}_bucket{{handler=\"{handler}\",le=\"{bound}\"}} {n}")?;
            }
            writeln!(out, "{name}_bucket{{handler=\"{handler}\",le=\"+Inf\"}} {count}")?;
            writeln!(out, "{name}_sum{{handler=\"{handler}\"}} {value}\n{name}_count{{handler=\"{handler}\"}} {count}")
        }
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

/// As Prometheus allows it.
fn family(name: &str) -> String {
    let clean = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' });
    "wasm_guest_".chars().chain(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_one_type() {
        let metric = |name: &str, kind| Metric { name: name.into(), kind, value: 3, buckets: vec![1; 18], count: 1 };
        let text = render(&[
            ("a/m@1".into(), metric("jobs.done", Kind::Counter)),
            ("b/m@1".into(), metric("jobs_done", Kind::Gauge)),
            ("b/m@1".into(), metric("size", Kind::Histogram)),
        ]);
        assert!(
            text.contains("# TYPE wasm_guest_jobs_done counter\nwasm_guest_jobs_done{handler=\"a/m@1\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE wasm_guest_jobs_done_gauge gauge\n"), "{text}");
        assert!(text.contains("wasm_guest_size_bucket{handler=\"b/m@1\",le=\"+Inf\"} 1\n"), "{text}");
    }
}
