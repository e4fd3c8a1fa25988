"""The invariants catch bugs: each of these is planted, and found by a scenario that is well without.

That the same scenarios pass when nothing is planted is part of each test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest

from trioproxy import ProxyError
from trioproxy._messages import END
from trioproxy.codec._h2_events import DataReceived, GoAwayReceived
from trioproxy.proxy._ending import Ending
from trioproxy.streams import _h1_server
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.streams._h1_server import H1ServerConnection
from trioproxy.streams._h1_write import MessageWriter
from trioproxy.streams._h2 import H2Base, H2Stream
from trioproxy.streams._h2_client import H2ClientConnection, H2UpstreamStream
from trioproxy.streams._h2_server import H2DownstreamStream
from trioproxy.streams._mailbox import ReadTimer
from trioproxy.testing import (
    Answer,
    Client,
    Fault,
    Filter,
    GoAway,
    Http2,
    Link,
    Name,
    Path,
    Request,
    Reset,
    Scenario,
    run_scenario,
)
from trioproxy.testing._invariants import broken
from trioproxy.transport._tls import TlsStream
from trioproxy.upstream._pool import Lease

Plant = Callable[[pytest.MonkeyPatch], None]

POST = Request("POST", blocks=64)
OK = Answer()


def skip_the_drain(patch: pytest.MonkeyPatch) -> None:
    async def drain(self: H1ServerConnection, timeout: float) -> bool:
        self.reader._state = "done"
        return True

    patch.setattr(H1ServerConnection, "_drain", drain)


def _release_unless(kept: Callable[[H1ClientConnection, Any], bool]) -> Any:
    release = H1ClientConnection.release

    def patched(self: H1ClientConnection) -> None:
        if self._exchange is not None and kept(self, self._exchange) and not self.dead:
            self._exchange = None
            self._stepped_aside = False
            self.reader._state = "done"
            self._resume.ring()
            self.timer.disarm()
        else:
            release(self)

    return patched


def pool_after_cancel(patch: pytest.MonkeyPatch) -> None:
    release = _release_unless(lambda connection, exchange: not connection.reader.done)
    patch.setattr(H1ClientConnection, "release", release)


def pool_with_bytes_unread(patch: pytest.MonkeyPatch) -> None:
    release = _release_unless(lambda connection, exchange: bool(connection.reader.leftover))
    patch.setattr(H1ClientConnection, "release", release)


def retry_a_post(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("trioproxy.proxy._ending.IDEMPOTENT", {"GET", "POST"})


def logging_twice(patch: pytest.MonkeyPatch) -> None:
    log = Ending.log

    async def twice(self: Ending, session: Any, ctx: Any) -> None:
        await log(self, session, ctx)
        await log(self, session, ctx)

    patch.setattr(Ending, "log", twice)


def no_logging_where_it_failed(patch: pytest.MonkeyPatch) -> None:
    log = Ending.log

    async def seldom(self: Ending, session: Any, ctx: Any) -> None:
        if session.error is None:
            await log(self, session, ctx)

    patch.setattr(Ending, "log", seldom)


def keep_the_lease_on_error(patch: pytest.MonkeyPatch) -> None:
    release = Lease.release

    def careless(self: Lease) -> None:
        slot = self._slot
        if slot is not None and cast("H1ClientConnection", slot.connection).reader.done:
            release(self)

    patch.setattr(Lease, "release", careless)


def end_a_cut_body_well(patch: pytest.MonkeyPatch) -> None:
    """Answer every error behind a response's head with a proper end."""

    async def fail(
        self: Ending, session: Any, ctx: Any, error: ProxyError, *, before_upstream: bool
    ) -> None:
        await session.finish()

    patch.setattr(Ending, "fail", fail)


def wait_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReadTimer, "at", lambda self, moment, what: None)


def read_ahead_without_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_h1_server, "READ_AHEAD", 1 << 40)


def lose_the_last_block(patch: pytest.MonkeyPatch) -> None:
    """Write a block of each body twice, and its last one never."""
    response = MessageWriter.response

    def patched(self: MessageWriter, *args: Any, **kwargs: Any) -> list[bytes]:
        parts = response(self, *args, **kwargs)
        if parts and len(parts[-1]) > 16:
            parts[-1] = parts[-1][:-16] + parts[-1][:16]
        return parts

    patch.setattr(MessageWriter, "response", patched)


