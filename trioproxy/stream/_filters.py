"""The trait of a proxy below HTTP: every phase of a stream as a callback, in running order.

Subclass `ProxyStream` and override what you need. Only ``new_ctx`` and ``upstream_peer`` must be. A
callback that is not overridden is never called.

The two data filters of a session run in two tasks: a slow upload filter never stalls the download.
A callback without an ``await`` is atomic. There is no lock.

A callback that may fail raises `ProxyError`; any other exception becomes an internal error with
that exception as its cause, its traceback is logged once, and the session ends with it. What
escapes a callback ends its own session only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs

from .._callbacks import ASYNC, EITHER, SYNC, Plan, Table, check_class, make_plan

if TYPE_CHECKING:
    from .._errors import ProxyError
    from .._info import Digest
    from .._messages import BodyChunk
    from ._peer import StreamPeer
    from ._session import StreamSession

CtxT = TypeVar("CtxT")

#: Every callback in the order in which they run: name, arguments besides self, kind.
CALLBACKS: Table = (
    ("new_ctx", 0, SYNC),
    ("accept_filter", 2, ASYNC),
    ("upstream_peer", 2, ASYNC),
    ("fail_to_connect", 4, SYNC),
    ("connected_to_upstream", 4, ASYNC),
    ("downstream_data_filter", 4, EITHER),
    ("upstream_data_filter", 4, EITHER),
    ("error_while_proxy", 4, SYNC),
    ("logging", 3, ASYNC),
)


@attrs.define(slots=False)
class ProxyStream(ABC, Generic[CtxT]):
    """A proxy for streams of bytes: one object whose callbacks see every connection.

    It is served as a `ProxyHttp` is, by `trioproxy.serve`, `trioproxy.run` and ``trioproxy run``.
    ``CtxT`` is the type of the context that ``new_ctx`` makes for each connection and that every
    other callback gets.
    """

    _trioproxy_plan: ClassVar[Plan]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the overrides of a new class, and remember them."""
        super().__init_subclass__(**kwargs)
        check_class(cls, ProxyStream, CALLBACKS)
        cls._trioproxy_plan = make_plan(cls, ProxyStream, CALLBACKS)

    @abstractmethod
    def new_ctx(self) -> CtxT:
        """Return the context of a new connection.

        When: once per connection, behind its TLS handshake where the listener has TLS. An exception
        ends the connection; no other callback runs then, as there is no context.
        """

    async def accept_filter(self, session: StreamSession, ctx: CtxT) -> bool:
        """Return False to drop the connection.

        When: once, before a peer is chosen. `StreamSession.peek` shows the first bytes. An
        exception drops the connection, too, and is logged. Default: True.
        """
        return True

    @abstractmethod
    async def upstream_peer(self, session: StreamSession, ctx: CtxT) -> StreamPeer:
        """Return where to connect to.

        When: once per attempt. `StreamSession.client_hello` tells the server name that a TLS client
        asks for, without ending its TLS. An exception is that attempt's error, and its own retry
        mark decides.
        """

    def fail_to_connect(
        self, session: StreamSession, peer: StreamPeer, ctx: CtxT, e: ProxyError
    ) -> ProxyError:
        """Look at a failure to connect, and mark it for another attempt.

        When: once per attempt that got no connection. ``e.set_retry(True)`` has ``upstream_peer``
        called again, up to ``ServerConf.max_attempts`` in all: nothing was sent. It may not fail:
        an exception is logged and ``e`` stands. Default: the error as it is.
        """
        return e

    async def connected_to_upstream(
        self, session: StreamSession, peer: StreamPeer, digest: Digest, ctx: CtxT
    ) -> None:
        """See a new connection before a byte flows.

        When: once. An exception ends the session. Default: nothing.
        """

    def downstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: CtxT
    ) -> float | Awaitable[float | None] | None:
        """Rewrite bytes of the client on their way to the upstream: set ``chunk.data``.

        When: for what was read at once, at most 65,536 bytes; ``def`` and ``async def`` both do.
        Return seconds to wait before they go on, which slows the reading down. ``end_of_stream`` is
        True exactly once, with no data, where the client has ended its output; what ``chunk.data``
        is set to then still goes on. It is never True for an output that was cut. An exception ends
        the session. Default: None.
        """
        return None

    def upstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: CtxT
    ) -> float | Awaitable[float | None] | None:
        """Rewrite bytes of the upstream on their way to the client: set ``chunk.data``.

        When: as ``downstream_data_filter``, in the other direction. Default: None.
        """
        return None

    def error_while_proxy(
        self, session: StreamSession, peer: StreamPeer | None, e: ProxyError, ctx: CtxT
    ) -> ProxyError:
        """Look at what a session has failed with for good; the error that is returned is logged.

        When: once, whatever failed: a filter, the choice of a peer (which is None then), the last
        attempt to connect, either side of the stream. Both sides are cut behind it. It may not
        fail: an exception is logged and ``e`` stands. Default: the error as it is.
        """
        return e

    async def logging(self, session: StreamSession, e: ProxyError | None, ctx: CtxT) -> None:
        """See how the stream ended.

        When: exactly once, last, on success, error, a drop and cancellation, shielded from
        cancellation for ``ServerConf.logging_timeout`` (one second). It may not fail. Default:
        nothing.
        """
