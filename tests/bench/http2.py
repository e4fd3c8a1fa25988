"""HTTP/2 over TLS: ``reverse`` before the origin, against an application without any proxying.

h2load puts the load on: connections with a hundred streams each, all of them busy. The yardstick is
a bare hypercorn with a Trio worker, of which the application answers at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from tests.bench.processes import Target, pinned, process
from tests.bench.workloads import SMALL, Measurement

WORKLOAD = attrs.evolve(SMALL, name="h2 TLS", connections=8)
STREAMS = 100

HYPERCORN_TOML = """
bind = "127.0.0.1:0"
certfile = "{root}/chain.pem"
keyfile = "{root}/key.pem"
worker_class = "trio"
workers = 0
keep_alive_max_requests = 1000000000
"""


def missing() -> str | None:
    """Return what this machine lacks for the measurement, None if it has all."""
    if shutil.which("h2load") is None:
        return "h2load is not installed"
    lacking = [each for each in ("hypercorn", "trustme") if importlib.util.find_spec(each) is None]
    return f"{' and '.join(lacking)} cannot be imported" if lacking else None


def certificate(root: Path) -> tuple[str, ...]:
    """Make a certificate, and return the options by which ``reverse`` serves it."""
    import trustme  # only where there is something to measure

    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(root / "chain.pem")
    leaf.private_key_pem.write_to_path(root / "key.pem")
    return ("--tls-cert", f"{root}/chain.pem", "--tls-key", f"{root}/key.pem")


@contextlib.contextmanager
def hypercorn(root: Path, core: int | None) -> Iterator[Target]:
    """Run the application with the certificate; one process does everything."""
    conf = root / "hypercorn.toml"
    conf.write_text(HYPERCORN_TOML.format(root=root), encoding="utf-8")
    command = [sys.executable, "-m", "hypercorn", "-c", str(conf), "tests.bench.hello:app"]
    with process(command, core, stderr=True) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        match = re.search(r"Running on https://127\.0\.0\.1:([0-9]+)", line)
        if match is None:
            raise RuntimeError(f"hypercorn did not start: {line}{child.stderr.read()}")
        yield Target("hypercorn", int(match[1]), child.pid, "https")


def load(target: Target, requests: int, core: int | None) -> Measurement:
    """Send requests, as many at once as the streams allow, and measure how they come back.

    Raises:
      RuntimeError: not every one did.
    """
    command = ["h2load", f"-n{requests}", f"-c{WORKLOAD.connections}", f"-m{STREAMS}"]
    before = target.cpu_seconds()
    with pinned(core):
        done = subprocess.run(
            [*command, f"{target.url}{WORKLOAD.target}"],
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )
    after = target.cpu_seconds()
    match = re.search(r"finished in [^,]+, ([0-9.]+) req/s", done.stdout)
    whole = f" {requests} succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: {requests} 2xx,"
    if match is None or whole not in done.stdout or "Application protocol: h2" not in done.stdout:
        raise RuntimeError(f"{target.name}: h2load failed: {done.stdout}{done.stderr}")
    if before is None or after is None:
        return Measurement(float(match[1]))
    return Measurement(float(match[1]), (after - before) * 1e6 / requests)


def measure(
    targets: Sequence[Target], rounds: int, requests: int, core: int | None
) -> list[list[Measurement]]:
    """Run all rounds; the first, which is short, is not counted."""
    for target in targets:
        load(target, max(requests // 10, WORKLOAD.connections), core)
    found = [[load(target, requests, core) for target in targets] for _ in range(rounds)]
    return [list(column) for column in zip(*found, strict=True)]
