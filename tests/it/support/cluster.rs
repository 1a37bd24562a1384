//! A cluster of real servers: three primaries that share the slots, with replicas where a test wants them.

use super::eventually;
use super::redis::{Redis, SLOTS};

const PRIMARIES: u32 = 3;

pub struct Cluster {
    pub primaries: Vec<Redis>,
    /// One of each primary, in the same order; or none.
    pub replicas: Vec<Redis>,
}

impl Cluster {
    pub fn start() -> Self {
        Self::form((0..PRIMARIES).map(|_| Redis::start_node()).collect(), Vec::new())
    }

    pub fn start_with_replicas() -> Self {
        let nodes = || (0..PRIMARIES).map(|_| Redis::start_node()).collect();
        Self::form(nodes(), nodes())
    }

    pub fn start_under_tls(files: &[String]) -> Self {
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        Self::form((0..PRIMARIES).map(|_| Redis::start_node_under_tls(&files)).collect(), Vec::new())
    }

    fn form(primaries: Vec<Redis>, replicas: Vec<Redis>) -> Self {
        for (n, node) in (0..).zip(&primaries) {
            node.take_slots(SLOTS * n / PRIMARIES..SLOTS * (n + 1) / PRIMARIES);
            // Of their own, so that none has to give way.
            node.cli(&["cluster", "set-config-epoch", &(n + 1).to_string()]);
        }
        let cluster = Self { primaries, replicas };
        let all = || cluster.primaries.iter().chain(&cluster.replicas);
        for node in all().skip(1) {
            node.cli(&["cluster", "meet", "127.0.0.1", &cluster.primaries[0].port()]);
        }
        let known = format!("cluster_known_nodes:{}\r", all().count());
        eventually("all nodes know each other", || all().all(|node| node.cli(&["cluster", "info"]).contains(&known)));
        for (replica, primary) in cluster.replicas.iter().zip(&cluster.primaries) {
            replica.follow(primary);
        }
        all().for_each(Redis::wait_for_cluster);
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        self.primaries.iter().chain(&self.replicas).map(Redis::url).collect()
    }

    /// Which of the primaries was given the slot of this key at first.
    pub fn place(&self, key: &str) -> usize {
        let slot: u32 = self.any().cli(&["cluster", "keyslot", key]).trim().parse().expect("a number");
        (0..PRIMARIES).position(|n| slot < SLOTS * (n + 1) / PRIMARIES).expect("it is one of the slots")
    }

    /// How many keys each primary has.
    pub fn sizes(&self) -> Vec<usize> {
        self.primaries.iter().map(|node| node.cli(&["dbsize"]).trim().parse().expect("a number")).collect()
    }

    /// The replica of a primary that is away takes its place at once; by themselves they would in 15 seconds.
    pub fn promote(&self, place: usize) {
        let replica = &self.replicas[place];
        replica.cli(&["cluster", "failover", "takeover"]);
        let others = || self.primaries.iter().enumerate().filter(|(n, _)| *n != place).map(|(_, node)| node);
        let id = replica.cli(&["cluster", "myid"]);
        let is_primary = |node: &Redis| {
            let nodes = node.cli(&["cluster", "nodes"]);
            nodes.lines().any(|line| line.starts_with(id.trim()) && line.contains("master"))
        };
        eventually("all know the new primary", || others().chain([replica]).all(is_primary));
    }

    fn any(&self) -> &Redis {
        self.primaries.iter().find(|node| node.is_running()).expect("one runs")
    }
}
