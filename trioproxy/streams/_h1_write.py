"""Turn the events of one HTTP/1.1 message into the parts of one write, and count what was declared."""

from __future__ import annotations

import attrs

from .._clock import http_date
from .._errors import ErrorType, ProxyError
from .._messages import Data, RequestEvent, RequestHeader, ResponseEvent, ResponseHeader, Trailers
from ..codec._h1_write import (
    CRLF,
    LAST_CHUNK,
    Framing,
    declared_length,
    encode_request_head,
    encode_response_head,
    encode_trailers,
)


def _misuse(text: str) -> ProxyError:
    error = ProxyError.explain(ErrorType.InternalError, text)
    error.as_in()
    return error


@attrs.define(eq=False)
class MessageWriter:
    """The framing state of one message on its way out (RFC 9112 section 6)."""

    framing: Framing | None = None
    remaining: int = 0
    finished: bool = False
    closes: bool = False

    def _open(self, framing: Framing, length: int | None) -> Framing:
        self.framing = framing
        self.remaining = length or 0
        self.closes = framing is Framing.CLOSE
        return framing

    def _out_of_order(self, what: str) -> ProxyError:
        where = (
            "behind the end of its message" if self.finished else "before the head of its message"
        )
        return _misuse(f"{what} was sent {where}")

    def _data(self, parts: list[bytes], event: Data) -> None:
        framing = self.framing
        data = event.data
        if framing is None or self.finished:
            raise self._out_of_order("content")
        if data and framing is not Framing.NONE:
            if framing is Framing.CHUNKED:
                parts.append(b"%x\r\n" % len(data))
                parts.append(data)
                parts.append(CRLF)
            else:
                if framing is Framing.LENGTH:
                    self.remaining -= len(data)
                    if self.remaining < 0:
                        raise _misuse("the content is longer than its Content-Length")
                parts.append(data)
        if event.end:
            self._end(parts)

    def _end(self, parts: list[bytes]) -> None:
        if self.framing is None or self.finished:
            raise self._out_of_order("the end")
        if self.framing is Framing.CHUNKED:
            parts.append(LAST_CHUNK)
        elif self.framing is Framing.LENGTH and self.remaining:
            raise _misuse("the content is shorter than its Content-Length")
        self.finished = True

    def _trailers(self, parts: list[bytes], event: Trailers) -> None:
        # Only a chunked message can carry them (RFC 9112 section 7.1.2); elsewhere they are dropped.
        if self.framing is Framing.CHUNKED and not self.finished:
            parts.append(encode_trailers(event.headers))
            self.framing = Framing.CLOSE  # what follows is END alone

    def start_tunnel(self) -> None:
        """Go on behind what opens a tunnel: content is raw, and the end is a half-close."""
        self.framing = Framing.TUNNEL
        self.finished = False

    @property
    def half_closed(self) -> bool:
        """Whether the end of a tunnel was written, so that the transport's output has to end."""
        return self.finished and self.framing is Framing.TUNNEL

    @property
    def all_out(self) -> bool:
        """Whether whoever reads the message has all of its content, though its end may be to come."""
        return self.finished or (self.framing is Framing.LENGTH and not self.remaining)

    def _restore(self, state: tuple[Framing | None, int, bool, bool]) -> None:
        """Go back to a state: events that were refused as a whole have changed nothing."""
        self.framing, self.remaining, self.finished, self.closes = state

    def request(self, events: tuple[RequestEvent, ...]) -> list[bytes]:
        """Return the parts to write for some events of a request.

        Raises:
          ProxyError: InternalError, the events are not the next ones of a message; none counts.
        """
        state = (self.framing, self.remaining, self.finished, self.closes)
        try:
            return self._request(events)
        except ProxyError:
            self._restore(state)
            raise

    def _request(self, events: tuple[RequestEvent, ...]) -> list[bytes]:
        parts: list[bytes] = []
        for index, event in enumerate(events):
            kind = type(event)
            if kind is Data:
                self._data(parts, event)  # type: ignore[arg-type]
            elif kind is RequestHeader:
                self._request_head(parts, event, index + 1 < len(events) and events[index + 1])  # type: ignore[arg-type]
            elif kind is Trailers:
                self._trailers(parts, event)  # type: ignore[arg-type]
            else:
                self._end(parts)
        return parts

    def _request_head(
        self, parts: list[bytes], head: RequestHeader, following: RequestEvent | bool
    ) -> None:
        length = _length(head)
        if length is not None:
            self._open(Framing.LENGTH, length)
        elif following is False or type(following) in (Data, Trailers):
            self._open(Framing.CHUNKED, None)
        else:
            self._open(Framing.NONE, None)
        assert self.framing is not None
        parts.append(encode_request_head(head, self.framing))

    def response(
        self,
        events: tuple[ResponseEvent, ...],
        *,
        bodiless: bool,
        old_client: bool,
        connection: bytes,
        connect: bool = False,
    ) -> list[bytes]:
        """Return the parts to write for some events of a response.

        Args:
          events: The events.
          bodiless: The request was HEAD: the head's framing fields go out, content does not.
          old_client: The client speaks HTTP/1.0: no 1xx, no chunks (rows H1-27, H1-28).
          connection: The value of Connection on the final head.
          connect: The request was CONNECT: a 2xx opens a tunnel, and has no framing fields.

        Raises:
          ProxyError: InternalError, the events are not the next ones of a message; none counts.
        """
        state = (self.framing, self.remaining, self.finished, self.closes)
        try:
            return self._response(
                events,
                bodiless=bodiless,
                old_client=old_client,
                connection=connection,
                connect=connect,
            )
        except ProxyError:
            self._restore(state)
            raise

    def _response(
        self,
        events: tuple[ResponseEvent, ...],
        *,
        bodiless: bool,
        old_client: bool,
        connection: bytes,
        connect: bool,
    ) -> list[bytes]:
        parts: list[bytes] = []
        for index, event in enumerate(events):
            kind = type(event)
            if kind is Data:
                self._data(parts, event)  # type: ignore[arg-type]
            elif kind is ResponseHeader:
                head: ResponseHeader = event  # type: ignore[assignment]
                if head.status == 101:
                    self.start_tunnel()
                    parts.append(
                        encode_response_head(head, Framing.TUNNEL, date=None, connection=None)
                    )
                    continue
                if head.status < 200:
                    if not old_client:
                        parts.append(
                            encode_response_head(head, Framing.NONE, date=None, connection=None)
                        )
                    continue
                if self.framing is not None:
                    raise _misuse("a second final response head was sent")
                if connect and head.status < 300:
                    self.start_tunnel()
                    parts.append(
                        encode_response_head(
                            head, Framing.TUNNEL, date=http_date(), connection=None
                        )
                    )
                    continue
                length = _length(head)
                status = head.status
                if bodiless or status == 204 or status == 304:
                    framing = self._open(Framing.NONE, None)
                elif length is not None:
                    framing = self._open(Framing.LENGTH, length)
                elif index + 1 < len(events) and type(events[index + 1]) not in (Data, Trailers):
                    # The end follows at once: nothing will come, and the length is known.
                    head = head.copy()
                    head.headers.set(b"content-length", b"0")
                    framing = self._open(Framing.LENGTH, 0)
                else:
                    framing = self._open(Framing.CLOSE if old_client else Framing.CHUNKED, None)
                parts.append(
                    encode_response_head(
                        head,
                        framing,
                        date=http_date(),
                        connection=b"close" if framing is Framing.CLOSE else connection,
                        # What a GET would have got (RFC 9112 section 6.1); 204 has none.
                        coding=framing is Framing.NONE
                        and length is None
                        and status != 204
                        and not old_client
                        and head.facts is not None
                        and head.facts.chunked,
                    )
                )
            elif kind is Trailers:
                self._trailers(parts, event)  # type: ignore[arg-type]
            else:
                self._end(parts)
        return parts


def _length(head: RequestHeader | ResponseHeader) -> int | None:
    try:
        return declared_length(head.headers)
    except ValueError as exc:
        raise _misuse(str(exc)) from None
