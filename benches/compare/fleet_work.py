"""Parts of `fleet`: junk keys, modules, a rolling restart, and what a request costs."""

import json
import random
import re
import subprocess
import time
import zlib

from bench import DEADLINE, free_port, listens, wait_for
from fleet_limits import TIERS
from fleet_load import Balancer, Load, percentile, statuses, under_load
from fleet_nodes import Client, stop

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Asks with another key each time, from an address of its own where there is `spread`.
JUNK = """
local keys, at, spread = {}, 0, %d
for line in io.lines("%s") do keys[#keys + 1] = line end
init = function() math.randomseed(os.time() * 1000 + (tonumber(tostring({}):sub(10), 16) or 0) %% 100000); at = math.random(#keys) end
request = function()
  at = at %% #keys + 1
  local headers = { ["X-Api-Key"] = keys[at] }
  if spread > 0 then
    local n = math.random(spread)
    headers["X-Forwarded-For"] = "10." .. math.floor(n / 65536) %% 256 .. "." .. math.floor(n / 256) %% 256 .. "." .. n %% 256
  end
  return wrk.format("GET", "/", headers)
end
"""


def junk_key():
    """Well-formed, and nobody's."""
    text = "".join(random.choices(ALPHABET, k=30))
    check, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        check, digit = divmod(check, 62)
        digits = ALPHABET[digit] + digits
    return f"wg_live_{text}{digits}"


def junk(bench):
    """From one address, as they come to it by default, and from very many."""
    seconds = bench.seconds(15)
    for spread, where in ((0, "one address"), (1 << 20, "a million addresses")):
        with bench.fleet(TIERS + '[server]\ntrusted_proxies = ["127.0.0.1"]\n', auth="") as fleet:
            good = fleet.gateways[0].new_key("acme", "enterprise")["key"]
            file, script = fleet.folder / "keys", fleet.folder / "junk.lua"
            file.write_text("\n".join(junk_key() for _ in range(200_000)))
            script.write_text(JUNK % (spread, file))
            ask = lambda: [Load(fleet.folder, gateway.port, "/", good, 50, seconds, 5, ["X-Forwarded-For: 192.0.2.1"]) for gateway in fleet.gateways]
            before = fleet.store_server.calls()
            alone = under_load(ask())
            idle = per_second(before, fleet.store_server.calls(), seconds)
            command = ["wrk", "-t1", "-c32", f"-d{seconds + 3}s", "-s", script]
            before = fleet.store_server.calls()
            attackers = [subprocess.Popen([*command, f"http://{gateway.address}/"], stdout=subprocess.PIPE, text=True) for gateway in fleet.gateways]
            # An address has its first failures at once.
            time.sleep(3)
            begun = fleet.store_server.calls()
            beside = under_load(ask())
            busy = per_second(begun, fleet.store_server.calls(), seconds)
            sent = sum(int(re.search(r"(\d+) requests in", attacker.communicate()[0]).group(1)) for attacker in attackers) / (seconds + 3)
            name = f"junk keys from {where}"
            bench.row(f"{name}: sent", sent, "/s")
            bench.row(f"{name}: Redis commands without them", idle, "/s")
            bench.row(f"{name}: Redis commands in the first 3 s", per_second(before, begun, 3), "/s")
            if spread:
                # It, and the look whether the store is still there.
                bench.row(f"{name}: Redis commands more, for each", (busy - idle) / sent, "", 2)
            else:
                bench.row(f"{name}: Redis commands more, afterwards", busy - idle, "/s", 20)
            found, took = statuses(beside), lambda requests: percentile([received - sent for sent, received, _ in requests], 0.99) * 1000
            note = f" of {len(beside):,}; p99 {took(beside):.1f} ms, without junk {took(alone):.1f} ms"
            bench.row(f"{name}: good requests that failed", len(beside) - found.get(200, 0), "", 0, note=note)


def per_second(before, after, seconds):
    return (sum(after.values()) - sum(before.values())) / seconds


def modules(bench):
    """A new module, and a new version on a route, from one gateway to all others."""
    tagged = 'target.handler = { module = "acme/tag" }\nauth = "none"'
    with bench.fleet(TIERS, {"tagged": tagged, "api": "target.api = true"}) as fleet:
        key = fleet.gateways[0].new_key("acme", "enterprise")["key"]
        source, out = fleet.folder / "tag.c", fleet.folder / "tag.wasm"
        source.write_text('#include <stdio.h>\nint main(void) { printf("Content-Type: text/plain\\r\\n\\r\\nversion 0000"); return 0; }\n')
        subprocess.run(["clang", "--target=wasm32-wasi", "-O2", "-s", "-o", out, source], check=True)
        wasm = out.read_bytes()
        new, active, number = [], [], bench.number(20)
        for n in range(1, number + 1):
            by, text = fleet.gateways[n % 4], b"version %04d" % n
            code = wasm.replace(b"version 0000", text)
            by.ask("PUT", f"/api/wasm/modules/new{n}?owner=acme&abi=command", code, "application/wasm")
            new.append(until_all(fleet, "/api/wasm/execute", text, key, json.dumps({"module": f"new{n}"})))
            by.ask("PUT", "/api/wasm/modules/tag?owner=acme&abi=cgi&activate=true", code, "application/wasm")
            active.append(until_all(fleet, "/tagged", text, key))
        for name, took in (("a new module runs on all", new), ("a new version is live on the routes of all", active)):
            bench.row(f"{name}: p50 of {number}", percentile(took, 0.5) * 1000, "ms")
            bench.row(f"{name}: most", max(took) * 1000, "ms", 1000)


