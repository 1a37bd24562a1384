//! What a run came to, and the exact limiter that it is measured by.

use std::sync::Arc;

use wasmgate::limit::lease::terms::{Plan, Terms};
use wasmgate::limit::quota;

use super::fleet::Nanos;
use crate::lease::reference::Micros;

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub requests: u64,
    pub admitted: u64,
    /// What one exact limiter would have admitted of the same requests.
    pub exact: u64,
    pub commands: u64,
    /// Calls without an answer.
    pub failed: u64,
    /// The most tokens of any rolling policy admitted in any window beyond burst + rate * time.
    pub overshoot: f64,
    pub slack: f64,
    /// Of the first policy.
    pub limit: f64,
    pub calendar_overshoot: u64,
    pub waited: u64,
    pub wait_p99_ms: f64,
    /// Admitted within the outage.
    pub alone: u64,
}

impl Outcome {
    pub fn commands_a_thousand(&self) -> f64 {
        self.commands as f64 * 1000.0 / self.requests as f64
    }

    pub fn admitted_share(&self) -> f64 {
        self.admitted as f64 / self.exact as f64
    }

    pub fn overshoot_percent(&self) -> f64 {
        self.overshoot * 100.0 / self.limit
    }

    pub fn waited_share(&self) -> f64 {
        self.waited as f64 / self.requests as f64
    }
}

/// All policies as one exact limiter keeps them: it refuses by itself, or measures what others admitted.
pub struct Exact {
    plan: Arc<Plan>,
    /// Tokens, below zero where more was admitted than there was; of calendar windows what is left.
    levels: Vec<f64>,
    windows: Vec<i64>,
    at: Nanos,
    pub worst: Vec<f64>,
}

impl Exact {
    pub fn new(plan: &Arc<Plan>) -> Self {
        let levels: Vec<f64> = plan.policies.iter().map(|(_, t)| t.capacity() as f64).collect();
        let windows = vec![i64::MIN; levels.len()];
        Self { plan: plan.clone(), worst: vec![0.0; levels.len()], levels, windows, at: 0 }
    }

    pub fn advance(&mut self, now: Nanos, start: Micros) {
        let passed = (now - self.at) as f64 / 1e9;
        self.at = now;
        for (at, (_, terms)) in self.plan.policies.iter().enumerate() {
            let full = terms.capacity() as f64;
            match *terms {
                Terms::Calendar { window, .. } => {
                    let begun = quota::bounds(window, (start + (now / 1000) as Micros).div_euclid(1_000_000)).0;
                    if self.windows[at] != begun {
                        (self.windows[at], self.levels[at]) = (begun, full);
                    }
                }
                Terms::Gcra { .. } => {
                    self.levels[at] = full.min(self.levels[at] + passed * terms.per_second().unwrap());
                }
            }
        }
    }

    pub fn admits(&self) -> bool {
        self.levels.iter().all(|level| *level >= 1.0 - 1e-9)
    }

    pub fn charge(&mut self) {
        for (level, worst) in self.levels.iter_mut().zip(&mut self.worst) {
            *level -= 1.0;
            *worst = worst.max(-*level);
        }
    }
}
