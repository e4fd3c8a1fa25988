"""The callbacks of one proxy object, bound once: None for whatever it does not override."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .._callbacks import plan_of
from ._filters import ProxyStream

Callback = Callable[..., Any]


@attrs.define(eq=False)
class StreamFilters:
    """What the engine calls."""

    new_ctx: Callback
    upstream_peer: Callback
    accept_filter: Callback | None = None
    fail_to_connect: Callback | None = None
    connected_to_upstream: Callback | None = None
    downstream_data_filter: Callback | None = None
    upstream_data_filter: Callback | None = None
    error_while_proxy: Callback | None = None
    logging: Callback | None = None
    #: Those of them that are coroutine functions.
    is_async: frozenset[str] = frozenset()

    @classmethod
    def bind(cls, proxy: ProxyStream[Any]) -> StreamFilters:
        """Bind the callbacks that the proxy's class overrides."""
        plan = plan_of(type(proxy))
        bound = {name: getattr(proxy, name) for name in plan.overrides}
        return cls(**bound, is_async=plan.is_async)
