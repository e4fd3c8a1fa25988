"""The CONNECT request that asks a proxy for a tunnel, and the head of its answer."""

from __future__ import annotations

from collections.abc import Iterable

from .._messages import Data, ResponseHeader
from ..semantics._framing import HeadLimits, MessageRefused
from ._h1 import ResponseReader
from ._h1_codec import H1Codec


def connect_request(authority: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the request for a tunnel (RFC 9110 section 9.3.6).

    Args:
      authority: Host and port, an IPv6 address in brackets.
      headers: Fields to add, checked by whoever made them.
    """
    host = authority.encode("ascii")
    lines = [b"CONNECT %b HTTP/1.1" % host, b"Host: " + host]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", b""])


class ConnectReader:
    """Reads the answer to one CONNECT request, up to the end of its head and not a byte further."""

    __slots__ = ("_reader", "_speaks_first", "behind", "response")

    def __init__(self, limits: HeadLimits, codec: H1Codec, *, speaks_first: bool = False) -> None:
        """Start in front of the answer.

        Args:
          limits: Bounds on its head.
          codec: Parses it.
          speaks_first: Whether the tunnel may lead to somebody who speaks before we do.
        """
        self._speaks_first = speaks_first
        #: What came behind the head of an answer that opened the tunnel.
        self.behind = b""
        self._reader = ResponseReader(limits, codec)
        self._reader.expect("CONNECT")
        #: The final head, once it was read.
        self.response: ResponseHeader | None = None

    def feed(self, data: bytes) -> bool:
        """Take bytes that were received; return whether the final head is there.

        Whether it grants the tunnel is the caller's to judge.

        Raises:
          MessageRefused: the answer cannot be trusted. Where its head was read, `response` has it.
        """
        reader = self._reader
        reader.feed(data)
        behind = b""
        for event in reader.events():
            if type(event) is ResponseHeader:
                if event.status >= 200:
                    self.response = event
            elif type(event) is Data:
                behind += event.data
        response = self.response
        if response is None:
            return False
        if 200 <= response.status < 300:
            if "transfer-encoding" in response.headers:
                raise MessageRefused(502, "a tunnel has no Transfer-Encoding")
            self.behind = behind + bytes(reader.buffer)
            # Nobody has spoken into the tunnel yet, so that nobody can have answered.
            if self.behind and not self._speaks_first:
                raise MessageRefused(502, "there are bytes behind the answer's head")
        return True
