"""A proxy inside a Trio program, started and stopped beside the program's own tasks.

    nox -s demo -- inside_trio_app          with an origin of its own, or by hand:
    python examples/_origin.py &
    python examples/inside_trio_app.py http://127.0.0.1:9000 127.0.0.1:8080

    listening on http://127.0.0.1:8080

    $ curl http://127.0.0.1:8080/hello
    GET /hello
    ...

Every second in which something happened the program says how many requests it has seen. Ctrl-C
lets the requests in flight end, then the program goes on without the proxy, and says so.
"""

from __future__ import annotations

import signal
import sys

import attrs
import trio

import trioproxy
from trioproxy import HttpPeer, Session


@attrs.define
class Forward(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


async def report(running: trioproxy.Running) -> None:
    """One of the program's own tasks."""
    seen = 0
    while True:
        await trio.sleep(1)
        if seen != (seen := running.statistics().sessions_total):
            print(f"{seen} requests so far", flush=True)


async def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            proxy = Forward(HttpPeer.parse(origin))
            running = await nursery.start(trioproxy.serve, proxy, bind)
            nursery.start_soon(report, running)
            print(f"listening on {running.urls[0]}", file=sys.stderr, flush=True)

            async for _ in signals:
                break
            # A graceful stop; cancelling the nursery instead would be a hard one.
            await running.drain(timeout=5)
            print(f"stopped after {running.statistics().sessions_total} requests", flush=True)
            nursery.cancel_scope.cancel()
    print("the program goes on without it", flush=True)


if __name__ == "__main__":
    trio.run(lambda: main(*sys.argv[1:]))
