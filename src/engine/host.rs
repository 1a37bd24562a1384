//! What a guest can do to the world, once: its memory as the host sees it, logs, output, clocks, random, configuration
//! and the HTTP exchange; what it reaches beside is in `outside.rs`. ABI files only translate pointers and encodings.
//!
//! Invariant: everything that a guest can observe beyond its own memory comes from its [`HostState`], so that a run can
//! be recorded and replayed. No ABI file reads a clock or a random source by itself.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::abi::http_wasm::HttpWasmState;
use super::abi::proxy_wasm::ProxyState;
use super::abi::wasi::WasiState;
use super::failure::Halt;
use super::fuel::Fuel;
use super::guest_log::Lines;
use super::http::HttpExchange;
use super::memory::GuestMemory;
use super::outside::Reaching;
use super::wasix::WasixState;

/// Bytes written by a guest, up to a limit; what is beyond is counted.
#[derive(Debug, Default)]
pub struct BoundedLog {
    bytes: Vec<u8>,
    limit: usize,
    pub dropped: u64,
}

impl BoundedLog {
    pub fn new(limit: u64) -> BoundedLog {
        BoundedLog { bytes: Vec::new(), limit: usize::try_from(limit).unwrap_or(usize::MAX), dropped: 0 }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let room = self.limit - self.bytes.len();
        let kept = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.dropped = self.dropped.saturating_add((bytes.len() - kept) as u64);
    }

    pub fn take(&mut self) -> Bytes {
        self.dropped = 0;
        std::mem::take(&mut self.bytes).into()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.dropped == 0
    }
}

/// Time goes in steps of this: too coarse to measure a neighbour's cache by.
pub const TICK: Duration = Duration::from_millis(1);

/// The time of one run: a reading of the wall clock at its start, and what has passed since.
#[derive(Clone, Debug)]
pub struct RunClock {
    /// When the guest was made: what living VMs measure by.
    born: Instant,
    started: Instant,
    /// Read when it is first asked for, set back to the start: most runs never ask.
    started_at: Cell<Option<Duration>>,
}

impl RunClock {
    pub fn since(started: Instant) -> RunClock {
        RunClock { born: started, started, started_at: Cell::new(None) }
    }

    /// Another run of the same guest.
    pub fn begin(&mut self, started: Instant) {
        *self = RunClock { born: self.born, ..RunClock::since(started) };
    }

    /// Since 1970-01-01 UTC, in whole milliseconds.
    pub fn started_at(&self) -> Duration {
        if let Some(at) = self.started_at.get() {
            return at;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = now.saturating_sub(self.started.elapsed()).as_millis();
        let at = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        self.started_at.set(Some(at));
        at
    }

    /// Since 1970-01-01 UTC.
    pub fn now(&self) -> Duration {
        self.started_at() + in_ticks(self.started.elapsed())
    }

    /// Since before the guest was made, over all of its runs. Never zero, which Go takes for a broken clock.
    pub fn monotonic(&self) -> Duration {
        TICK + in_ticks(self.born.elapsed())
    }
}

fn in_ticks(time: Duration) -> Duration {
    let (nanos, tick) = (u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), TICK.as_nanos() as u64);
    Duration::from_nanos(nanos - nanos % tick)
}

/// Where guests' random bytes come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Random {
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Halt> {
        getrandom::fill(buffer).map_err(|_| Halt::Trap("the system gives no random bytes".into()))
    }
}

/// What a guest may hand out in one invocation, and what it has: counted by ABIs that write output, shown in the meter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    pub limit: u64,
    pub written: u64,
}

impl Output {
    pub fn up_to(limit: u64) -> Output {
        Output { limit, written: 0 }
    }

    pub fn spend(&mut self, bytes: usize) -> Result<(), Halt> {
        self.written = self.written.saturating_add(bytes as u64);
        if self.written > self.limit { Err(Halt::OutputTooLarge) } else { Ok(()) }
    }
}

/// The data of every host function of one guest.
pub struct HostState {
    pub fuel: Fuel,
    pub memory: GuestMemory,
    pub clock: RunClock,
    pub random: Random,
    pub wasi: WasiState,
    pub wasix: WasixState,
    /// The guest has a thread to itself and may sleep; else sleeping counts as running out of time.
    pub may_block: bool,
    /// It has waited for something outside.
    pub waited: bool,
    /// stderr and log calls.
    pub log: BoundedLog,
    /// What it logs by the ABI's call.
    pub lines: Lines,
    pub output: Output,
    /// The handler's configuration, as the ABI's `get_config` gives it.
    pub config: Bytes,
    /// The exchange while a phase of an HTTP handler runs.
    pub http: Option<Box<HttpExchange>>,
    pub http_state: HttpWasmState,
    /// Of proxy-wasm guests.
    pub proxy: Option<Box<ProxyState>>,
    pub reaching: Reaching,
}

impl HostState {
    pub fn new(fuel: Fuel, memory: GuestMemory) -> HostState {
        HostState {
            fuel,
            memory,
            clock: RunClock::since(Instant::now()),
            random: Random,
            wasi: WasiState::default(),
            wasix: WasixState::default(),
            may_block: true,
            waited: false,
            log: BoundedLog::default(),
            lines: Lines::default(),
            output: Output::default(),
            config: Bytes::new(),
            http: None,
            http_state: HttpWasmState::default(),
            proxy: None,
            reaching: Reaching::default(),
        }
    }

    /// There is something for the log.
    pub fn has_printed(&self) -> bool {
        !self.lines.is_empty() || !self.log.is_empty()
    }

    /// Sleeps, never past the deadline: a longer sleep ends the guest there.
    pub fn sleep(&self, wanted: Duration) -> Result<(), Halt> {
        // A proxy-wasm VM that slept would hold up all of its streams: to it every wait is over at once (as in Envoy).
        if wanted.is_zero() || self.proxy.is_some() {
            return self.fuel.check();
        }
        if self.may_block { self.fuel.sleep(wanted) } else { Err(Halt::Deadline) }
    }
}
