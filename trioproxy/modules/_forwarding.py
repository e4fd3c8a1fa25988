"""Who really asks, and what the origin is told of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from .._headers import Headers
from .._messages import RequestHeader
from .._networks import Networks
from ..semantics._forwarded import (
    UNKNOWN,
    Element,
    read_forwarded,
    read_x_forwarded,
    write_element,
)
from ..semantics._forwarding import append_forwarded, append_via, host_of, set_forwarded
from ._abc import HttpModule, HttpModuleBuilder
from ._common import TOKEN, flag, networks, set_field, whole_number

if TYPE_CHECKING:
    from ..proxy._session import Session

FIELDS = ("x-forwarded-for", "forwarded")
_TOLD = (b"forwarded", b"x-real-ip")
_X_FORWARDED = b"x-forwarded-"


def _one_of_the_fields(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in FIELDS:
        raise ValueError(f"{attribute.name}={value!r}: one of {', '.join(FIELDS)} is right")


def _pseudonym(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and TOKEN.fullmatch(value)):
        raise ValueError(f"{attribute.name}={value!r}: a name (a token), or None, is right")


class Forwarding(HttpModule):
    """Who asks, by what `ForwardingFields` believes; set from `request_filter` on.

    Ask for it with ``session.downstream_modules_ctx.get(Forwarding)``.
    """

    def __init__(self, options: ForwardingFields) -> None:
        self._options = options
        #: The client's address without a port; ``unknown``, or an obfuscated name (``_hidden``),
        #: where a trusted proxy says no more.
        self.client: str = UNKNOWN
        #: What the client used to get here, ``http`` or ``https``.
        self.proto: str = "http"
        #: The host that the client asked for.
        self.host: str = ""
        #: The trusted proxies between the client and this one, the client's own first.
        self.proxies: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Forwarding {self.client} asks for {self.proto}://{self.host}>"

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Find out who asks; rewrite the fields, once for all attempts."""
        peer = session.client_addr()
        told = self._told(request.headers) if peer in self._options.trusted else []
        chain = believed(told, peer, self._options.trusted)
        first = chain[0]
        self.client = first.node or UNKNOWN
        self.proto = first.proto or request.scheme
        self.host = first.host or request.authority
        self.proxies = tuple([each.node or UNKNOWN for each in chain[1:]])
        if not session.is_subrequest():  # what it is made of was told already
            self._tell(session, request, peer, chain[:-1])
        return False

    def _told(self, headers: Headers) -> list[Element | None]:
        """Return what proxies say, the nearest last."""
        limit = self._options.max_hops
        if self._options.believe == "forwarded":
            return read_forwarded(headers.get_all(b"forwarded"), limit)
        return read_x_forwarded(
            headers.get_all(b"x-forwarded-for"),
            headers.get_all(b"x-forwarded-proto"),
            headers.get_all(b"x-forwarded-host"),
            limit,
        )

    def _tell(
        self, session: Session, request: RequestHeader, peer: str | None, before: list[Element]
    ) -> None:
        """Rewrite the fields: those that a proxy before us wrote, as far as believed, and ours."""
        options, headers = self._options, request.headers
        headers.fields = [field for field in headers.fields if not _is_told(field[0])]
        scheme, host = request.scheme, request.authority
        if options.x_forwarded:
            set_forwarded(headers, client=peer, proto=self.proto, host=self.host)
            if before:
                nodes = [each.node or UNKNOWN for each in before]
                headers.set("X-Forwarded-For", ", ".join([*nodes, host_of(peer)]))
        if options.forwarded:
            if before:
                headers.set("Forwarded", ", ".join(map(write_element, before)))
            append_forwarded(headers, client=peer, proto=scheme, host=host)
        if options.x_real_ip:
            set_field(request, "X-Real-IP", self.client)
        if options.via is not None:
            append_via(headers, request.version, options.via)


@attrs.frozen(kw_only=True)
class ForwardingFields(HttpModuleBuilder):
    """Finds out who asks, and tells the origin in ``X-Forwarded-*``, Forwarded (RFC 7239) and Via.

    What a client says of itself is not believed: its ``X-Forwarded-*`` fields, Forwarded and X-Real-IP
    are dropped. Where the client is a trusted proxy, its list of addresses is walked from the
    right, as long as the proxy that wrote an entry is trusted; who stands there is the client. What
    lies further left is what that client said of itself, and is dropped as well. Where a trusted
    proxy wrote something that cannot be read, the client is ``unknown``.

    Attributes:
      trusted: The networks of the proxies that are believed: ``["10.0.0.0/8", "unix"]``.
      believe: The one field that trusted proxies write, ``"x-forwarded-for"`` (with
        X-Forwarded-Proto and X-Forwarded-Host) or ``"forwarded"``. Never both: a proxy that writes
        the one hands on the other as the client sent it.
      x_forwarded: Whether the origin is told by X-Forwarded-For, X-Forwarded-Proto and
        X-Forwarded-Host.
      forwarded: Whether it is told by Forwarded.
      x_real_ip: Whether it is told by X-Real-IP, which has the client's address alone.
      via: The name under which this proxy adds itself to Via; None leaves that field alone.
      max_hops: Entries that are looked at, from the right.
    """

    order = 800
    module_type = Forwarding

    trusted: Networks = attrs.field(default=Networks(), converter=networks)
    believe: str = attrs.field(default="x-forwarded-for", validator=_one_of_the_fields)
    x_forwarded: bool = attrs.field(default=True, validator=flag)
    forwarded: bool = attrs.field(default=False, validator=flag)
    x_real_ip: bool = attrs.field(default=False, validator=flag)
    via: str | None = attrs.field(default=None, validator=_pseudonym)
    max_hops: int = attrs.field(default=32, validator=whole_number(1, "entries"))

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return Forwarding(self)


def _is_told(name: bytes) -> bool:
    """Tell whether a field says who asks; as some origins read it, with "_" for "-"."""
    name = name.replace(b"_", b"-")
    return name.startswith(_X_FORWARDED) or name in _TOLD


def believed(told: Iterable[Element | None], peer: str | None, trusted: Networks) -> list[Element]:
    """Return the parties from the client to the peer, as far as they are believed.

    Args:
      told: What proxies say of who asked them, the nearest proxy's word last.
      peer: Who is connected.
      trusted: Whose word counts.

    Returns:
      At least the peer, which is last.
    """
    chain = [Element(host_of(peer))]
    known = peer in trusted
    for element in reversed(list(told)):
        if not known:
            break
        if element is None or element.node is None:
            # Better nobody than the proxy itself, whose address may open doors.
            proto, host = (None, None) if element is None else (element.proto, element.host)
            chain.append(Element(UNKNOWN, proto, host))
            break
        chain.append(element)
        known = element.node in trusted
    chain.reverse()
    return chain
