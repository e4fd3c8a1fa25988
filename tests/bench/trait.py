"""A trait that overrides what it must, alone or behind eight members of a chain that do no more.

``python -m tests.bench.trait PORT [chain]`` prints its port.
"""

from __future__ import annotations

import logging
import sys

import attrs
import trio

import trioproxy
from trioproxy import Chain, HttpPeer, Session

#: Members before the one that chooses the peer.
IDLE = 8


class Idle(Chain.Member[None]):
    """Overrides nothing."""


@attrs.define
class Forward(trioproxy.ProxyHttp[None]):
    """Goes to one origin."""

    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


logging.getLogger("trioproxy").setLevel(logging.CRITICAL)  # clients that leave are no news here


async def main(port: str, kind: str) -> None:
    """Serve until killed."""
    forward = Forward(HttpPeer("127.0.0.1", int(port)))
    chain = Chain(*[Idle() for _ in range(IDLE)], forward)
    async with trio.open_nursery() as nursery:
        running = await nursery.start(
            lambda task_status: trioproxy.serve(
                chain if kind == "chain" else forward, "127.0.0.1:0", task_status=task_status
            )
        )
        print(running.urls[0], flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], "".join(sys.argv[2:]))
