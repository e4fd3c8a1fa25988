"""gRPC-Web for an origin that speaks gRPC: what a browser can do without trailers and without HTTP/2.

The protocol is the document ``PROTOCOL-WEB.md`` of gRPC. Messages are framed alike on both sides, so
that content passes as it comes, and three things change: the media type, the trailers, which become
a last frame of the response's content, and in the text form the content, which is base64.

Base64 is read and written in a stream. A sender may pad wherever it flushes, so that padding stands
in the middle of a body; four characters are decoded as soon as they are there. What we write is
padded behind the last message of each piece, and a piece that ends inside a message holds back two
bytes at most: whatever is sent can be decoded at once, and a whole message is never held.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

import attrs

from .._errors import ErrorType, ProxyError
from .._headers import Headers
from .._messages import BodyChunk, RequestFacts, RequestHeader, ResponseHeader
from ..semantics._framing import nominated_by
from ._abc import HttpModule, HttpModuleBuilder
from ._media import is_encoded

if TYPE_CHECKING:
    from ..proxy._session import Session

_WEB = re.compile(
    r"application/grpc-web(?P<text>-text(?:-base64)?)?(?P<suffix>\+[^;\s]+)?\s*(?:;.*)?",
    re.IGNORECASE | re.DOTALL,
)
_GRPC = re.compile(r"application/grpc(?P<suffix>\+[^;\s]+)?\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)
_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.\d*)?)\s*(?:;|$)", re.IGNORECASE)

#: Marks the frame that holds the trailers, not compressed.
_TRAILERS = b"\x80"
#: A frame begins with its flags and four bytes of length.
_PREFIX = 5


class GrpcWebBridge(HttpModule):
    """One request's bridge between gRPC-Web and gRPC.

    Attributes:
      bridged: Whether the request was gRPC-Web, and went on as gRPC.
    """

    def __init__(self) -> None:
        self.bridged = False
        self._suffix = ""
        self._text_wanted = False
        self._decoder: Base64Decoder | None = None
        self._encoder: FrameEncoder | None = None
        self._answers = False

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Make the head of a gRPC-Web request one of gRPC.

        Raises:
          ProxyError: the content is encoded (415): gRPC has no Content-Encoding.
        """
        headers = request.headers
        kind = _WEB.fullmatch(headers.get("content-type") or "")
        if kind is None or request.method != "POST":
            return False
        if is_encoded(headers):
            raise ProxyError.status(415, "a gRPC-Web request with a Content-Encoding")
        self.bridged = True
        self._suffix = (kind["suffix"] or "").lower()
        if kind["text"]:
            self._decoder = Base64Decoder()
        self._text_wanted = _wants_text(headers.get_all("accept"), bool(kind["text"]))
        headers.set("content-type", f"application/grpc{self._suffix}")
        headers.remove("content-length")
        _set_te_trailers(request)
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Decode the text form.

        Raises:
          ProxyError: it is no base64 (400).
        """
        decoder = self._decoder
        if decoder is None:
            return
        try:
            body.data = decoder.feed(body.data) if body.data else None
            if end_of_stream:
                decoder.finish()
        except ValueError as exc:
            raise ProxyError.status(400, f"application/grpc-web-text: {exc}") from exc

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Make the head of a gRPC response one of gRPC-Web; any other passes as it is.

        Raises:
          ProxyError: the origin has encoded the content, so that nothing can be added to it (502).
        """
        if not self.bridged or response.status < 200:
            return
        self._answers, self._encoder = False, None  # this one may stand in for one that failed
        headers = response.headers
        kind = _GRPC.fullmatch(headers.get("content-type") or "")
        if kind is None:
            return
        if is_encoded(headers):
            raise ProxyError.explain(
                ErrorType.InvalidHTTPHeader, "a gRPC response with a Content-Encoding"
            ).into_up()
        form = "-text" if self._text_wanted else ""
        suffix = kind["suffix"] or self._suffix
        headers.set("content-type", f"application/grpc-web{form}{suffix}")
        if end_of_stream:
            return  # "trailers only": the head has them, as the protocol says
        headers.remove("content-length")
        self._answers = True
        if self._text_wanted:
            self._encoder = FrameEncoder()

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Encode the text form."""
        encoder = self._encoder
        if encoder is None:
            return
        data = encoder.feed(body.data) if body.data else b""
        body.data = data + encoder.flush() if end_of_stream else data

    async def response_trailer_filter(self, session: Session, trailers: Headers) -> bytes | None:
        """Return the frame that ends the content in place of the trailers."""
        if not self._answers:
            return None
        frame = trailer_frame(trailers)
        return _encode(frame) if self._text_wanted else frame

    def response_done_filter(self, session: Session) -> None:
        """Let go of what was held back."""
        self._decoder = self._encoder = None


@attrs.frozen
class GrpcWeb(HttpModuleBuilder):
    """Lets browsers call an origin that speaks gRPC: gRPC-Web, binary and text (base64) form.

    A POST whose content is ``application/grpc-web`` or ``application/grpc-web-text`` (each with
    ``+proto`` or another suffix) goes on as ``application/grpc`` with ``te: trailers``, and the
    response comes back in the form that the client accepts, its trailers in a last frame. All else
    passes untouched, errors that are no gRPC response included: clients read their HTTP status. The
    peer must speak HTTP/2 (``PeerOptions(http_version=(2, 2))``); the client may speak any version.

    Pingora: ``GrpcWeb``, which has the binary form alone, and is switched on request by request.
    """

    order = 50
    module_type = GrpcWebBridge

    def init(self) -> GrpcWebBridge:
        """Return the bridge of a new request."""
        return GrpcWebBridge()


def trailer_frame(trailers: Headers) -> bytes:
    """Return the frame that carries trailers at the end of the content."""
    block = b"".join([b"%s: %s\r\n" % (name, value) for name, _, value in trailers.fields])
    return _TRAILERS + len(block).to_bytes(_PREFIX - 1, "big") + block


def _encode(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


def _wants_text(accept: list[str], request_is_text: bool) -> bool:
    """Tell which form the response has to have: what Accept prefers, else the request's own."""
    best = 0.0
    wanted = request_is_text
    for element in ",".join(accept).split(","):
        kind = _WEB.fullmatch(element.strip())
        if kind is None:
            continue
        weight = _WEIGHT.search(element)
        quality = float(weight[1]) if weight else 1.0
        text = bool(kind["text"])
        if quality > best or (quality == best > 0 and text is request_is_text):
            best, wanted = quality, text
    return wanted


