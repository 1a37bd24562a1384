//! The selectors of a PromQL expression, and the labels that it names.
//!
//! Invariant: every name that is not a function, a keyword or a label is taken to be a metric's, so that none is overlooked.

/// `name{label="value", ...}`.
#[derive(Debug, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expression {
    pub selectors: Vec<Selector>,
    /// Behind `by`, `on` and their like.
    pub labels: Vec<String>,
}

const WITH_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

#[track_caller]
pub fn parse(text: &str) -> Expression {
    let mut found = Expression::default();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        if is_name(c) && !c.is_ascii_digit() {
            let (name, behind) = split(rest, is_name);
            rest = behind.trim_start();
            if WITH_LABELS.contains(&name) {
                let (labels, behind) = within(rest, '(', ')');
                found.labels.extend(labels.split(',').map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()));
                rest = behind;
            } else if !rest.starts_with('(') && !aggregates(rest) && !WORDS.contains(&name) {
                let inner = if rest.starts_with('{') { within(rest, '{', '}') } else { ("", rest) };
                found.selectors.push(Selector { metric: name.to_owned(), matchers: matchers(inner.0) });
                rest = inner.1;
            }
        } else if c == '[' {
            rest = within(rest, '[', ']').1;
        } else if c.is_ascii_digit() {
            rest = split(rest, |c| c.is_ascii_alphanumeric() || c == '.').1;
        } else {
            assert!("()+-*/%^<>=!, \n".contains(c), "`{c}` in `{text}`");
            rest = &rest[1..];
        }
        rest = rest.trim_start();
    }
    assert!(!found.selectors.is_empty(), "`{text}` selects nothing");
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// What comes behind `sum` in `sum by (route) (...)`.
fn aggregates(behind: &str) -> bool {
    ["by", "without"].contains(&split(behind, is_name).0)
}

fn split(text: &str, take: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !take(c)).unwrap_or(text.len()))
}

#[track_caller]
fn within(text: &str, open: char, close: char) -> (&str, &str) {
    let inner = text.strip_prefix(open).unwrap_or_else(|| panic!("no `{open}` before `{text}`"));
    inner.split_once(close).unwrap_or_else(|| panic!("no `{close}` in `{text}`"))
}

#[track_caller]
fn matchers(text: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (label, behind) = split(rest, is_name);
        let (operator, behind) = split(behind.trim_start(), |c| "=!~".contains(c));
        let (value, behind) = within(behind.trim_start(), '"', '"');
        found.push((label.to_owned(), operator.to_owned(), value.to_owned()));
        rest = behind.trim_start().trim_start_matches(',').trim_start();
    }
    found
}

#[test]
fn an_expression_is_read() {
    let read = parse(
        "sum by (route, le) (rate(a_total{route=~\"x|y\", job = \"j\"}[5m])) / on (job) b > bool 0.05 and up offset 5m",
    );
    let matcher = |l: &str, o: &str, v: &str| (l.to_owned(), o.to_owned(), v.to_owned());
    let a = vec![matcher("route", "=~", "x|y"), matcher("job", "=", "j")];
    let names = [("a_total", a), ("b", vec![]), ("up", vec![])];
    let selectors = names.map(|(metric, matchers)| Selector { metric: metric.into(), matchers });
    assert_eq!(
        read,
        Expression { selectors: selectors.into(), labels: ["route", "le", "job"].map(str::to_owned).into() }
    );
}
