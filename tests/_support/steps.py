"""Doing something right before the k-th step of a run that takes the same steps each time."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio._core._run
from trio.testing import MockClock


class AtStep(trio.abc.Instrument):
    """Counts the steps of Trio's tasks while it is on, and does its deed before one of them."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.deed: Callable[[], None] | None = None
        self.on = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.on:
            self.count += 1
            if self.count == self.step and self.deed is not None:
                self.deed()


def run_with(bomb: AtStep, main: Callable[[], Awaitable[None]]) -> None:
    """Run a function on virtual time with its tasks in one order; `use_one_schedule` first."""
    trio._core._run._r.seed(1)
    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[bomb])


def some_steps(total: int, stride: int) -> range:
    """Return every so many steps of a run, from one on that the seed of the test run decides.

    A run of the suite takes some of the steps; over its runs all of them come up. With
    ``TRIOPROXY_EVERY_STEP`` in the environment, as ``nox -s fuzz`` has it, it is every one.
    """
    if os.environ.get("TRIOPROXY_EVERY_STEP"):
        stride = 1
    return range(1 + random.randrange(stride), total + 1, stride)


def use_one_schedule(patch: pytest.MonkeyPatch) -> None:
    """Let the tasks of a batch run in an order that the seed decides."""
    patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
