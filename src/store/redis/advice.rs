//! What Redis is set to that would lose records.

use redis::Value;

const LOSSES: [(&str, &str, &str); 2] = [
    (
        "aof_enabled:0",
        "",
        "redis forgets what was written last when it crashes: set `appendonly yes` and `appendfsync always`",
    ),
    (
        "maxmemory_policy:",
        "noeviction",
        "redis throws records away when its memory is full: set `maxmemory-policy noeviction`",
    ),
];

/// From the answer to `INFO`; nothing where that says nothing.
pub fn advice(info: &Value) -> Vec<&'static str> {
    let mut texts = String::new();
    gather(info, &mut texts);
    let is_lost = |(start, fine, _): &&(&str, &str, _)| {
        texts.lines().filter_map(|line| line.strip_prefix(start)).any(|rest| fine.is_empty() || rest.trim() != *fine)
    };
    LOSSES.iter().filter(is_lost).map(|(_, _, advice)| *advice).collect()
}

/// A cluster answers for each of its nodes.
fn gather(value: &Value, texts: &mut String) {
    match value {
        Value::BulkString(text) => {
            texts.push_str(&String::from_utf8_lossy(text));
            texts.push('\n');
        }
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => texts.push_str(text),
        Value::Array(values) => values.iter().for_each(|value| gather(value, texts)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| gather(value, texts)),
        _ => {}
    }
}
