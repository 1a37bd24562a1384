//! Tiered limits: quota maths (pure, takes `now`), the limiter's local state, in-flight guards.
//!
//! Invariant: all policies of a request are checked before any is charged; a refused request charges nothing.

pub mod executions;
pub mod limiter;
pub mod quota;
pub mod usage;