def _set_te_trailers(request: RequestHeader) -> None:
    """Let ``te: trailers`` go to the origin, which gRPC wants of every request."""
    facts = request.facts
    if facts is None:  # a head made by hand, whose Connection nobody has looked at yet
        tokens = [
            token.strip().lower().encode("latin-1")
            for value in request.headers.get_all("connection")
            for token in value.split(",")
        ]
        facts = RequestFacts(hop_by_hop=True, nominated=nominated_by(tokens))
    # A copy: the head that the client sent may be looked at elsewhere.
    request.facts = attrs.evolve(facts, te_trailers=True)


class Base64Decoder:
    """Decodes base64 in which padding may stand anywhere between groups of four characters."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return what the characters so far amount to; up to three wait for the next ones.

        Raises:
          ValueError: it is no base64.
        """
        data = self._rest + data
        whole = len(data) & ~3
        self._rest = data[whole:]
        out: list[bytes] = []
        at = 0
        while at < whole:
            padding = data.find(b"=", at, whole)
            end = whole if padding < 0 else (padding | 3) + 1
            try:
                out.append(binascii.a2b_base64(data[at:end], strict_mode=True))
            except binascii.Error:
                raise ValueError("the content is not base64") from None
            at = end
        return b"".join(out)

    def finish(self) -> None:
        """See that nothing is left.

        Raises:
          ValueError: the last group is not whole.
        """
        if self._rest:
            raise ValueError("the content ends inside a group of base64")


class FrameEncoder:
    """Encodes frames as base64, padded where a message ends."""

    __slots__ = ("_left", "_prefix", "_rest")

    def __init__(self) -> None:
        #: Up to two bytes that wait for a third one.
        self._rest = b""
        #: What has come of a frame's first five bytes.
        self._prefix = bytearray()
        #: Bytes of the message that are still to come.
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return what can go on of these bytes and those held back: all up to the last message's end."""
        edge = self._end_of_messages(data)
        if edge:
            edge += len(self._rest)
        data = self._rest + data
        last = len(data) - (len(data) - edge) % 3
        self._rest = data[last:]
        return _encode(data[:edge]) + _encode(data[edge:last])

    def flush(self) -> bytes:
        """Return what was held back."""
        rest, self._rest = self._rest, b""
        return _encode(rest)

    def _end_of_messages(self, data: bytes) -> int:
        """Return where the last message ends that ends in these bytes, 0 where none does."""
        at = edge = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(_PREFIX - len(self._prefix), len(data) - at)
                self._prefix += data[at : at + step]
                if len(self._prefix) == _PREFIX:
                    self._left = int.from_bytes(self._prefix[1:], "big")
                    self._prefix.clear()
            at += step
            if not self._left and not self._prefix:
                edge = at
        return edge
