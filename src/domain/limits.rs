//! Bounds of one invocation: a tier's or a route's, and what a module's own take off them.
//!
//! Invariant: a module's limits only ever lower those that it runs under ([`LimitsChange::lower`]).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;

/// Bounds of one invocation. Bytes, fuel units and durations; every one is enforced by the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Fuel units, about one per WebAssembly instruction.
    pub fuel: u64,
    pub memory_bytes: u64,
    #[serde(with = "millis")]
    pub wall_ms: Duration,
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub log_bytes: u64,
    pub table_elements: u32,
    #[serde(default = "default_stack_bytes")]
    pub stack_bytes: u64,
    /// What it may keep in its `/tmp`; 0: nothing.
    #[serde(default = "default_file_bytes")]
    pub file_bytes: u64,
    /// Runs of one module that its caller may have under way at once on one node.
    #[serde(default = "default_instances")]
    pub instances: u32,
}

// For tiers that were stored before these limits were there.
fn default_stack_bytes() -> u64 {
    Limits::STACK_BYTES
}

fn default_file_bytes() -> u64 {
    Limits::FILE_BYTES
}

fn default_instances() -> u32 {
    Limits::INSTANCES
}

/// A duration as whole milliseconds in records.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

impl Limits {
    /// Room for a call of the host and a few frames at least; above, a thousand runs under way would show.
    pub const STACK_RANGE: RangeInclusive<u64> = 64 << 10..=MIB;
    pub const STACK_BYTES: u64 = 256 << 10;
    pub const FILE_BYTES: u64 = 16 * MIB;
    pub const INSTANCES: u32 = 256;
    /// No tier has more.
    pub const MOST: Limits = Limits {
        fuel: 1_000_000_000_000_000_000,
        memory_bytes: 4 << 30,
        wall_ms: Duration::from_secs(3_600),
        input_bytes: 1 << 30,
        output_bytes: 1 << 30,
        log_bytes: 16 * MIB,
        table_elements: 10_000_000,
        stack_bytes: *Self::STACK_RANGE.end(),
        file_bytes: 1 << 30,
        instances: 1_000_000,
    };

    /// By name, in the units of the records.
    fn fields(&self) -> [(&'static str, u64); 10] {
        [
            ("fuel", self.fuel),
            ("memory_bytes", self.memory_bytes),
            ("wall_ms", u64::try_from(self.wall_ms.as_millis()).unwrap_or(u64::MAX)),
            ("input_bytes", self.input_bytes),
            ("output_bytes", self.output_bytes),
            ("log_bytes", self.log_bytes),
            ("table_elements", self.table_elements.into()),
            ("stack_bytes", self.stack_bytes),
            ("file_bytes", self.file_bytes),
            ("instances", self.instances.into()),
        ]
    }

    /// The first field whose value nothing could run with, and what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for ((name, value), (_, most)) in self.fields().into_iter().zip(Self::MOST.fields()) {
            match name {
                _ if value > most => return Err((name, format!("is {value}, use at most {most}"))),
                "fuel" | "memory_bytes" | "wall_ms" | "instances" if value == 0 => {
                    return Err((name, "is a number from 1".into()));
                }
                "stack_bytes" if !Self::STACK_RANGE.contains(&value) => {
                    let (least, most) = Self::STACK_RANGE.into_inner();
                    return Err((name, format!("is {value}, use {least} to {most}")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Some of the limits: what to change of a tier's, or what a module has of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_elements: Option<u32>,
    /// 65536 to 1048576.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_bytes: Option<u64>,
    /// What a run may keep in its `/tmp`; 0: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Runs of one module that its caller may have under way at once on one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
}

impl LimitsChange {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `base` with these instead of its own.
    pub fn apply(&self, base: &Limits) -> Limits {
        self.merge(base, |own, _| own)
    }

    /// What a run may use under both, field by field: the one place where a module's limits meet a tier's or a route's.
    pub fn lower(&self, base: &Limits) -> Limits {
        self.merge(base, u64::min)
    }

    fn merge(&self, base: &Limits, pick: impl Fn(u64, u64) -> u64) -> Limits {
        let wide = |own: Option<u64>, base: u64| own.map_or(base, |own| pick(own, base));
        let narrow = |own: Option<u32>, base: u32| {
            // One of two 32-bit values.
            u32::try_from(wide(own.map(u64::from), base.into())).unwrap_or(base)
        };
        let millis = u64::try_from(base.wall_ms.as_millis()).unwrap_or(u64::MAX);
        Limits {
            fuel: wide(self.fuel, base.fuel),
            memory_bytes: wide(self.memory_bytes, base.memory_bytes),
            wall_ms: Duration::from_millis(wide(self.wall_ms, millis)),
            input_bytes: wide(self.input_bytes, base.input_bytes),
            output_bytes: wide(self.output_bytes, base.output_bytes),
            log_bytes: wide(self.log_bytes, base.log_bytes),
            table_elements: narrow(self.table_elements, base.table_elements),
            stack_bytes: wide(self.stack_bytes, base.stack_bytes),
            file_bytes: wide(self.file_bytes, base.file_bytes),
            instances: narrow(self.instances, base.instances),
        }
    }

    /// The first field that is over `bounds`, and what it may be there.
    pub fn exceeds(&self, bounds: &Limits) -> Option<(&'static str, u64)> {
        let wanted = self.apply(bounds).fields();
        let over = wanted.into_iter().zip(bounds.fields()).find(|((_, wanted), (_, bound))| wanted > bound);
        over.map(|((name, _), (_, bound))| (name, bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Tier;

    #[test]
    fn tiers_stored_before_a_limit_was_there_have_its_default() {
        let tier = Tier::defaults().remove(1);
        let mut record = serde_json::to_value(&tier).unwrap();
        for name in ["stack_bytes", "file_bytes", "instances"] {
            assert!(record["limits"].as_object_mut().unwrap().remove(name).is_some());
        }
        assert_eq!(serde_json::from_value::<Tier>(record).unwrap(), tier);
    }

    #[test]
    fn a_modules_limits_only_lower() {
        let tier = Tier::defaults().remove(1).limits;
        let own =
            LimitsChange { fuel: Some(5), memory_bytes: Some(u64::MAX), instances: Some(2), ..Default::default() };
        assert_eq!(own.lower(&tier), Limits { fuel: 5, instances: 2, ..tier.clone() });
        assert_eq!(own.exceeds(&tier), Some(("memory_bytes", tier.memory_bytes)));
        assert_eq!(LimitsChange::default().lower(&tier), tier);
        // Each field by itself, so that none is forgotten when one is added.
        for (name, value) in tier.fields() {
            let given = |value: u64| serde_json::from_value::<LimitsChange>(serde_json::json!({name: value})).unwrap();
            assert_ne!(given(value - 1).lower(&tier), tier, "{name}");
            assert_eq!(given(value + 1).lower(&tier), tier, "{name}");
            assert_eq!(given(value + 1).exceeds(&tier), Some((name, value)));
        }
    }
}
