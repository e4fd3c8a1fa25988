"""Server-sent events, filtered by a module: some are kept back, and each one gets an id.

nox -s demo -- sse_filter               with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/sse_filter.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -N http://127.0.0.1:8080/events
id: 1
data: one

id: 2
data: three
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import Event, HttpModules, SseFilter

#: What the client is not to see.
KEPT_BACK = {"two"}


def filter_of(session: Session) -> Callable[[Session, Event], Event | None]:
    """Return the filter of one stream, which counts."""
    numbers = itertools.count(1)

    def apply(session: Session, event: Event) -> Event | None:
        if event.data in KEPT_BACK:
            return None
        return attrs.evolve(event, id=str(next(numbers)))

    return apply


@attrs.define
class FilterEvents(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(SseFilter(factory=filter_of))

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(FilterEvents(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