@attrs.frozen
class Planted:
    plant: Plant
    scenario: Scenario
    #: The numbers of the invariants of which one is broken.
    breaks: tuple[str, ...]


def one(*requests: Request, **more: Any) -> Scenario:
    return Scenario((Client(requests),), **more)


PLANTED = [
    Planted(
        skip_the_drain,
        one(attrs.evolve(POST, blocks=5000), Request(), filters=(Filter(do="keep"),)),
        ("2", "5"),
    ),
    Planted(
        pool_after_cancel,
        Scenario(
            (
                Client((Request(answers=(Answer(blocks=20000, wait=1.0),)),), leaves=0.5),
                Client((Request(wait=0.7),)),
            )
        ),
        ("3",),
    ),
    Planted(pool_with_bytes_unread, one(Request(answers=(Answer(after="extra"),))), ("4",)),
    Planted(retry_a_post, one(Request(), attrs.evolve(POST, answers=(Answer(cut=0), OK))), ("5",)),
    Planted(logging_twice, one(Request()), ("1",)),
    Planted(no_logging_where_it_failed, one(Request(answers=(Answer(cut=0),))), ("1",)),
    Planted(keep_the_lease_on_error, one(Request(answers=(Answer(cut=60),))), ("4",)),
    Planted(
        end_a_cut_body_well, one(Request(answers=(Answer(framing="chunked", cut=80),))), ("2",)
    ),
    Planted(
        wait_for_ever,
        one(Request(), origin_links=(Link(back=Path(fault=Fault("silence"))),)),
        ("7",),
    ),
    Planted(
        read_ahead_without_bound,
        one(
            attrs.evolve(POST, blocks=40000),
            filters=(Filter("request_body_filter", seconds=0.5),),
        ),
        ("8",),
    ),
    Planted(lose_the_last_block, one(Request(answers=(Answer(blocks=3),))), ("3",)),
]


# -- HTTP/2 and TLS ------------------------------------------------------------------------------


def forget_to_credit_padding(patch: pytest.MonkeyPatch) -> None:
    deliver = H2Stream.deliver_data

    def careless(self: H2Stream, event: DataReceived) -> None:
        deliver(self, DataReceived(event.stream_id, event.data, len(event.data), event.end))

    patch.setattr(H2Stream, "deliver_data", careless)


def credit_twice(patch: pytest.MonkeyPatch) -> None:
    credit = H2Base.credit

    def twice(self: H2Base, stream_id: int, size: int) -> None:
        credit(self, stream_id, size)
        credit(self, 0 if stream_id not in self.streams else stream_id, size)

    patch.setattr(H2Base, "credit", twice)


def keep_the_credit_of_a_cancelled_stream(patch: pytest.MonkeyPatch) -> None:
    leave = H2DownstreamStream.leave

    def careless(self: H2DownstreamStream) -> None:
        self.uncredited = 0
        leave(self)

    patch.setattr(H2DownstreamStream, "leave", careless)


def keep_the_credit_of_a_cancelled_response(patch: pytest.MonkeyPatch) -> None:
    release = H2UpstreamStream.release

    def careless(self: H2UpstreamStream) -> None:
        self.uncredited = 0
        release(self)

    patch.setattr(H2UpstreamStream, "release", careless)


def free_the_slot_at_rst(patch: pytest.MonkeyPatch) -> None:
    on_reset = H2DownstreamStream.on_reset

    def generous(self: H2DownstreamStream, code: int) -> None:
        on_reset(self, code)
        self.connection.give_place_back(self)

    patch.setattr(H2DownstreamStream, "on_reset", generous)


def retry_a_post_after_a_reset(patch: pytest.MonkeyPatch) -> None:
    def bold(self: H2UpstreamStream, code: int) -> None:
        self.disowned("it reset the stream")

    patch.setattr(H2UpstreamStream, "on_reset", bold)


def take_a_reset_for_the_end(patch: pytest.MonkeyPatch) -> None:
    def careless(self: H2UpstreamStream, code: int) -> None:
        self.complete = True
        self.deliver(END)

    patch.setattr(H2UpstreamStream, "on_reset", careless)


