"""Turn the events of one HTTP/2 message into what its stream sends, and count what was declared."""

from __future__ import annotations

import attrs

from .._clock import http_date
from .._errors import ErrorType, ProxyError
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..codec._h1_write import declared_length
from ..semantics._h2 import request_fields, response_fields, trailer_fields
from ._h2 import Item


def misuse(text: str) -> ProxyError:
    """Return the error of events that are not the next ones of a message."""
    return ProxyError.explain(ErrorType.InternalError, text).into_in()


@attrs.define(eq=False)
class H2Writer:
    """The state of one message on its way out (RFC 9113 section 8.1).

    Attributes:
      opened: Whether its (final) head was sent.
      finished: Whether its end was.
      tunnel: Whether what follows is a tunnel's.
      remaining: Content that its declared length still asks for, None without one.
      bodiless: Whether content is dropped: the answer to HEAD, a 204 or a 304.
    """

    opened: bool = False
    finished: bool = False
    tunnel: bool = False
    remaining: int | None = None
    bodiless: bool = False

    def request(
        self, events: tuple[RequestEvent, ...], *, scheme: bytes, extended: bool
    ) -> list[Item]:
        """Return what to send for some events of a request.

        Args:
          events: The events.
          scheme: What ``:scheme`` is.
          extended: Whether an offer to switch protocols becomes an extended CONNECT.

        Raises:
          ProxyError: InternalError, the events are not the next ones of a message; none counts.
        """
        state = attrs.astuple(self)
        items: list[Item] = []
        try:
            for event in events:
                if type(event) is RequestHeader:
                    self._open(event.headers.get_bytes(b"content-length") is not None, event)
                    if extended and event.offers is not None:
                        self.tunnel = True
                        self.remaining = None
                    fields = request_fields(event, scheme=scheme, extended=self.tunnel)
                    items.append((fields, b"", False))
                elif self.tunnel and event is END:
                    # The end of the request's head: the tunnel's own half-close comes behind a 101.
                    continue
                else:
                    self._rest(items, event)
        except ProxyError:
            self._restore(state)
            raise
        return items

    def in_tunnel(self, events: tuple[RequestEvent, ...]) -> list[Item]:
        """Return what to send of a tunnel that the origin has agreed to."""
        items: list[Item] = []
        for event in events:
            self._rest(items, event)
        return items

    def response(
        self, events: tuple[ResponseEvent, ...], *, head_only: bool, connect: bool = False
    ) -> list[Item]:
        """Return what to send for some events of a response.

        Args:
          events: The events.
          head_only: The request was HEAD: the head goes out as it is, content does not.
          connect: The request was CONNECT: a 2xx opens a tunnel, and has no length (RFC 9113
            section 8.5).

        Raises:
          ProxyError: InternalError, the events are not the next ones of a message; none counts.
        """
        state = attrs.astuple(self)
        items: list[Item] = []
        try:
            for event in events:
                if type(event) is not ResponseHeader:
                    self._rest(items, event)
                elif event.status == 101:
                    self.opened = self.tunnel = True
                    items.append((response_fields(event, date=http_date()), b"", False))
                elif event.status < 200:
                    items.append((response_fields(event, date=None), b"", False))
                elif connect and event.status < 300:
                    self._open(False, event)
                    self.tunnel = True
                    fields = response_fields(event, date=http_date(), length=False)
                    items.append((fields, b"", False))
                else:
                    self._open(event.headers.get_bytes(b"content-length") is not None, event)
                    if head_only or event.status in (204, 304):
                        self.bodiless = True
                        self.remaining = None
                    items.append((response_fields(event, date=http_date()), b"", False))
        except ProxyError:
            self._restore(state)
            raise
        return items

    def _restore(self, state: tuple[object, ...]) -> None:
        self.opened, self.finished, self.tunnel, self.remaining, self.bodiless = state  # type: ignore[assignment]

    def _open(self, declared: bool, head: RequestHeader | ResponseHeader) -> None:
        if self.opened:
            raise misuse("a second final head was sent")
        self.opened = True
        if declared:
            try:
                self.remaining = declared_length(head.headers)
            except ValueError as exc:
                raise misuse(str(exc)) from None

    def _rest(self, items: list[Item], event: Data | Trailers | object) -> None:
        if not self.opened or self.finished:
            where = "behind the end" if self.finished else "before the head"
            raise misuse(f"{type(event).__name__} was sent {where} of its message")
        if type(event) is Data:
            data = event.data
            if self.bodiless:
                data = b""
            if self.remaining is not None:
                self.remaining -= len(data)
                if self.remaining < 0:
                    raise misuse("the content is longer than its Content-Length")
            if data:
                items.append((None, data, False))
            if event.end:
                self._end(items)
        elif type(event) is Trailers:
            if self.bodiless:
                return
            if self.remaining:
                raise misuse("the content is shorter than its Content-Length")
            fields = trailer_fields(event.headers)
            if fields:
                items.append((fields, b"", False))
        else:
            self._end(items)

    def _end(self, items: list[Item]) -> None:
        if self.remaining:
            raise misuse("the content is shorter than its Content-Length")
        self.finished = True
        if items:
            fields, data, _ = items[-1]
            items[-1] = (fields, data, True)
        else:
            items.append((None, b"", True))
