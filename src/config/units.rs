//! Parsers of single values: each takes a TOML value and says what it wanted when it got something else.
//!
//! Invariant: durations and sizes carry their unit in the value (`"10s"`, `"10MiB"`), never in the key.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

type Parsed<T> = Result<T, String>;

/// The value's type and text, for messages.
pub fn type_of(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("the string `{}`", shorten(s)),
        DeValue::Integer(i) => format!("the integer `{i}`"),
        DeValue::Float(f) => format!("the float `{f}`"),
        DeValue::Boolean(b) => format!("the boolean `{b}`"),
        DeValue::Datetime(d) => format!("the date `{d}`"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn shorten(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The one of `known` that a typing mistake away from it gives `name`.
pub fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // A third of the letters may be wrong: `backned` for `backend`, but not `path` for `auth`.
    let bound = (name.chars().count().max(3) / 3).min(3);
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    let near = |k: &str| name.len() >= 4 && (k.starts_with(name) || letters(k) == letters(name));
    known
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(distance, k)| *distance <= bound || near(k))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

pub fn text(value: &DeValue<'_>) -> Parsed<String> {
    text_with(|s| Ok(s.to_owned()))(value)
}

/// A string that `parse` understands.
pub fn text_with<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    move |value| match value {
        DeValue::String(s) => parse(s),
        other => Err(format!("expected a string, found {}", type_of(other))),
    }
}

/// A string with a `FromStr` whose errors are fit for people.
pub fn from_str<T: std::str::FromStr<Err: Display>>(value: &DeValue<'_>) -> Parsed<T> {
    text_with(|s| s.parse::<T>().map_err(|e| e.to_string()))(value)
}

/// A string with a `FromStr` whose errors are not; `what` says what it should be.
pub fn parse_as<T: std::str::FromStr>(what: &str) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    text_with(move |s| s.parse::<T>().map_err(|_| format!("`{}` is not {what}", shorten(s))))
}

pub fn flag(value: &DeValue<'_>) -> Parsed<bool> {
    match value {
        DeValue::Boolean(b) => Ok(*b),
        other => Err(format!("expected `true` or `false`, found {}", type_of(other))),
    }
}

/// `true` for keys whose presence is the statement.
pub fn only_true(value: &DeValue<'_>) -> Parsed<()> {
    match value {
        DeValue::Boolean(true) => Ok(()),
        other => Err(format!("expected `true`, found {}", type_of(other))),
    }
}

fn integer(value: &DeValue<'_>) -> Option<Parsed<u64>> {
    let DeValue::Integer(i) = value else { return None };
    Some(u64::from_str_radix(i.as_str(), i.radix()).map_err(|_| format!("`{i}` is out of range")))
}

pub fn int<T: TryFrom<u64> + Display + PartialOrd>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    move |value| {
        let out = |shown: &dyn Display| format!("`{shown}` is out of range; use {} to {}", range.start(), range.end());
        match (integer(value), value) {
            (Some(Ok(n)), _) => T::try_from(n).ok().filter(|n| range.contains(n)).ok_or_else(|| out(&n)),
            (Some(Err(_)), DeValue::Integer(i)) => Err(out(i)),
            _ => Err(format!("expected an integer, found {}", type_of(value))),
        }
    }
}

/// A closed set of words.
pub fn choice<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    text_with(move |s| {
        words.iter().find(|(word, _)| *word == s).map(|(_, value)| *value).ok_or_else(|| {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = nearest(s, all.iter().copied()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            format!("`{}` is not allowed here; use `{}`{hint}", shorten(s), all.join("`, `"))
        })
    })
}

/// Digits and a unit.
fn number_and_unit(s: &str) -> Option<(u64, &str)> {
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Parsed<Duration> {
    const USE: &str = "use a whole number with `ms`, `s`, `m`, `h` or `d`, such as `\"10s\"`";
    move |value| {
        let DeValue::String(s) = value else {
            return Err(format!("{} is not a duration; {USE}", type_of(value)));
        };
        let millis = number_and_unit(s).and_then(|(n, unit)| {
            let (_, scale) = DURATIONS.iter().find(|(u, _)| *u == unit)?;
            n.checked_mul(*scale)
        });
        let duration =
            Duration::from_millis(millis.ok_or_else(|| format!("`{}` is not a duration; {USE}", shorten(s)))?);
        if range.contains(&duration) {
            return Ok(duration);
        }
        Err(format!("`{s}` is out of range; use `{}` to `{}`", show(*range.start()), show(*range.end())))
    }
}

fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    let exact = DURATIONS.iter().find(|(_, scale)| millis > 0 && millis.is_multiple_of(u128::from(*scale)));
    exact.map_or_else(|| format!("{millis}ms"), |(unit, scale)| format!("{}{unit}", millis / u128::from(*scale)))
}

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

pub fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Parsed<u64> {
    const WANTED: &str = "a size; use bytes or a whole number with `KiB`, `MiB` or `GiB`, such as `\"10MiB\"`";
    move |value| {
        let bytes = match (integer(value), value) {
            (Some(n), _) => n.ok(),
            (_, DeValue::String(s)) => number_and_unit(s).and_then(|(n, unit)| {
                let (_, scale) = SIZES.iter().find(|(u, _)| *u == unit)?;
                n.checked_mul(*scale)
            }),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| format!("{} is not {WANTED}", type_of(value)))?;
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        Err(format!(
            "{} is out of range; use `{}` to `{}`",
            type_of(value),
            show_size(*range.start()),
            show_size(*range.end())
        ))
    }
}

fn show_size(bytes: u64) -> String {
    let exact = SIZES.iter().find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    exact.map_or_else(|| format!("{bytes}B"), |(unit, scale)| format!("{}{unit}", bytes / scale))
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
