//! One run: what it is given, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{GuestFailure, Limits, Meter, OwnerId};

use super::outside::Reach;
use super::{Assets, Cancel, LoadedModule, RequestInfo, Values};

/// One run of a `command`, `cgi` or `core` module.
pub struct Job {
    pub module: Arc<LoadedModule>,
    /// For fairness between owners; anonymous callers share the module's owner.
    pub owner: OwnerId,
    /// Label in logs and metrics: `owner/name@version`, or `inline`.
    pub label: Arc<str>,
    pub limits: Limits,
    pub input: Input,
    /// Set when nobody waits for the run any more.
    pub cancel: Cancel,
}

#[derive(Clone, Debug, Default)]
pub struct Input {
    /// `argv[1..]` of a command.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Bytes,
    /// Export to call; default `_start` for commands, the first of `_start`, `main`, `run` for core modules.
    pub entry: Option<String>,
    /// Arguments of a core function, as text; parsed by its signature.
    pub function_args: Vec<String>,
    /// What it finds at `/`.
    pub assets: Option<Assets>,
    /// What it reaches through the gateway's own functions; nothing without.
    pub reach: Option<Arc<Reach>>,
    /// Of the request that it answers.
    pub info: Option<Arc<RequestInfo>>,
    pub values: Values,
}

/// A run that came to its own end.
#[derive(Clone, Debug, Default)]
pub struct Output {
    pub stdout: Bytes,
    pub exit_code: i32,
    /// What a core function returned.
    pub values: Vec<serde_json::Value>,
}

impl Output {
    /// Its values as answers show them: one stands alone, several are an array.
    pub fn result(&self) -> Option<serde_json::Value> {
        match self.values.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(several.into()),
        }
    }
}

/// How a run ended, with what it used and wrote to stderr (cut at the log limit) in every case.
#[derive(Debug)]
pub struct Finished {
    pub result: Result<Output, RunError>,
    pub meter: Meter,
    pub stderr: Bytes,
    /// What it hands on.
    pub values: Values,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Guest(#[from] GuestFailure),
    /// The caller's arguments do not fit the function's signature, or there is no such export.
    #[error("{0}")]
    BadCall(String),
    /// Pool and queue are full, or the caller has gone before its turn.
    #[error("no capacity to run the module now")]
    Busy { retry_after: Duration },
    /// Its bytes are in a store that can't be reached.
    #[error("the store that has the module can't be reached")]
    Unread,
}
