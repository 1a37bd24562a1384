"""A fleet on this machine: Redis, gateways that share it, and clients. For `fleet` here and for `scripts/fleet-demo`."""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import DEADLINE, ROOT, free_port, wait_for

# What every scope of a tenant's is.
SCOPES = ["proxy", "execute", "modules", "usage", "keys"]
APP = """
[log]
access = false
[[routes]]
name = "app"
match.path_prefix = "/"
target.respond = { status = 200, body = "hello from the app\\n" }
auth = "none"
"""


class Child:
    """A process of ours, in a group of its own: a Ctrl-C is ours to pass on, and what it starts ends with it."""

    process = None

    def spawn(self, command, log, environment=None):
        with open(log, "a") as out:
            where = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "cwd": Path(log).parent}
            self.process = subprocess.Popen(list(map(str, command)), **where, env=environment, start_new_session=True)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()

    def end(self):
        """As an operator does; how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)


class Redis(Child):
    """A redis-server that writes to its disk before it answers, as the README asks for."""

    def __init__(self, folder, options=()):
        self.folder, self.options, self.port = Path(folder), options, free_port()
        self.folder.mkdir()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.stream = None

    def command_line(self):
        keep = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", self.folder]
        return ["redis-server", "--bind", "127.0.0.1", "--port", self.port, *keep, *self.options]

    def start(self):
        """Also again, with what is on its disk."""
        self.spawn(self.command_line(), self.folder / "log")
        wait_for(f"Redis answers, see {self.folder}/log", self.answers)

    def answers(self):
        try:
            return self.ask("PING") == "PONG"
        except (OSError, RuntimeError):
            return False

    def ask(self, *words):
        """One command's answer: text, a number, None or a list."""
        words = [str(word).encode() for word in words]
        line = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        # A kept connection may have ended meanwhile.
        for kept in (True, False) if self.stream else (False,):
            try:
                self.stream = self.stream or socket.create_connection(("127.0.0.1", self.port), DEADLINE).makefile("rwb")
                self.stream.write(line)
                self.stream.flush()
                return self.read()
            except OSError:
                self.stream = None
                if not kept:
                    raise

    def read(self):
        line = self.stream.readline()
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self.stream.read(int(rest) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        if kind == b"-":
            raise RuntimeError(rest)
        raise ConnectionError("redis has ended the connection")

    def calls(self):
        """How often each command was called so far, those inside of scripts and our own apart."""
        lines = re.findall(r"cmdstat_([^:]+):calls=(\d+)", self.ask("INFO", "commandstats"))
        return {name: int(calls) for name, calls in lines if name not in ("info", "ping")}

    def kill(self):
        super().kill()
        self.stream = None


class Gateway(Child):
    """On ports that stay the same over restarts."""

    def __init__(self, name, folder, binary, config):
        self.name, self.folder, self.binary = name, Path(folder) / name, binary
        self.folder.mkdir()
        self.port, self.admin_port = free_port(), free_port()
        self.admin, self.address = f"http://127.0.0.1:{self.admin_port}", f"127.0.0.1:{self.port}"
        self.local = threading.local()
        own = f'data_dir = "{self.folder}/data"\n'
        listeners = f'[[server.listeners]]\naddress = "{self.address}"\n[admin]\naddress = "127.0.0.1:{self.admin_port}"\n'
        (self.folder / "wasmgate.toml").write_text(own + listeners + config)

    def launch(self, pinned=()):
        self.ready_file().unlink(missing_ok=True)
        self.spawn([*pinned, self.binary, "serve", "-c", "wasmgate.toml", "--ready-file", self.ready_file()], self.folder / "log")

    def ready_file(self):
        return self.folder / "ready.json"

    def wait(self):
        log = self.folder / "log"
        wait_for(f"{self.name} is ready, see {log}", lambda: self.ready_file().exists() or self.process.poll() is not None)
        if self.process.poll() is not None:
            sys.exit(f"{self.name} has ended:\n" + "".join(log.read_text().splitlines(True)[-5:]))
        self.token = (self.folder / "data/admin.token").read_text().strip()

    def call(self, method, path, body=None, media="application/json"):
        """Status and body of the admin API's answer; over one kept connection of each thread."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": media}
        if isinstance(body, dict):
            body = json.dumps(body)
        for again in (False, True):
            connection = getattr(self.local, "connection", None) or http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=DEADLINE)
            self.local.connection = connection
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if again:
                    raise

    def ask(self, method, path, body=None, media="application/json"):
        status, answer = self.call(method, path, body, media)
        if not 200 <= status < 300:
            raise RuntimeError(f"{self.name}: {method} {path}: {status} {answer.decode(errors='replace')}")
        return json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode()

    def new_key(self, owner, tier):
        return self.ask("POST", "/api/auth/keys", {"owner": owner, "tier": tier, "scopes": SCOPES})

    def figures(self):
        """All metrics, by name and labels."""
        lines = self.ask("GET", "/metrics").splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def is_told(self):
        """Of what the others change."""
        return self.figures().get("store_link_up") == 1

    def readiness(self):
        """What a load balancer sees."""
        try:
            status, answer = self.call("GET", "/health/ready")
            return f"{status} {json.loads(answer)['status']}"
        except (OSError, http.client.HTTPException):
            return "nobody there"


    def proxied(self, path, key, body=None):
        """Status and body of what a client gets, on a connection of its own; 0 and why, if nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        media = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request("POST" if body else "GET", path, body, {"X-Api-Key": key, "Connection": "close", **media})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()


class Fleet:
    """A folder with all of it, that goes with it. For `with`."""

    def __init__(self, binary, kept=False):
        self.binary, self.kept = Path(binary).resolve(), kept
        self.children, self.gateways = [], []

    def __enter__(self):
        # As Ctrl-C.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        self.folder = Path(tempfile.mkdtemp(prefix="wasmgate-fleet-"))
        for name in ("pepper", "record-key"):
            file = self.folder / name
            file.touch(0o600)
            file.write_text(secrets.token_hex(32))
        return self

    def __exit__(self, *_):
        # Whoever is impatient waits for this.
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
        for child in reversed(self.children):
            child.kill()
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
        if self.kept:
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def redis(self, name="redis", options=()):
        redis = Redis(self.folder / name, options)
        self.children.append(redis)
        redis.start()
        return redis

    def store(self, urls, more="", auth=""):
        """The sections that all gateways of a fleet have in common."""
        return (
            f'[auth]\npepper_file = "{self.folder}/pepper"\n{auth}[store]\nkind = "redis"\n'
            f'[store.redis]\nurls = {json.dumps(urls)}\nrecord_key_file = "{self.folder}/record-key"\n{more}'
        )

    def app(self, pinned=()):
        """What stands behind the gateways: one more, that answers by itself."""
        app = self.gateway("app", APP, pinned)
        app.wait()
        return app

    def gateway(self, name, config, pinned=()):
        """Started, and not yet ready."""
        gateway = Gateway(name, self.folder, self.binary, config)
        self.children.append(gateway)
        gateway.launch(pinned)
        return gateway

    def start(self, number, config):
        self.gateways = [self.gateway(f"gateway-{n}", config) for n in range(number)]
        for gateway in self.gateways:
            gateway.wait()
        wait_for("every gateway is told of changes", lambda: all(gateway.is_told() for gateway in self.gateways))
        return self.gateways


class Client(threading.Thread):
    """Asks one gateway with one key over a kept connection, at most so often a second, until it is stopped."""

    def __init__(self, port, path, key, rate=1e9, method="GET"):
        super().__init__(daemon=True)
        self.port, self.path, self.headers, self.rate, self.method = port, path, {"X-Api-Key": key}, rate, method
        # By status; 0 is for none. And what the answers that are no success were.
        self.answers, self.wrong = {}, {}
        self.stopped = threading.Event()

    def run(self):
        connection, due = None, time.monotonic()
        while not self.stopped.is_set():
            due += 1 / self.rate
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            elif wait < -1:
                # What could not be asked in time is not asked in a heap afterwards.
                due = time.monotonic()
            connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request(self.method, self.path, headers=self.headers)
                answer = connection.getresponse()
                body, status = answer.read(), answer.status
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                connection, status, body = None, 0, str(error or type(error).__name__).encode()
            self.answers[status] = self.answers.get(status, 0) + 1
            if not 200 <= status < 300:
                self.wrong[(status, slug(body))] = self.wrong.get((status, slug(body)), 0) + 1

    def asked(self):
        return sum(self.answers.copy().values())


def stop(clients):
    for client in clients:
        client.stopped.set()
    for client in clients:
        client.join()


class Until(threading.Thread):
    """Asks a gateway with a key, 500 times a second, until it gives this status; when that was."""

    def __init__(self, gateway, key, status):
        super().__init__(daemon=True)
        self.gateway, self.key, self.status, self.at = gateway, key, status, None
        self.before, self.end = threading.Event(), time.monotonic() + DEADLINE

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=DEADLINE)
        while time.monotonic() < self.end:
            connection.request("GET", "/", headers={"X-Api-Key": self.key})
            answer = connection.getresponse()
            answer.read()
            if answer.status == self.status:
                self.at = time.monotonic()
                connection.close()
                return
            self.before.set()
            time.sleep(0.002)


def slug(body):
    """Which of the gateway's refusals it is, or what else went wrong."""
    try:
        return json.loads(body)["type"].rsplit("/", 1)[1]
    except (ValueError, KeyError, TypeError, IndexError):
        return body[:60].decode(errors="replace")


def binary_of(build):
    """The gateway to try: `WASMGATE_BIN`, else the release build, made where `build` says so."""
    named = os.environ.get("WASMGATE_BIN")
    binary = Path(named or ROOT / "target/release/wasmgate")
    if build and not named:
        if not shutil.which("cargo"):
            sys.exit("there is no cargo to build the gateway with: see https://rustup.rs, or name a built one with WASMGATE_BIN")
        subprocess.run(["cargo", "build", "--locked", "--release", "--bin", "wasmgate"], cwd=ROOT, check=True)
    if not os.access(binary, os.X_OK):
        sys.exit(f"there is no gateway at {binary}")
    return binary
