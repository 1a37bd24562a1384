//! Access-log lines in JSON, written by hand into a buffer of the worker's own and to standard error by one thread.
//! Through the logging framework, with a system call for each line, a line costs more than half of what proxying does.
//!
//! Invariant: a worker never waits for the log. At most [`MAX_HELD`] bytes a worker are held; when the reader of standard
//! error does not keep up, lines are dropped and their number is logged.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::domain::Timestamp;

/// Lines wait this long at most.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// A buffer this full is written at once.
const FLUSH_AT: usize = 64 << 10;
const MAX_HELD: usize = 1 << 20;

/// All workers' lines; writes what is left when it is dropped.
pub struct AccessLog {
    buffers: Arc<Mutex<Vec<Weak<Buffer>>>>,
    /// `None` only while it is dropped.
    wake: Option<SyncSender<()>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Buffer {
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    dropped: u64,
    second: Second,
}

/// The second of the last line as text: most lines begin with the same one.
#[derive(Default)]
struct Second {
    of: i64,
    /// `2026-01-31T23:59:59`; empty at first, before any line of 1970.
    text: String,
}

impl Second {
    fn of(moment: Timestamp) -> Self {
        let of = moment.unix_seconds();
        let whole = Timestamp::from_unix_millis(of.saturating_mul(1000)).unwrap_or(moment);
        Self { of, text: whole.to_string().trim_end_matches('Z').to_owned() }
    }
}

/// One worker's end.
pub struct Sink {
    buffer: Arc<Buffer>,
    wake: SyncSender<()>,
}

impl AccessLog {
    pub fn start() -> std::io::Result<Self> {
        let buffers: Arc<Mutex<Vec<Weak<Buffer>>>> = Arc::default();
        let (wake, woken) = sync_channel(1);
        let all = buffers.clone();
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            loop {
                let last = matches!(woken.recv_timeout(FLUSH_EVERY), Err(RecvTimeoutError::Disconnected));
                write_out(&all);
                if last {
                    return;
                }
            }
        })?;
        Ok(Self { buffers, wake: Some(wake), writer: Some(writer) })
    }

    pub fn sink(&self) -> Option<Sink> {
        let buffer = Arc::new(Buffer::default());
        let mut buffers = self.buffers.lock();
        buffers.retain(|b| b.strong_count() > 0);
        buffers.push(Arc::downgrade(&buffer));
        Some(Sink { buffer, wake: self.wake.clone()? })
    }

    /// Writes what there is now.
    pub fn flush(&self) {
        write_out(&self.buffers);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
        // The thread ends with the last sink; it is not waited for, as workers may still hold theirs.
        drop((self.wake.take(), self.writer.take()));
    }
}

fn write_out(buffers: &Mutex<Vec<Weak<Buffer>>>) {
    let buffers: Vec<_> = buffers.lock().iter().filter_map(Weak::upgrade).collect();
    for buffer in buffers {
        let Lines { bytes, dropped, .. } = std::mem::take(&mut *buffer.lines.lock());
        if bytes.is_empty() {
            continue;
        }
        // There is nowhere to tell of a standard error that can't be written.
        let _ = std::io::stderr().write_all(&bytes);
        if dropped > 0 {
            tracing::warn!(dropped, "access-log lines were dropped: standard error is not read fast enough");
        }
    }
}

impl Sink {
    /// Adds one line: the members that `write` gives.
    pub fn line(&self, write: impl FnOnce(&mut Line<'_>)) {
        let mut lines = self.buffer.lines.lock();
        let lines = &mut *lines;
        if lines.bytes.len() > MAX_HELD {
            lines.dropped += 1;
            return;
        }
        lines.bytes.push(b'{');
        write(&mut Line { out: &mut lines.bytes, second: &mut lines.second, first: true });
        lines.bytes.extend_from_slice(b"}\n");
        if lines.bytes.len() >= FLUSH_AT {
            // A wake-up that is already under way does.
            let _ = self.wake.try_send(());
        }
    }
}

/// The members of one JSON object.
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    second: &'a mut Second,
    first: bool,
}

impl Line<'_> {
    /// `key` is a literal of ours and needs no escapes.
    fn key(&mut self, key: &str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Text from outside.
    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push(b'"');
        escape(self.out, value);
        self.out.push(b'"');
    }

    /// Names, tokens, digits: what can hold neither quotes nor backslashes nor control characters.
    pub fn plain(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(b'"');
    }

    /// A moment as RFC 3339, to the microsecond.
    pub fn time(&mut self, key: &str, value: Timestamp) {
        self.key(key);
        if self.second.of != value.unix_seconds() {
            *self.second = Second::of(value);
        }
        self.out.push(b'"');
        self.out.extend_from_slice(self.second.text.as_bytes());
        let micros = 1_000_000 + value.subsec_micros();
        let at = self.out.len();
        self.out.extend_from_slice(itoa::Buffer::new().format(micros).as_bytes());
        self.out[at] = b'.';
        self.out.extend_from_slice(b"Z\"");
    }
}

/// RFC 8259 section 7.
fn escape(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if !matches!(byte, b'"' | b'\\' | 0..0x20) {
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        let _ = write!(out, "\\u{byte:04x}");
        plain = at + 1;
    }
    out.extend_from_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json() {
        let log = AccessLog::start().unwrap();
        let sink = log.sink().unwrap();
        let awkward = "/a\"b\\c\n\u{e9}";
        sink.line(|line| {
            line.text("path", awkward);
            line.number("status", 200);
            line.time("at", "2026-02-28T23:59:59.000123Z".parse().unwrap());
            line.time("later", "2026-03-01T00:00:00.999999999Z".parse().unwrap());
        });
        let lines = std::mem::take(&mut *sink.buffer.lines.lock());
        let doc: serde_json::Value = serde_json::from_slice(&lines.bytes).unwrap();
        let (at, later) = ("2026-02-28T23:59:59.000123Z", "2026-03-01T00:00:00.999999Z");
        assert_eq!(doc, serde_json::json!({ "path": awkward, "status": 200, "at": at, "later": later }));
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let buffer = Arc::new(Buffer::default());
        let (wake, _held) = sync_channel(1);
        let sink = Sink { buffer, wake };
        for _ in 0..20_000 {
            sink.line(|line| line.text("path", &"x".repeat(100)));
        }
        let lines = sink.buffer.lines.lock();
        assert!(lines.bytes.len() < MAX_HELD + 1000);
        assert!(lines.dropped > 0);
    }
}
