"""Response fields that tell browsers to be careful."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs

from .._messages import ResponseHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import field_names, flag, optional_field_value, strings, whole_number
from ._forwarding import Forwarding

if TYPE_CHECKING:
    from ..proxy._session import Session

_YEAR = 31536000
_REFERRER = frozenset(
    [
        "no-referrer",
        "no-referrer-when-downgrade",
        "origin",
        "origin-when-cross-origin",
        "same-origin",
        "strict-origin",
        "strict-origin-when-cross-origin",
        "unsafe-url",
    ]
)


def _one_of(*choices: str) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None and value not in choices:
            raise ValueError(
                f"{attribute.name}={value!r}: one of {', '.join(map(repr, choices))} is right, or "
                "None"
            )

    return check


def _referrer(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    words = re.split(r"[ \t]*,[ \t]*", value) if isinstance(value, str) else [None]
    if not all(word in _REFERRER for word in words):
        raise ValueError(
            f"{attribute.name}={value!r}: one of {', '.join(sorted(_REFERRER))} is right, or "
            "several with commas between them"
        )


class SecurityHeadersModule(HttpModule):
    """One request's part of `SecurityHeaders`."""

    def __init__(self, options: SecurityHeaders) -> None:
        self._options = options

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Add the fields that are not there, and remove those that are to go."""
        if response.status < 200:
            return
        options, headers = self._options, response.headers
        for name in options.remove:
            headers.remove(name)
        for name, value in options.fields:
            if options.override or name not in headers:
                headers.set(name, value)
        told = options.strict_transport_security
        # RFC 6797 section 7.2: never without TLS.
        if told is not None and _is_secure(session):
            name = "Strict-Transport-Security"
            if options.override or name not in headers:
                headers.set(name, told)


def _is_secure(session: Session) -> bool:
    forwarding = session.downstream_modules_ctx.get(Forwarding)
    scheme = session.req_header().scheme
    return scheme == "https" or (forwarding is not None and forwarding.proto == "https")


@attrs.frozen(kw_only=True)
class SecurityHeaders(HttpModuleBuilder):
    """Adds security fields to responses; what the origin says itself stays, unless told otherwise.

    Strict-Transport-Security is sent over TLS alone: that of the client's connection, or that which
    a trusted proxy tells of where `ForwardingFields` is there.

    Attributes:
      hsts_max_age: Seconds that browsers are to use TLS alone (RFC 6797); None does not say so, 0
        takes it back.
      hsts_include_subdomains: Whether that holds for all names below.
      hsts_preload: Whether the site may be put on the browsers' own list, which takes a year and
        all names below.
      content_type_options: Whether browsers are not to guess content types.
      frame_options: X-Frame-Options, ``"DENY"`` or ``"SAMEORIGIN"``; None leaves it out.
      frame_ancestors: Who may show a page in a frame, as ``"'self' https://a.example"``: a
        Content-Security-Policy of its own, added where the origin has sent none.
      referrer_policy: Referrer-Policy; None leaves it out.
      content_security_policy: Content-Security-Policy; None leaves it out.
      content_security_policy_report_only: The policy that is only tried.
      permissions_policy: Permissions-Policy.
      cross_origin_opener_policy: ``"same-origin"``, ``"same-origin-allow-popups"``,
        ``"noopener-allow-popups"`` or ``"unsafe-none"``.
      cross_origin_embedder_policy: ``"require-corp"``, ``"credentialless"`` or ``"unsafe-none"``.
      cross_origin_resource_policy: ``"same-origin"``, ``"same-site"`` or ``"cross-origin"``.
      override: Whether what the origin sends of these fields is replaced.
      remove: The fields to remove, such as ``["Server", "X-Powered-By"]``.
      fields: The fields with their values, as all this makes them, but the one that takes TLS.
      strict_transport_security: The value of that one, None where it is not sent.
    """

    order = 400
    module_type = SecurityHeadersModule

    hsts_max_age: int | None = attrs.field(
        default=_YEAR, validator=whole_number(0, "seconds", optional=True)
    )
    hsts_include_subdomains: bool = attrs.field(default=False, validator=flag)
    hsts_preload: bool = attrs.field(default=False, validator=flag)
    content_type_options: bool = attrs.field(default=True, validator=flag)
    frame_options: str | None = attrs.field(
        default="SAMEORIGIN", validator=_one_of("DENY", "SAMEORIGIN")
    )
    frame_ancestors: str | None = attrs.field(default=None, validator=optional_field_value)
    referrer_policy: str | None = attrs.field(
        default="strict-origin-when-cross-origin", validator=_referrer
    )
    content_security_policy: str | None = attrs.field(default=None, validator=optional_field_value)
    content_security_policy_report_only: str | None = attrs.field(
        default=None, validator=optional_field_value
    )
    permissions_policy: str | None = attrs.field(default=None, validator=optional_field_value)
    cross_origin_opener_policy: str | None = attrs.field(
        default=None,
        validator=_one_of(
            "same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"
        ),
    )
    cross_origin_embedder_policy: str | None = attrs.field(
        default=None, validator=_one_of("require-corp", "credentialless", "unsafe-none")
    )
    cross_origin_resource_policy: str | None = attrs.field(
        default=None, validator=_one_of("same-origin", "same-site", "cross-origin")
    )
    override: bool = attrs.field(default=False, validator=flag)
    remove: tuple[str, ...] = attrs.field(default=(), converter=strings, validator=field_names)
    fields: tuple[tuple[str, str], ...] = attrs.field(init=False, repr=False)
    strict_transport_security: str | None = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.hsts_preload and not (
            self.hsts_include_subdomains and (self.hsts_max_age or 0) >= _YEAR
        ):
            raise ValueError(
                f"hsts_preload=True: hsts_max_age of at least {_YEAR} and "
                "hsts_include_subdomains=True are right with it"
            )
        if self.frame_ancestors is not None and self.content_security_policy is not None:
            raise ValueError(
                f"frame_ancestors={self.frame_ancestors!r}: with a content_security_policy it is a "
                "part of that"
            )
        if self.frame_ancestors is not None and re.search(r"[;,]", self.frame_ancestors):
            raise ValueError(
                f"frame_ancestors={self.frame_ancestors!r}: sources with blanks between them are "
                "right"
            )
        policy = self.content_security_policy
        if self.frame_ancestors is not None:
            policy = f"frame-ancestors {self.frame_ancestors}"
        told = {
            "X-Content-Type-Options": "nosniff" if self.content_type_options else None,
            "X-Frame-Options": self.frame_options,
            "Referrer-Policy": self.referrer_policy,
            "Content-Security-Policy": policy,
            "Content-Security-Policy-Report-Only": self.content_security_policy_report_only,
            "Permissions-Policy": self.permissions_policy,
            "Cross-Origin-Opener-Policy": self.cross_origin_opener_policy,
            "Cross-Origin-Embedder-Policy": self.cross_origin_embedder_policy,
            "Cross-Origin-Resource-Policy": self.cross_origin_resource_policy,
        }
        fields = tuple([(name, value) for name, value in told.items() if value is not None])
        object.__setattr__(self, "fields", fields)
        hsts = None
        if self.hsts_max_age is not None:
            hsts = f"max-age={self.hsts_max_age}"
            hsts += "; includeSubDomains" if self.hsts_include_subdomains else ""
            hsts += "; preload" if self.hsts_preload else ""
        object.__setattr__(self, "strict_transport_security", hsts)

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return SecurityHeadersModule(self)
