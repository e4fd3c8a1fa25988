"""A gateway with a cache, in memory: `recording` with the cache's callbacks, on virtual time.

Wall time moves with Trio's clock, so that a `MockClock` lets responses grow stale. Leaving the
gateway checks what a cache may never leave behind: a lock, a writer, a reader, a background request.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import attrs
import trio
import trio.testing

from tests._support.recording import (
    Adapt,
    Ctx,
    Gateway,
    Origin,
    Origins,
    Outcome,
    Recorder,
    Wire,
    open_gateway,
)
from trioproxy import ProxyError, RequestHeader, ResponseHeader, ServerConf, Session
from trioproxy._clock import clock_from, wall_time
from trioproxy.cache import (
    CacheKey,
    CacheLock,
    CacheMeta,
    CacheMetaDefaults,
    CacheOptionOverrides,
    ForcedFreshness,
    HitHandler,
    MemoryStorage,
    Predictor,
    PurgeStatus,
    RangeType,
    RespCacheable,
    Storage,
    VarianceBuilder,
    resp_cacheable,
)
from trioproxy.proxy._filters import ProxyHttp
from trioproxy.semantics._cache_control import CacheControl
from trioproxy.transport._byte_stream import StreamAdapter

#: The wall clock where Trio's clock says 0.
EPOCH = 1.5e9

#: What every request runs before the cache is asked.
PREFIX = ["new_ctx", "early_request_filter", "request_filter", "request_cache_filter"]
KEYED = [*PREFIX, "cache_key_callback", "is_purge"]
CONNECTED = [
    "proxy_upstream_filter",
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter(None, True)",
]


def response(
    *fields: str, body: bytes = b"hello", status: int = 200, cache: str | None = "max-age=60"
) -> bytes:
    """Return the bytes of a response with these lines in its head."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *fields]
    if cache is not None:
        lines.append(f"Cache-Control: {cache}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str = "/path", *fields: str, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: site.test", *fields, "", ""]).encode()


HELLO = response()


class WholeStorage(MemoryStorage):
    """A store that shows nothing of what is still being written."""

    supports_streaming_partial_write: ClassVar[bool] = False

    async def lookup(self, key: CacheKey) -> Any:
        """Return what is complete."""
        partial, self._shelf.partial = self._shelf.partial, {}
        try:
            return await super().lookup(key)
        finally:
            self._shelf.partial = partial


def memory(*, whole: bool = False) -> MemoryStorage:
    """Return a store; one that cannot be read while it is written where ``whole`` is set."""
    return (WholeStorage if whole else MemoryStorage)(1 << 26)


def vary_on_field(meta: CacheMeta, _ctx: object, request: RequestHeader) -> bytes | None:
    """Tell variants apart by the fields that the stored Vary names."""
    builder = VarianceBuilder()
    for line in meta.header.headers.get_all("vary"):
        for name in line.split(","):
            builder.add(name.strip(), request.headers.get(name.strip()))
    return builder.finalize()


