"""Load on a fleet, and what came of it: h2load's log of each request, windows over it, and what Redis was asked."""

import re
import socket
import subprocess
import threading
import time
from pathlib import Path

from bench import DEADLINE
from fleet_nodes import Child


class Load:
    """h2load with one key, at a rate, in the background; it notes each request."""

    number = 0

    def __init__(self, folder, port, path, key, rate, seconds, clients=10, headers=()):
        Load.number += 1
        self.log = Path(folder) / f"h2load-{Load.number}.log"
        self.seconds, self.clients = seconds, clients
        more = [word for header in (f"X-Api-Key: {key}", *headers) for word in ("-H", header)]
        command = ["h2load", "--h1", f"--log-file={self.log}", f"-D{seconds}", f"-c{clients}", "-t1", f"--rps={rate / clients:g}", *more]
        self.process = subprocess.Popen([*command, f"http://127.0.0.1:{port}{path}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self):
        """When each request was sent and answered (seconds since 1970), and its status; -1 is none."""
        said, _ = self.process.communicate(timeout=self.seconds + DEADLINE)
        if self.process.returncode:
            raise RuntimeError(f"h2load: {said}")
        counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, \d+ succeeded, \d+ failed, (\d+) errored, (\d+) timeout", said)
        requests = []
        for line in self.log.read_text().splitlines():
            sent, status, took = map(int, line.split("\t"))
            requests.append((sent / 1e6, (sent + took) / 1e6, status if status > 0 else -1))
        self.log.unlink()
        # Of those without any answer not all are in the log.
        unlogged = int(counts.group(2)) + int(counts.group(3)) - sum(status == -1 for _, _, status in requests)
        requests += [(0, 0, -1)] * max(0, unlogged)
        return requests


def under_load(loads):
    """What all of them have noted."""
    return sum((load.finish() for load in loads), [])


def statuses(requests):
    found = {}
    for _, _, status in requests:
        found[status] = found.get(status, 0) + 1
    return found


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def most_in_a_window(admitted, rate):
    """The most that any window (s, t] admitted beyond `rate * (t - s)`. A request counts where it was sent after s and
    answered by t, so that it was admitted in between for certain.

    A tree over the requests in the order of sending: a node has how many of its requests are answered by t, and the
    best s, just before one of them, by the number of requests since then plus `rate * s`.
    """
    by_sending = sorted(admitted)
    size = 1
    while size < len(by_sending):
        size *= 2
    zero = by_sending[0][0]
    count, best = [0] * (2 * size), [float("-inf")] * (2 * size)
    most = float("-inf")
    for place in sorted(range(len(by_sending)), key=lambda place: by_sending[place][1]):
        node = size + place
        count[node] = 1
        best[node] = rate * (by_sending[place][0] - zero) + 1
        while node > 1:
            node //= 2
            count[node] += 1
            best[node] = max(best[2 * node] + count[2 * node + 1], best[2 * node + 1])
        most = max(most, best[1] - rate * (by_sending[place][1] - zero))
    return most


class Heard(threading.Thread):
    """What Redis is asked for, by command and kind of record. What a script does by itself is apart."""

    def __init__(self, redis):
        super().__init__(daemon=True)
        self.commands, self.inside = {}, 0
        self.stream = socket.create_connection(("127.0.0.1", redis.port))
        self.stream.sendall(b"MONITOR\r\n")
        self.lines = self.stream.makefile("rb")
        self.lines.readline()
        self.began = time.monotonic()
        self.start()

    def run(self):
        try:
            for line in self.lines:
                if b" lua] " in line[:80]:
                    self.inside += 1
                    continue
                words = re.findall(rb'"((?:[^"\\]|\\.)*)"', line[:2000])
                name = words[0].lower().decode() if words else "?"
                record = re.search(rb'"wasmgate:\{[a-z]\}:([a-z]+)|"wasmgate:([a-z]+)', line)
                kind = (record.group(1) or record.group(2)).decode() if record else "-"
                self.commands[name, kind] = self.commands.get((name, kind), 0) + 1
        except (OSError, ValueError):
            pass

    def stop(self):
        """Commands by name and kind of record, and the seconds in which they came."""
        took = time.monotonic() - self.began
        self.stream.shutdown(socket.SHUT_RDWR)
        self.join()
        return self.commands, took


class Balancer(Child):
    """nginx before the gateways, with what it does by itself when one of them is gone: GET and the like are tried again."""

    def __init__(self, fleet, port):
        folder = fleet.folder / "nginx"
        folder.mkdir()
        servers = " ".join(f"server {gateway.address} fail_timeout=1s;" for gateway in fleet.gateways)
        conf = folder / "nginx.conf"
        conf.write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{ worker_connections 4096; }}\n"
            "http { access_log off; keepalive_requests 1000000000;\n"
            f"  upstream fleet {{ {servers} keepalive 64; }}\n"
            f"  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://fleet; proxy_http_version 1.1; proxy_set_header Connection ''; }} }} }}\n"
        )
        fleet.children.append(self)
        self.spawn(["nginx", "-p", folder, "-c", conf], folder / "log")
