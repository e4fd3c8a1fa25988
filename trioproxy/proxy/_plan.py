"""Which callbacks a trait class overrides, found out and checked once, when the class is made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import attrs

ASYNC, SYNC, EITHER = "async def", "def", "def or async def"

#: Every callback in the order in which they run: name, arguments besides self, kind.
CALLBACKS: tuple[tuple[str, int, str], ...] = (
    ("init_downstream_modules", 1, SYNC),
    ("init_upstream_modules", 1, SYNC),
    ("new_ctx", 0, SYNC),
    ("on_connection_reuse", 3, SYNC),
    ("early_request_filter", 2, ASYNC),
    ("request_filter", 2, ASYNC),
    ("request_cache_filter", 2, SYNC),
    ("cache_key_callback", 2, SYNC),
    ("is_purge", 2, SYNC),
    ("purge_response_filter", 4, SYNC),
    ("cache_hit_filter", 5, ASYNC),
    ("cache_miss", 2, SYNC),
    ("proxy_upstream_filter", 2, ASYNC),
    ("upstream_peer", 2, ASYNC),
    ("fail_to_connect", 4, SYNC),
    ("connected_to_upstream", 6, ASYNC),
    ("upstream_request_filter", 3, ASYNC),
    ("custom_forwarding", 4, ASYNC),
    ("downstream_custom_message_proxy_filter", 4, ASYNC),
    ("upstream_custom_message_proxy_filter", 4, ASYNC),
    ("request_body_filter", 4, ASYNC),
    ("adjust_upstream_modules", 4, ASYNC),
    ("upstream_response_filter", 3, ASYNC),
    ("response_cache_filter", 3, SYNC),
    ("cache_vary_filter", 3, SYNC),
    ("cache_not_modified_filter", 3, SYNC),
    ("range_header_filter", 3, SYNC),
    ("response_filter", 3, ASYNC),
    ("upstream_response_body_filter", 4, EITHER),
    ("response_body_filter", 4, EITHER),
    ("upstream_response_trailer_filter", 3, SYNC),
    ("response_trailer_filter", 3, ASYNC),
    ("error_while_proxy", 5, SYNC),
    ("should_serve_stale", 3, SYNC),
    ("fail_to_proxy", 3, ASYNC),
    ("suppress_error_log", 3, SYNC),
    ("request_summary", 2, SYNC),
    ("logging", 3, ASYNC),
    ("persist_connection_context", 2, SYNC),
)
NAMES = frozenset(name for name, _, _ in CALLBACKS)


@attrs.frozen
class Plan:
    """What a trait class overrides.

    Attributes:
      overrides: The callbacks it has of its own.
      is_async: Those of them that are coroutine functions.
    """

    overrides: frozenset[str]
    is_async: frozenset[str]


def _distance_within(one: str, other: str, most: int) -> bool:
    """Tell whether two names are at most so many edits apart (Levenshtein)."""
    if abs(len(one) - len(other)) > most:
        return False
    previous = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        current = [row]
        for column, right in enumerate(other, 1):
            current.append(
                min(
                    previous[column] + 1,
                    current[column - 1] + 1,
                    previous[column - 1] + (left != right),
                )
            )
        previous = current
    return previous[-1] <= most


def _unbound(attribute: object) -> tuple[Callable[..., Any] | None, bool]:
    """Return a method's function, and whether it takes self."""
    if isinstance(attribute, staticmethod):
        return attribute.__func__, False
    if isinstance(attribute, classmethod):
        return attribute.__func__, True
    if isinstance(attribute, functools.partialmethod):
        return attribute.__get__(None, object), True
    return (attribute, True) if callable(attribute) else (None, True)


def _coroutine(function: Callable[..., Any]) -> bool:
    # A partialmethod's function knows only by this name what it calls; the name varies.
    partial = getattr(function, "__partialmethod__", getattr(function, "_partialmethod", None))
    if partial is not None:
        function = partial.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        inspect.unwrap(function)
    )


def _example(name: str, kind: str, base: type) -> str:
    signature = inspect.signature(getattr(base, name))
    names = ", ".join(signature.parameters)
    keyword = "def" if kind == EITHER else kind
    return f"{keyword} {name}({names})"


def check_class(cls: type, base: type) -> None:
    """Refuse wrong overrides in a trait class that is being made.

    Args:
      cls: The new class.
      base: `ProxyHttp`.

    Raises:
      TypeError: one line that says what was meant.
    """
    ours = set(base.__mro__)
    for owner in cls.__mro__:
        if owner in ours:
            continue
        for name, attribute in vars(owner).items():
            if name.startswith("_") or name in NAMES or name in vars(base):
                continue
            function, _ = _unbound(attribute)
            if function is None or not inspect.isroutine(inspect.unwrap(function)):
                continue
            for callback in sorted(NAMES):
                if _distance_within(name, callback, 2):
                    raise TypeError(
                        f"{cls.__name__}.{name} is not a callback: {callback} was meant "
                        "(name it otherwise, or with a leading underscore, if it is your own)"
                    )
    for name, count, kind in CALLBACKS:
        attribute = inspect.getattr_static(cls, name)
        if attribute is inspect.getattr_static(base, name):
            continue
        function, takes_self = _unbound(attribute)
        label = f"{cls.__name__}.{name}"
        if function is None:
            raise TypeError(f"{label} is a callback and must be a method")
        arguments: list[object] = [None] * (count + takes_self)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*arguments)
        except TypeError:
            raise TypeError(
                f"{label} takes the wrong arguments: {_example(name, kind, base)} was meant"
            ) from None
        is_async = _coroutine(function)
        if kind == ASYNC and not is_async:
            raise TypeError(
                f"{label} must be a coroutine function: {_example(name, kind, base)} was meant"
            )
        if kind == SYNC and is_async:
            raise TypeError(
                f"{label} must be a plain function: {_example(name, kind, base)} was meant"
            )


def make_plan(cls: type, base: type) -> Plan:
    """Find out what a class overrides."""
    overrides = frozenset(
        name
        for name in NAMES
        if inspect.getattr_static(cls, name) is not inspect.getattr_static(base, name)
    )
    is_async = set()
    for name in overrides:
        function, _ = _unbound(inspect.getattr_static(cls, name))
        if function is not None and _coroutine(function):
            is_async.add(name)
    return Plan(overrides, frozenset(is_async))


def plan_of(cls: type) -> Plan:
    """Return the plan of a trait class, made when the class was."""
    plan = vars(cls).get("_trioproxy_plan")
    assert isinstance(plan, Plan)
    return plan
