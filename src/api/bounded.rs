//! Lists and maps that are bounded while they are parsed.
//!
//! Invariant: what is over the bound is never built. A `{}` of two bytes is a struct of hundreds, so a list that is
//! counted after parsing costs many times its body.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// At most `MAX` elements.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BoundedVec<T, const MAX: usize>(pub Vec<T>);

/// At most `MAX` entries, repeated names counted each time; the last one of a name stays.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BoundedMap<const MAX: usize>(pub BTreeMap<String, String>);

/// A string, or a number as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word(pub String);

impl PartialSchema for Word {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Number])).into()
    }
}

impl ToSchema for Word {}

impl<T, const MAX: usize> Default for BoundedVec<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedVec<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = BoundedVec<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MAX {
                    match seq.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(BoundedVec(items)),
                    }
                }
                match seq.next_element::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom(format_args!("has more than {MAX} elements, send fewer"))),
                    None => Ok(BoundedVec(items)),
                }
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for BoundedMap<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<const MAX: usize>;

        impl<'de, const MAX: usize> Visitor<'de> for Entries<MAX> {
            type Value = BoundedMap<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX} strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                for _ in 0..MAX {
                    match map.next_entry()? {
                        Some((name, value)) => entries.insert(name, value),
                        None => return Ok(BoundedMap(entries)),
                    };
                }
                match map.next_entry::<IgnoredAny, IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom(format_args!("has more than {MAX} entries, send fewer"))),
                    None => Ok(BoundedMap(entries)),
                }
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Word, E> {
                Ok(Word(text))
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<Word, E> {
                Ok(Word(n.to_string()))
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<Word, E> {
                Ok(Word(n.to_string()))
            }

            fn visit_f64<E: Error>(self, n: f64) -> Result<Word, E> {
                // As JSON writes it: `1e100`, not a hundred digits.
                match serde_json::Number::from_f64(n) {
                    Some(n) => Ok(Word(n.to_string())),
                    None => Err(E::custom("is not a number")),
                }
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_at_its_bound() {
        let parse = |text: &str| serde_json::from_str::<BoundedVec<u8, 2>>(text);
        assert!(parse("[]").unwrap().0.is_empty());
        assert_eq!(parse("[1,2]").unwrap().0, [1, 2]);
        // The rest is not even read.
        assert!(parse("[1,2,3,nonsense").unwrap_err().to_string().contains("more than 2 elements"));
        assert!(parse("{}").unwrap_err().to_string().contains("an array of at most 2"));
    }

    #[test]
    fn a_map_ends_at_its_bound_whatever_its_names() {
        let parse = |text: &str| serde_json::from_str::<BoundedMap<2>>(text);
        assert_eq!(parse(r#"{"a":"1","a":"2"}"#).unwrap().0, BTreeMap::from([("a".to_owned(), "2".to_owned())]));
        assert!(parse(r#"{"a":"","a":"","a":""}"#).unwrap_err().to_string().contains("more than 2 entries"));
    }

    #[test]
    fn a_word_is_a_string_or_a_number() {
        let parse = |text: &str| serde_json::from_str::<Word>(text).map(|w| w.0);
        for (text, word) in [(r#""a\n""#, "a\n"), ("-3", "-3"), ("18446744073709551615", "18446744073709551615")] {
            assert_eq!(parse(text).unwrap(), word);
        }
        assert_eq!((parse("1.5").unwrap(), parse("1e100").unwrap()), ("1.5".into(), "1e+100".into()));
        for text in ["null", "true", "[]", "{}"] {
            assert!(parse(text).unwrap_err().to_string().contains("a string or a number"), "{text}");
        }
    }
}