def until_all(fleet, path, text, key, body=None):
    """Seconds until each gateway's answer has this text."""
    began = time.monotonic()
    for gateway in fleet.gateways:
        while text not in gateway.proxied(path, key, body)[1]:
            if time.monotonic() > began + DEADLINE:
                raise RuntimeError(f"{gateway.name}: {path} is not `{text.decode()}`: {gateway.proxied(path, key, body)[1]}")
            time.sleep(0.005)
    return time.monotonic() - began


def rolling(bench):
    """Each gateway is ended and started again, one after the other, behind a balancer."""
    with bench.fleet(TIERS) as fleet:
        key = fleet.gateways[0].new_key("acme", "enterprise")["key"]
        port = free_port()
        Balancer(fleet, port)
        wait_for("the balancer listens", lambda: listens(port))
        seconds = 40
        load = Load(fleet.folder, port, "/", key, 400, seconds, 20)
        posting = [Client(port, "/", key, 20, "POST") for _ in range(5)]
        for client in posting:
            client.start()
        began, took = time.monotonic(), []
        time.sleep(2)
        for gateway in fleet.gateways:
            at = time.monotonic()
            code = gateway.end()
            if code:
                raise RuntimeError(f"{gateway.name} ended with {code}")
            gateway.launch()
            gateway.wait()
            took.append(time.monotonic() - at)
            # Until the balancer asks it again.
            time.sleep(2)
        bench.row("rolling restart of 4: longest of one", max(took), "s")
        lasted = time.monotonic() - began
        stop(posting)
        requests = under_load([load])
        found = statuses(requests)
        bench.row(f"rolling restart in {lasted:.0f} s: GET requests that failed", len(requests) - found.get(200, 0), "", 0, note=f" of {len(requests):,} {found}")
        failed = {}
        for client in posting:
            for what, number in client.wrong.items():
                failed[what] = failed.get(what, 0) + number
        posted = sum(client.asked() for client in posting)
        bench.row("rolling restart: POST requests that failed", sum(failed.values()), "", 0, note=f" of {posted:,} {failed or ''}")


def cpu(bench):
    """Processor time of a keyed, proxied request with Redis as the store and with the embedded one, in turns on one core."""
    quotas = '{ name = "minute", requests = 1000000000, window = "1m" }, { name = "day", requests = 100000000000, window = "1d" }'
    tier = f"[tiers.wide]\nrank = 2\nconcurrent = 10000\nquotas = [{quotas}]\n"
    with bench.empty() as fleet:
        pinned = ["taskset", "-c", bench.args.core]
        redis, app = fleet.redis(), fleet.app(pinned)
        common = '[server]\nthreads = 1\n' + tier + bench.routes(app)
        # With the access log, as it is by default.
        common = common.replace("[log]\naccess = false\n", "")
        embedded = fleet.gateway("embedded", common, pinned)
        shared = fleet.gateway("redis-store", fleet.store([redis.url]) + common, pinned)
        figures = {}
        for gateway in (embedded, shared):
            gateway.wait()
        wait_for("it is told of changes", shared.is_told)
        keys = {gateway: gateway.new_key("acme", "wide")["key"] for gateway in (embedded, shared)}
        for n in range(bench.number(15) + 1):
            for gateway in (embedded, shared):
                figure = bench.cpu_of(gateway, keys[gateway])
                # The first is for getting warm.
                if n:
                    figures.setdefault(gateway, []).append(figure)
        us = {gateway: percentile(values, 0.5) for gateway, values in figures.items()}
        for gateway, name in ((embedded, "embedded store"), (shared, "Redis as the store")):
            low, high = min(figures[gateway]), max(figures[gateway])
            bench.row(f"CPU of a proxied request with a key, {name}", us[gateway], "us", note=f"({low:.1f} to {high:.1f})")
        ratios = [b / a for a, b in zip(figures[embedded], figures[shared])]
        bench.row("the second against the first, in the middle of all turns", percentile(ratios, 0.5), "", 1.05)
