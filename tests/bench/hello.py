"""The yardstick for HTTP/2: an application that answers at once, for ``hypercorn ...hello:app``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.bench.workloads import SMALL_BODY

FIELDS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(SMALL_BODY))]


async def app(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer one request, or take part in the server's start and stop."""
    while scope["type"] == "lifespan":
        await send({"type": (await receive())["type"] + ".complete"})
    await send({"type": "http.response.start", "status": 200, "headers": FIELDS})
    await send({"type": "http.response.body", "body": SMALL_BODY})
