"""What a WebSocket's messages are for a filter, and how much of them is held."""

from __future__ import annotations

from typing import Self

import attrs


class _Kept(bytes):
    """A message with what has to be kept of how it came."""

    #: Whether it came compressed, and goes on so where that was agreed on.
    compressed: bool = True

    @classmethod
    def made(cls, data: bytes | bytearray, compressed: bool) -> _Kept:
        """Return a message of this kind."""
        message = cls(data)
        message.compressed = compressed
        return message


class TextMessage(_Kept):
    """A text message of a WebSocket, as the bytes of its UTF-8; text may be given as well.

    Its attribute ``compressed`` tells whether it came compressed, and goes on so where both sides have
    agreed on that; False keeps a message of your own from it.
    """

    def __new__(cls, data: str | bytes | bytearray = b"") -> Self:
        """Make a message of text, or of bytes that are UTF-8."""
        raw = data.encode() if isinstance(data, str) else data
        return super().__new__(cls, raw)

    @property
    def text(self) -> str:
        """The message as text."""
        return self.decode()


class BinaryMessage(_Kept):
    """A binary message of a WebSocket; ``compressed`` is as in `TextMessage`."""


def _limit(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{attribute.name}={value!r}: 1 to {(1 << 31) - 1} bytes are right")


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


@attrs.frozen(kw_only=True)
class WebSocketOptions:
    """How the messages of a WebSocket are taken apart and put together.

    Attributes:
      max_message_bytes: How large a message may be, all its frames together and decompressed. A
        larger one ends the WebSocket with code 1009. Each direction holds one whole message.
      compression: Whether client and origin may agree on permessage-deflate (RFC 7692). It takes up
        to 400 KiB of memory more for a WebSocket that uses it; without it messages are not
        compressed.
    """

    max_message_bytes: int = attrs.field(default=1 << 20, validator=_limit)
    compression: bool = attrs.field(default=True, validator=_flag)
