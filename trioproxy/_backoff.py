"""How long to wait before the next attempt."""

from __future__ import annotations

import random as _random
from collections.abc import Callable


def backoff(
    attempt: int,
    base: float = 0.05,
    cap: float = 2.0,
    *,
    jitter: float = 1.0,
    random: Callable[[], float] = _random.random,
) -> float:
    """Return the seconds to wait before the next attempt: doubling, bounded and spread.

    The bound is ``base`` after the first failure, twice as much after each further one, and never
    more than ``cap``. Of it a random share is taken off, so that clients which failed together do
    not come back together. Nothing waits here: ``await trio.sleep(trioproxy.backoff(attempt))``, in
    `upstream_peer` for one.

    Args:
      attempt: How many attempts have failed so far; before the first one, 0, there is no wait.
      base: Seconds at most after the first failure.
      cap: Seconds at most after any.
      jitter: The share of the bound that is left to chance, 0 to 1: with 1 the wait is anything
        between nothing and the bound, with 0 it is the bound itself.
      random: Gives a number from 0 up to, not including, 1.

    Raises:
      ValueError: an argument is out of its range.
    """
    if attempt < 0:
        raise ValueError(f"attempt={attempt!r}: 0 or more is right")
    if not 0 <= base <= cap:
        raise ValueError(f"base={base!r}, cap={cap!r}: 0 <= base <= cap is right")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter={jitter!r}: 0 to 1 is right")
    if attempt == 0:
        return 0.0
    # Behind this many doublings any bound is reached; a float could not hold many more.
    bound: float = min(cap, base * 2.0 ** min(attempt - 1, 1000))
    return bound * (1 - jitter * random())
