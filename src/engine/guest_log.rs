//! What guests print, on its way to the gateway's log.
//!
//! Invariant: a handler writes at most `engine.guest_log_lines` lines a second, and no guest's text forges one of ours.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Level;

use super::host::HostState;

/// Of one line; longer ones are cut.
const LINE_BYTES: usize = 4 << 10;

/// http-wasm's levels, which are signed: debug -1, info 0, warn 1, error 2, none 3.
pub fn level(level: i32) -> Option<Level> {
    match level {
        -1 => Some(Level::DEBUG),
        0 => Some(Level::INFO),
        1 => Some(Level::WARN),
        2 => Some(Level::ERROR),
        _ => None,
    }
}

/// The gateway's log takes lines of this level from guests.
pub fn is_enabled(level: Level) -> bool {
    match level {
        Level::TRACE => tracing::enabled!(target: "guest", Level::TRACE),
        Level::DEBUG => tracing::enabled!(target: "guest", Level::DEBUG),
        Level::INFO => tracing::enabled!(target: "guest", Level::INFO),
        Level::WARN => tracing::enabled!(target: "guest", Level::WARN),
        Level::ERROR => tracing::enabled!(target: "guest", Level::ERROR),
    }
}

/// A line that a guest logged.
#[derive(Debug)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
    /// Of the request that the guest acted for, where that is not the one that its phase is for.
    pub request_id: Option<Arc<str>>,
}

/// Lines of one phase, kept until its end: a phase that is run again logs once, and no guest holds up a log writer.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Vec<LogLine>,
    bytes: usize,
    dropped: u64,
}

impl Lines {
    const MOST: usize = 256;
    const BYTES: usize = 64 << 10;

    pub fn push(&mut self, level: Level, text: &[u8], request_id: Option<Arc<str>>) {
        let room = Self::BYTES - self.bytes;
        if self.lines.len() == Self::MOST || (room == 0 && !text.is_empty()) {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        let text = &text[..text.len().min(room)];
        self.bytes += text.len();
        self.lines.push(LogLine { level, text: String::from_utf8_lossy(text).into_owned(), request_id });
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }

    pub fn take(&mut self) -> (Vec<LogLine>, u64) {
        let Lines { lines, dropped, .. } = std::mem::take(self);
        (lines, dropped)
    }
}

/// The log of one handler.
#[derive(Debug)]
pub struct GuestLog {
    handler: Arc<str>,
    /// A second.
    most: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    dropped: u64,
}

impl GuestLog {
    pub fn new(handler: Arc<str>, most: u32) -> GuestLog {
        GuestLog { handler, most, window: Mutex::new(Window { began: Instant::now(), lines: 0, dropped: 0 }) }
    }

    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// `request_id` is empty for what a module prints while it starts.
    pub fn line(&self, request_id: &str, level: Level, text: &str) {
        let Some(dropped) = self.admit(Instant::now()) else { return };
        self.report(request_id, dropped);
        let (handler, text) = (&*self.handler, Printable(text));
        // A level is part of a call site, so there is one for each.
        match level {
            Level::ERROR => tracing::error!(target: "guest", handler, request_id, "{text}"),
            Level::WARN => tracing::warn!(target: "guest", handler, request_id, "{text}"),
            Level::INFO => tracing::info!(target: "guest", handler, request_id, "{text}"),
            _ => tracing::debug!(target: "guest", handler, request_id, "{text}"),
        }
    }

    /// Standard output and error of a phase, line by line.
    pub fn printed(&self, request_id: &str, bytes: &[u8]) {
        for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            self.line(request_id, Level::INFO, &String::from_utf8_lossy(line));
        }
    }

    /// All that a phase left to be written.
    pub fn flush(&self, request_id: &str, host: &mut HostState) {
        if !host.has_printed() {
            return;
        }
        let (lines, dropped) = host.lines.take();
        for line in &lines {
            self.line(line.request_id.as_deref().unwrap_or(request_id), line.level, &line.text);
        }
        self.report(request_id, dropped + host.log.dropped);
        if !host.log.is_empty() {
            self.printed(request_id, &host.log.take());
        }
    }

    /// Tells that lines or bytes were cut before they got here.
    pub fn report(&self, request_id: &str, dropped: u64) {
        if dropped > 0 {
            tracing::warn!(target: "guest", handler = &*self.handler, request_id, dropped, "guest logs were cut");
        }
    }

    /// What was dropped in the second before, when this line may be written.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        let mut dropped = 0;
        if now.saturating_duration_since(window.began) >= Duration::from_secs(1) {
            dropped = window.dropped;
            *window = Window { began: now, lines: 0, dropped: 0 };
        }
        if window.lines >= self.most {
            window.dropped += 1;
            return None;
        }
        window.lines += 1;
        Some(dropped)
    }
}

/// A guest's text on one line: control characters are escaped.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0.char_indices().nth(LINE_BYTES) {
            Some((end, _)) => &self.0[..end],
            None => self.0,
        };
        for c in text.chars() {
            if c.is_control() && c != '\t' {
                write!(f, "{}", c.escape_default())?
            } else {
                fmt::Write::write_char(f, c)?
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_what_is_dropped_is_told() {
        let log = GuestLog::new("h".into(), 100);
        let start = Instant::now();
        let admitted = (0..250).filter(|_| log.admit(start).is_some()).count();
        assert_eq!(admitted, 100);
        assert_eq!(log.admit(start + Duration::from_secs(2)), Some(150));
    }

    #[test]
    fn control_characters_forge_nothing() {
        assert_eq!(Printable("a\nb\x1b[31m\tc").to_string(), "a\\nb\\u{1b}[31m\tc");
    }
}
