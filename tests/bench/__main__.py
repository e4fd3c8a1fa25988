"""``python -m tests.bench``: what ``trioproxy reverse`` costs, against two yardsticks.

Small responses and 1 MiB bodies through ``reverse``, through a bare relay of Trio and h11, and
through a relay of raw bytes on Trio; all in one run and round by round, so that whatever else the
machine does hits all of them. The proxies have a core of their own where there are two. The figures
are medians; the ratios are medians of each round's ratio. "direct" shows what the origin and the
load client can do: where it is not well above the rest, they are the limit.

Then a trait that does nothing, alone and behind eight idle members of a chain.

Then a cache: hits in the memory of ``reverse --cache memory`` against a bare server of Trio and h11
that always sends the same bytes, against the same response without a cache, and against hits on
disk.

Then, where h2load and hypercorn are installed, HTTP/2 over TLS: small responses through ``reverse``
against an application in hypercorn that makes them by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.bench import http2
from tests.bench.processes import (
    NGINX,
    Cores,
    Target,
    check,
    end_on_sigterm,
    load,
    nginx,
    reverse,
    script,
)
from tests.bench.table import Row, render
from tests.bench.workloads import HIT, IDLE, LARGE, SMALL, Measurement, Workload

WORKLOADS = {"small": SMALL, "large": LARGE}
#: Requests for a figure of HTTP/2, and where `--quick` is asked for.
HTTP2_REQUESTS, HTTP2_REQUESTS_QUICK = 20000, 2000


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of half the length")
    parser.add_argument("--rounds", type=int, help="rounds (default 7)")
    parser.add_argument("--seconds", type=float, help="seconds for each figure (default 1)")
    parser.add_argument(
        "--only", choices=(*WORKLOADS, "idle", "cache", "http2"), help="one workload alone"
    )
    parser.add_argument(
        "--client", choices=("wrk", "own"), default="wrk" if shutil.which("wrk") else "own"
    )
    parser.add_argument("--origin", choices=("nginx", "own"), default="nginx" if NGINX else "own")
    parser.add_argument("--http1-codec", default="h11", help="passed on to reverse (default h11)")
    options = parser.parse_args(arguments)
    if options.quick and options.client == "wrk" and options.seconds is None:
        options.client = "own"  # wrk has no half seconds
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.seconds = options.seconds or (0.4 if options.quick else 1.0)
    return options


def measure(options: argparse.Namespace, cores: Cores, targets: Sequence[Target]) -> list[Row]:
    """Run all rounds; the origin itself comes first in ``targets`` and is measured once."""
    workloads = [WORKLOADS[options.only]] if options.only else list(WORKLOADS.values())
    return measure_workloads(options, cores, targets, workloads)


def measure_workloads(
    options: argparse.Namespace,
    cores: Cores,
    targets: Sequence[Target],
    workloads: Sequence[Workload],
) -> list[Row]:
    """Run all rounds of some workloads."""
    direct, *proxies = targets
    rows: list[Row] = []
    for workload in workloads:
        for target in targets:
            check(target, workload)
        found: dict[str, list[Measurement]] = {target.name: [] for target in proxies}
        for target in proxies:  # opens pools, warms caches; not counted
            load(options.client, target, workload, options.seconds / 2, cores.load)
        for _ in range(options.rounds):
            for target in proxies:
                found[target.name].append(
                    load(options.client, target, workload, options.seconds, cores.load)
                )
        once = load(options.client, direct, workload, options.seconds, cores.load)
        rows.append(Row(workload, "direct", [once]))
        rows += [Row(workload, name, rounds) for name, rounds in found.items()]
    return rows


def measure_cache(
    options: argparse.Namespace, cores: Cores, origin: Target, root: Path
) -> list[Row]:
    """Measure hits, and the same response without a cache."""
    codec = ("--http1-codec", options.http1_codec)
    disk = ("--cache", str(root / "cache"))
    with (
        reverse(origin.port, cores.proxy, *codec, "--cache", "memory") as ours,
        script("h11_server", cores.proxy) as server,
        reverse(origin.port, cores.proxy, *codec) as proxied,
        reverse(origin.port, cores.proxy, *codec, *disk) as on_disk,
    ):
        targets = [
            origin,
            ours,
            server,
            attrs.evolve(proxied, name="proxied"),
            attrs.evolve(on_disk, name="disk"),
        ]
        return measure_workloads(options, cores, targets, [HIT])


def measure_idle(options: argparse.Namespace, cores: Cores, origin: Target) -> list[Row]:
    """Measure a chain whose members are idle against its last member alone."""
    port = str(origin.port)
    with (
        script("trait", cores.proxy, port, "chain") as chain,
        script("trait", cores.proxy, port) as bare,
    ):
        targets = [attrs.evolve(chain, name="chain"), attrs.evolve(bare, name="bare trait")]
        return measure_workloads(options, cores, [origin, *targets], [IDLE])


def _requests(options: argparse.Namespace) -> int:
    return HTTP2_REQUESTS_QUICK if options.quick else HTTP2_REQUESTS


def measure_http2(
    options: argparse.Namespace, cores: Cores, origin: Target, root: Path
) -> list[Row]:
    """Measure HTTP/2 over TLS, where this machine has what that takes."""
    lacking = http2.missing()
    if lacking is not None:
        print(f"HTTP/2 over TLS is not measured: {lacking}\n")
        return []
    tls = (*http2.certificate(root), "--http1-codec", options.http1_codec)
    with (
        reverse(origin.port, cores.proxy, *tls) as ours,
        http2.hypercorn(root, cores.proxy) as theirs,
    ):
        for target in (ours, theirs):
            check(target, http2.WORKLOAD)
        columns = http2.measure((ours, theirs), options.rounds, _requests(options), cores.load)
    return [
        Row(http2.WORKLOAD, target.name, rounds)
        for target, rounds in zip((ours, theirs), columns, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench and print its table."""
    options = _arguments(arguments)
    end_on_sigterm()
    cores = Cores.choose()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trioproxy-bench-")))
        if options.origin == "nginx":
            origin = stack.enter_context(nginx(root, cores.origin))
        else:
            origin = stack.enter_context(script("origin", cores.origin))
        port = str(origin.port)
        codec = ("--http1-codec", options.http1_codec)
        if options.only not in ("http2", "cache", "idle"):
            with (
                reverse(origin.port, cores.proxy, *codec) as ours,
                script("h11_relay", cores.proxy, port) as h11_relay,
                script("raw_relay", cores.proxy, port) as raw_relay,
            ):
                rows += measure(options, cores, [origin, ours, h11_relay, raw_relay])
        if options.only in (None, "idle"):
            rows += measure_idle(options, cores, origin)
        if options.only in (None, "cache"):
            rows += measure_cache(options, cores, origin, root)
        if options.only in (None, "http2"):
            rows += measure_http2(options, cores, origin, root)
    if not rows:
        return
    pins = "not pinned" if cores.proxy is None else f"proxies on core {cores.proxy}"
    print(f"{options.rounds} rounds, origin {options.origin}, {pins}")
    if options.only != "http2":
        print(f"HTTP/1.1: {options.seconds:g} s each, load by {options.client}")
    if rows and rows[-1].workload is http2.WORKLOAD:
        streams = f"{http2.WORKLOAD.connections} connections of {http2.STREAMS} streams"
        print(f"HTTP/2: {_requests(options)} requests each, load by h2load: {streams}")
    print()
    print(render(rows))


if __name__ == "__main__":
    main()
