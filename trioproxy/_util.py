"""Small things on Trio that several layers share."""

from __future__ import annotations

import trio


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
