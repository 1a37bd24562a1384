//! What a guest can do to the world, once: its memory as the host sees it, logs, output, clocks, random, configuration
//! and the HTTP exchange. ABI files only translate pointers and encodings.
//!
//! Invariant: everything that a guest can observe beyond its own memory comes from its [`HostState`], so that a run can
//! be recorded and replayed. No ABI file reads a clock or a random source by itself.

use std::time::Duration;

use bytes::Bytes;

use super::abi::http_wasm::HttpWasmState;
use super::fuel::Fuel;
use super::http::HttpExchange;
use super::memory::GuestMemory;

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
        self.bytes.is_empty()
    }
}

/// The data of every host function of one guest.
pub struct HostState {
    pub fuel: Fuel,
    pub memory: GuestMemory,
    /// stderr and log calls.
    pub log: BoundedLog,
    /// Counted by ABIs that write output; shown in the meter.
    pub output_bytes: u64,
    pub output_limit: u64,
    /// The handler's configuration, as the ABI's `get_config` gives it.
    pub config: Bytes,
    /// The exchange while a phase of an HTTP handler runs.
    pub http: Option<Box<HttpExchange>>,
    pub http_state: HttpWasmState,
}

impl HostState {
    pub fn new(fuel: Fuel, memory: GuestMemory) -> HostState {
        HostState {
            fuel,
            memory,
            log: BoundedLog::default(),
            output_bytes: 0,
            output_limit: 0,
            config: Bytes::new(),
            http: None,
            http_state: HttpWasmState::default(),
        }
    }

    /// Time left of this invocation.
    pub fn remaining(&self) -> Duration {
        self.fuel.remaining()
    }
}
