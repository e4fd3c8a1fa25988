"""How much content may become when it is decoded: what keeps a small bomb from becoming a large one."""

from __future__ import annotations

import attrs

from ._codings import Decoder


class TooMuch(Exception):
    """Content becomes more than it may."""


def _positive(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name}={value!r}: a number from 1 is right")


@attrs.frozen(kw_only=True)
class InflationLimits:
    """How much content may become when it is decoded (row R-10).

    Attributes:
      ratio: How many times its length.
      free: Bytes up to which the ratio does not matter: a line of blanks is no bomb.
      size: Bytes in all.
    """

    ratio: int = attrs.field(default=100, validator=_positive)
    free: int = attrs.field(default=1 << 20, validator=_positive)
    size: int = attrs.field(default=64 << 20, validator=_positive)


@attrs.define(eq=False)
class Inflation:
    """Decodes one body within limits, a piece at a time."""

    limits: InflationLimits
    _taken: int = 0
    _given: int = 0

    def step(self, decoder: Decoder, data: bytes | None, end_of_stream: bool) -> tuple[bool, bytes]:
        """Decode a piece, or go on with the last one.

        Returns:
          Whether to call again, without data, for more of it; and what came out.

        Raises:
          CodingError: it cannot be decoded, or it ends too early.
          TooMuch: a limit is passed.
        """
        if data:
            self._taken += len(data)
            decoder.feed(data)
        decoded = decoder.read() if decoder.more else b""
        self._given += len(decoded)
        limits = self.limits
        if self._given > limits.size:
            raise TooMuch(f"it becomes more than {limits.size} bytes")
        if self._given > limits.free and self._given > limits.ratio * self._taken:
            raise TooMuch(f"it becomes more than {limits.ratio} times as long")
        if end_of_stream and not decoder.more:
            decoder.finish()
        return decoder.more, decoded
