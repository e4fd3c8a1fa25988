"""Small things on Trio that several layers share."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from ._errors import ErrorType, ProxyError

T = TypeVar("T")


class Bell:
    """Wakes the one task that waits; ringing while nobody waits does nothing.

    The waiter checks its own condition before it waits and again when it wakes, as both sides run
    in one thread. Cheaper than an event per wait.
    """

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        """Wake the waiting task, if there is one."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait for the next ring.

        Raises:
          trio.BusyResourceError: another task waits already.
          trio.Cancelled: nothing is lost.
        """
        if self._task is not None:
            raise trio.BusyResourceError("another task is waiting here")
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


def unwrap(exc: BaseException) -> BaseException:
    """Return the one error that matters out of (nested) exception groups.

    The first one that is no `trio.Cancelled` counts; its cause and context stay as they are.
    """
    while isinstance(exc, BaseExceptionGroup):
        rest = [each for each in exc.exceptions if not _only_cancelled(each)]
        exc = rest[0] if rest else exc.exceptions[0]
    return exc


def _only_cancelled(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(_only_cancelled(each) for each in exc.exceptions)
    return isinstance(exc, trio.Cancelled)


@attrs.define(eq=False)
class TunnelLimits:
    """How long bytes may be waited for in two directions that belong together (row T-05).

    Attributes:
      idle_timeout: Seconds in which nothing may move in either direction.
      half_close_timeout: Seconds for the other direction, once one has ended.
    """

    idle_timeout: float
    half_close_timeout: float
    _idle_at: float = attrs.field(init=False)
    _closes_at: float = attrs.field(init=False, default=math.inf)
    #: The scopes of the directions that wait now.
    _waits: set[trio.CancelScope] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self.moved()

    def moved(self) -> None:
        """Tell that bytes have moved now."""
        self._idle_at = trio.current_time() + self.idle_timeout

    async def wait(self, receive: Callable[[], Awaitable[T]]) -> T:
        """Return what a function waits for.

        Raises:
          ProxyError: ReadTimedout of unset source: nothing moved in either direction for too long,
            or the other side ended too long ago.
        """
        while True:
            with trio.move_on_at(min(self._idle_at, self._closes_at)) as scope:
                self._waits.add(scope)
                try:
                    received = await receive()
                finally:
                    self._waits.discard(scope)
                self.moved()
                return received
            now = trio.current_time()
            if now >= self._closes_at:
                raise ProxyError.explain(
                    ErrorType.ReadTimedout,
                    "one side of the tunnel had ended, the other went on for "
                    f"{self.half_close_timeout:g} s",
                )
            if now >= self._idle_at and not self._waits and self._closes_at == math.inf:
                self.moved()  # the other direction is at work on what it has received
            if now >= self._idle_at:
                raise ProxyError.explain(
                    ErrorType.ReadTimedout,
                    f"nothing moved in the tunnel for {self.idle_timeout:g} s",
                )

    def half_closed(self) -> None:
        """Let the other direction go on for a while."""
        self._closes_at = min(self._closes_at, trio.current_time() + self.half_close_timeout)
        for scope in self._waits:
            scope.deadline = min(scope.deadline, self._closes_at)
