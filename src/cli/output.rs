//! What verbs print: JSON, or short tables. Whoever reads may stop (`wasmgate routes | head`): [`reader_is_gone`] tells
//! that apart from a failure.

use std::io::{self, Write as _};

use serde_json::Value;

use crate::domain::Timestamp;

#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct ReaderGone;

pub(super) fn reader_is_gone(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.is_some_and(|cause| cause.is::<ReaderGone>())
}

pub(super) fn line(text: &str) -> io::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

pub(super) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(error.kind(), ReaderGone),
        _ => error,
    })
}

pub(super) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Rows under a head, columns as wide as they need.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([head[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let shown = |cells: &[&str]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| shown(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    line(&[shown(head)].into_iter().chain(rows).collect::<Vec<_>>().join("\n"))
}

/// A table of an array of objects: the head's names, and where in an object each column is (a JSON pointer).
pub(super) fn objects(list: &Value, columns: &[(&str, &str)]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = list
        .as_array()
        .map(|objects| objects.iter().map(|o| columns.iter().map(|(_, at)| cell(o, at)).collect()).collect())
        .unwrap_or_default();
    table(&columns.iter().map(|(name, _)| *name).collect::<Vec<_>>(), &rows)
}

/// What a page leaves out; not on standard output, whose lines are the rows.
pub(super) fn more(page: &Value) -> io::Result<()> {
    if page["has_next"] == true {
        let next = page["page"].as_u64().unwrap_or(1).saturating_add(1);
        writeln!(io::stderr(), "there are {} in all; go on with `--page {next}`", page["total"])?;
    }
    Ok(())
}

/// What is at a JSON pointer, for people: `-` for nothing.
pub(super) fn cell(value: &Value, at: &str) -> String {
    match value.pointer(at) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) if text.is_empty() => "-".into(),
        Some(Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(at) => seconds(at),
            Err(_) => printable(text),
        },
        Some(Value::Bool(b)) => if *b { "yes" } else { "no" }.into(),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
            let items: Vec<_> = items.iter().filter_map(Value::as_str).map(printable).collect();
            if items.is_empty() { "-".into() } else { items.join(",") }
        }
        Some(Value::Object(counts)) if counts.is_empty() => "-".into(),
        Some(Value::Object(counts)) => {
            let counts: Vec<_> = counts.keys().map(|name| format!("{}={}", printable(name), counts[name])).collect();
            counts.join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// Nobody reads nanoseconds; `--json` has them.
fn seconds(at: Timestamp) -> String {
    let text = at.to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(whole, _)| format!("{whole}Z"))
}

/// Labels and descriptions are other people's text: no control characters reach the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_for_people() {
        let value = serde_json::json!({"a": {"b": true}, "s": ["x", "y"], "n": 3, "e": "", "t": "\u{1b}[31m"});
        let at = |at: &str| cell(&value, at);
        assert_eq!([at("/a/b"), at("/s"), at("/n"), at("/e"), at("/none")], ["yes", "x,y", "3", "-", "-"]);
        assert_eq!(at("/t"), "\u{fffd}[31m");
        assert_eq!(cell(&"2026-11-21T12:04:51.18584747Z".into(), ""), "2026-11-21T12:04:51Z");
        let counts = serde_json::json!({"e": {"not-found": 2, "handler-trap": 1}, "none": {}});
        assert_eq!(
            (cell(&counts, "/e").as_str(), cell(&counts, "/none").as_str()),
            ("handler-trap=1,not-found=2", "-")
        );
    }
}
