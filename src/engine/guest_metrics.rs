//! Metrics that guests define: counters, gauges and histograms, by handler and name.
//!
//! Invariant: their number is bounded a handler; what is beyond has a number to guests and counts nowhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Of one handler.
const MAX_METRICS: usize = 100;
const MAX_NAME: usize = 256;
/// Upper bounds, those of Envoy's histograms in their unit of milliseconds.
pub const BUCKETS: [u64; 18] = [
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

/// What a guest gets for a metric beyond the bound.
const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As proxy-wasm and the gateway's own functions number them.
    pub fn of(number: i32) -> Option<Kind> {
        [Kind::Counter, Kind::Gauge, Kind::Histogram].get(usize::try_from(number).ok()?).copied()
    }
}

#[derive(Clone, Debug)]
pub struct Metric {
    pub name: String,
    pub kind: Kind,
    /// Of counters and gauges; the sum of a histogram.
    pub value: u64,
    /// Of a histogram: how many were at most [`BUCKETS`], and all.
    pub buckets: Vec<u64>,
    pub count: u64,
}

/// Of one handler, whatever VM they were defined in.
pub struct HandlerMetrics {
    pub handler: Arc<str>,
    all: Mutex<Vec<Metric>>,
    /// The log says once that there are too many.
    told_full: AtomicBool,
}

/// Of all handlers there are.
#[derive(Default)]
pub struct GuestMetrics {
    handlers: Mutex<Vec<Weak<HandlerMetrics>>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    NotFound,
    BadArgument,
}

impl GuestMetrics {
    /// Handlers with the same label have the same metrics.
    pub fn of(&self, handler: &Arc<str>) -> Arc<HandlerMetrics> {
        let mut handlers = self.handlers.lock();
        handlers.retain(|handler| handler.strong_count() > 0);
        let known = handlers.iter().filter_map(Weak::upgrade).find(|known| known.handler == *handler);
        known.unwrap_or_else(|| {
            let new = Arc::new(HandlerMetrics {
                handler: handler.clone(),
                all: Mutex::default(),
                told_full: AtomicBool::new(false),
            });
            handlers.push(Arc::downgrade(&new));
            new
        })
    }

    /// Handler and metric, as they are now.
    pub fn snapshot(&self) -> Vec<(Arc<str>, Metric)> {
        let handlers: Vec<_> = self.handlers.lock().iter().filter_map(Weak::upgrade).collect();
        let of = |handler: &Arc<HandlerMetrics>| {
            handler.all.lock().iter().map(|metric| (handler.handler.clone(), metric.clone())).collect::<Vec<_>>()
        };
        handlers.iter().flat_map(of).collect()
    }
}

impl HandlerMetrics {
    /// The number of the metric with this name and kind.
    pub fn define(&self, kind: Kind, name: &[u8]) -> Result<u32, Refused> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Refused::BadArgument);
        }
        let name = std::str::from_utf8(name).map_err(|_| Refused::BadArgument)?;
        if name.contains(char::is_control) {
            return Err(Refused::BadArgument);
        }
        let mut all = self.all.lock();
        if let Some(at) = all.iter().position(|metric| metric.kind == kind && metric.name == name) {
            return Ok(at as u32 + 1);
        }
        if all.len() >= MAX_METRICS {
            if !self.told_full.swap(true, Ordering::Relaxed) {
                let handler = &*self.handler;
                tracing::warn!(
                    handler,
                    metric = name,
                    "it has {MAX_METRICS} metrics: this and further ones are not kept"
                );
            }
            return Ok(NOWHERE);
        }
        all.push(Metric::new(name, kind));
        Ok(all.len() as u32)
    }

    /// A counter is added to, a gauge set, a histogram observes.
    pub fn record(&self, id: u32, value: u64) -> Result<(), Refused> {
        self.with(id, |metric| match metric.kind {
            Kind::Counter => metric.value = metric.value.wrapping_add(value),
            Kind::Gauge => metric.value = value,
            Kind::Histogram => metric.observe(value),
        })
    }

    pub fn increment(&self, id: u32, by: i64) -> Result<(), Refused> {
        self.with(id, |metric| match metric.kind {
            Kind::Counter if by < 0 => Err(Refused::BadArgument),
            Kind::Counter | Kind::Gauge => {
                metric.value = metric.value.saturating_add_signed(by);
                Ok(())
            }
            Kind::Histogram => Err(Refused::BadArgument),
        })?
    }

    pub fn get(&self, id: u32) -> Result<u64, Refused> {
        self.with(id, |metric| match metric.kind {
            Kind::Histogram => Err(Refused::BadArgument),
            Kind::Counter | Kind::Gauge => Ok(metric.value),
        })?
    }

    fn with<R>(&self, id: u32, work: impl FnOnce(&mut Metric) -> R) -> Result<R, Refused> {
        if id == NOWHERE {
            return Ok(work(&mut Metric::new("", Kind::Gauge)));
        }
        let mut all = self.all.lock();
        let at = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)).ok_or(Refused::NotFound)?;
        all.get_mut(at).map(work).ok_or(Refused::NotFound)
    }
}