@attrs.define(eq=False, slots=False)
class CacheRecorder(Recorder):
    """Overrides the cache's callbacks too; by default it caches as Pingora's helper would.

    Attributes:
      storage: Where it stores; None leaves the cache off.
      lock: The cache lock, None for none.
      predictor: The predictor, None for none.
      wait_timeout: Seconds that a request may wait for others.
      max_file_size: Bytes of content that are stored at most.
      defaults: What holds where a response does not say how long it is fresh.
    """

    storage: Storage | None = attrs.field(factory=memory)
    lock: CacheLock | None = attrs.field(factory=lambda: CacheLock(60))
    predictor: Predictor | None = None
    wait_timeout: float | None = None
    max_file_size: int | None = None
    defaults: CacheMetaDefaults = attrs.field(factory=CacheMetaDefaults)

    def of_request(self, number: int) -> list[str]:
        """Return the transcript of one request, the first one being 0."""
        ctx = self.of("new_ctx")[number].ctx
        return [call.shown for call in self.calls if call.ctx is ctx]

    def phases(self) -> list[str]:
        """Return the phase of the cache that each request ended in, by the order of their ends."""
        return [str(call.args["phase"]) for call in self.of("logging")]

    def _run(self, name: str, default: Any, *args: Any) -> Any:
        hook = self.hooks.get(name)
        return default() if hook is None else hook(*args)

    def request_cache_filter(self, session: Session, ctx: Ctx) -> None:
        self._note("request_cache_filter", ctx, session=session)
        self._run("request_cache_filter", lambda: self.enable(session), session, ctx)

    def enable(self, session: Session) -> None:
        """Switch the cache on."""
        if self.storage is None:
            return
        session.cache.enable(
            self.storage,
            predictor=self.predictor,
            cache_lock=self.lock,
            option_overrides=CacheOptionOverrides(wait_timeout=self.wait_timeout),
        )
        if self.max_file_size is not None:
            session.cache.set_max_file_size_bytes(self.max_file_size)

    def cache_key_callback(self, session: Session, ctx: Ctx) -> CacheKey:
        self._note("cache_key_callback", ctx, session=session)
        return self._run(  # type: ignore[no-any-return]  # a test's hook
            "cache_key_callback",
            lambda: ProxyHttp.cache_key_callback(self, session, ctx),
            session,
            ctx,
        )

    def is_purge(self, session: Session, ctx: Ctx) -> bool:
        self._note("is_purge", ctx, session=session)
        return bool(
            self._run("is_purge", lambda: session.req_header().method == "PURGE", session, ctx)
        )

    def purge_response_filter(
        self,
        session: Session,
        ctx: Ctx,
        purge_status: PurgeStatus,
        purge_response: ResponseHeader,
    ) -> None:
        self._note("purge_response_filter", ctx, purge_status.value, session=session)
        self._run("purge_response_filter", lambda: None, session, ctx, purge_status, purge_response)

    async def cache_hit_filter(
        self,
        session: Session,
        meta: CacheMeta,
        hit_handler: HitHandler,
        is_fresh: bool,
        ctx: Ctx,
    ) -> ForcedFreshness | None:
        self._note("cache_hit_filter", ctx, is_fresh, session=session, phase=session.cache.phase())
        result = self._run(
            "cache_hit_filter", lambda: None, session, meta, hit_handler, is_fresh, ctx
        )
        return await result if inspect.isawaitable(result) else result  # type: ignore[no-any-return]  # a test's hook

    def cache_miss(self, session: Session, ctx: Ctx) -> None:
        self._note("cache_miss", ctx, session=session)
        self._run("cache_miss", session.cache.cache_miss, session, ctx)

    def response_cache_filter(
        self, session: Session, resp: ResponseHeader, ctx: Ctx
    ) -> RespCacheable:
        self._note("response_cache_filter", ctx, resp.status, session=session, head=resp.copy())
        return self._run(  # type: ignore[no-any-return]  # a test's hook
            "response_cache_filter", lambda: self.judge(session, resp), session, resp, ctx
        )

    def judge(self, session: Session, resp: ResponseHeader) -> RespCacheable:
        """Return what Pingora's helper says to a response."""
        return resp_cacheable(
            CacheControl.of(resp.headers),
            resp,
            "authorization" in session.req_header().headers,
            self.defaults,
            now=wall_time(),
        )

    def cache_vary_filter(self, meta: CacheMeta, ctx: Ctx, req: RequestHeader) -> bytes | None:
        self._note("cache_vary_filter", ctx, meta=meta)
        return self._run(  # type: ignore[no-any-return]  # a test's hook
            "cache_vary_filter", lambda: vary_on_field(meta, ctx, req), meta, ctx, req
        )

    def cache_not_modified_filter(self, session: Session, resp: ResponseHeader, ctx: Ctx) -> bool:
        self._note("cache_not_modified_filter", ctx, resp.status, session=session)
        return self._run(  # type: ignore[no-any-return]  # a test's hook
            "cache_not_modified_filter",
            lambda: ProxyHttp.cache_not_modified_filter(self, session, resp, ctx),
            session,
            resp,
            ctx,
        )

    def range_header_filter(self, session: Session, resp: ResponseHeader, ctx: Ctx) -> RangeType:
        self._note("range_header_filter", ctx, resp.status, session=session)
        return self._run(  # type: ignore[no-any-return]  # a test's hook
            "range_header_filter",
            lambda: ProxyHttp.range_header_filter(self, session, resp, ctx),
            session,
            resp,
            ctx,
        )

    def should_serve_stale(self, session: Session, ctx: Ctx, error: ProxyError | None) -> bool:
        self._note(
            "should_serve_stale",
            ctx,
            "None" if error is None else error.root_etype(),
            error=error,
        )
        return bool(
            self._run(
                "should_serve_stale",
                lambda: ProxyHttp.should_serve_stale(self, session, ctx, error),
                session,
                ctx,
                error,
            )
        )

    async def logging(self, session: Session, e: ProxyError | None, ctx: Ctx) -> None:
        self._note(
            "logging",
            ctx,
            None if e is None else e.etype,
            session=session,
            e=e,
            phase=session.cache.phase(),
        )
        await self._async("logging", None, session, e, ctx)


