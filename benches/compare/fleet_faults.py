"""Parts of `fleet`: revocations, and what goes on while Redis is frozen, killed, flushed or failed over."""

import re
import signal
import threading
import time

from bench import DEADLINE, free_port, wait_for
from fleet_limits import EVEN, LIMITS, OVERSHOOT, TIERS, ask
from fleet_load import Load, most_in_a_window, percentile, statuses, under_load
from fleet_nodes import Child, Redis, Until

SENTINEL = """port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {primary} 1
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 5000
"""


def revoke(fleet, number):
    """Seconds from asking for it, and from its acknowledgement, until the last gateway refuses."""
    by = fleet.gateways[number % 4]
    made = by.new_key(f"owner{number % 7}", "enterprise")
    waiting = [Until(gateway, made["key"], 401) for gateway in fleet.gateways]
    for one in waiting:
        one.start()
    for one in waiting:
        one.before.wait(DEADLINE)
    asked = time.monotonic()
    by.ask("DELETE", f"/api/auth/keys/{made['id']}")
    done = time.monotonic()
    for one in waiting:
        one.join(DEADLINE)
    if not all(one.at for one in waiting):
        raise RuntimeError("a revoked key is still admitted")
    last = max(one.at for one in waiting)
    return last - asked, max(0, last - done)


def background(fleet, seconds, rate=400):
    key = fleet.gateways[0].new_key("busy", "enterprise")["key"]
    return [Load(fleet.folder, gateway.port, "/", key, rate / 4, seconds) for gateway in fleet.gateways]


def revocations(bench):
    """Keys in use on all gateways, revoked on one of them, with and without the connection that tells of it."""
    number = bench.number(120)
    with bench.fleet(TIERS) as fleet:
        for cut in (False, True):
            if cut:
                cut_tracking(fleet)
            # They end by themselves, later than the revocations.
            loads = background(fleet, bench.seconds(50 if cut else 20))
            took = [revoke(fleet, n + number * cut) for n in range(number)]
            others = statuses(under_load(loads))
            name, aim = ("tracking cut", 1000) if cut else ("revocation", 100)
            for share, label in ((0.5, "p50"), (0.99, "p99"), (1, "most")):
                figure = percentile([asked for asked, _ in took], share) * 1000
                since = percentile([done for _, done in took], share) * 1000
                note = f" ({since:.1f} since it was acknowledged)"
                bench.row(f"{name}, until all 4 refuse: {label} of {number}", figure, "ms", aim if share == 0.99 else None, note=note)
            bench.row(f"{name}: other requests failed", sum(others.values()) - others.get(200, 0), "requests", 0, note=f" of {sum(others.values()):,}")


def cut_tracking(fleet):
    """The connections that tell of changes end and can't be made again; all others go on."""
    redis = fleet.store_server
    redis.ask("ACL", "SETUSER", "default", "-client|tracking")
    for line in redis.ask("CLIENT", "LIST").splitlines():
        fields = dict(field.split("=", 1) for field in line.split(" ") if "=" in field)
        if "t" in fields["flags"]:
            redis.ask("CLIENT", "KILL", "ID", fields["id"])
    wait_for("no gateway is told of changes", lambda: not any(gateway.is_told() for gateway in fleet.gateways))


def unknown_keys(fleet, number):
    """Keys that are valid, and that no gateway has seen."""
    return [fleet.gateways[0].new_key(f"late{n // 20}", "enterprise")["key"] for n in range(number)]


class Strangers(threading.Thread):
    """Asks with another of these keys each time, in turns on all gateways, until it is stopped. What they gave, and how long
    the slowest took."""

    def __init__(self, fleet, keys):
        super().__init__(daemon=True)
        self.fleet, self.keys, self.given, self.slowest = fleet, keys, {}, 0.0
        self.stopped = threading.Event()

    def run(self):
        for number, key in enumerate(self.keys):
            if self.stopped.wait(0.1):
                return
            began = time.monotonic()
            status = self.fleet.gateways[number % 4].proxied("/", key)[0]
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.given[status] = self.given.get(status, 0) + 1

    def stop(self):
        self.stopped.set()
        self.join()
        return self.given


