"""Cross-origin requests of browsers: the Fetch standard's CORS protocol, spoken by the gateway."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs

from .._messages import RequestHeader, ResponseHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import TOKEN, add_vary, answer, flag, settled, strings, whole_number

if TYPE_CHECKING:
    from ..proxy._session import Session

#: Whether an origin may, by a function of the user's.
Allows = Callable[[str], "bool | Awaitable[bool]"]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])"
_PORT = r"(?::[1-9][0-9]{0,4})?"
# A serialised origin (Fetch standard, section 3.2): nothing behind the port, all in lower case.
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST}{_PORT}")
_PATTERN = re.compile(rf"([a-z][a-z0-9+.-]*)://\*\.({_LABEL}(?:\.{_LABEL})*)({_PORT})")
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")
_ALLOW_FIELDS = b"access-control-"
_REQUEST_METHOD = "Access-Control-Request-Method"
_REQUEST_HEADERS = "Access-Control-Request-Headers"
_PRIVATE = "Access-Control-Request-Private-Network"


def _origins(value: Any) -> Any:
    return value if callable(value) else strings(value)


def _tokens(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for each in value:
        if not TOKEN.fullmatch(each):
            raise ValueError(f"{attribute.name} has {each!r}: names (tokens), or '*', are right")
    if "*" in value and len(value) > 1:
        raise ValueError(f"{attribute.name}={value!r}: '*' stands by itself")


class CorsModule(HttpModule):
    """One request's part of `Cors`."""

    def __init__(self, options: Cors) -> None:
        self._options = options
        #: The origin that may read the response; None where there is none that may.
        self.origin: str | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Find out whether the origin may, and answer a preflight."""
        if session.is_subrequest():
            return False
        headers = request.headers
        origins = headers.get_all(b"origin")
        if len(origins) == 1 and await self._options.allows(origins[0]):
            self.origin = origins[0]
        methods = headers.get_all(_REQUEST_METHOD)
        if request.method != "OPTIONS" or not origins or not methods:
            return False
        # A preflight never goes on: without credentials it would only be refused there.
        if len(origins) > 1 or len(methods) > 1:
            self.origin = None
        fields = [] if self.origin is None else self._allowed(headers.get(_PRIVATE) == "true")
        return await answer(session, 204, fields)

    def _allowed(self, private: bool) -> list[tuple[str, str]]:
        """Return what an answer to a preflight allows."""
        options = self._options
        fields = [("Access-Control-Allow-Methods", ", ".join(options.allow_methods))]
        if options.allow_headers:
            fields.append(("Access-Control-Allow-Headers", ", ".join(options.allow_headers)))
        if options.max_age is not None:
            fields.append(("Access-Control-Max-Age", str(options.max_age)))
        if private and options.allow_private_network:
            fields.append(("Access-Control-Allow-Private-Network", "true"))
        return fields

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Say whether the origin may read it; what the origin server says of that is replaced."""
        if response.status < 200:
            return
        options, headers, request = self._options, response.headers, session.req_header()
        preflight = request.method == "OPTIONS" and _REQUEST_METHOD in request.headers
        keep = preflight and b"origin" in request.headers  # our own answer
        headers.fields = [
            field
            for field in headers.fields
            if not field[0].startswith(_ALLOW_FIELDS) or (keep and self.origin is not None)
        ]
        if keep:
            add_vary(headers, "Origin", _REQUEST_METHOD, _REQUEST_HEADERS)
            if options.allow_private_network:
                add_vary(headers, _PRIVATE)
        elif not options.any_origin:
            add_vary(headers, "Origin")
        # What is the same for all may be stored for all: a request without Origin gets it too.
        origin = "*" if options.any_origin and not keep else self.origin
        if origin is None:
            return
        headers.set("Access-Control-Allow-Origin", "*" if options.any_origin else origin)
        if options.allow_credentials:
            headers.set("Access-Control-Allow-Credentials", "true")
        if options.expose_headers and not keep:
            headers.set("Access-Control-Expose-Headers", ", ".join(options.expose_headers))


