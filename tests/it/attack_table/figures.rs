//! Memory, threads and descriptors of the process under attack.

use std::fs;

use crate::support::{Gateway, poll};
use std::time::Duration;

#[derive(Clone, Copy)]
pub struct Figures {
    pub rss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
    pub mappings: u64,
}

/// What may be on top of an idle gateway: caches, kept connections, threads of guests that end with idleness.
const MORE: Figures = Figures { rss_kib: 256 << 10, threads: 64, descriptors: 128, mappings: 2_000 };

impl Figures {
    pub fn of(gw: &Gateway) -> Figures {
        let pid = gw.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64);
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mappings = maps.iter().filter(|b| **b == b'\n').count() as u64;
        Figures { rss_kib: field("VmRSS:"), threads: field("Threads:"), descriptors, mappings }
    }

    /// Whether the process is, or soon comes, within bounds of this; if not, what is out of them.
    pub fn kept_by(self, gw: &Gateway) -> Result<Figures, String> {
        let mut now = Figures::of(gw);
        let mut over = String::new();
        let kept = poll(Duration::from_secs(10), || {
            now = Figures::of(gw);
            over = [
                ("KiB of memory", now.rss_kib, self.rss_kib + MORE.rss_kib),
                ("threads", now.threads, self.threads + MORE.threads),
                ("descriptors", now.descriptors, self.descriptors + MORE.descriptors),
                ("mappings", now.mappings, self.mappings + MORE.mappings),
            ]
            .into_iter()
            .filter(|(_, is, may)| is > may)
            .map(|(what, is, may)| format!("{is} {what}, more than {may}; "))
            .collect();
            over.is_empty()
        });
        if kept { Ok(now) } else { Err(over) }
    }
}