@asynccontextmanager
async def open_cache(
    proxy: ProxyHttp[Any],
    origins: Outcome | Origins,
    *,
    conf: ServerConf | None = None,
    lockstep: bool = False,
    adapt: Adapt = StreamAdapter,
) -> AsyncIterator[Gateway]:
    """Run a gateway with wall time on Trio's clock and a place for what runs in the background.

    Args:
      proxy: The proxy object.
      origins: See `open_gateway`.
      conf: Timeouts and limits.
      lockstep: Let every write wait until the other party has read it all.
      adapt: Makes the gateway's transports.
    """
    with clock_from(_Clock().now):
        async with trio.open_nursery() as outer:
            background = await outer.start(_host)
            async with open_gateway(
                proxy, origins, conf=conf, lockstep=lockstep, adapt=adapt
            ) as gateway:
                gateway.services.nursery = background
                yield gateway
                for client in gateway.clients:
                    client.close()
                await gateway.ended()
                await settled()
                assert gateway.services.background == 0
            assert not background.child_tasks
            background.cancel_scope.cancel()
            if isinstance(proxy, CacheRecorder):
                check_clean(proxy)


class _Clock:
    """Trio's clock, which threads cannot read, as wall time."""

    def __init__(self) -> None:
        self._last = EPOCH

    def now(self) -> float:
        """Return the seconds since the epoch, as they were last seen where this is a thread."""
        try:
            self._last = EPOCH + trio.current_time()
        except RuntimeError:
            pass
        return self._last


async def _host(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Keep a nursery open that can be cancelled by itself."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


async def settled() -> None:
    """Return when nothing goes on any more without time or another party."""
    await trio.testing.wait_all_tasks_blocked()


def check_clean(proxy: CacheRecorder) -> None:
    """Check that no lock is held or waited for, and that nothing is being read or written."""
    if proxy.lock is not None:
        statistics = proxy.lock.statistics()
        assert (statistics.held, statistics.waiting) == (0, 0)
    if proxy.storage is not None:
        kept = proxy.storage.statistics()
        assert (kept.writing, kept.reserved) == (0, 0)
    if isinstance(proxy.storage, MemoryStorage):
        assert proxy.storage._shelf.pinned == 0


def stored_body(storage: Storage | None) -> list[bytes]:
    """Return the bodies of all complete entries of a store in memory."""
    assert isinstance(storage, MemoryStorage)
    return [b"".join(entry.pieces) for entry in storage._shelf.entries.values()]


@attrs.define(eq=False)
class Steps:
    """An origin that answers step by step: each request waits for its own event.

    Attributes:
      asked: The requests that came.
      steps: What is done for each request in turn, the last repeated: bytes are sent, an event is
        waited for, as are seconds, None closes the connection.
    """

    steps: list[list[bytes | trio.Event | float | None]]
    asked: list[Any] = attrs.field(factory=list)

    def origin(self) -> Origin:
        """Return the origin."""

        async def serve(wire: Wire) -> None:
            while True:
                try:
                    message = await wire.message()
                except Exception:
                    return
                steps = self.steps[min(len(self.asked), len(self.steps) - 1)]
                self.asked.append(message)
                for step in steps:
                    if step is None:
                        return
                    if isinstance(step, trio.Event):
                        await step.wait()
                    elif isinstance(step, float):
                        await trio.sleep(step)
                    else:
                        await wire.send(step)

        return serve
