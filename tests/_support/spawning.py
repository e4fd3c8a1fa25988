"""A gateway in memory whose callbacks make subrequests, and that tells what is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs

from tests._support.caching import open_cache
from tests._support.recording import Adapt, Ctx, Gateway, Origins, Outcome, Recorder
from trioproxy import ProxyHttp, ServerConf, Session
from trioproxy.subrequests import SubrequestSpawner
from trioproxy.transport._byte_stream import StreamAdapter


@attrs.define(eq=False, slots=False)
class Spawning(Recorder):
    """Writes down what `Recorder` does; only a client's own request may make others."""

    depth: int = 1

    def allow_spawning_subrequest(self, session: Session, ctx: Ctx) -> bool:
        self._note("allow_spawning_subrequest", ctx, session=session)
        hook = self.hooks.get("allow_spawning_subrequest")
        if hook is not None:
            return bool(hook(session, ctx))
        return session.subrequest_ctx is None or session.subrequest_ctx.depth < self.depth


def spawner_of(session: Session) -> SubrequestSpawner:
    """Return a session's spawner, which is there."""
    assert session.subrequest_spawner is not None
    return session.subrequest_spawner


@asynccontextmanager
async def open_spawning(
    proxy: ProxyHttp[Any],
    origins: Outcome | Origins,
    *,
    conf: ServerConf | None = None,
    lockstep: bool = False,
    adapt: Adapt = StreamAdapter,
) -> AsyncIterator[Gateway]:
    """Run a gateway with a place for what runs in the background.

    Leaving checks that no task, lease, session or subrequest is left, and that the pool counts right.
    """
    async with open_cache(proxy, origins, conf=conf, lockstep=lockstep, adapt=adapt) as gateway:
        yield gateway
    assert gateway.services.subrequests == 0
    assert gateway.services.sessions == 0
