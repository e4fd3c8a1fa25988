"""The trait's callbacks by name: kinds, arguments and defaults, written down apart from the code."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests._support.recording import ORIGIN
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    Headers,
    HttpPeer,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    Session,
)
from trioproxy.cache import Uncacheable
from trioproxy.modules import HttpModules, ResponseCompression
from trioproxy.proxy._plan import CALLBACKS

#: Pingora's name, its arguments, and whether it is async; "either" where the seed's is sync and
#: both forms may be written.
SEED = {
    # set-up
    "new_ctx": ("", "sync"),
    "init_downstream_modules": ("modules", "sync"),
    # the request
    "early_request_filter": ("session ctx", "async"),
    "allow_spawning_subrequest": ("session ctx", "sync"),
    "request_filter": ("session ctx", "async"),
    "request_body_filter": ("session body end_of_stream ctx", "async"),
    "request_cache_filter": ("session ctx", "sync"),
    "cache_key_callback": ("session ctx", "sync"),
    "proxy_upstream_filter": ("session ctx", "async"),
    "upstream_peer": ("session ctx", "async"),
    "upstream_request_filter": ("session upstream_request ctx", "async"),
    # the connection
    "connected_to_upstream": ("session reused peer fd digest ctx", "async"),
    "fail_to_connect": ("session peer ctx e", "sync"),
    "error_while_proxy": ("peer session e ctx client_reused", "sync"),
    # the response
    "upstream_response_filter": ("session upstream_response ctx", "async"),
    "upstream_response_body_filter": ("session body end_of_stream ctx", "either"),
    "upstream_response_trailer_filter": ("session upstream_trailers ctx", "sync"),
    "response_filter": ("session upstream_response ctx", "async"),
    "response_body_filter": ("session body end_of_stream ctx", "either"),
    "response_trailer_filter": ("session upstream_trailers ctx", "async"),
    # the cache
    "cache_miss": ("session ctx", "sync"),
    "cache_hit_filter": ("session meta hit_handler is_fresh ctx", "async"),
    "response_cache_filter": ("session resp ctx", "sync"),
    "cache_vary_filter": ("meta ctx req", "sync"),
    "cache_not_modified_filter": ("session resp ctx", "sync"),
    "range_header_filter": ("session resp ctx", "sync"),
    "should_serve_stale": ("session ctx error", "sync"),
    "is_purge": ("session ctx", "sync"),
    "purge_response_filter": ("session ctx purge_status purge_response", "sync"),
    # errors and the end
    "fail_to_proxy": ("session e ctx", "async"),
    "suppress_error_log": ("session ctx error", "sync"),
    "request_summary": ("session ctx", "sync"),
    "logging": ("session e ctx", "async"),
    # custom protocols
    "custom_forwarding": (
        "session ctx custom_message_to_upstream custom_message_to_downstream",
        "async",
    ),
    "downstream_custom_message_proxy_filter": ("session custom_message ctx final_hop", "async"),
    "upstream_custom_message_proxy_filter": ("session custom_message ctx final_hop", "async"),
}
#: What newer releases of Pingora have beside them.
NEWER = {
    "init_upstream_modules": ("modules", "sync"),
    "adjust_upstream_modules": ("session upstream_response end_of_stream ctx", "async"),
    "persist_connection_context": ("session ctx", "sync"),
    "on_connection_reuse": ("session ctx prev_ctx", "sync"),
}
ALL = SEED | NEWER


def test_the_seed_has_36_callbacks_and_all_of_them_are_here() -> None:
    assert len(SEED) == 36
    assert {name for name, _, _ in CALLBACKS} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_callback_has_the_seeds_arguments_and_kind(name: str) -> None:
    arguments, kind = ALL[name]
    method = getattr(ProxyHttp, name)
    assert list(inspect.signature(method).parameters) == ["self", *arguments.split()]
    assert inspect.iscoroutinefunction(method) is (kind == "async")
    told = {each: told for each, _, told in CALLBACKS}[name]
    assert told == {"sync": "def", "async": "async def", "either": "def or async def"}[kind]
    assert method.__doc__
    assert "Pingora:" in " ".join(method.__doc__.split())


class Bare(ProxyHttp[str]):
    """Overrides what it has to, and nothing else."""

    def new_ctx(self) -> str:
        return "ctx"

    async def upstream_peer(self, session: Session, ctx: str) -> HttpPeer:
        return ORIGIN


class _Cache:
    def __init__(self) -> None:
        self.missed = 0

    def cache_miss(self) -> None:
        self.missed += 1


class _Session:
    """As much of a session as the defaults look at."""

    def __init__(self) -> None:
        self.cache = _Cache()
        self.answered: list[int] = []

    def req_header(self) -> RequestHeader:
        return RequestHeader("GET", "/p", {"Host": "h"})

    def retry_buffer_truncated(self) -> bool:
        return False

    async def respond_error(self, code: int) -> None:
        self.answered.append(code)


def _error() -> ProxyError:
    return ProxyError.explain(ErrorType.ReadError, "x").into_up()


async def default(name: str, *args: Any) -> Any:
    """Return what a callback's default returns."""
    result = getattr(Bare(), name)(*args)
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("early_request_filter", ("session", "ctx"), None),
        ("allow_spawning_subrequest", ("session", "ctx"), False),
        ("request_filter", ("session", "ctx"), False),
        ("request_body_filter", ("session", BodyChunk(b"x"), True, "ctx"), None),
        ("request_cache_filter", ("session", "ctx"), None),
        ("proxy_upstream_filter", ("session", "ctx"), True),
        ("upstream_request_filter", ("session", "head", "ctx"), None),
        ("connected_to_upstream", ("session", True, ORIGIN, 3, None, "ctx"), None),
        ("upstream_response_filter", ("session", ResponseHeader(200), "ctx"), None),
        ("upstream_response_body_filter", ("session", BodyChunk(b"x"), True, "ctx"), None),
        ("upstream_response_trailer_filter", ("session", Headers(), "ctx"), None),
        ("response_filter", ("session", ResponseHeader(200), "ctx"), None),
        ("response_body_filter", ("session", BodyChunk(b"x"), True, "ctx"), None),
        ("response_trailer_filter", ("session", Headers(), "ctx"), None),
        ("cache_hit_filter", ("session", "meta", "handler", True, "ctx"), None),
        ("cache_vary_filter", ("meta", "ctx", "request"), None),
        ("should_serve_stale", ("session", "ctx", None), False),
        ("should_serve_stale", ("session", "ctx", _error()), True),
        ("is_purge", ("session", "ctx"), False),
        ("purge_response_filter", ("session", "ctx", "status", ResponseHeader(200)), None),
        ("suppress_error_log", ("session", "ctx", _error()), False),
        ("logging", ("session", None, "ctx"), None),
        ("custom_forwarding", ("session", "ctx", None, "channel"), None),
        ("downstream_custom_message_proxy_filter", ("session", b"m", "ctx", False), b"m"),
        ("upstream_custom_message_proxy_filter", ("session", b"m", "ctx", True), b"m"),
        ("init_upstream_modules", (HttpModules(),), None),
        ("adjust_upstream_modules", ("session", ResponseHeader(200), False, "ctx"), None),
        ("persist_connection_context", ("session", "ctx"), None),
        ("on_connection_reuse", ("session", "ctx", "left"), None),
    ],
)
async def test_a_default_does_what_the_seeds_does(
    name: str, args: tuple[Any, ...], expected: Any
) -> None:
    assert await default(name, *args) == expected


