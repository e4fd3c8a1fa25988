"""Requests about which another service is asked first."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._headers import Headers
from .._messages import RequestHeader, ResponseHeader
from .._peer import HttpPeer
from ..semantics._forwarding import host_of
from ._abc import HttpModule, HttpModuleBuilder
from ._common import (
    Applies,
    answer,
    exempt,
    field_names,
    function,
    keep_field,
    seconds,
    strings,
    whole_number,
)
from ._forwarding import Forwarding

if TYPE_CHECKING:
    from ..proxy._session import Session

log = logging.getLogger("trioproxy")

#: What frames or carries a message, and what only the service itself may be told.
_NEVER_SENT = frozenset(
    b"connection content-length expect host http2-settings keep-alive proxy-connection range te "
    b"trailer transfer-encoding upgrade".split()
)
_NEVER_TOLD = frozenset(
    b"connection content-length host http2-settings keep-alive proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
#: What of a refusal goes to the client.
_RELAYED = (b"www-authenticate", b"location", b"set-cookie", b"content-type", b"retry-after")


def _none_of(names: frozenset[bytes]) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        field_names(instance, attribute, value)
        for each in value:
            if each.lower().encode() in names:
                raise ValueError(
                    f"{attribute.name} has {each!r}: that belongs to one connection or message"
                )

    return check


class ForwardAuthModule(HttpModule):
    """One request's part of `ForwardAuth`."""

    def __init__(self, options: ForwardAuth) -> None:
        self._options = options
        #: The head with which the service has let the request on; None before.
        self.answer: ResponseHeader | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Ask the service; let the request on or answer it as the service says."""
        options = self._options
        if exempt(options.applies, session, request, *options.to_origin):
            return False
        if len(request.headers.get_all(b"authorization")) > 1:
            # The service and the origin might each look at another one.
            return await answer(session, 400, text="more than one Authorization field\n")
        if options.peer is None and session.subrequest_spawner is None:
            raise ProxyError.explain(
                ErrorType.InternalError,
                "ForwardAuth without a peer asks by a subrequest: allow_spawning_subrequest is to "
                "return True",
            ).into_in()
        try:
            head, body = await self._ask(session, request)
        except ProxyError as exc:
            log.warning("the service that authenticates gave no answer: %s", exc)
            return await answer(session, 503, [("Retry-After", "5")], "cannot authenticate now\n")
        if 200 <= head.status < 300:
            self.answer = head
            for name in options.to_origin:
                lower = name.lower().encode()
                found = [field for field in head.headers.fields if field[0] == lower]
                request.headers.fields += found
                keep_field(request, name)
            return False
        if not 300 <= head.status < 500:
            log.warning("the service that authenticates answered %d", head.status)
            return await answer(session, 503, [("Retry-After", "5")], "cannot authenticate now\n")
        return await _relay(session, head, body)

    async def _ask(self, session: Session, request: RequestHeader) -> tuple[ResponseHeader, bytes]:
        """Return the head and the content of the service's answer.

        Raises:
          ProxyError: there is no such answer.
        """
        options = self._options
        asked = options.request_for(session, request)
        timeout, most = options.timeout, options.max_body_bytes
        if options.peer is not None:
            fetched = await session.fetch(options.peer, asked, timeout=timeout, max_bytes=most)
            return fetched.head, fetched.body
        asked.headers.set("Host", request.authority)
        asked.scheme = request.scheme
        assert session.subrequest_spawner is not None
        with trio.move_on_after(timeout):
            async with session.subrequest_spawner.open(asked, user_ctx=self) as subrequest:
                head = await subrequest.response_header()
                return head, await subrequest.read(most)
        raise ProxyError.explain(
            ErrorType.ReadTimedout, f"the subrequest {options.path}: no answer in {timeout:g} s"
        ).into_up()

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Tell the client what the service has to tell it."""
        if self.answer is not None and response.status >= 200 and self._options.to_client:
            names = {name.lower().encode() for name in self._options.to_client}
            found = [field for field in self.answer.headers.fields if field[0] in names]
            replaced = {field[0] for field in found} - {b"set-cookie"}
            headers = response.headers
            headers.fields = [field for field in headers.fields if field[0] not in replaced]
            headers.fields += found


