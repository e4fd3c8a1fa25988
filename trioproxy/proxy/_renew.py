"""A request that the proxy makes of itself: what is stale in the cache is fetched anew."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from .._info import ConnectionInfo
from .._messages import END, Data, RequestHeader, ResponseEvent
from .._util import unwrap
from ..cache._lock import WritePermit
from ..streams._memory import memory_exchange

if TYPE_CHECKING:
    from ._engine import Services

log = logging.getLogger("trioproxy")


async def renew(
    services: Services, request: RequestHeader, info: ConnectionInfo, permit: WritePermit
) -> None:
    """Run a whole request, from `new_ctx` to `logging`, for the cache alone (trait 8.15, 12).

    It is bounded in time, ends with the server, and fails without a word to anybody but the log.

    Args:
      services: What it runs in.
      request: The request whose answer is to be stored.
      info: The connection of the client that caused it.
      permit: The right to fill the cache, released here if nothing else did.
    """
    try:
        with trio.move_on_after(services.conf.background_timeout):
            assert services.handle is not None
            up, down = memory_exchange(info)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(services.handle, down, permit)
                async with up:
                    await up.send(request, END)
                    while not any(map(_ends, await up.receive_batch())):
                        pass
    except Exception as exc:  # nobody waits for it
        log.warning("a request in the background failed: %s", unwrap(exc))
    finally:
        services.background -= 1
        permit.drop()


def _ends(event: ResponseEvent) -> bool:
    return event is END or (type(event) is Data and event.end)
