"""An identifier for each request, by which logs of several programs find together."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from .._clock import wall_time
from .._messages import RequestHeader, ResponseHeader
from .._networks import Networks
from ._abc import HttpModule, HttpModuleBuilder
from ._common import field_name, flag, networks, set_field, whole_number

if TYPE_CHECKING:
    from ..proxy._session import Session

# What is safe in every log, URL and shell; base64, UUIDs and trace identifiers are made of it.
_GOOD = re.compile(r"[A-Za-z0-9._~+/=:@-]+")


def new_id() -> str:
    """Return a UUID of version 7 (RFC 9562 section 5.7): sorted by time, and not to be guessed."""
    number = int(wall_time() * 1000) % (1 << 48) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class RequestIdModule(HttpModule):
    """The identifier of a request, by what `RequestId` says; set from `request_filter` on."""

    def __init__(self, options: RequestId) -> None:
        self._options = options
        #: The identifier.
        self.value: str = ""

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Take the identifier that a trusted proxy has sent, or make one."""
        options = self._options
        values = request.headers.get_all(options.field)
        taken = session.is_subrequest() or session.client_addr() in options.trusted
        if taken and len(values) == 1 and options.takes(values[0]):
            self.value = values[0]
        else:
            made = options.make()
            if not options.takes(made):
                raise ValueError(
                    f"make returned {made!r}: 1 to {options.max_length} letters, digits and "
                    "._~+/=:@- are right"
                )
            self.value = made
        set_field(request, options.field, self.value)
        return False

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Tell the client; what the origin says there is replaced."""
        if self._options.response and response.status >= 200 and self.value:
            response.headers.set(self._options.field, self.value)


@attrs.frozen(kw_only=True)
class RequestId(HttpModuleBuilder):
    """Gives each request an identifier, for the origin, for the client and for logs.

    Fields of W3C Trace Context (``traceparent``, ``tracestate``) pass untouched.

    Attributes:
      field: The field that has it.
      trusted: The networks whose identifiers are taken over, where they are of good form and not
        too long; all others get a new one. ``["0.0.0.0/0", "::/0"]`` takes everybody's.
      response: Whether the client is told.
      make: Makes a new one; without it that is a UUID of version 7.
      max_length: The longest that is taken over, in characters.
    """

    order = 900
    module_type = RequestIdModule

    field: str = attrs.field(default="X-Request-Id", validator=field_name)
    trusted: Networks = attrs.field(default=Networks(), converter=networks)
    response: bool = attrs.field(default=True, validator=flag)
    make: Callable[[], str] = attrs.field(default=new_id)
    max_length: int = attrs.field(default=128, validator=whole_number(1, "characters"))

    def __attrs_post_init__(self) -> None:
        if not callable(self.make):
            raise ValueError(f"make={self.make!r}: a function is right")

    def takes(self, value: object) -> bool:
        """Tell whether an identifier is of good form."""
        return (
            isinstance(value, str)
            and len(value) <= self.max_length
            and _GOOD.fullmatch(value) is not None
        )

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return RequestIdModule(self)