impl Metric {
    fn new(name: &str, kind: Kind) -> Metric {
        let buckets = if kind == Kind::Histogram { vec![0; BUCKETS.len()] } else { Vec::new() };
        Metric { name: name.to_owned(), kind, value: 0, buckets, count: 0 }
    }

    fn observe(&mut self, value: u64) {
        self.count += 1;
        self.value = self.value.saturating_add(value);
        for (bound, count) in BUCKETS.iter().zip(&mut self.buckets) {
            *count += u64::from(value <= *bound);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_do_what_the_abi_says() {
        let metrics = GuestMetrics::default().of(&"h".into());
        let counter = metrics.define(Kind::Counter, b"c").unwrap();
        assert_eq!(metrics.define(Kind::Counter, b"c"), Ok(counter));
        assert_ne!(metrics.define(Kind::Gauge, b"c"), Ok(counter), "another kind is another metric");
        metrics.record(counter, 2).unwrap();
        metrics.increment(counter, 3).unwrap();
        assert_eq!(metrics.get(counter), Ok(5));
        assert_eq!(metrics.increment(counter, -1), Err(Refused::BadArgument));
        let gauge = metrics.define(Kind::Gauge, b"g").unwrap();
        metrics.record(gauge, 7).unwrap();
        metrics.increment(gauge, -2).unwrap();
        assert_eq!(metrics.get(gauge), Ok(5));
        let histogram = metrics.define(Kind::Histogram, b"h").unwrap();
        metrics.record(histogram, 7).unwrap();
        assert_eq!(metrics.get(histogram), Err(Refused::BadArgument));
        for id in [0, 99] {
            assert_eq!(metrics.get(id), Err(Refused::NotFound));
            assert_eq!(metrics.record(id, 1), Err(Refused::NotFound));
            assert_eq!(metrics.increment(id, 1), Err(Refused::NotFound));
        }
    }

    #[test]
    fn what_is_beyond_the_bound_counts_nowhere() {
        let all = GuestMetrics::default();
        let metrics = all.of(&"h".into());
        for n in 0..MAX_METRICS {
            metrics.define(Kind::Counter, format!("c{n}").as_bytes()).unwrap();
        }
        let beyond = metrics.define(Kind::Counter, b"beyond").unwrap();
        metrics.record(beyond, 1).unwrap();
        metrics.increment(beyond, 1).unwrap();
        assert_eq!(metrics.get(beyond), Ok(0));
        assert_eq!(all.snapshot().len(), MAX_METRICS);
        assert_eq!(metrics.define(Kind::Gauge, b"a\nb"), Err(Refused::BadArgument));
        drop(metrics);
        assert!(all.snapshot().is_empty(), "they go with their handler");
    }
}
