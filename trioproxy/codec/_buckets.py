"""A token bucket over a clock that the caller reads: what counts things that cost us something."""

from __future__ import annotations


class TokenBucket:
    """Tokens that are taken one by one and come back with time, up to a number.

    Args:
      burst: The tokens that it holds when full, which it is at first.
      rate: The tokens that come back in a second.
      now: The time.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._at = now

    def take(self, now: float, tokens: int = 1) -> bool:
        """Take tokens; False, and nothing is taken, where there are fewer."""
        held = self._tokens
        if now > self._at:
            held = min(self._burst, held + (now - self._at) * self._rate)
            self._at = now
        self._tokens = held
        if held < tokens:
            return False
        self._tokens = held - tokens
        return True
