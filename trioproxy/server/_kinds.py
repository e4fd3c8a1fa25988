"""Which kinds of proxy objects there are, and how each is served."""

from __future__ import annotations

from typing import Any

from ..cache._storage import Storage
from ..proxy._compose import Composite
from ..proxy._compose import Proxy as HttpProxy
from ..proxy._filters import ProxyHttp
from ..stream._filters import ProxyStream
from . import _http
from ._service import Service
from ._stream import StreamService

Proxy = HttpProxy | ProxyStream[Any]

_KINDS: tuple[tuple[type, type[Service]], ...] = (
    (ProxyHttp, _http.HttpService),
    (Composite, _http.HttpService),
    (ProxyStream, StreamService),
)


def kind_of(proxy: object) -> type[Service] | None:
    """Return how a proxy object is served, None where it is no such object."""
    for trait, service in _KINDS:
        if isinstance(proxy, trait):
            return service
    return None


def storages(proxy: Proxy) -> list[Storage]:
    """Return the storages that a proxy caches in."""
    return [] if isinstance(proxy, ProxyStream) else _http.storages(proxy)
