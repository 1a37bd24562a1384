//! Tiered limits: quota maths (pure, takes `now`), the limiter's local state, in-flight guards.
//!
//! Invariant: all policies of a request are checked before any is charged; a refused request charges nothing.

mod account;
mod counters;
mod decide;
pub mod failures;
mod fleet;
mod fuel;
mod headers;
pub mod lease;
mod leased;
pub mod limiter;
pub mod network;
mod patience;
pub mod quota;
mod table;
pub mod usage;

/// A number that spreads names over shards: FNV-1a. Whoever made names that meet in one shard would share its lock, and
/// places among them, no more.
fn spread(name: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, fold) >> 32
}