def share_a_connection_after_its_goaway(patch: pytest.MonkeyPatch) -> None:
    on_goaway = H2ClientConnection.on_goaway

    def deaf(self: H2ClientConnection, event: GoAwayReceived) -> None:
        on_goaway(self, event)
        self.retired = False

    patch.setattr(H2ClientConnection, "on_goaway", deaf)


def wake_nobody_when_the_connections_window_opens(patch: pytest.MonkeyPatch) -> None:
    opened = H2Base._window_opened

    def careless(self: H2Base, stream_id: int) -> None:
        if stream_id:
            opened(self, stream_id)

    patch.setattr(H2Base, "_window_opened", careless)


def take_a_cut_of_tls_for_the_end(patch: pytest.MonkeyPatch) -> None:
    feed = TlsStream._feed

    def careless(self: TlsStream, received: bytes) -> None:
        feed(self, received)
        if not received:
            self._failure = None
            self._ended = True

    patch.setattr(TlsStream, "_feed", careless)


def to(speaks: Any, *requests: Request, http2: Http2 | None = None, **more: Any) -> Scenario:
    """Return a scenario with one client, and an origin that speaks a version."""
    client = Client(requests, http2=http2, pipelined=http2 is not None)
    return Scenario((client,), names=(Name("origin.test", "192.0.2.20", speaks),), **more)


PADDED = Http2(pad=100)
BIG = Answer(blocks=5000)
OVER_HTTP2 = [
    Planted(
        forget_to_credit_padding, to("h1", attrs.evolve(POST, blocks=500), http2=PADDED), ("10",)
    ),
    Planted(
        forget_to_credit_padding,
        to("h2c", Request(answers=(BIG,)), origin_http2=(PADDED,)),
        ("10",),
    ),
    Planted(credit_twice, to("h1", POST, http2=Http2()), ("10",)),
    Planted(
        keep_the_credit_of_a_cancelled_stream,
        to("h1", attrs.evolve(POST, blocks=1000), http2=Http2(), filters=(Filter(do="refuse"),)),
        ("10",),
    ),
    Planted(
        keep_the_credit_of_a_cancelled_response,
        Scenario(
            (
                Client(
                    (Request(answers=(BIG,), reset=Reset(frames=1)), Request(wait=1.0)),
                    http2=Http2(window=100),
                ),
            ),
            names=(Name("origin.test", "192.0.2.20", "h2-tls"),),
        ),
        ("10",),
    ),
    Planted(
        free_the_slot_at_rst,
        to(
            "h1",
            *[Request(reset=Reset())] * 3,
            http2=Http2(),
            most_streams=1,
            filters=(Filter("logging", seconds=0.5),),
        ),
        ("8",),
    ),
    Planted(
        retry_a_post_after_a_reset,
        to("h2c", attrs.evolve(POST, answers=(Answer(cut=0, code=8), OK))),
        ("5",),
    ),
    Planted(
        take_a_reset_for_the_end,
        to("h2-tls", Request(answers=(Answer(blocks=9, framing="chunked", cut=33, code=8),))),
        ("1", "2"),
    ),
    Planted(
        share_a_connection_after_its_goaway,
        Scenario(
            (
                Client((Request(answers=(Answer(wait=3.0),)),)),
                Client((Request(wait=0.5),)),
                Client((Request(wait=1.0),)),
            ),
            names=(Name("origin.test", "192.0.2.20", "h2c"),),
            origin_http2=(Http2(goaway=GoAway(frames=4)),),
        ),
        ("5",),
    ),
    Planted(
        wake_nobody_when_the_connections_window_opens,
        to("h1", *[Request(answers=(BIG,))] * 3, http2=Http2(window=1 << 20)),
        ("2",),
    ),
    Planted(
        take_a_cut_of_tls_for_the_end,
        to(
            "h1-tls",
            Request(answers=(Answer(blocks=99, framing="close", cut=900, leave="truncate"),)),
        ),
        ("1", "2"),
    ),
]


@pytest.mark.parametrize("planted", [*PLANTED, *OVER_HTTP2], ids=lambda each: each.plant.__name__)
def test_a_planted_bug_is_caught(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not broken(run_scenario(planted.scenario))

    planted.plant(monkeypatch)
    found = broken(run_scenario(planted.scenario))
    assert any(each.partition(":")[0] in planted.breaks for each in found), found
