"""Message heads, and the events that a message is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, final

import attrs

from ._connect_target import ConnectTarget
from ._headers import Headers, Text

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Controls, space, "#", "\" and what is not ASCII: refused from the wire too (row H1-15).
_BAD_TARGET = re.compile(rb"[^\x21\x22\x24-\x5b\x5d-\x7e]")
_BAD_REASON = re.compile(rb"[\r\n\0]")

HeaderItems = Headers | Mapping[str, Text] | Iterable[tuple[Text, Text]]


@attrs.define
class RequestFacts:
    """What the one validation pass over a request found; it travels with the head.

    Attributes:
      content_length: The declared length in bytes, or None.
      chunked: Whether the body is chunked.
      close: Whether Connection says close.
      keep_alive: Whether Connection says keep-alive.
      nominated: Lower-case names of fields that Connection nominates (row H1-19).
      hop_by_hop: Whether any field has to be stripped before the request goes on.
      expect_continue: Whether the client waits for 100 Continue.
      offers: The protocols that the client offers to switch to, as it wrote them (RFC 9110 section
        7.8); empty where the offer has no effect.
      te_trailers: Whether the client takes trailers.
      extended_connect: Whether the offer came as an extended CONNECT (RFC 8441).
      connect: Where the request wants a tunnel to, if it is a CONNECT (RFC 9110 section 9.3.6).
    """

    content_length: int | None = None
    chunked: bool = False
    close: bool = False
    keep_alive: bool = False
    nominated: tuple[bytes, ...] = ()
    hop_by_hop: bool = False
    expect_continue: bool = False
    offers: tuple[bytes, ...] = ()
    te_trailers: bool = False
    extended_connect: bool = False
    connect: ConnectTarget | None = None

    @property
    def has_body(self) -> bool:
        """Whether the request has content."""
        return self.chunked or bool(self.content_length)


@attrs.define
class ResponseFacts:
    """What the one validation pass over a response found.

    Attributes:
      content_length: The declared length in bytes, or None.
      chunked: Whether the body is chunked.
      close: Whether Connection says close.
      keep_alive: Whether Connection says keep-alive.
      nominated: Lower-case names of fields that Connection nominates.
      hop_by_hop: Whether any field has to be stripped.
      poisoned: Whether the connection must not be used again (rows U1-08, U1-10).
      has_body: Whether content follows.
      until_close: Whether the content ends with the connection.
    """

    content_length: int | None = None
    chunked: bool = False
    close: bool = False
    keep_alive: bool = False
    nominated: tuple[bytes, ...] = ()
    hop_by_hop: bool = False
    poisoned: bool = False
    has_body: bool = True
    until_close: bool = False


def _target(target: Text) -> bytes:
    if isinstance(target, str):
        # What is not ASCII must not become "?" here: that would start a query.
        raw = target.encode("ascii") if target.isascii() else b""
    else:
        raw = bytes(target)
    if not raw or _BAD_TARGET.search(raw):
        raise ValueError(
            f"{target!r} is not a request target: visible ASCII without '#' and '\\' is, the rest "
            "is percent-encoded (urllib.parse.quote)"
        )
    return raw


class RequestHeader:
    """The head of a request: mutable, which is how a filter rewrites.

    ``target`` is what stands on the wire (origin-form bytes); setting `path` or `query` remakes it
    and the other way round. ``authority`` is the Host field. Whatever would break the line it is
    written to is refused with `ValueError` when it is set.
    """

    __slots__ = ("_method", "_target", "facts", "headers", "scheme", "version")

    #: The fields.
    headers: Headers
    #: ``"http"`` or ``"https"``: whether the client's connection is TLS.
    scheme: str
    #: ``"HTTP/1.0"``, ``"HTTP/1.1"`` or ``"HTTP/2"``.
    version: str
    #: What the codec found, or None for a head made by hand.
    facts: RequestFacts | None

    def __init__(
        self,
        method: str,
        target: Text,
        headers: HeaderItems = (),
        *,
        version: str = "HTTP/1.1",
        scheme: str = "http",
    ) -> None:
        self.method = method
        self._target = _target(target)
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.version = version
        self.scheme = scheme
        self.facts = None

    @classmethod
    def trusted(
        cls,
        method: str,
        target: bytes,
        version: str,
        headers: Headers,
        scheme: str,
        facts: RequestFacts | None,
    ) -> RequestHeader:
        """Make a head of parts that were checked already."""
        head = cls.__new__(cls)
        head._method = method
        head._target = target
        head.version = version
        head.headers = headers
        head.scheme = scheme
        head.facts = facts
        return head

    @property
    def method(self) -> str:
        """The method, a token."""
        return self._method

    @method.setter
    def method(self, method: str) -> None:
        if not _METHOD.fullmatch(method):
            raise ValueError(f"{method!r} is not a method: a token (RFC 9110 section 9.1) is")
        self._method = method

    @property
    def target(self) -> bytes:
        """The request target as on the wire."""
        return self._target

    @target.setter
    def target(self, target: Text) -> None:
        self._target = _target(target)

    @property
    def path(self) -> str:
        """The target up to its ``?``."""
        return self._target.partition(b"?")[0].decode("latin-1")

    @path.setter
    def path(self, path: str) -> None:
        query = self.query
        if "?" in path:
            raise ValueError(f"{path!r} has a '?' in it: set query apart from path")
        if path != "*" and not path.startswith("/"):
            raise ValueError(f"{path!r} is not a path: it starts with '/', or is '*'")
        self._target = _target(path if query is None else f"{path}?{query}")

    @property
    def query(self) -> str | None:
        """The target behind its ``?``, or None where it has none."""
        _, mark, query = self._target.partition(b"?")
        return query.decode("latin-1") if mark else None

    @query.setter
    def query(self, query: str | None) -> None:
        path = self.path
        self._target = _target(path if query is None else f"{path}?{query}")

    @property
    def offers(self) -> bytes | None:
        """The Upgrade field, where the client offered to switch protocols and no filter withdrew it."""
        facts = self.facts
        if facts is None or not facts.offers:
            return None
        return self.headers.get_bytes(b"upgrade")

    @property
    def asks_to_switch(self) -> bool:
        """Whether an answer may make a tunnel of the exchange, as it is CONNECT or has `offers`."""
        facts = self.facts
        if facts is None:
            return False
        return facts.connect is not None or (bool(facts.offers) and self.offers is not None)

    def switched_by(self, status: int) -> bool:
        """Tell whether an answer of this status makes a tunnel of the exchange.

        That is a 101, or any 2xx where the request is CONNECT (RFC 9110 section 9.3.6).
        """
        if status == 101:
            return True
        facts = self.facts
        return facts is not None and facts.connect is not None and 200 <= status < 300

    @property
    def authority(self) -> str:
        """The Host field, or nothing."""
        return self.headers.get(b"host") or ""

    @authority.setter
    def authority(self, authority: str) -> None:
        self.headers.set("Host", authority)

    def copy(self) -> RequestHeader:
        """Return a copy whose fields can be edited apart."""
        return RequestHeader.trusted(
            self._method, self._target, self.version, self.headers.copy(), self.scheme, self.facts
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestHeader):
            return NotImplemented
        return (self._method, self._target, self.version, self.headers) == (
            other._method,
            other._target,
            other.version,
            other.headers,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        target = self._target.decode("latin-1")
        return f"RequestHeader({self._method!r}, {target!r}, {self.headers.items()!r})"


def _reason(reason: Text | None) -> bytes | None:
    if isinstance(reason, str):
        try:
            reason = reason.encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"{reason!r} is not a reason phrase: str is latin-1") from None
    if reason is not None and _BAD_REASON.search(reason):
        raise ValueError(f"{reason!r} is not a reason phrase: it has CR, LF or NUL in it")
    return reason


class ResponseHeader:
    """The head of a response: mutable, which is how a filter rewrites."""

    __slots__ = ("_reason", "_status", "facts", "headers", "version")

    #: The fields.
    headers: Headers
    #: ``"HTTP/1.0"``, ``"HTTP/1.1"`` or ``"HTTP/2"``: what the sender spoke.
    version: str
    #: What the codec found, or None for a head made by hand.
    facts: ResponseFacts | None

    def __init__(
        self,
        status: int,
        headers: HeaderItems = (),
        *,
        reason: Text | None = None,
        version: str = "HTTP/1.1",
    ) -> None:
        self.status = status
        self._reason = _reason(reason)
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.version = version
        self.facts = None

    @classmethod
    def trusted(
        cls,
        status: int,
        reason: bytes | None,
        version: str,
        headers: Headers,
        facts: ResponseFacts | None,
    ) -> ResponseHeader:
        """Make a head of parts that were checked already."""
        head = cls.__new__(cls)
        head._status = status
        head._reason = reason
        head.version = version
        head.headers = headers
        head.facts = facts
        return head

    @property
    def status(self) -> int:
        """The status code, 100 to 999."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        if not 100 <= status <= 999:
            raise ValueError(f"{status!r} is not a status: 100 to 999 are")
        self._status = int(status)

    @property
    def reason(self) -> bytes | None:
        """The reason phrase; None writes the standard one."""
        return self._reason

    @reason.setter
    def reason(self, reason: Text | None) -> None:
        self._reason = _reason(reason)

    def copy(self) -> ResponseHeader:
        """Return a copy whose fields can be edited apart."""
        return ResponseHeader.trusted(
            self._status, self._reason, self.version, self.headers.copy(), self.facts
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResponseHeader):
            return NotImplemented
        return (self._status, self._reason, self.headers) == (
            other._status,
            other._reason,
            other.headers,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ResponseHeader({self._status}, {self.headers.items()!r})"


@attrs.define
class BodyChunk:
    """The mutable holder in which a body filter finds a piece of a body, and leaves its own.

    One per direction, reused from call to call.

    Attributes:
      data: The bytes; None and ``b""`` both mean that nothing of this piece goes on.
    """

    data: bytes | None = None


@attrs.define
class Data:
    """A piece of a message's content, never empty.

    Attributes:
      data: The bytes.
      end: Whether it is the last of the message; no `END` follows then.
    """

    data: bytes
    end: bool = False


@attrs.define
class Trailers:
    """The trailer fields of a message; `END` follows.

    Attributes:
      headers: The fields.
    """

    headers: Headers


@final
class End:
    """The end of a message that nothing else has told; there is one of it, `END`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "END"


END: Final = End()

RequestEvent = RequestHeader | Data | Trailers | End
ResponseEvent = ResponseHeader | Data | Trailers | End
