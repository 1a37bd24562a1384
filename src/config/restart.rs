//! Which settings count only at start.
//!
//! Invariant: every setting is named here, either as one that a reload takes into use or as one that waits.

use super::{Admin, Auth, Compile, Config, Engine, Log, Server};

/// The settings of `new` that differ from those the process `started` with and wait for a restart.
pub fn waiting(started: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        server,
        admin,
        data_dir,
        auth,
        log,
        engine,
        store,
        tiers: _,
        upstreams: _,
        routes: _,
        warnings: _,
        digest: _,
        pushed: _,
    } = started;
    let mut waiting = Vec::new();
    let mut once = |key, same: bool| waiting.extend((!same).then_some(key));
    once("data_dir", *data_dir == new.data_dir);
    of_server(server, &new.server, &mut once);
    of_admin(admin, &new.admin, &mut once);
    of_auth(auth, &new.auth, &mut once);
    let Log { format, level: _, access: _ } = log;
    once("log.format", *format == new.log.format);
    once("store.redis", store.redis == new.store.redis);
    of_engine(engine, &new.engine, &mut once);
    waiting
}

fn of_server(started: &Server, new: &Server, once: &mut impl FnMut(&'static str, bool)) {
    let Server {
        listeners: _,
        name: _,
        threads,
        trusted_proxies: _,
        header_timeout: _,
        max_header_bytes: _,
        max_header_fields: _,
        keepalive: _,
        body_timeout: _,
        max_connections: _,
        drain: _,
    } = started;
    // Other certificate files are taken into use; that there are any is decided when the socket is bound.
    let sockets = |s: &Server| s.listeners.iter().map(|l| (l.address, l.tls.is_some(), l.h2c)).collect::<Vec<_>>();
    once("server.listeners", sockets(started) == sockets(new));
    once("server.threads", *threads == new.threads);
}

fn of_admin(started: &Admin, new: &Admin, once: &mut impl FnMut(&'static str, bool)) {
    let Admin { address, tls, token_file, allowed_hosts: _ } = started;
    once("admin.address", *address == new.address);
    once("admin.tls", tls.is_some() == new.tls.is_some());
    once("admin.token_file", *token_file == new.token_file);
}

fn of_auth(started: &Auth, new: &Auth, once: &mut impl FnMut(&'static str, bool)) {
    let Auth { pepper, key_fresh, key_max_stale, absent_ttl, cache_entries, failures_per_minute } = started;
    once("auth.pepper_file", *pepper == new.pepper);
    once("auth.key_fresh", *key_fresh == new.key_fresh);
    once("auth.key_max_stale", *key_max_stale == new.key_max_stale);
    once("auth.absent_ttl", *absent_ttl == new.absent_ttl);
    once("auth.cache_entries", *cache_entries == new.cache_entries);
    once("auth.failures_per_minute", *failures_per_minute == new.failures_per_minute);
}

fn of_engine(started: &Engine, new: &Engine, once: &mut impl FnMut(&'static str, bool)) {
    let Engine {
        threads,
        queue,
        queue_timeout,
        per_owner,
        memory_budget_bytes,
        vms_per_handler,
        vm_requests,
        guest_log_lines,
        artifact_cache_bytes,
        artifact_disk_bytes,
        breaker: _,
        compile,
    } = started;
    once("engine.threads", *threads == new.threads);
    once("engine.queue", *queue == new.queue);
    once("engine.queue_timeout", *queue_timeout == new.queue_timeout);
    once("engine.per_owner", *per_owner == new.per_owner);
    once("engine.memory_budget", *memory_budget_bytes == new.memory_budget_bytes);
    once("engine.vms_per_handler", *vms_per_handler == new.vms_per_handler);
    once("engine.vm_requests", *vm_requests == new.vm_requests);
    once("engine.guest_log_lines", *guest_log_lines == new.guest_log_lines);
    once("engine.artifact_cache", *artifact_cache_bytes == new.artifact_cache_bytes);
    once("engine.artifact_disk", *artifact_disk_bytes == new.artifact_disk_bytes);
    let Compile { processes, cpu, per_mib, memory_bytes } = compile;
    once("engine.compile.processes", *processes == new.compile.processes);
    once("engine.compile.cpu", *cpu == new.compile.cpu);
    once("engine.compile.per_mib", *per_mib == new.compile.per_mib);
    once("engine.compile.memory", *memory_bytes == new.compile.memory_bytes);
}
