"""A gateway that has modules, between clients and origins of any pairing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from tests._support.h2_wire import AnyFields, as_fields
from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    H2C,
    Matrix,
    Origins,
    Outcome,
    Pairing,
    answers,
    keeps,
    open_matrix,
)
from tests._support.recording import Message
from tests.modules._modular import Modular
from trioproxy import Session
from trioproxy.modules import HttpModuleBuilder

#: Each version against each, with and without TLS.
SOME = [
    Pairing(H1, H1),
    Pairing(H1_TLS, H2_TLS),
    Pairing(H2_TLS, H1),
    Pairing(H2C, H2C),
]
some_pairings = pytest.mark.parametrize("pairing", SOME, ids=str)
PLAIN = Pairing(H1, H1)


@attrs.define(eq=False)
class World:
    """A running gateway, and what came to its origin."""

    gateway: Matrix
    proxy: Modular
    asked: list[Message]

    async def exchange(self, *args: Any, **kwargs: Any) -> Message:
        """Send one request on a connection of its own."""
        return await self.gateway.exchange(*args, **kwargs)

    def last(self) -> Message:
        """Return the last request that came to the origin."""
        return self.asked[-1]


@asynccontextmanager
async def open_modules(
    pairing: Pairing,
    *modules: HttpModuleBuilder,
    fields: AnyFields = (),
    status: int = 200,
    hooks: dict[str, Callable[..., Any]] | None = None,
    origins: Outcome | Origins | None = None,
    address: str | None = "203.0.113.9:4711",
    **options: Any,
) -> AsyncIterator[World]:
    """Run a gateway with modules before an origin that answers all requests alike.

    Args:
      pairing: What is spoken.
      modules: The modules.
      fields: The fields of the origin's responses.
      status: Their status.
      hooks: What else the proxy does, as for a `Recorder`.
      origins: Other origins, as for `open_matrix`.
      address: Where clients come from.
      options: As for `open_matrix`.
    """
    asked: list[Message] = []
    proxy = Modular(builders=modules, hooks=dict(hooks or {}))
    before = proxy.hooks.get("early_request_filter")

    def come_from(session: Session, ctx: Any) -> Any:
        info = session.downstream_session.info
        session.downstream_session.info = attrs.evolve(info, peer=address)
        return None if before is None else before(session, ctx)

    proxy.hooks["early_request_filter"] = come_from
    pairs = _pairs(fields, lower=pairing.up.h2)
    if status not in (204, 304):
        pairs.append((b"content-length", b"5"))
    origin = keeps(asked, answers(status, pairs, b"" if status in (204, 304) else b"hello"))
    async with open_matrix(proxy, origin if origins is None else origins, pairing, **options) as it:
        yield World(it, proxy, asked)


def _pairs(fields: AnyFields, *, lower: bool) -> list[tuple[bytes, bytes]]:
    """Return fields as the origin sends them: HTTP/2 has names in lower case alone."""
    return [(name.lower() if lower else name, value) for name, value in as_fields(fields)]
