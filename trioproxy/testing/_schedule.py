"""The order of tasks from a seed: the one place that touches Trio's private names.

Trio runs the tasks that are ready in batches, and reverses a batch or not by a random source of its
own. Its Hypothesis plugin makes that repeatable by the two names that are used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
import trio._core._run as _run


@contextmanager
def seeded_schedule(seed: int) -> Iterator[None]:
    """Let the `trio.run` inside this block take the same order of tasks for the same seed."""
    allowed, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()  # noqa: SLF001  # see the module's docstring
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001  # Trio calls it final, and its plugin sets it
    _run._r.seed(seed)  # noqa: SLF001
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]  # noqa: SLF001  # as above
        _run._r.setstate(state)  # noqa: SLF001


class AtStep(trio.abc.Instrument):
    """Counts the steps of tasks, and does something before one of them."""

    def __init__(self, step: int = 0, deed: Callable[[], None] | None = None) -> None:
        """Make an instrument.

        Args:
          step: The number of the step; 0 only counts.
          deed: What to do before it.
        """
        self.step = step
        self.count = 0
        self.deed = deed
        self.started = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count."""
        if self.started:
            self.count += 1
            if self.count == self.step and self.deed is not None:
                self.deed()