def known(fleet, seconds):
    """Keys in use on every gateway, and load with them."""
    keys = [fleet.gateways[0].new_key(f"known{n}", "enterprise")["key"] for n in range(4)]
    for key in keys:
        for gateway in fleet.gateways:
            gateway.proxied("/", key)
    return [Load(fleet.folder, gateway.port, "/", key, 50, seconds, 5) for gateway in fleet.gateways for key in keys]


def tell_known(bench, name, requests):
    found = statuses(requests)
    failed = sum(found.values()) - found.get(200, 0)
    took = [(received - sent) * 1000 for sent, received, _ in requests]
    note = f" of {len(requests):,}; p99 {percentile(took, 0.99):.1f} ms, slowest {max(took):.0f} ms"
    others = {status: number for status, number in found.items() if status != 200}
    bench.row(f"{name}: requests of keys in use that failed", failed, "", 0, note=note + (f" {others}" if others else ""))


def tell_strangers(bench, name, strangers):
    given = strangers.stop()
    wrong = sum(number for status, number in given.items() if status != 503)
    bench.row(f"{name}: unknown keys that got anything but 503", wrong, "", 0, note=f" of {sum(given.values())} {given}; slowest {strangers.slowest * 1000:.0f} ms")


def outage(bench):
    """Redis is frozen and killed under load."""
    for name, begin, finish in (
        ("frozen (SIGSTOP)", lambda redis: redis.signal(signal.SIGSTOP), lambda redis: redis.signal(signal.SIGCONT)),
        ("killed (SIGKILL)", Redis.kill, Redis.start),
    ):
        with bench.fleet(TIERS) as fleet:
            one_outage(bench, fleet, name, begin, finish)


def one_outage(bench, fleet, name, begin, finish):
    redis, lasts, after = fleet.store_server, bench.seconds(60), 10
    keys = unknown_keys(fleet, lasts * 10 + 8)
    limit = LIMITS["hundred"]
    limited = fleet.gateways[0].new_key("limited", limit.name)["key"]
    # Before, meanwhile and after.
    loads = known(fleet, 3 + lasts + after)
    limited_loads = ask(fleet.gateways, limited, 400, EVEN, 3 + lasts + after, fleet.folder)
    time.sleep(3)
    began = time.time()
    begin(redis)
    wait_for("it is noticed", lambda: not any(gateway.is_told() for gateway in fleet.gateways))
    bench.row(f"{name}: noticed by all", (time.time() - began) * 1000, "ms", 1500)
    strangers = Strangers(fleet, keys[8:])
    strangers.start()
    wait_for("`store_up` is 0 on all", lambda: not any(gateway.figures()["store_up"] for gateway in fleet.gateways))
    bench.row(f"{name}: `store_up` is 0 on all", (time.time() - began) * 1000, "ms", 2000)
    time.sleep(max(0, began + lasts - time.time()))
    tell_strangers(bench, name, strangers)
    back = time.time()
    finish(redis)
    # Its own start is not the gateways'.
    there = time.time()
    wait_for("unknown keys work again", lambda: all(g.proxied("/", key)[0] == 200 for g, key in zip(fleet.gateways, keys)))
    wait_for("every gateway is told of changes", lambda: all(gateway.is_told() for gateway in fleet.gateways))
    bench.row(f"{name}: until unknown keys work on all, and all are told", (time.time() - there) * 1000, "ms", 2000)
    wait_for("`store_up` is 1 on all", lambda: all(gateway.figures()["store_up"] for gateway in fleet.gateways))
    wait_for("every gateway is ready", lambda: all(gateway.readiness() == "200 ready" for gateway in fleet.gateways))
    # What could not be written is written every 5 s.
    bench.row(f"{name}: until all say that they are ready, not degraded", (time.time() - there) * 1000, "ms", 6000)
    tell_known(bench, f"{name} for {lasts} s", under_load(loads))
    requests = under_load(limited_loads)
    admitted = [sent for sent, received, status in requests if status == 200 and sent > began and received < back]
    took = back - began
    whole = most_in_a_window([(sent, received) for sent, received, status in requests if status == 200], limit.rate) - limit.burst
    bench.row(f"{name}: 100/s key, worst window before, meanwhile and after", whole / limit.requests * 100, "% of the limit", OVERSHOOT)
    bench.row(f"{name}: 100/s key, admitted against its rate", len(admitted) / (limit.rate * took), "", 0.9, least=True)
    found = statuses(requests)
    bench.row(f"{name}: 100/s key, neither 200 nor 429", len(requests) - found.get(200, 0) - found.get(429, 0), "", 0, note=f" {found}")


