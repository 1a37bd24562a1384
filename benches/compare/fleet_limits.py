"""Parts of `fleet`: what limits admit at ten times their load, and what they cost Redis."""

import time

from bench import wait_for
from fleet_load import Heard, Load, most_in_a_window, statuses, under_load
from fleet_nodes import Client, stop

# Of a limit, over burst and rate.
OVERSHOOT = 5
OUTCOMES = ("answered", "failed", "late")
EVEN, UNEVEN = (0.25, 0.25, 0.25, 0.25), (0.7, 0.2, 0.08, 0.02)


class Limit:
    """A tier with one or two quotas."""

    def __init__(self, name, requests, seconds, burst, per_day=None):
        self.name, self.requests, self.rate, self.burst, self.per_day = name, requests, requests / seconds, burst, per_day
        quotas = [f'{{ name = "rolling", requests = {requests}, window = "{seconds}s", burst = {burst} }}'] if requests else []
        if per_day:
            quotas.append(f'{{ name = "day", requests = {per_day}, window = "1d" }}')
        self.toml = f"[tiers.{name}]\nrank = 2\nconcurrent = 10000\nquotas = [{', '.join(quotas)}]\n"


LIMITS = {
    limit.name: limit
    for limit in (
        Limit("second", 1000, 1, 1000),
        Limit("hundred", 100, 1, 100),
        Limit("minute", 500, 60, 100),
        Limit("day", 0, 1, 0, per_day=3000),
        Limit("both", 100, 1, 100, per_day=2000),
    )
}
TIERS = "".join(limit.toml for limit in LIMITS.values())


def ask(gateways, key, rate, shares, seconds, folder):
    """Loads that are under way."""
    pairs = zip(gateways, shares)
    # Few enough that none asks less than once in some seconds, and enough that a wait for Redis holds up few.
    clients = lambda share: max(1, min(20, int(rate * share / 4)))
    return [Load(folder, gateway.port, "/", key, rate * share, seconds, clients(share)) for gateway, share in pairs]


def judge(bench, name, limit, requests):
    found = statuses(requests)
    admitted = [(sent, received) for sent, received, status in requests if status == 200]
    failed = len(requests) - len(admitted) - found.get(429, 0)
    if not admitted:
        bench.row(f"{name}: admitted", 0, "", 1, least=True)
        return
    first, last = min(r[0] for r in requests if r[0]), max(r[1] for r in requests)
    exact = limit.burst + limit.rate * (last - first) if limit.requests else limit.per_day
    if limit.per_day:
        exact = min(exact, limit.per_day)
        bench.row(f"{name}: over the day's quota", max(0, len(admitted) - limit.per_day), "requests", 0)
    if limit.requests:
        over = (most_in_a_window(admitted, limit.rate) - limit.burst) / limit.requests * 100
        bench.row(f"{name}: overshoot of the worst window", over, "% of the limit", OVERSHOOT)
    exact = min(exact, len(requests))
    bench.row(f"{name}: admitted, against one exact counter", len(admitted) / exact, "", 0.95, least=True, note=f" ({len(admitted):,} of {len(requests):,})")
    bench.row(f"{name}: neither 200 nor 429", failed, "requests", 0)


def not_at_midnight(seconds):
    """Calendar windows are UTC's."""
    if 86_400 - time.time() % 86_400 < seconds + 30:
        print("the day is nearly over: waiting for the next one", flush=True)
        time.sleep(86_401 - time.time() % 86_400)


def one(bench, limit, shares, seconds, asked):
    with bench.fleet(TIERS) as fleet:
        key = fleet.gateways[0].new_key("acme", limit.name)["key"]
        heard = Heard(fleet.store_server)
        requests = under_load(ask(fleet.gateways, key, asked, shares, seconds, fleet.folder))
        commands, _ = heard.stop()
        how = "even" if shares is EVEN else "uneven"
        window = {"second": "1,000 a second", "hundred": "100 a second", "minute": "500 a minute", "day": "3,000 a day", "both": "100 a second, 2,000 a day"}
        judge(bench, f"{window[limit.name]}, {asked:,}/s {how}", limit, requests)
        per = sum(commands.values()) / max(1, len(requests)) * 1000
        told = [gateway.figures() for gateway in fleet.gateways]
        total = lambda outcome: sum(figures.get(f'lease_requests_total{{outcome="{outcome}"}}', 0) for figures in told)
        calls = ", ".join(f"{total(outcome):.0f} {outcome}" for outcome in OUTCOMES)
        bench.row("  Redis commands per 1,000 requests", per, "", 1000, note=f" (calls for tokens: {calls})")


