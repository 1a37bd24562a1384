//! Tiered limits: quota maths (pure, takes `now`), the limiter's local state, in-flight guards.
//!
//! Invariant: all policies of a request are checked before any is charged; a refused request charges nothing.

mod account;
pub mod failures;
mod headers;
pub mod limiter;
pub mod network;
pub mod quota;
mod table;
pub mod usage;