def flush(bench):
    """All that Redis has is deleted under load."""
    with bench.fleet(TIERS) as fleet:
        lasts = bench.seconds(20)
        keys = unknown_keys(fleet, lasts * 10)
        loads = known(fleet, lasts + 3)
        time.sleep(3)
        fleet.store_server.ask("FLUSHALL")
        strangers = Strangers(fleet, keys)
        strangers.start()
        requests = under_load(loads)
        tell_strangers(bench, "FLUSHALL", strangers)
        tell_known(bench, "FLUSHALL", requests)


class Sentinel(Child):
    def __init__(self, fleet, primary):
        self.port, folder = free_port(), fleet.folder / "sentinel"
        folder.mkdir()
        conf = folder / "sentinel.conf"
        conf.write_text(SENTINEL.format(port=self.port, primary=primary.port))
        fleet.children.append(self)
        self.spawn(["redis-server", conf, "--sentinel"], folder / "log")
        self.redis = Redis.__new__(Redis)
        self.redis.port, self.redis.stream = self.port, None
        wait_for("the sentinel knows a replica", lambda: self.redis.answers() and self.redis.ask("SENTINEL", "REPLICAS", "main"))


def is_replicated(primary):
    """Nothing is acknowledged that the replica does not have."""
    told = primary.ask("INFO", "replication")
    return f"offset={re.search(r'master_repl_offset:([0-9]+)', told)[1]}," in told


def failover(bench):
    """The primary is killed under load; sentinels make its replica the primary."""
    with bench.empty() as fleet:
        primary = fleet.redis("primary")
        replica = fleet.redis("replica", ["--replicaof", "127.0.0.1", primary.port, "--repl-diskless-sync-delay", "0"])
        sentinel = Sentinel(fleet, primary)
        more = 'primary = "main"\n'
        fleet.start(4, fleet.store([f"redis://127.0.0.1:{sentinel.port}"], more) + TIERS + bench.routes(fleet.app()))
        keys = unknown_keys(fleet, 8)
        wait_for("the replica has all", lambda: is_replicated(primary))
        lasts = bench.seconds(20)
        loads = known(fleet, lasts)
        time.sleep(3)
        began = time.monotonic()
        primary.kill()
        wait_for("the replica is the primary", lambda: replica.ask("ROLE")[0] == "master")
        promoted = time.monotonic()
        wait_for("unknown keys work again", lambda: all(g.proxied("/", key)[0] == 200 for g, key in zip(fleet.gateways, keys)))
        wait_for("every gateway is told of changes", lambda: all(gateway.is_told() for gateway in fleet.gateways))
        bench.row("failover: until the replica is the primary", (promoted - began) * 1000, "ms")
        bench.row("failover: from then until all gateways use it", (time.monotonic() - promoted) * 1000, "ms", 2000)
        took, _ = revoke(fleet, 0)
        bench.row("failover: a revocation right after it, seen by all", took * 1000, "ms", 1000)
        tell_known(bench, "failover", under_load(loads))
