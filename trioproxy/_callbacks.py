"""What every trait does with its callbacks: which ones a class overrides, and what they raise.

The overrides are found out and checked once, when the class is made, against a table of the
trait's callbacks.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import attrs

from ._errors import ErrorSource, ErrorType, ProxyError, RetryType
from ._util import unwrap

log = logging.getLogger("trioproxy")

ASYNC, SYNC, EITHER = "async def", "def", "def or async def"

#: A trait's callbacks in the order in which they run: name, arguments besides self, kind.
Table = tuple[tuple[str, int, str], ...]


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


def check_class(cls: type, base: type, table: Table) -> None:
    """Refuse wrong overrides in a trait class that is being made.

    Args:
      cls: The new class.
      base: The trait.
      table: Its callbacks.

    Raises:
      TypeError: one line that says what was meant.
    """
    ours = set(base.__mro__)
    names = sorted(name for name, _, _ in table)
    for owner in cls.__mro__:
        if owner in ours:
            continue
        for name, attribute in vars(owner).items():
            if name.startswith("_") or name in names or name in vars(base):
                continue
            function, _ = _unbound(attribute)
            if function is None or not inspect.isroutine(inspect.unwrap(function)):
                continue
            for callback in names:
                if _distance_within(name, callback, 2):
                    raise TypeError(
                        f"{cls.__name__}.{name} is not a callback: {callback} was meant "
                        "(name it otherwise, or with a leading underscore, if it is your own)"
                    )
    for name, count, kind in table:
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


def make_plan(cls: type, base: type, table: Table) -> Plan:
    """Find out what a class overrides of a trait's callbacks."""
    overrides = frozenset(
        name
        for name, _, _ in table
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


def error_of(exc: BaseException, callback: str) -> ProxyError:
    """Return the `ProxyError` for an exception that left a callback or a stream.

    A `ProxyError` stays itself. Anything else is a mistake in a callback: it becomes an internal
    error with the exception as its cause, and its traceback is logged here, once.

    Args:
      exc: What was raised.
      callback: Where, for the log.
    """
    exc = unwrap(exc)
    if isinstance(exc, ProxyError):
        return exc
    log.error("%s raised %s: %s", callback, type(exc).__name__, exc, exc_info=exc)
    error = ProxyError.because(ErrorType.InternalError, f"{callback} raised an exception", exc)
    error.esource = ErrorSource.INTERNAL
    error.retry = RetryType.Decided(False)
    return error


def log_failure_of(exc: Exception, callback: str) -> None:
    """Log what a callback that may not fail has raised.

    That a client left while it was being answered is nobody's mistake, and told elsewhere.
    """
    raised = unwrap(exc)
    if not (isinstance(raised, ProxyError) and raised.esource is ErrorSource.DOWNSTREAM):
        log.error("%s raised %s: %s", callback, type(raised).__name__, raised, exc_info=raised)
