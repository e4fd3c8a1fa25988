"""The callbacks of one proxy object, bound once: None for whatever it does not override."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from .._messages import RequestHeader
from ..modules._abc import HttpModules
from ._filters import ProxyHttp
from ._plan import plan_of

Callback = Callable[..., Any]


@attrs.define(eq=False)
class Filters:
    """What the engine calls; an idle callback costs one comparison with None."""

    new_ctx: Callback
    upstream_peer: Callback
    fail_to_proxy: Callback
    error_while_proxy: Callback
    request_summary: Callback
    cache_key_callback: Callback
    cache_miss: Callback
    response_cache_filter: Callback
    cache_not_modified_filter: Callback
    range_header_filter: Callback
    should_serve_stale: Callback
    early_request_filter: Callback | None = None
    allow_spawning_subrequest: Callback | None = None
    request_filter: Callback | None = None
    request_cache_filter: Callback | None = None
    is_purge: Callback | None = None
    purge_response_filter: Callback | None = None
    cache_hit_filter: Callback | None = None
    cache_vary_filter: Callback | None = None
    proxy_upstream_filter: Callback | None = None
    connected_to_upstream: Callback | None = None
    fail_to_connect: Callback | None = None
    upstream_request_filter: Callback | None = None
    custom_forwarding: Callback | None = None
    downstream_custom_message_proxy_filter: Callback | None = None
    upstream_custom_message_proxy_filter: Callback | None = None
    request_body_filter: Callback | None = None
    upstream_response_filter: Callback | None = None
    upstream_response_body_filter: Callback | None = None
    upstream_response_body_filter_is_async: bool = False
    upstream_response_trailer_filter: Callback | None = None
    response_filter: Callback | None = None
    response_body_filter: Callback | None = None
    response_body_filter_is_async: bool = False
    response_trailer_filter: Callback | None = None
    suppress_error_log: Callback | None = None
    logging: Callback | None = None
    adjust_upstream_modules: Callback | None = None
    persist_connection_context: Callback | None = None
    on_connection_reuse: Callback | None = None
    #: Chooses by the request whose callbacks they are, in place of these; None for these always.
    choose: Callable[[RequestHeader], Filters] | None = None
    #: The modules of either side, None where there are none.
    modules: HttpModules | None = None
    upstream_modules: HttpModules | None = None
    #: Whether every request has instances of them, or only one that asks.
    modules_at_once: bool = False
    upstream_modules_at_once: bool = False
    #: Whether anything of these has to do with a cache.
    caches: bool = False
    #: The same without the filters of the upstream's side, which have run where a cache looks on.
    of_client: Any = None

    #: Callbacks of which the engine calls the default too.
    ALWAYS: ClassVar[frozenset[str]] = frozenset(
        {
            "new_ctx",
            "upstream_peer",
            "fail_to_proxy",
            "error_while_proxy",
            "request_summary",
            "cache_key_callback",
            "cache_miss",
            "response_cache_filter",
            "cache_not_modified_filter",
            "range_header_filter",
            "should_serve_stale",
        }
    )
    #: Callbacks that are called here, and never again.
    ONCE: ClassVar[frozenset[str]] = frozenset({"init_downstream_modules", "init_upstream_modules"})
    FIELDS: ClassVar[frozenset[str]]

    @classmethod
    def bind(cls, proxy: ProxyHttp[Any]) -> Filters:
        """Bind the callbacks that the proxy's class overrides."""
        plan = plan_of(type(proxy))
        bound: dict[str, Any] = {name: getattr(proxy, name) for name in cls.ALWAYS}
        for name in plan.overrides - cls.ONCE:
            bound[name] = getattr(proxy, name)
            if f"{name}_is_async" in cls.FIELDS:
                bound[f"{name}_is_async"] = name in plan.is_async
        downstream, upstream = HttpModules(), HttpModules()
        proxy.init_downstream_modules(downstream)
        proxy.init_upstream_modules(upstream)
        return cls.made(bound, downstream, upstream)

    @classmethod
    def made(cls, bound: dict[str, Any], downstream: HttpModules, upstream: HttpModules) -> Filters:
        """Return bound callbacks by their names, with the modules of either side."""
        for name, modules in (("modules", downstream), ("upstream_modules", upstream)):
            if modules.builders:
                bound[name] = modules
                bound[f"{name}_at_once"] = not all(each.on_demand for each in modules.builders)
        bound["caches"] = "request_cache_filter" in bound or "is_purge" in bound
        filters = cls(**bound)
        filters.of_client = attrs.evolve(
            filters, upstream_response_filter=None, upstream_response_body_filter=None
        )
        return filters


Filters.FIELDS = frozenset(field.name for field in attrs.fields(Filters))
