"""The bench's pieces, run for a moment: no figure of it is a verdict."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.bench import hello, http2, load
from tests.bench.processes import Target, check, reverse, script
from tests.bench.processes import load as put_load
from tests.bench.table import Row, ratio, render
from tests.bench.workloads import IDLE, LARGE, SMALL, SMALL_BODY, Measurement


@pytest.mark.socket
def test_every_relay_relays_and_can_be_put_under_load() -> None:
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(script("origin", None))
        port = str(origin.port)
        targets = [
            stack.enter_context(script("h11_relay", None, port)),
            stack.enter_context(script("raw_relay", None, port)),
            stack.enter_context(reverse(origin.port, None)),
            stack.enter_context(script("trait", None, port)),
            stack.enter_context(script("trait", None, port, "chain")),
        ]
        for target in targets:
            check(target, SMALL)
            check(target, LARGE)
            assert put_load("own", target, SMALL, 0.05, None).rate > 0


@pytest.mark.socket
def test_a_target_that_answers_something_else_is_not_measured() -> None:
    with script("origin", None) as origin, script("raw_relay", None, str(origin.port)) as relay:
        other = Target("relay", relay.port, relay.pid)
        with pytest.raises(RuntimeError, match="relay does not relay /large properly"):
            check(other, type(LARGE)("1 MiB", "/large", b"another body", 1))


@pytest.mark.socket
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "unexpected response"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "unexpected response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "more bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", "a connection was closed"),
    ],
)
def test_the_load_client_counts_whole_good_responses_only(answer: bytes, message: str) -> None:
    def serve() -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(load.LoadError, match=message):
            load.run(listener.getsockname()[1], "/", 1, 5)
        thread.join()


def test_the_table_shows_medians_ratios_by_round_and_what_lies_below_its_floor() -> None:
    rows = [
        Row(SMALL, "direct", [Measurement(50.0)]),
        Row(SMALL, "reverse", [Measurement(7.0, 3.0), Measurement(4.0, 1.0), Measurement(9.0)]),
        Row(SMALL, "h11 relay", [Measurement(10.0)] * 3),
        Row(SMALL, "raw relay", [Measurement(r) for r in (14.0, 16.0, 9.0)]),
    ]
    known = {(row.workload.name, row.target): row for row in rows}
    assert ratio(known, "small", "h11 relay") == pytest.approx(0.7)
    assert ratio(known, "small", "raw relay") == pytest.approx(0.5)
    lines = render(rows).splitlines()
    assert lines[2].split() == ["small", "reverse", "7", "0.0", "71%", "2"]
    assert lines[-2].split() == ["small", "reverse", "/", "h11", "relay", "0.70", "0.80", "below"]
    assert lines[-1].split() == ["small", "reverse", "/", "raw", "relay", "0.50"]


def test_what_idle_members_cost_is_the_chain_against_the_bare_trait() -> None:
    rows = [Row(IDLE, "chain", [Measurement(9.0)]), Row(IDLE, "bare trait", [Measurement(10.0)])]
    (*words, measured, floor) = render(rows).splitlines()[-1].split()
    assert (" ".join(words), measured, floor) == ("idle chain / bare trait", "0.90", "0.90")


def test_http2_has_a_row_for_each_side_and_one_ratio() -> None:
    rows = [
        Row(http2.WORKLOAD, "reverse", [Measurement(30.0)]),
        Row(http2.WORKLOAD, "hypercorn", [Measurement(10.0)]),
    ]
    lines = render(rows).splitlines()
    assert lines[1].split()[:4] == ["h2", "TLS", "reverse", "30"]
    assert lines[2].split()[:4] == ["h2", "TLS", "hypercorn", "10"]
    assert lines[-1].split() == ["h2", "TLS", "reverse", "/", "hypercorn", "3.00", "1.50"]


def test_what_http2_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert http2.missing() == "h2load is not installed"


async def test_the_application_answers_and_takes_part_in_start_and_stop() -> None:
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "lifespan.startup.complete":
            raise EOFError

    await hello.app({"type": "http"}, receive, send)
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == SMALL_BODY
    with pytest.raises(EOFError):
        await hello.app({"type": "lifespan"}, receive, send)


@pytest.mark.socket
@pytest.mark.interop
@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load_must_get_every_answer_over_http2() -> None:
    with (
        script("origin", None) as origin,
        reverse(origin.port, None) as plain,
        pytest.raises(RuntimeError, match="reverse: h2load failed"),
    ):
        http2.load(plain, 8, None)
