"""What the benchmark scripts share: the servers, requests to them, and what the servers used."""

import glob
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0


def wait_for(what, ready):
    end = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"not within {DEADLINE:.0f} s: {what}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def route(name, lines):
    return f'[[routes]]\nname = "{name}"\nmatch.path_prefix = "/{name}"\n{lines}\n'


def cpu_us(pid):
    """Processor time of a process, all threads."""
    total = 0
    for file in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        try:
            total += int(Path(file).read_text().split()[0])
        except OSError:
            pass
    return total / 1000


def is_flat(samples, per, may):
    """Whether nothing grows. Samples begin with how many `per` there were; `may`: what follows there, and by how much it
    may rise in the whole run. The first quarter is for getting warm."""
    settled = samples[len(samples) // 4 :]
    if len(settled) < 3:
        sys.exit("too few samples for a slope: ask for more")
    flat = True
    for at, (what, most) in enumerate(may, 1):
        slope = statistics.linear_regression([s[0] / 1000 for s in settled], [s[at] for s in settled]).slope
        stays = slope * samples[-1][0] / 1000 <= most
        flat = flat and stays
        print(f"{'flat:    ' if stays else 'NOT FLAT:'} {slope:+.4f} {what} per 1,000 {per} ({settled[0][at]} to {settled[-1][at]})")
    return flat


class Bench:
    # Of the gateway's proxy.
    threads = 1

    def __init__(self, args, folder):
        self.args = args
        self.folder = Path(folder)
        self.children = []

    def spawn(self, *command, log="log"):
        out = open(self.folder / log, "w")
        pinned = ["taskset", "-c", str(self.args.core), *map(str, command)]
        child = subprocess.Popen(pinned, stdout=out, stderr=out, cwd=self.folder)
        self.children.append(child)
        return child

    def stop(self):
        for child in reversed(self.children):
            child.send_signal(signal.SIGKILL)
            child.wait()

    # --- the three servers

    def start_bare(self):
        self.bare_proxy, self.bare_answer, self.origin = free_port(), free_port(), free_port()
        binary = ROOT / "target/release/bare-pingora"
        if shutil.which("nginx"):
            self.start_nginx(f"server {{ listen 127.0.0.1:{self.origin}; location / {{ return 200 'hello world\\n'; }} }}")
        else:
            print("nginx is not here: a second bare Pingora is the origin")
            self.spawn(binary, free_port(), self.origin, free_port(), log="origin.log")
        self.bare = self.spawn(binary, self.bare_proxy, self.bare_answer, self.origin, log="bare.log")
        wait_for("bare Pingora and the origin listen", lambda: all(map(listens, (self.bare_proxy, self.bare_answer, self.origin))))

    def start_nginx(self, servers):
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; master_process off; pid {self.folder}/nginx.pid; error_log stderr crit;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ access_log off; keepalive_requests 1000000000; default_type text/plain;\n  {servers} }}\n"
        )
        self.spawn("nginx", "-p", self.folder, "-c", conf, log="nginx.log")

    def start_gateway(self):
        config = self.folder / "wasmgate.toml"
        ready = self.folder / "ready.json"
        config.write_text(self.config(handlers=False))
        self.gateway = self.spawn(ROOT / "target/release/wasmgate", "serve", "-c", config, "--ready-file", ready, log="gateway.log")
        wait_for(f"the gateway is ready, see {self.folder}/gateway.log", ready.exists)
        info = json.loads(ready.read_text())
        self.proxy, *self.further = (int(address.rsplit(":", 1)[1]) for address in info["proxy"])
        self.admin = info["admin"]
        self.token = (self.folder / info["admin_token_file"]).read_text().strip()
        self.idle_rss = self.memory()
        self.upload_all()
        config.write_text(self.config(handlers=True))
        self.ask_admin("POST", "/api/config/reload")
        made = {"owner": "bench", "tier": "bench", "scopes": ["proxy", "execute", "modules"]}
        key = self.ask_admin("POST", "/api/auth/keys", json.dumps(made).encode(), "application/json")
        self.key = json.loads(key)["key"]

    def upload_all(self):
        for name, abi in (("http", "http-wasm"), ("cgi", "cgi"), ("upper", "command"), ("command", "command"), ("grow", "core")):
            self.upload("bench", name, abi, self.guest(name))
        # A filter of the Rust SDK.
        filter = ROOT / "target/guests/proxy_wasm_headers.wasm"
        self.filter = filter.exists()
        if self.filter:
            self.upload("bench", "filter", "proxy-wasm", filter.read_bytes())
        else:
            print("without the proxy-wasm filter: `./scripts/test --sdk sdk::` builds it")

    def upload(self, owner, name, abi, wasm):
        self.ask_admin("PUT", f"/api/wasm/modules/{name}?owner={owner}&abi={abi}", wasm, "application/wasm")

    def ask_admin(self, method, path, body=b"", media="application/json"):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": media}
        request = urllib.request.Request(self.admin + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")

    def guest(self, name):
        own = ROOT / f"benches/compare/{name}.c"
        source = own if own.exists() else ROOT / f"tests/guests/c/{name}.c"
        out = self.folder / f"{name}.wasm"
        bare = ["--target=wasm32", "-nostdlib", "-Wl,--no-entry"]
        target = bare if source.read_text().startswith("// freestanding") else ["--target=wasm32-wasi"]
        subprocess.run(["clang", *target, "-O2", "-s", "-o", out, source], check=True)
        if name == "upper":
            self.upper_size = out.stat().st_size
        return out.read_bytes()

    def config(self, handlers):
        up = 'target.upstream = "origin"\n'
        text = (
            f'data_dir = "{self.folder}/data"\n'
            f'[server]\nthreads = {self.threads}\n[[server.listeners]]\naddress = "127.0.0.1:0"\n'
            '[admin]\naddress = "127.0.0.1:0"\n[log]\nformat = "json"\naccess = true\n'
            "[tiers.bench]\nrank = 9\nconcurrent = 10000\n"
            'quotas = [{ name = "minute", requests = 1000000000, window = "1m" }, { name = "day", requests = 100000000000, window = "1d" }]\n'
            f'[[upstreams]]\nname = "origin"\nendpoints = ["127.0.0.1:{self.origin}"]\n'
        )
        text += route("plain", up + 'auth = "none"') + route("keyed", up + 'auth = "key"') + route("api", 'target.api = true\nauth = "key"')
        if handlers:
            http = lambda mode: f'{{ module = "bench/http", config = "{mode}" }}'
            text += route("header", up + f'auth = "key"\nhandlers = [{http("header")}]')
            if self.filter:
                text += route("filter", up + 'auth = "key"\nhandlers = [{ module = "bench/filter" }]')
            text += route("held", up + f'auth = "key"\nhandlers = [{http("transform")}]')
            text += route("answer", f'target.handler = {http("answer")}\nauth = "none"')
            text += route("cgi", 'target.handler = { module = "bench/cgi" }\nauth = "none"')
            text += route("trap", f'target.handler = {http("trap-request")}\nauth = "none"')
            text += route("spin", 'target.handler = { module = "bench/http", config = "spin", wall = "20ms" }\nauth = "none"')
        return text

    # --- measuring

    def memory(self):
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    def wrk(self, port, path, headers=(), body=None, seconds=None):
        """Requests answered, and whether all of them were 2xx."""
        script = []
        if body is not None:
            lua = self.folder / "post.lua"
            lua.write_text(f"wrk.method = 'POST'\nwrk.body = [[{body}]]\n")
            script = ["-s", str(lua)]
        extra = [a for h in headers for a in ("-H", h)]
        command = ["wrk", "-t1", "-c64", f"-d{seconds or self.args.seconds}s", *extra, *script, f"http://127.0.0.1:{port}{path}"]
        out = subprocess.run(["taskset", "-c", str(self.args.core), *command], capture_output=True, text=True, check=True).stdout
        return int(re.search(r"(\d+) requests in", out).group(1)), "Non-2xx" not in out and "Socket errors" not in out

    def state(self):
        pid = self.gateway.pid
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
        return self.memory(), fds, maps
