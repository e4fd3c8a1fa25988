from __future__ import annotations

import json
import logging
import re
from typing import Any

import attrs
import pytest
import trio

import trioproxy
from tests.server._network import connect, get, receive_all, serving
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.proxy._record import ExchangeRecord
from trioproxy.server._access_log import (
    LOGGER,
    AccessLog,
    common_line,
    common_stream_line,
    json_line,
    json_stream_line,
)
from trioproxy.stream import StreamRecord

RECORD = ExchangeRecord(
    client="192.0.2.1:5000",
    method="GET",
    target=b"/a?b",
    version="HTTP/1.1",
    status=200,
    body_bytes_sent=5,
    body_bytes_received=3,
    duration=0.0123456789,
    upstream="127.0.0.1:9000",
    error=None,
    started_at=1_000_000_000.5,
)


STREAM = StreamRecord(
    client="192.0.2.1:5000",
    protocol="tls",
    server_name=None,
    status=200,
    bytes_sent=5,
    bytes_received=3,
    duration=0.0123456789,
    upstream="127.0.0.1:5432",
    error=None,
    started_at=1_000_000_000.5,
)


def test_a_stream_in_the_common_form() -> None:
    assert common_stream_line(STREAM) == (
        '192.0.2.1 - - [09/Sep/2001:01:46:40 +0000] "STREAM 127.0.0.1:5432 tls" 200 5'
    )
    named = attrs.evolve(STREAM, server_name="db.example", bytes_sent=0, status=502)
    assert common_stream_line(named).endswith('"STREAM db.example tls" 502 -')
    nowhere = attrs.evolve(STREAM, upstream=None, client=None)
    assert common_stream_line(nowhere).startswith("unknown - - [")
    assert '"STREAM - tls"' in common_stream_line(nowhere)


def test_a_stream_in_the_json_form() -> None:
    record = attrs.evolve(STREAM, server_name="db.example", error="broke\n")
    assert json.loads(json_stream_line(record)) == {
        "time": "2001-09-09T01:46:40.500+00:00",
        "client": "192.0.2.1:5000",
        "protocol": "tls",
        "server_name": "db.example",
        "status": 200,
        "bytes_sent": 5,
        "bytes_received": 3,
        "duration": 0.012346,
        "upstream": "127.0.0.1:5432",
        "error": "broke\\n",
    }


def test_the_common_form() -> None:
    assert common_line(RECORD) == (
        '192.0.2.1 - - [09/Sep/2001:01:46:40 +0000] "GET /a?b HTTP/1.1" 200 5'
    )


def test_the_common_form_has_a_dash_for_no_bytes_and_unknown_for_no_address() -> None:
    record = attrs.evolve(RECORD, client=None, body_bytes_sent=0)
    assert common_line(record).startswith("unknown - - [")
    assert common_line(record).endswith('" 200 -')


def test_the_common_form_names_an_ipv6_client_without_its_port() -> None:
    assert common_line(attrs.evolve(RECORD, client="[::1]:5")).startswith("::1 - - [")


def test_the_json_form() -> None:
    assert json.loads(json_line(RECORD)) == {
        "time": "2001-09-09T01:46:40.500+00:00",
        "client": "192.0.2.1:5000",
        "method": "GET",
        "target": "/a?b",
        "version": "HTTP/1.1",
        "status": 200,
        "bytes_sent": 5,
        "bytes_received": 3,
        "duration": 0.012346,
        "upstream": "127.0.0.1:9000",
        "error": None,
    }


def test_r_11_what_a_request_holds_cannot_forge_a_line() -> None:
    target = b'/" 200 5\r\n10.0.0.1 - - "GET /\x1b[2J\x00\xff\x85'
    record = attrs.evolve(RECORD, target=target, error="bad\r\nline \x1b[2J \u2028 \x85")
    for line in (common_line(record), json_line(record)):
        assert line.isascii()
        assert line.isprintable()
    common = common_line(record)
    assert common.count('"') == 2
    assert "\\r\\n" in common
    fields = json.loads(json_line(record))
    assert fields["error"].isprintable()
    assert fields["target"].isprintable()


def test_r_11_a_field_is_cut_at_one_kib() -> None:
    record = attrs.evolve(RECORD, target=b"/" + b"a" * 5000, error="e" * 5000)
    assert "/" + "a" * 1023 + "... " in common_line(record)
    assert len(json_line(record)) < 2600
    assert json.loads(json_line(record))["error"] == "e" * 1024 + "..."


class Local(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.req_header().path == "/refused":
            raise ProxyError.status(403, "not\r\nfor you")
        head = ResponseHeader(200, {"content-length": "5"})
        await session.write_response_header(head, end_of_stream=False)
        await session.write_response_body(b"hello", end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise AssertionError("not reached")


async def log_of(form: str, *requests: bytes, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO, LOGGER)
    with trio.fail_after(10):
        async with serving(Local(), access_log=form, grace=1) as running:
            for request in requests:
                async with await connect(running.urls[0]) as stream:
                    await stream.send_all(request)
                    await receive_all(stream)
            await running.drain()
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.socket
async def test_each_request_gets_a_line_also_one_that_is_refused_before_the_callbacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = b"GET /b HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    lines = await log_of("common", get("/a"), get("/refused"), bad, caplog=caplog)
    start = re.compile(r"127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] (.*)")
    found = [match[1] for line in lines if (match := start.fullmatch(line))]
    assert found == ['"GET /a HTTP/1.1" 200 5', '"GET /refused HTTP/1.1" 403 -', '"- - -" 400 -']


@pytest.mark.socket
async def test_the_json_form_tells_the_error_too(caplog: pytest.LogCaptureFixture) -> None:
    bad = b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n"
    lines = await log_of("json", get("/a"), get("/refused"), bad, caplog=caplog)
    fields: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [each["status"] for each in fields] == [200, 403, 400]
    assert [each["method"] for each in fields] == ["GET", "GET", "-"]
    assert fields[0]["error"] is None
    assert fields[0]["bytes_sent"] == 5
    assert fields[0]["upstream"] is None
    assert "not\\r\\nfor you" in fields[1]["error"]
    assert fields[2]["error"]
    assert all(line.isascii() and line.isprintable() for line in lines)


@pytest.mark.socket
async def test_off_writes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert await log_of("off", get("/a"), caplog=caplog) == []


def test_a_line_is_one_record_of_the_access_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    AccessLog("json").write(attrs.evolve(RECORD, target=b"/%s%d"))
    AccessLog("common").write(attrs.evolve(RECORD, target=b"/%s%d"))
    assert [record.name for record in caplog.records] == [LOGGER, LOGGER]
    assert all("/%s%d" in record.getMessage() for record in caplog.records)