@attrs.frozen(kw_only=True)
class Cors(HttpModuleBuilder):
    """Speaks CORS with browsers (Fetch standard, section 3.2), in place of the origin.

    Preflights are answered here, with 204; other requests go on, and their responses say whether
    the page may read them. An origin that may not gets no field at all. What the origin server
    sends of Access-Control-* is dropped. CORS keeps pages from reading, and no request from coming:
    it takes the place of no authentication.

    Attributes:
      allow_origins: The origins that may: ``"https://a.example"``, ``"https://*.a.example"`` for
        all names below (not for ``a.example`` itself), ``"null"``, or ``"*"`` alone for all. Or a
        function that gets an origin and says whether it may; it may be async.
      allow_methods: The methods, or ``"*"``.
      allow_headers: The request fields beyond the safe ones, or ``"*"`` (without Authorization).
      allow_credentials: Whether cookies and other credentials may come along; never with ``"*"``.
      expose_headers: The response fields that pages may read, or ``"*"``.
      max_age: Seconds that a browser may remember the answer to a preflight; None leaves it to it.
      allow_private_network: Whether pages of a public network may reach this one.
    """

    order = 700
    module_type = CorsModule

    allow_origins: tuple[str, ...] | Allows = attrs.field(converter=_origins)
    allow_methods: tuple[str, ...] = attrs.field(
        default=("GET", "HEAD", "POST"), converter=strings, validator=_tokens
    )
    allow_headers: tuple[str, ...] = attrs.field(default=(), converter=strings, validator=_tokens)
    allow_credentials: bool = attrs.field(default=False, validator=flag)
    expose_headers: tuple[str, ...] = attrs.field(default=(), converter=strings, validator=_tokens)
    max_age: int | None = attrs.field(
        default=600, validator=whole_number(0, "seconds", optional=True)
    )
    allow_private_network: bool = attrs.field(default=False, validator=flag)
    _exact: frozenset[str] = attrs.field(init=False, repr=False)
    _patterns: tuple[re.Pattern[str], ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        origins = () if callable(self.allow_origins) else self.allow_origins
        if not callable(self.allow_origins) and not origins:
            raise ValueError("allow_origins=(): at least one origin, or a function, is right")
        exact, patterns = [], []
        for each in origins:
            pattern = _PATTERN.fullmatch(each)
            if pattern is not None:
                scheme, domain, port = map(re.escape, pattern.groups())
                patterns.append(re.compile(rf"{scheme}://{_LABEL}(?:\.{_LABEL})*\.{domain}{port}"))
            else:
                exact.append(each)
            if each in ("*", "null") or (
                (pattern is not None or _ORIGIN.fullmatch(each)) and not _DEFAULT_PORT.match(each)
            ):
                continue
            raise ValueError(
                f"allow_origins has {each!r}: https://host[:port] in lower case is right, without "
                "the scheme's own port and without anything behind it, or https://*.host"
            )
        if "*" in origins and len(origins) > 1:
            raise ValueError(f"allow_origins={origins!r}: '*' stands by itself")
        if self.allow_credentials:
            for name in ("allow_origins", "allow_methods", "allow_headers", "expose_headers"):
                value = getattr(self, name)
                if not callable(value) and ("*" in value or "null" in value):
                    wrong = "'*'" if "*" in value else "'null'"
                    raise ValueError(
                        f"{name} has {wrong} and allow_credentials is True: with credentials "
                        "everything that is allowed has to be named (Fetch standard)"
                    )
        object.__setattr__(self, "_exact", frozenset(exact))
        object.__setattr__(self, "_patterns", tuple(patterns))

    @property
    def any_origin(self) -> bool:
        """Whether every origin may, so that responses are the same for all."""
        return "*" in self._exact

    async def allows(self, origin: str) -> bool:
        """Tell whether an origin may."""
        if self.any_origin or origin in self._exact:
            return True
        if callable(self.allow_origins):
            # Only what looks like an origin is put to it, so that a careless one is not fooled.
            whole = origin == "null" or _ORIGIN.fullmatch(origin) is not None
            return whole and bool(await settled(self.allow_origins(origin)))
        return any(pattern.fullmatch(origin) for pattern in self._patterns)

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return CorsModule(self)
