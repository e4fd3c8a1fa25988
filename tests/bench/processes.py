"""Starting the bench's processes, each on a core of its role, and ending them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from tests.bench.workloads import HIT, LARGE, SMALL, Measurement, Workload

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

NGINX_CONF = """
daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 300;
  open_file_cache max=8; default_type text/plain;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{
    listen 127.0.0.1:{port}; root {root};
    location = /hit {{ add_header Cache-Control max-age=86400; }}
  }}
}}
"""


@attrs.frozen
class Cores:
    """Which core each role runs on; None where the machine cannot pin or has one core only."""

    proxy: int | None = None
    load: int | None = None
    origin: int | None = None

    @classmethod
    def choose(cls) -> Cores:
        """Give the proxy a core of its own, where there are two."""
        if sys.platform != "linux":
            return cls()
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1], cores[-1]) if len(cores) > 1 else cls()


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Let processes that are started inside inherit one core."""
    if core is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def process(
    command: Sequence[str], core: int | None, *, stderr: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run a program; it is killed at the end of the block."""
    with pinned(core):
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=None if stderr else subprocess.PIPE,
            stderr=subprocess.PIPE if stderr else None,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


@attrs.frozen
class Target:
    """Something that answers requests.

    Attributes:
      name: As the table shows it.
      port: Where it listens.
      pid: Its process.
      scheme: ``http`` or ``https``.
    """

    name: str
    port: int
    pid: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float | None:
        """Return the processor time used so far, None where the system does not say."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _port(line: str, what: str) -> int:
    match = re.search(r"([0-9]+)\s*$", line)
    if match is None:
        raise RuntimeError(f"{what} did not start: {line!r}")
    return int(match[1])


@contextlib.contextmanager
def script(name: str, core: int | None, *arguments: str) -> Iterator[Target]:
    """Run one of the bench's own servers."""
    module = f"tests.bench.{name}"
    with process([sys.executable, "-m", module, *arguments], core) as child:
        assert child.stdout is not None
        yield Target(name.replace("_", " "), _port(child.stdout.readline(), name), child.pid)


@contextlib.contextmanager
def reverse(origin: int, core: int | None, *options: str) -> Iterator[Target]:
    """Run ``trioproxy reverse`` in front of an origin."""
    command = [sys.executable, "-m", "trioproxy", "reverse", "--bind", "127.0.0.1:0"]
    # Nobody reads the log, so that the pipe must not fill: each load ends by leaving clients.
    command += ["--log-level", "critical"]
    url = f"http://127.0.0.1:{origin}"
    with process([*command, *options, url], core, stderr=True) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        scheme = "https" if "https://" in line else "http"
        yield Target("reverse", _port(line, "reverse"), child.pid, scheme)


@contextlib.contextmanager
def nginx(root: Path, core: int | None) -> Iterator[Target]:
    """Run nginx with the workloads' bodies as files."""
    assert NGINX is not None
    for workload in (SMALL, LARGE, HIT):
        (root / workload.target.lstrip("/")).write_bytes(workload.body)
    root.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    conf = root / "nginx.conf"
    conf.write_text(NGINX_CONF.format(root=root, port=port), encoding="utf-8")
    with process(
        [NGINX, "-e", f"{root}/error.log", "-p", str(root), "-c", str(conf)], core
    ) as child:
        _wait(port, child)
        yield Target("nginx", port, child.pid)


def _wait(port: int, child: subprocess.Popen[str]) -> None:
    """Wait until somebody accepts connections."""
    for _ in range(100):
        if child.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)  # another process's start, which cannot be awaited
        else:
            return
    raise RuntimeError("nginx did not start")


def check(target: Target, workload: Workload) -> None:
    """Make sure that a target gives the right answer before it is measured.

    Raises:
      RuntimeError: it does not.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # made for this run
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(*handlers)
    with opener.open(f"{target.url}{workload.target}", timeout=10) as response:
        body = response.read()
    if body != workload.body:
        got = f"{len(body)} bytes, {body[:40]!r}"
        raise RuntimeError(f"{target.name} does not relay {workload.target} properly: {got}")


def load(
    client: str, target: Target, workload: Workload, seconds: float, core: int | None
) -> Measurement:
    """Put load on a target and measure what came back.

    Args:
      client: ``wrk``, or ``own`` for the client beside this module.
      target: Whom to ask.
      workload: What for.
      seconds: How long; wrk takes whole seconds, one at least.
      core: Where the client runs.

    Raises:
      RuntimeError: an answer was missing or wrong.
    """
    url = f"{target.url}{workload.target}"
    if client == "wrk":
        duration = max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{duration}s", url]
    else:
        module = [sys.executable, "-m", "tests.bench.load"]
        command = [*module, str(target.port), workload.target, str(workload.connections)]
        command.append(str(seconds))
    before = target.cpu_seconds()
    with pinned(core):
        done = subprocess.run(
            command, cwd=ROOT, text=True, capture_output=True, timeout=seconds + 60, check=False
        )
    after = target.cpu_seconds()
    if done.returncode or "Socket errors" in done.stdout or "Non-2xx" in done.stdout:
        raise RuntimeError(f"{target.name}: {client} failed: {done.stdout}{done.stderr}")
    if client == "wrk":
        match = re.search(
            r"([0-9]+) requests in .*Requests/sec: +([0-9.]+)", done.stdout, re.DOTALL
        )
        assert match is not None, done.stdout
        responses, rate = int(match[1]), float(match[2])
    else:
        count, lasted = done.stdout.split()
        responses, rate = int(count), int(count) / float(lasted)
    if before is None or after is None or not responses:
        return Measurement(rate)
    return Measurement(rate, (after - before) * 1e6 / responses)


def end_on_sigterm() -> None:
    """Let SIGTERM end the bench like Ctrl-C, so that no child is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
