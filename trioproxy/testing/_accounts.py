"""What flow-control windows must be, from the frames that passed and nothing else."""

from __future__ import annotations

import attrs

from ._reference import MalformedError

MOST_WINDOW = 2**31 - 1


class AccountError(MalformedError):
    """A window went wrong."""


@attrs.define
class Windows:
    """The windows of one direction: the connection's and those of its streams."""

    initial: int = 65535
    connection: int = 65535
    streams: dict[int, int] = attrs.field(factory=dict)

    def stream(self, number: int) -> int:
        """Return the window of a stream."""
        return self.streams.setdefault(number, self.initial)

    def room(self, number: int) -> int:
        """Return how much content may be sent on a stream."""
        return min(self.connection, self.stream(number))

    def take(self, number: int, count: int) -> None:
        """Let the bytes of a DATA frame through, padding and all."""
        self.connection -= count
        self.streams[number] = self.stream(number) - count

    def give(self, number: int, count: int) -> None:
        """Follow a WINDOW_UPDATE.

        Raises:
          AccountError: it goes over the top.
        """
        if not count:
            raise AccountError("an increment of nothing")
        if number:
            size = self.streams[number] = self.stream(number) + count
        else:
            size = self.connection = self.connection + count
        if size > MOST_WINDOW:
            raise AccountError(f"a window of {size}")

    def set_initial(self, size: int) -> None:
        """Follow a SETTINGS_INITIAL_WINDOW_SIZE."""
        for number in self.streams:
            self.streams[number] += size - self.initial
            if self.streams[number] > MOST_WINDOW:
                raise AccountError(f"a window of {self.streams[number]}")
        self.initial = size
