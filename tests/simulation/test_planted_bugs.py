"""The invariants catch bugs: each of these is planted, and found by a scenario that is well without.

That the same scenarios pass when nothing is planted is part of each test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest

from trioproxy import ProxyError
from trioproxy.proxy._engine import Engine
from trioproxy.streams import _h1_server
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.streams._h1_server import H1ServerConnection
from trioproxy.streams._h1_write import MessageWriter
from trioproxy.streams._mailbox import ReadTimer
from trioproxy.testing import (
    Answer,
    Client,
    Fault,
    Filter,
    Link,
    Path,
    Request,
    Scenario,
    run_scenario,
)
from trioproxy.testing._invariants import broken
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
    patch.setattr("trioproxy.proxy._engine._IDEMPOTENT", {"GET", "POST"})


def logging_twice(patch: pytest.MonkeyPatch) -> None:
    log = Engine._log

    async def twice(self: Engine, session: Any, ctx: Any) -> None:
        await log(self, session, ctx)
        await log(self, session, ctx)

    patch.setattr(Engine, "_log", twice)


def no_logging_where_it_failed(patch: pytest.MonkeyPatch) -> None:
    log = Engine._log

    async def seldom(self: Engine, session: Any, ctx: Any) -> None:
        if session.error is None:
            await log(self, session, ctx)

    patch.setattr(Engine, "_log", seldom)


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
        self: Engine, session: Any, ctx: Any, error: ProxyError, *, before_upstream: bool
    ) -> None:
        await session.finish()

    patch.setattr(Engine, "_fail", fail)


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
    #: The number of the invariant that is broken.
    breaks: str


def one(*requests: Request, **more: Any) -> Scenario:
    return Scenario((Client(requests),), **more)


PLANTED = [
    Planted(
        skip_the_drain,
        one(attrs.evolve(POST, blocks=5000), Request(), filters=(Filter(do="keep"),)),
        "25",
    ),
    Planted(
        pool_after_cancel,
        Scenario(
            (
                Client((Request(answers=(Answer(blocks=20000, wait=1.0),)),), leaves=0.5),
                Client((Request(wait=0.7),)),
            )
        ),
        "3",
    ),
    Planted(pool_with_bytes_unread, one(Request(answers=(Answer(after="extra"),))), "4"),
    Planted(retry_a_post, one(Request(), attrs.evolve(POST, answers=(Answer(cut=0), OK))), "5"),
    Planted(logging_twice, one(Request()), "1"),
    Planted(no_logging_where_it_failed, one(Request(answers=(Answer(cut=0),))), "1"),
    Planted(keep_the_lease_on_error, one(Request(answers=(Answer(cut=60),))), "4"),
    Planted(end_a_cut_body_well, one(Request(answers=(Answer(framing="chunked", cut=80),))), "2"),
    Planted(
        wait_for_ever,
        one(Request(), origin_links=(Link(back=Path(fault=Fault("silence"))),)),
        "7",
    ),
    Planted(
        read_ahead_without_bound,
        one(
            attrs.evolve(POST, blocks=40000),
            filters=(Filter("request_body_filter", seconds=0.5),),
        ),
        "8",
    ),
    Planted(lose_the_last_block, one(Request(answers=(Answer(blocks=3),))), "3"),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: each.plant.__name__)
def test_a_planted_bug_is_caught(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not broken(run_scenario(planted.scenario))

    planted.plant(monkeypatch)
    found = broken(run_scenario(planted.scenario))
    assert any(each[0] in planted.breaks for each in found), found