def second(bench):
    """1,000 requests a second, ten times as many asked for."""
    for shares in (EVEN, UNEVEN):
        one(bench, LIMITS["second"], shares, bench.seconds(15), 10_000)


def hundred(bench):
    """100 requests a second, ten times as many asked for."""
    for shares in (EVEN, UNEVEN):
        one(bench, LIMITS["hundred"], shares, bench.seconds(15), 1_000)


def minute(bench):
    """500 requests a minute, 100 at once, ten times as many asked for, for longer than the window."""
    one(bench, LIMITS["minute"], EVEN, bench.seconds(130, 20), 84)


def day(bench):
    """Requests of a UTC day, alone and beside a quota of a second."""
    not_at_midnight(60)
    one(bench, LIMITS["day"], EVEN, bench.seconds(10), 3_000)
    one(bench, LIMITS["day"], UNEVEN, bench.seconds(10), 3_000)
    one(bench, LIMITS["both"], EVEN, bench.seconds(30), 1_000)


def commands(bench):
    """What Redis is asked for: by gateways that do nothing, at 1,000 requests a second, and by keys that are rare."""
    with bench.fleet(TIERS) as fleet:
        seconds = bench.seconds(20)
        # What has begun with the start is over.
        time.sleep(6)
        heard = Heard(fleet.store_server)
        time.sleep(seconds)
        idle, took = heard.stop()
        each = ", ".join(f"{name} {kind} {number / took:.1f}" for (name, kind), number in sorted(idle.items()))
        idle = sum(idle.values()) / took
        bench.row("four gateways without a request: Redis commands", idle, "/s", note=f"({each})")
        key = fleet.gateways[0].new_key("acme", "second")["key"]
        for share in (0.95, 1.2):
            heard = Heard(fleet.store_server)
            requests = under_load(ask(fleet.gateways, key, 1000 * share, EVEN, seconds, fleet.folder))
            busy, took = heard.stop()
            extra = sum(busy.values()) - idle * took
            name = f"1,000/s key at {share:g} of it"
            each = ", ".join(f"{name} {kind} {number}" for (name, kind), number in sorted(busy.items()))
            bench.row(f"{name}: all Redis commands per 1,000 requests", sum(busy.values()) / len(requests) * 1000, "", note=f"({each})")
            bench.row(f"{name}: without those that come idle as well", extra / len(requests) * 1000, "", 20)
        rare(bench, fleet)


def rare(bench, fleet):
    """Many owners, each with a request now and then."""
    keys = [fleet.gateways[0].new_key(f"rare{n}", "second")["key"] for n in range(40)]
    # What was taken ahead for the key before is given back.
    time.sleep(5)
    for round in ("cold", "again, 3 s later"):
        heard = Heard(fleet.store_server)
        clients = []
        for n, key in enumerate(keys):
            clients.append(Client(fleet.gateways[n % 4].port, "/", key, rate=1))
            clients[-1].start()
        wait_for("each rare key has asked twice", lambda: all(client.asked() >= 2 for client in clients))
        stop(clients)
        asked = sum(client.asked() for client in clients)
        found, took = heard.stop()
        leases = sum(number for (_, kind), number in found.items() if kind == "l")
        each = ", ".join(f"{name} {kind} {number}" for (name, kind), number in sorted(found.items()))
        bench.row(f"40 rare keys, {round}: commands of the limiter per request", leases / asked, "", 1, note=f" ({leases} for {asked} in {took:.0f} s; {each})")
        time.sleep(3)
