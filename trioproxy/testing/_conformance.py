"""The contract of a message stream as a check that every implementation is run through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
import trio.testing

from .._errors import ErrorSource, ProxyError
from .._headers import Headers
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..streams._abc import DownstreamStream, UpstreamStream

#: Gives the next exchange of one connection: the end that asks, and (once the head of its request
#: was sent) the end that answers.
Exchanges = Callable[
    [], Awaitable[tuple[UpstreamStream, Callable[[], Awaitable[DownstreamStream]]]]
]
#: Opens a connection between two implementations.
OpenConnection = Callable[[], AbstractAsyncContextManager[Exchanges]]

#: More than any implementation may hold for one exchange.
FLOOD = 8 << 20
BOUND = 1 << 20

Event = RequestEvent | ResponseEvent


async def check_message_stream(open_connection: OpenConnection) -> None:
    """Run a pair of message streams through the contract of `MessageStream`.

    Args:
      open_connection: Returns an async context manager that opens one connection and gives a
        function which starts its exchanges one after another: it returns the `UpstreamStream`, and
        a function that waits for the matching `DownstreamStream`, to be called after the request's
        head was sent. Needs no real time: run it under Trio's autojump clock or with memory
        streams.

    Raises:
      AssertionError: a rule does not hold; the message names it.
    """
    with trio.fail_after(120):
        for check in (
            _check_order,
            _check_trailers,
            _check_receive_after_end,
            _check_backpressure,
            _check_cancelled_receive,
            _check_cancelled_send,
            _check_release,
            _check_abort_downstream,
            _check_abort_upstream,
        ):
            async with open_connection() as exchanges:
                await check(exchanges)


def _request(*fields: tuple[str, str], method: str = "POST") -> RequestHeader:
    return RequestHeader(method, b"/check", [("Host", "check"), *fields])


class _Transcript:
    """The events of one message as they arrived, held to rule 1."""

    def __init__(self) -> None:
        self.head: Any = None
        self.content = b""
        self.trailers: list[tuple[str, str]] = []
        self.ended = False
        self._kinds: list[type] = []

    def take(self, event: Event) -> None:
        assert not self.ended, "rule 1: an event came behind the end"
        if isinstance(event, (RequestHeader, ResponseHeader)):
            assert self.head is None or self.head.status < 200, "rule 1: a second head"
            self.head = event
        else:
            assert self.head is not None, "rule 1: the head did not come first"
            if isinstance(event, Data):
                assert event.data, "rule 1: empty content"
                assert not self.trailers, "rule 1: content behind the trailers"
                self.content += event.data
                self.ended = event.end
            elif isinstance(event, Trailers):
                assert not self.trailers, "rule 1: trailers twice"
                self.trailers = event.headers.items()
            else:
                self.ended = True


async def _whole(stream: UpstreamStream | DownstreamStream) -> _Transcript:
    transcript = _Transcript()
    while not transcript.ended:
        batch: list[Any] = list(await stream.receive_batch())
        assert batch, "rule 3: an empty batch"
        for event in batch:
            transcript.take(event)
    return transcript


async def _cut(stream: UpstreamStream | DownstreamStream) -> ErrorSource | None:
    """Return the source of the error that a message ends with, None where it ends properly."""
    try:
        await _whole(stream)
    except ProxyError as exc:
        return exc.esource
    return None


async def _check_order(exchanges: Exchanges) -> None:
    for method, sent in (
        ("GET", [END]),
        ("POST", [Data(b"one"), Data(b"two"), END]),
        ("POST", [Data(b"one"), Data(b"two", True)]),
    ):
        up, accept = await exchanges()
        await up.send(_request(method=method), *sent)
        down = await accept()
        request = await _whole(down)
        assert request.head.method == method
        assert request.content == (b"" if method == "GET" else b"onetwo"), "rule 1: content"
        assert down.request_complete
        await down.send(ResponseHeader(103, {"x-hint": "1"}))
        await down.send(ResponseHeader(200, {"x-one": "1"}), *sent)
        response = await _whole(up)
        assert response.head.status == 200
        assert response.head.headers.get("x-one") == "1"
        assert response.content == request.content
        await down.aclose()
        await up.aclose()


async def _check_trailers(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    trailers = Trailers(Headers([("x-checksum", "5")]))
    await up.send(_request(), Data(b"body"), trailers, END)
    down = await accept()
    request = await _whole(down)
    assert request.trailers == [("x-checksum", "5")], "rule 1: the request's trailers"
    await down.send(ResponseHeader(200), Data(b"body"), trailers, END)
    response = await _whole(up)
    assert response.content == b"body"
    assert response.trailers == [("x-checksum", "5")], "rule 1: the response's trailers"
    await down.aclose()
    await up.aclose()


async def _check_receive_after_end(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    await up.send(_request(method="GET"), END)
    down = await accept()
    await _whole(down)
    raised: list[ProxyError] = []

    async def wait() -> None:
        try:
            await down.receive_batch()
        except ProxyError as exc:
            raised.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not raised, "rule 2: receive_batch did not wait behind the end"
        with trio.CancelScope() as scope:
            down.watch(scope)
            await up.aclose()
            await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.sleep(1)
        assert scope.cancel_called, "rule 2: the watching scope was not cancelled"
    assert raised, "rule 2: the departure was not raised"
    assert raised[0].esource is ErrorSource.DOWNSTREAM
    await down.aclose()


async def _check_backpressure(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    sent = 0

    async def flood(stream: Any, head: Any) -> None:
        nonlocal sent
        sent = 0
        await stream.send(head)
        while sent < FLOOD:
            await stream.send(Data(bytes(65536)))
            sent += 65536

    async def stalls(stream: Any, head: Any) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, stream, head)
                await trio.testing.wait_all_tasks_blocked(0.05)
                scope.cancel()
        assert sent <= BOUND, f"rule 3: {sent} bytes were taken though nobody receives"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls, up, _request(("Content-Length", str(FLOOD))))
        down = await accept()
    await down.aclose()
    await up.aclose()


async def _check_cancelled_receive(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    await up.send(_request())
    down = await accept()
    events: list[Any] = []

    async def receive(stream: Any) -> None:
        # Cancelled over and over, just before and just as something arrives.
        while not (events and (events[-1] is END or getattr(events[-1], "end", False))):
            with trio.move_on_after(0):
                events.extend(await stream.receive_batch())
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive, down)
        for number in range(20):
            await up.send(Data(b"%02d" % number))
            await trio.lowlevel.checkpoint()
        await up.send(END)
    content = b"".join(event.data for event in events if isinstance(event, Data))
    assert content == b"".join(b"%02d" % n for n in range(20)), "rule 4: a receive lost content"
    await down.aclose()
    await up.aclose()


async def _check_cancelled_send(exchanges: Exchanges) -> None:
    up, accept = await exchanges()

    async def cut(started: trio.Event) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await up.send(_request(("Content-Length", str(FLOOD))))
                started.set()
                nursery.start_soon(up.send, Data(bytes(FLOOD), True))
                await trio.testing.wait_all_tasks_blocked(0.05)
                scope.cancel()

    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut, started)
        await started.wait()
        down = await accept()
    await up.aclose()
    assert await _cut(down) is ErrorSource.DOWNSTREAM, "rule 4: a send was cut"
    await down.aclose()


async def _check_release(exchanges: Exchanges) -> None:
    for number in range(3):
        up, accept = await exchanges()
        async with up:
            await up.send(_request(("x-number", str(number))), Data(b"x", True))
            async with await accept() as down:
                request = await _whole(down)  # type: ignore[arg-type]
                assert request.head.headers.get("x-number") == str(number), "rule 5: mixed up"
                await down.send(ResponseHeader(200, {"Content-Length": "1"}), Data(b"y", True))
            assert (await _whole(up)).content == b"y"


async def _check_abort_downstream(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    await up.send(_request(), Data(b"begun"))
    down = await accept()
    await up.aclose()
    assert await _cut(down) is ErrorSource.DOWNSTREAM, "rule 5: a request was given up"
    await down.aclose()


async def _check_abort_upstream(exchanges: Exchanges) -> None:
    up, accept = await exchanges()
    await up.send(_request(method="GET"), END)
    down = await accept()
    await _whole(down)
    await down.send(ResponseHeader(200), Data(b"begun"))
    await down.aclose()
    assert await _cut(up) is ErrorSource.UPSTREAM, "rule 5: a response was given up"
    await up.aclose()
