"""What a class of streams may override, and what is refused when it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from trioproxy._callbacks import ASYNC, SYNC, plan_of
from trioproxy.stream import ProxyStream
from trioproxy.stream._filters import CALLBACKS


def made_with(**members: object) -> type[ProxyStream[None]]:
    """Make a class with these members beside what must be there."""

    async def upstream_peer(self: object, session: object, ctx: None) -> None:
        return None

    def new_ctx(self: object) -> None:
        return None

    return type(
        "Mine", (ProxyStream,), {"new_ctx": new_ctx, "upstream_peer": upstream_peer, **members}
    )


def test_the_table_is_that_of_the_class() -> None:
    methods = [name for name, value in vars(ProxyStream).items() if inspect.isfunction(value)]
    own = [name for name in methods if not name.startswith("_")]
    assert own == [name for name, _, _ in CALLBACKS]
    for name, count, kind in CALLBACKS:
        method = getattr(ProxyStream, name)
        assert len(inspect.signature(method).parameters) == count + 1, name
        if kind in (ASYNC, SYNC):
            assert inspect.iscoroutinefunction(method) == (kind == ASYNC), name


@pytest.mark.parametrize(("name", "count", "kind"), CALLBACKS)
def test_every_callback_can_be_overridden_in_its_kind(name: str, count: int, kind: str) -> None:
    def plain(self: object, *args: object) -> None:
        return None

    async def waiting(self: object, *args: object) -> None:
        return None

    allowed: list[Callable[..., Any]] = []
    for function, keyword in ((plain, SYNC), (waiting, ASYNC)):
        if kind in (keyword, "def or async def"):
            allowed.append(function)
            plan = plan_of(made_with(**{name: function}))
            assert name in plan.overrides
            assert (name in plan.is_async) == (function is waiting)
        else:
            with pytest.raises(TypeError, match=rf"Mine\.{name} must be a"):
                made_with(**{name: function})
    assert allowed
    with pytest.raises(TypeError, match=rf"Mine\.{name} takes the wrong arguments: "):
        made_with(**{name: lambda *, only: None})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("acept_filter", "accept_filter"),
        ("upstream_pear", "upstream_peer"),
        ("downstream_data_filters", "downstream_data_filter"),
        ("fail_to_conect", "fail_to_connect"),
    ],
)
def test_a_near_miss_is_refused(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine\.{name} is not a callback: {meant} was meant"):
        made_with(**{name: lambda self: None})


@pytest.mark.parametrize("name", ["request_filter", "response_filter", "helper", "fail_to_proxy"])
def test_the_callbacks_of_http_are_methods_like_any_other(name: str) -> None:
    assert plan_of(made_with(**{name: lambda self: None})).overrides == {"new_ctx", "upstream_peer"}


def test_without_what_must_be_there_no_object_can_be_made() -> None:
    class Nothing(ProxyStream[None]):
        pass

    with pytest.raises(TypeError, match="new_ctx"):
        Nothing()  # type: ignore[abstract]