async def _relay(session: Session, head: ResponseHeader, body: bytes) -> bool:
    """Answer as the service has; no cache may keep it."""
    made = ResponseHeader(head.status)
    fields = [field for field in head.headers.fields if field[0] in _RELAYED]
    made.headers = Headers.trusted(fields)
    made.headers.set("Cache-Control", "no-store")
    if head.status == 304:
        body = b""
    else:
        made.headers.set("Content-Length", str(len(body)))
    await session.write_response_header(made, end_of_stream=not body)
    if body:
        await session.write_response_body(body, end_of_stream=True)
    return True


@attrs.frozen(kw_only=True)
class ForwardAuth(HttpModuleBuilder):
    """Asks a service about each request before it goes on.

    The service gets a request without content that has X-Forwarded-Method, X-Forwarded-Proto,
    X-Forwarded-Host, X-Forwarded-Uri (the target) and X-Forwarded-For, and the fields of
    ``to_service``. Where it answers with 2xx the request goes on. Other answers below 500 go to the
    client: the status, WWW-Authenticate, Location, Set-Cookie, Retry-After and the content. Where
    it answers with 5xx, too much, too late or not at all, the request gets 503.

    Without a ``peer`` it is asked by a subrequest: the same proxy object chooses the peer, and may
    serve the answer from its cache. ``allow_spawning_subrequest`` has to return True for that, and
    what the subrequest is for is told by its ``user_ctx``, a `ForwardAuthModule`.

    Attributes:
      peer: The service, None for a subrequest.
      path: What it is asked for, with a query perhaps.
      to_service: The request fields that it sees.
      to_origin: The fields of its answer that go to the origin; what clients send in them is
        removed.
      to_client: The fields of its answer that go to the client with the origin's response, such as
        ``["Set-Cookie"]``.
      timeout: Seconds for its answer.
      max_body_bytes: Bytes of content that its answer may have.
      applies: Tells of a session whether it is asked; None: always.
    """

    order = 600
    module_type = ForwardAuthModule

    peer: HttpPeer | None = attrs.field(default=None)
    path: str = attrs.field(default="/")
    to_service: tuple[str, ...] = attrs.field(
        default=("Authorization", "Cookie", "Accept", "User-Agent"),
        converter=strings,
        validator=_none_of(_NEVER_SENT),
    )
    to_origin: tuple[str, ...] = attrs.field(
        default=(), converter=strings, validator=_none_of(_NEVER_TOLD)
    )
    to_client: tuple[str, ...] = attrs.field(
        default=(), converter=strings, validator=_none_of(_NEVER_TOLD)
    )
    timeout: float = attrs.field(default=5.0, validator=seconds)
    max_body_bytes: int = attrs.field(default=65536, validator=whole_number(0, "bytes"))
    applies: Applies | None = attrs.field(default=None, validator=function)

    def __attrs_post_init__(self) -> None:
        peer: Any = self.peer
        if peer is not None and not isinstance(peer, HttpPeer):
            raise ValueError(f"peer={peer!r}: an HttpPeer is right, or None for a subrequest")
        path: Any = self.path
        if not isinstance(path, str) or not re.fullmatch(r"/[!-~]*", path) or "#" in path:
            raise ValueError(f"path={path!r}: '/path' is right, with a query perhaps")

    def request_for(self, session: Session, request: RequestHeader) -> RequestHeader:
        """Return what the service is asked."""
        asked = RequestHeader("GET", self.path)
        headers = asked.headers
        for name in self.to_service:
            values = request.headers.get_all(name)
            if values and name.lower() == "cookie":
                headers.add(name, "; ".join(values))  # HTTP/2 has them one by one
                continue
            for value in values:
                headers.add(name, value)
        forwarding = session.downstream_modules_ctx.get(Forwarding)
        if forwarding is None:
            client, proto = host_of(session.client_addr()), request.scheme
            host = request.authority
        else:
            client, proto, host = forwarding.client, forwarding.proto, forwarding.host
        headers.set("X-Forwarded-Method", request.method)
        headers.set("X-Forwarded-Proto", proto)
        headers.set("X-Forwarded-Host", host)
        headers.set("X-Forwarded-Uri", request.target)
        headers.set("X-Forwarded-For", client)
        return asked

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return ForwardAuthModule(self)
