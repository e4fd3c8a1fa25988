"""What a reader task and the consumer of its connection share: a bell and a movable deadline."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import trio


@attrs.define(eq=False)
class ReadTimer:
    """One deadline per connection, moved from wait to wait, around the reader's waits alone.

    Moving a Trio deadline costs; so the deadline that Trio knows is only ever moved *earlier*, and
    `expired` tells the reader whether the logical one has passed when Trio's fires. A timer that
    is armed and disarmed for every request thus costs two attribute writes.
    """

    limit: float = math.inf
    what: str = ""
    _scope: trio.CancelScope | None = None
    _now: Callable[[], float] = attrs.field(
        factory=lambda: trio.lowlevel.current_clock().current_time
    )

    def scope(self) -> trio.CancelScope:
        """Return the scope that the reader waits in next."""
        self._scope = trio.CancelScope(deadline=self.limit)
        return self._scope

    def arm(self, seconds: float, what: str) -> None:
        """Let the wait named ``what`` end in so many seconds from now."""
        if seconds == math.inf:
            self.limit = math.inf
            return
        self.at(self._now() + seconds, what)

    def at(self, moment: float, what: str) -> None:
        """Let the wait named ``what`` end at a moment of Trio's clock."""
        self.limit = moment
        self.what = what
        if self._scope is not None and moment < self._scope.deadline:
            self._scope.deadline = moment

    def disarm(self) -> None:
        """Let the reader wait without limit."""
        self.limit = math.inf

    def expired(self) -> bool:
        """Tell whether the logical deadline has passed."""
        return trio.current_time() >= self.limit


#: Seconds that content may stay behind its lowest rate.
RATE_GRACE = 5.0


@attrs.define(eq=False)
class Allowance:
    """How long its receiver may still wait for content that has a lowest rate.

    Only waiting uses it up: content that we do not read costs its sender nothing.

    Attributes:
      rate: Bytes a second, 0 for no such rule.
      seconds: What is left; `math.inf` without a rule.
    """

    rate: float = 0.0
    seconds: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.seconds = RATE_GRACE if self.rate else math.inf

    def waited(self, seconds: float) -> None:
        """Take a wait off."""
        self.seconds -= seconds

    def received(self, size: int, most: float) -> None:
        """Count what came as time in which the sender may be slow, but never save up for more."""
        if self.rate:
            self.seconds = min(self.seconds + size / self.rate, max(RATE_GRACE, most))
