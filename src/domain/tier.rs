//! Tiers: what a caller may use, and how much of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Limits;
use super::id::Name;

/// The window of a quota. Below one hour it rolls (GCRA); from one hour up it is a calendar window in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Window {
    /// 1 to 3,599 seconds.
    Rolling {
        seconds: u32,
    },
    Hour,
    Day,
    Month,
}

impl Window {
    /// Whether a quota over it may say how many come at once.
    pub fn check_burst(self, burst: Option<u64>) -> Result<(), &'static str> {
        match self {
            Self::Hour | Self::Day | Self::Month if burst.is_some() => {
                Err("a calendar window (`1h`, `1d`, `1mo`) has no burst; remove it or use a window below one hour")
            }
            _ => Ok(()),
        }
    }
}

impl std::str::FromStr for Window {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || {
            format!("`{s}` is not a window: use seconds or minutes below one hour (`30s`, `1m`), or `1h`, `1d`, `1mo`")
        };
        match s {
            "1h" => return Ok(Self::Hour),
            "1d" => return Ok(Self::Day),
            "1mo" => return Ok(Self::Month),
            _ => {}
        }
        let (digits, unit) = match (s.strip_suffix('s'), s.strip_suffix('m')) {
            (Some(d), _) => (d, 1),
            (_, Some(d)) => (d, 60),
            _ => return Err(bad()),
        };
        let seconds = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)?;
        if (1..3600).contains(&seconds) { Ok(Self::Rolling { seconds }) } else { Err(bad()) }
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rolling { seconds } => write!(f, "{seconds}s"),
            Self::Hour => f.write_str("1h"),
            Self::Day => f.write_str("1d"),
            Self::Month => f.write_str("1mo"),
        }
    }
}

text_in_records!(Window);

/// So many requests over a window. `burst` is how many may come at once (rolling windows only; default `requests`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub name: Name,
    pub requests: u64,
    pub window: Window,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What happens to a tier's requests while the shared limit state is out of reach (fleets only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailMode {
    /// Each node serves its share of the limit.
    Share,
    /// The local limiter alone decides.
    Open,
    /// 503.
    Closed,
}

/// A named set of quotas and limits. `rank` orders tiers: a route or a module may need "at least" a tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub name: Name,
    pub rank: u32,
    /// Empty means unlimited rate; concurrency and fuel still bind.
    pub quotas: Vec<Quota>,
    /// Fuel units a UTC day, over all invocations of an owner.
    pub fuel_per_day: Option<u64>,
    /// Requests in flight at once.
    pub concurrent: u32,
    /// 0: no uploads.
    pub module_bytes: u64,
    /// What the versions of an owner's modules may take together, archives of their files included.
    pub module_storage_bytes: u64,
    /// Modules an owner may keep.
    pub modules: u32,
    /// Keys an owner may have that are neither revoked nor expired.
    pub keys: u32,
    pub limits: Limits,
    pub fail: FailMode,
}

const MIB: u64 = 1 << 20;

impl Tier {
    pub const ANONYMOUS: &str = "anonymous";

    /// No tier has more.
    pub const MOST_QUOTAS: usize = 8;
    pub const MOST_MODULE_BYTES: u64 = 1 << 30;
    pub const MOST_STORAGE_BYTES: u64 = 1 << 40;

    /// Bound of what an owner stores where none is set: twenty modules of the largest size.
    pub fn usual_storage(module_bytes: u64) -> u64 {
        module_bytes.saturating_mul(20)
    }

    /// The tiers that exist when the configuration names none.
    pub fn defaults() -> Vec<Tier> {
        struct Row(&'static str, Option<(u64, u64)>, u64, u32, u64, u64, u64, FailMode);
        [
            Row(Self::ANONYMOUS, Some((10, 500)), 5, 2, 64, 1, 0, FailMode::Share),
            Row("free", Some((10, 500)), 10, 1, 128, 5, 10, FailMode::Share),
            Row("basic", Some((100, 10_000)), 50, 5, 256, 10, 25, FailMode::Share),
            Row("pro", Some((500, 50_000)), 100, 20, 512, 30, 50, FailMode::Open),
            Row("enterprise", None, 1_000, 200, 1024, 60, 100, FailMode::Open),
        ]
        .into_iter()
        .enumerate()
        .map(|(rank, Row(name, rates, burst, concurrent, memory, wall, module, fail))| {
            let named = |s: &str| s.parse::<Name>().expect("the names above are valid");
            let quotas = rates.map_or_else(Vec::new, |(minute, day)| {
                vec![
                    Quota {
                        name: named("minute"),
                        requests: minute,
                        window: Window::Rolling { seconds: 60 },
                        burst: Some(burst),
                    },
                    Quota { name: named("day"), requests: day, window: Window::Day, burst: None },
                ]
            });
            Tier {
                name: named(name),
                rank: rank as u32,
                quotas,
                fuel_per_day: None,
                concurrent,
                module_bytes: module * MIB,
                module_storage_bytes: Self::usual_storage(module * MIB),
                modules: if module == 0 { 0 } else { 100 * rank as u32 },
                keys: 10 * rank as u32,
                limits: Limits {
                    // Enough that the wall limit is what a spinning guest meets.
                    fuel: wall * 20_000_000_000,
                    memory_bytes: memory * MIB,
                    wall_ms: Duration::from_secs(wall),
                    input_bytes: 4 * MIB,
                    output_bytes: 8 * MIB,
                    log_bytes: 64 << 10,
                    table_elements: 100_000,
                    stack_bytes: Limits::STACK_BYTES,
                    file_bytes: Limits::FILE_BYTES,
                    instances: Limits::INSTANCES,
                },
                fail,
            }
        })
        .collect()
    }
}
