"""What bodies may be: sizes, types, and whether there has to be one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import OK, Exchange, Matrix, Pairing, keeps, open_matrix
from tests._support.recording import CutError, Message
from tests.modules._modular import CUTS, VERSIONS, Modular, cut_link
from trioproxy import Session
from trioproxy.modules import BodyGuard, GuardedBodies

pairings = pytest.mark.parametrize("pairing", VERSIONS, ids=str)
JSON = ("content-type", "application/json")


def length(size: int) -> tuple[str, str]:
    return ("content-length", str(size))


async def never(exchange: Exchange) -> None:
    raise AssertionError("the origin was asked")


def told(gateway: Matrix) -> str:
    """Return the error of the only exchange."""
    (record,) = gateway.records
    return str(record.error)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"max_request_bytes": -1}, "max_request_bytes=-1: bytes"),
        ({"max_response_bytes": 1.5}, "max_response_bytes=1.5: bytes"),
        ({"content_types": "text/plain"}, "content_types='text/plain': a list of media types"),
        ({"content_types": ["text"]}, "content_types: 'text' is no media type"),
        ({"content_types": ["*/plain"]}, "content_types: '*/plain' is no media type"),
        ({"max_bytes_by_type": {"image/*": "1M"}}, "max_bytes_by_type['image/*']='1M': bytes"),
        ({"max_bytes_by_type": {"image": 1}}, "max_bytes_by_type: 'image' is no media type"),
        ({"require_body": "POST"}, "'POST': a list of methods"),
        ({"refuse_body": ["G T"]}, "'G T' is not a method"),
        ({"require_body": ["PUT"], "refuse_body": ["PUT"]}, "both have 'PUT'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        BodyGuard(**options)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("image/png", 1),
        ("image/jpeg", 2),
        ("video/mp4", None),
        ("text/plain", 9),
        (None, 9),
    ],
)
def test_the_closest_type_says_the_size(kind: str | None, limit: int | None) -> None:
    sizes = {"Image/PNG": 1, "image/*": 2, "video/*": None}
    guard = BodyGuard(max_request_bytes=9, max_bytes_by_type=sizes)
    assert guard.limit_of(kind) == limit
    assert BodyGuard(max_bytes_by_type={"*/*": 4}, max_request_bytes=9).limit_of(kind) == 4


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "body", "status", "why"),
    [
        ("POST", [length(11)], b"x" * 11, 413, "a request of more than 10 bytes"),
        ("POST", [JSON, length(6)], b"x" * 6, 413, "a request of more than 5 bytes"),
        ("PUT", [length(3), ("content-type", "text/plain")], b"abc", 415, "type that is not"),
        ("PUT", [length(3)], b"abc", 415, "content without one Content-Type"),
        ("PUT", [("content-type", "text/plain")], b"abc", 415, "type that is not"),
        ("PUT", [length(3), JSON, JSON], b"abc", 415, "content without one Content-Type"),
        ("PUT", [JSON, JSON], b"abc", 415, "content without one Content-Type"),
        ("POST", [length(0)], None, 400, "POST without content"),
        ("DELETE", [length(1), JSON], b"x", 400, "DELETE with content"),
    ],
)
@pairings
async def test_what_the_head_tells_is_refused_before_the_origin_is_asked(
    pairing: Pairing,
    method: str,
    fields: list[tuple[str, str]],
    body: bytes | None,
    status: int,
    why: str,
    autojump_clock: MockClock,
) -> None:
    guard = BodyGuard(
        max_request_bytes=10,
        max_bytes_by_type={"application/json": 5},
        content_types=None if status == 413 else ["application/json", "image/*"],
        require_body=["POST"],
        refuse_body=["DELETE"],
    )
    async with open_matrix(Modular(builders=[guard]), never, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open(method, fields=fields, end=body is None)
        assert (await exchange.head()).status == status
    assert why in told(gateway)
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        ("GET", [], None),
        ("POST", [JSON, length(5)], b"x" * 5),
        ("POST", [JSON], b"x" * 5),
        ("POST", [("content-type", "IMAGE/png; a=b"), length(10)], b"x" * 10),
        ("POST", [("content-type", "image/png")], b"x" * 10),
        ("DELETE", [], None),
        ("DELETE", [], b""),
        ("GET", [], b""),
    ],
)
@pytest.mark.parametrize("cut", CUTS[:2], ids=str)
@pairings
async def test_what_fits_passes_whole(
    pairing: Pairing,
    method: str,
    fields: list[tuple[str, str]],
    body: bytes | None,
    cut: tuple[int, ...],
    autojump_clock: MockClock,
) -> None:
    guard = BodyGuard(
        max_request_bytes=10,
        max_bytes_by_type={"application/json": 5},
        content_types=["application/json", "image/*"],
        require_body=["POST"],
        refuse_body=["DELETE"],
        max_response_bytes=5,
    )
    seen: list[Message] = []
    proxy = Modular(builders=[guard])
    async with open_matrix(proxy, keeps(seen), pairing, link=cut_link(cut)) as gateway:
        response = await gateway.exchange(method, fields=fields, body=body)
    assert (response.status, response.body) == (200, b"hello")
    assert seen[0].body == (body or b"")


@pytest.mark.parametrize("size", [1, 3, 11])
@pairings
async def test_r_03_content_without_a_length_is_cut_off_where_it_is_too_large(
    pairing: Pairing, size: int, autojump_clock: MockClock
) -> None:
    received: list[bytes] = []

    async def origin(exchange: Exchange) -> None:
        with pytest.raises(CutError) as cut:
            await exchange.message()
        received.append(cut.value.message.body if cut.value.message else b"")

    guard = BodyGuard(max_request_bytes=10)
    async with open_matrix(Modular(builders=[guard]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        for _ in range(11 // size + 1):
            try:
                await exchange.send_data(b"x" * size)
            except CutError:
                break
            await wait_all_tasks_blocked()
        assert (await exchange.message()).status == 413
    assert "a request of more than 10 bytes" in told(gateway)
    assert all(len(each) <= 10 for each in received)


@pairings
async def test_r_03_where_the_response_has_begun_both_sides_are_cut(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.at_least(1)
        await exchange.send_head(200)
        await exchange.send_data(b"so far")
        with pytest.raises(CutError):
            await exchange.message()
        gone.set()

    def keep_on(session: Session, *_: Any) -> None:
        session.set_close_on_response_before_downstream_finish(False)

    guard = BodyGuard(max_request_bytes=10)
    proxy = Modular(builders=[guard], hooks={"early_request_filter": keep_on})
    async with open_matrix(proxy, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"x")
        await exchange.at_least(6)
        await exchange.send_data(b"x" * 10)
        with pytest.raises(CutError):
            await exchange.message()
        await gone.wait()


@pytest.mark.parametrize(
    ("method", "body", "status", "why"),
    [
        ("POST", b"", 400, "POST without content"),
        ("DELETE", b"x", 400, "DELETE with content"),
        ("PUT", b"x", 415, "content without one Content-Type"),
    ],
)
@pairings
async def test_what_only_the_content_tells_is_refused_with_it(
    pairing: Pairing, method: str, body: bytes, status: int, why: str, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        with pytest.raises(CutError):
            await exchange.message()

    guard = BodyGuard(content_types=["text/plain"], require_body=["POST"], refuse_body=["DELETE"])
    async with open_matrix(Modular(builders=[guard]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open(method)
        await exchange.send_data(body, end=True)
        assert (await exchange.message()).status == status
    assert why in told(gateway)


@pairings
async def test_a_limit_may_be_set_for_one_request(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def choose(session: Session, *_: Any) -> None:
        guard = session.downstream_modules_ctx.get(GuardedBodies)
        assert guard is not None
        if session.req_header().path == "/upload":
            guard.limit_request(session, None)
        elif session.req_header().path == "/tiny":
            guard.limit_request(session, 2)
            assert guard.max_request_bytes == 2

    for phase in ("early_request_filter", "request_filter"):

        async def hook(session: Session, *_: Any) -> bool:
            await choose(session)
            return False

        proxy = Modular(builders=[BodyGuard(max_request_bytes=5)], hooks={phase: hook})
        async with open_matrix(proxy, keeps([], OK), pairing) as gateway:
            for path, size, early, late in (
                ("/", 5, 200, 200),
                ("/", 6, 413, 413),
                ("/tiny", 2, 200, 200),
                ("/tiny", 3, 413, 413),
                ("/upload", 9, 200, 413),  # the head alone is refused before a late callback
            ):
                status = early if phase == "early_request_filter" else late
                client = await gateway.connect()
                exchange = await client.open("POST", path, [length(size)])
                if status == 200:
                    await exchange.send_data(b"x" * size, end=True)
                assert (await exchange.head()).status == status


async def test_a_limit_that_is_none_is_refused() -> None:
    guard = BodyGuard().init()
    with pytest.raises(ValueError, match="max_bytes=-1: bytes"):
        guard.limit_request(None, -1)  # type: ignore[arg-type]  # it is not looked at


# -- responses -------------------------------------------------------------------------------------


@pairings
async def test_a_response_that_declares_too_much_is_502(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [length(6)])
        await exchange.gone()

    guard = BodyGuard(max_response_bytes=5)
    async with open_matrix(Modular(builders=[guard]), origin, pairing) as gateway:
        assert (await gateway.exchange()).status == 502
    assert "BodyGuard: a response of more than 5 bytes" in told(gateway)


@pairings
async def test_a_response_that_turns_out_too_large_is_cut(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200)
        await exchange.send_data(b"hello")
        await wait_all_tasks_blocked()
        await exchange.send_data(b"!")
        await exchange.gone()
        gone.set()

    guard = BodyGuard(max_response_bytes=5)
    async with open_matrix(Modular(builders=[guard]), origin, pairing) as gateway:
        with pytest.raises(CutError) as cut:
            await gateway.exchange()
        await gone.wait()
    assert cut.value.message is not None
    assert cut.value.message.body == b"hello"
    assert "BodyGuard: a response of more than 5 bytes" in told(gateway)


@pairings
async def test_an_answer_to_head_may_declare_what_it_does_not_send(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [length(6)], end=True)

    guard = BodyGuard(max_response_bytes=5)
    async with open_matrix(Modular(builders=[guard]), origin, pairing) as gateway:
        response = await gateway.exchange("HEAD")
    assert (response.status, response.get("content-length")) == (200, "6")