async def test_the_default_modules_are_compression_that_waits_to_be_asked_for() -> None:
    modules = HttpModules()
    await default("init_downstream_modules", modules)
    (builder,) = modules.builders
    assert builder.module_type is ResponseCompression
    assert builder.on_demand


async def test_the_default_key_is_that_of_row_c_01() -> None:
    session = _Session()
    assert await default("cache_key_callback", session, "ctx")


async def test_the_default_of_cache_miss_fills() -> None:
    session = _Session()
    await default("cache_miss", session, "ctx")
    assert session.cache.missed == 1


async def test_the_default_stores_nothing() -> None:
    assert isinstance(
        await default("response_cache_filter", "session", ResponseHeader(200), "ctx"), Uncacheable
    )


async def test_the_default_conditions_and_ranges_send_all_to_who_asks_for_all() -> None:
    session = _Session()
    assert await default("cache_not_modified_filter", session, ResponseHeader(200), "ctx") is False
    found = await default("range_header_filter", session, ResponseHeader(200), "ctx")
    assert type(found).__name__ == "NoRange"


async def test_an_error_of_connecting_is_handed_back() -> None:
    error = _error()
    assert await default("fail_to_connect", "session", ORIGIN, "ctx", error) is error


async def test_the_default_of_error_while_proxy_names_the_peer() -> None:
    error = await default("error_while_proxy", ORIGIN, _Session(), _error(), "ctx", True)
    assert "Peer: " in error.context
    assert error.esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProxyError.status(418), 418),
        (_error(), 502),
        (ProxyError.explain(ErrorType.ConnectionClosed, "gone").into_down(), 0),
        (ProxyError.explain(ErrorType.InvalidHTTPHeader, "bad").into_down(), 400),
        (ProxyError.explain(ErrorType.InternalError, "ours").into_in(), 500),
    ],
)
async def test_the_default_answer_to_an_error(error: ProxyError, code: int) -> None:
    session = _Session()
    outcome = await default("fail_to_proxy", session, error, "ctx")
    assert (outcome.error_code, outcome.can_reuse_downstream) == (code, False)
    assert session.answered == ([code] if code else [])


async def test_the_default_summary() -> None:
    assert await default("request_summary", _Session(), "ctx") == "GET /p, Host: h"


def test_new_ctx_and_upstream_peer_must_be_written() -> None:
    assert ProxyHttp.__abstractmethods__ == {"new_ctx", "upstream_peer"}
