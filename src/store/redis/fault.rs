//! What went wrong with Redis, as the layers above know it.
//!
//! Invariant: of a URL the address alone gets into a message, and nothing of a record; each says what can be done.

use redis::{ErrorKind, RedisError};

use super::COMMANDS;
use crate::store::StoreError;

#[derive(Debug)]
pub struct Fault {
    pub error: StoreError,
    /// Redis is away, or can't serve anything: counts for the breaker.
    pub is_outage: bool,
    /// The connection is of no use any more.
    pub is_broken: bool,
    /// Redis may have done what it was asked to, although there was no answer.
    pub is_open: bool,
    /// Its ACL does not allow what was asked.
    pub is_denied: bool,
    /// It does not know the script (any more).
    pub is_unknown_script: bool,
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl Fault {
    /// Of the servers at these addresses, in which keys begin so.
    pub fn at(mut self, place: &str, prefix: &str) -> Self {
        if let StoreError::Unavailable(why) = &mut self.error
            && let Some(rest) = why.strip_prefix("redis: ")
        {
            *why = format!("redis at {place}: {}", rest.replace("<prefix>", prefix));
        }
        self
    }

    /// Of a connection that could not be made.
    pub fn of_connecting(mut self, is_tls: bool, has_sentinels: bool) -> Self {
        let StoreError::Unavailable(why) = &mut self.error else { return self };
        let is_login = why.contains("NOAUTH") || why.contains("WRONGPASS");
        if is_login && has_sentinels {
            why.push_str(", and at `store.redis.sentinel_username` and `store.redis.sentinel_password_file`");
        } else if is_login {
            why.push_str("; where a sentinel listens, set `store.redis.primary`");
        }
        if !why.contains("`store.redis.") {
            let is_nobody_there = why.contains("refused (os") || why.contains("lookup");
            let more = match is_tls {
                _ if is_nobody_there => "",
                true => " and `store.redis.ca_file`, and whether it speaks TLS there",
                false => ", and whether it wants TLS (`rediss://`)",
            };
            why.push_str(&format!("; look at `store.redis.urls`{more}"));
        }
        self
    }

    /// No answer.
    pub fn unreached(why: impl std::fmt::Display) -> Self {
        let error = StoreError::Unavailable(format!("redis: {why}"));
        Self { error, is_outage: true, is_broken: false, is_open: true, is_denied: false, is_unknown_script: false }
    }

    /// What it does not allow.
    pub fn denied(what: &str) -> Self {
        let refused = format!(
            "redis: its ACL refuses what the store needs ({what}): allow `store.redis.username` `~<prefix>:* {COMMANDS}`"
        );
        Self { is_denied: true, ..Self::refused(StoreError::Unavailable(refused)) }
    }

    fn refused(error: StoreError) -> Self {
        Self { error, is_outage: false, is_broken: false, is_open: false, is_denied: false, is_unknown_script: false }
    }
}

/// Codes of Redis, and what they mean for the operator. Inside of scripts, Redis 6.2 has them in the text.
const OUTAGES: [(&str, &str); 8] = [
    ("LOADING", "it is loading its data; it answers when that is done"),
    ("READONLY", "it is a replica, which can't be written to: `store.redis.urls` has to lead to the primary"),
    ("MASTERDOWN", "it is a replica that has lost its primary: `store.redis.urls` has to lead to the primary"),
    ("CLUSTERDOWN", "its cluster is down: see `cluster info`"),
    ("NOAUTH", "it wants a user and a password (NOAUTH): set `store.redis.username` and `store.redis.password_file`"),
    ("WRONGPASS", LOGIN),
    ("BUSY", "it is busy with a script of somebody: see `script kill`"),
    ("NOREPLICAS", "it has fewer replicas than it needs to accept writes (`min-replicas-to-write`)"),
];

/// Of the ACL, inside of scripts, as Redis 7 and 6.2 say it.
const DENIALS: [&str; 2] = ["ACL failure in script", "The user executing the script"];
const LOGIN: &str = "it refuses the user or the password (WRONGPASS): look at `store.redis.username` and \
                     `store.redis.password_file`";

pub fn fault(error: &RedisError) -> Fault {
    let text = error.to_string();
    let says = |code: &str| error.code() == Some(code) || text.contains(&format!("-{code} "));
    if says("NOSCRIPT") {
        let unknown = StoreError::Unavailable("redis: it has forgotten the script".into());
        return Fault { is_unknown_script: true, ..Fault::refused(unknown) };
    }
    if says("OOM") {
        return Fault::refused(StoreError::Full);
    }
    if says("MISCONF") {
        let full = text.contains("No space left");
        let stuck = "redis: it can't persist what is written, so it refuses writes: see its log and its disk";
        return Fault::refused(if full { StoreError::Full } else { StoreError::Unavailable(stuck.into()) });
    }
    if says("NOPERM") || DENIALS.iter().any(|denial| text.contains(denial)) {
        // Names the command or the key, not what is in it.
        return Fault::denied(error.detail().unwrap_or("see `acl log`"));
    }
    if says("MOVED") || says("CROSSSLOT") {
        let cluster = "redis: it is part of a cluster: set `store.redis.cluster = true`";
        return Fault::refused(StoreError::Unavailable(cluster.into()));
    }
    if says("TRYAGAIN") {
        let moving = "redis: its cluster moves the records to another node: try again";
        return Fault::refused(StoreError::Unavailable(moving.into()));
    }
    if says("WRONGTYPE") {
        return Fault::refused(StoreError::Corrupt("a key in Redis has another type than what is kept there".into()));
    }
    if let Some((_, meaning)) = OUTAGES.iter().find(|(code, _)| says(code)) {
        return Fault { is_broken: true, is_open: false, ..Fault::unreached(meaning) };
    }
    if text.contains("refused to switch database") {
        let detail = error.detail().unwrap_or("it does not say why");
        let meaning = format!(
            "it refuses the database of the URL ({detail}): look at `store.redis.urls`; another one than 0 wants `+select` in the ACL"
        );
        return Fault { is_broken: true, is_open: false, ..Fault::unreached(meaning) };
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => Fault { is_broken: true, is_open: false, ..Fault::unreached(LOGIN) },
        ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::EmptySentinelList => {
            let meaning = "its sentinels know no primary of that name which is there: look at `store.redis.primary`";
            Fault { is_broken: true, ..Fault::unreached(meaning) }
        }
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => {
            Fault { is_broken: true, ..Fault::unreached(error) }
        }
        _ if error.is_unrecoverable_error() => Fault { is_broken: true, ..Fault::unreached(error.category()) },
        kind => {
            Fault::refused(StoreError::Unavailable(format!("redis: it refuses a command: {kind:?} {:?}", error.code())))
        }
    }
}
