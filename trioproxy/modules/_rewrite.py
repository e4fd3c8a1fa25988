"""What an origin says of its own place, said of the public one: Location, Refresh, cookies."""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import attrs

from .._headers import Field
from .._messages import RequestHeader, ResponseHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import pairs, strings
from ._prefix import Mapping, PathPrefixModule

if TYPE_CHECKING:
    from ..proxy._session import Session

_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_WITH_HOST = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#]*)")
_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_REFRESH = re.compile(rb"[0-9.]+(?:[ \t]*[;,][ \t]*|[ \t]+)url[ \t]*=[ \t]*", re.IGNORECASE)
# Browsers drop these, and read what is left (URL standard, section 4.4).
_DROPPED = re.compile(r"[\t\r\n]")
_DOMAIN = re.compile(r"\.?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SAME_SITE = ("Strict", "Lax", "None")

Origin = tuple[str, str, int]


def origin_of(text: str) -> Origin | None:
    """Return scheme, host and port of an origin in one form, None where it is none."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    scheme, host, port = match.groups()
    return scheme, host.lower(), int(port) if port else _PORTS[scheme]


def _origins(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for each in value:
        if origin_of(each) is None:
            raise ValueError(f"{attribute.name} has {each!r}: http(s)://host[:port] is right")


def _public(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (not isinstance(value, str) or origin_of(value) is None):
        raise ValueError(f"{attribute.name}={value!r}: http(s)://host[:port], or None, is right")


def _mapping(session: Session) -> Mapping:
    """Return which paths stand for which, by the `PathPrefix` of this proxy."""
    module = session.downstream_modules_ctx.get(PathPrefixModule)
    return Mapping() if module is None else module.mapping


class RewriteLocationModule(HttpModule):
    """One request's part of `RewriteLocation`."""

    def __init__(self, options: RewriteLocation) -> None:
        self._options = options
        self._path = "/"

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Note what the client has asked for, before it is rewritten."""
        self._path = request.path
        return False

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Rewrite the fields that hold a URL of the origin."""
        if session.is_subrequest():  # what it is made for goes through this once more
            return
        if not _NAMES.isdisjoint([field[0] for field in response.headers.fields]):
            fields = [self._rewritten(session, field) for field in response.headers.fields]
            response.headers.fields = fields

    def _rewritten(self, session: Session, field: Field) -> Field:
        lower, name, value = field
        if lower == b"refresh":
            match = _REFRESH.match(value)
            if match is None:
                return field
            start, url, end = match[0], value[match.end() :], b""
            if url[:1] in (b"'", b'"') and len(url) > 1 and url[-1:] == url[:1]:
                start, url, end = start + url[:1], url[1:-1], url[:1]
            made = start + self._url(session, url) + end
        elif lower in _NAMES:
            made = self._url(session, value)
        else:
            return field
        return lower, name, made

    def _url(self, session: Session, value: bytes) -> bytes:
        """Return the public URL for one of the origin's, or the same where it is none."""
        url = value.decode("latin-1")
        if _DROPPED.search(url) or "\\" in url:  # what it means is the browser's own matter
            return value
        request = session.req_header()
        made = self._options.public_url(url, request, self._path, _mapping(session))
        return value if made is None else made.encode("latin-1")


_NAMES = frozenset({b"location", b"content-location", b"refresh"})


@attrs.frozen(kw_only=True)
class RewriteLocation(HttpModuleBuilder):
    """Makes public what an origin says in Location, Content-Location and Refresh.

    A URL of one of the ``origins``, or one without a host, gets the public path (that of the
    `PathPrefix` of this proxy, where it has one), and the public origin in place of its own. All
    others stay. A relative reference (RFC 9110 section 10.2.2) is changed only where it would lead
    elsewhere from the public path than from the origin's.

    Attributes:
      origins: What the origin calls itself: ``["http://127.0.0.1:9000", "http://app.internal"]``.
      public_origin: What clients call this site, ``"https://www.example"``; None writes paths
        without a host, which mean the same whatever clients call it.
    """

    order = 510  # before the path is rewritten
    module_type = RewriteLocationModule

    origins: tuple[str, ...] = attrs.field(default=(), converter=strings, validator=_origins)
    public_origin: str | None = attrs.field(default=None, validator=_public)
    _known: frozenset[Origin | None] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_known", frozenset(map(origin_of, self.origins)))

    def public_url(
        self, url: str, request: RequestHeader, public_path: str, mapping: Mapping
    ) -> str | None:
        """Return what stands for a URL of the origin; None: it stays as it is.

        Args:
          url: The URL, absolute or a reference.
          request: The request as the origin has got it.
          public_path: The path that the client asked for.
          mapping: Which paths stand for which.
        """
        match = _WITH_HOST.match(url)
        if match is not None:
            # Without a scheme it is that of the connection, which either side may have.
            schemes = [match[1].lower()] if match[1] else list(_PORTS)
            named = {origin_of(f"{each}://{match[2].lower()}") for each in schemes} - {None}
            # An origin that was told the client's Host calls itself that.
            own = {origin_of(f"{each}://{request.authority.lower()}") for each in _PORTS}
            if named.isdisjoint(self._known | own):
                return None
            return self._public(url[match.end() :], mapping)
        if not url or _WITH_SCHEME.match(url):
            return None
        if url.startswith("/"):
            return self._public(url, mapping)
        return self._relative(url, request.path, public_path, mapping)

    def _public(self, tail: str, mapping: Mapping) -> str | None:
        path = re.split(r"[?#]", tail, maxsplit=1)[0]
        found = mapping.to_public(path or "/")
        if found is None:  # the origin's own, and not below: there is no public path for it
            return None
        return (self.public_origin or "") + found + tail[len(path) :]

    def _relative(
        self, url: str, origin_path: str, public_path: str, mapping: Mapping
    ) -> str | None:
        base = "http://x"
        there = urljoin(base + origin_path, url)
        here = urljoin(base + public_path, url)
        if not there.startswith(f"{base}/"):
            return None
        made = self._public(there.removeprefix(base), mapping)
        same = (self.public_origin or "") + here.removeprefix(base)
        return None if made == same else made

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return RewriteLocationModule(self)


# -- cookies -------------------------------------------------------------------------------------


def _domains(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for old, new in value:
        if not isinstance(old, str) or not (old == "*" or _DOMAIN.fullmatch(old)):
            raise ValueError(f"{attribute.name} has {old!r}: a domain, or '*' for all, is right")
        if new is not None and not (isinstance(new, str) and _DOMAIN.fullmatch(new)):
            raise ValueError(
                f"{attribute.name} has {new!r} for {old!r}: a domain is right, or None for no "
                "Domain at all"
            )


def _optional_flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True, False or None is right")


def _same_site(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and value not in _SAME_SITE:
        raise ValueError(
            f"{attribute.name}={value!r}: one of {', '.join(map(repr, _SAME_SITE))} is right, or None"
        )


class RewriteCookiesModule(HttpModule):
    """One request's part of `RewriteCookies`."""

    def __init__(self, options: RewriteCookies) -> None:
        self._options = options

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Rewrite the attributes of the cookies that the origin sets."""
        fields = response.headers.fields
        if session.is_subrequest() or not any(field[0] == b"set-cookie" for field in fields):
            return
        mapping = _mapping(session)
        response.headers.fields = [
            (lower, name, self._options.rewritten(value, mapping))
            if lower == b"set-cookie"
            else (lower, name, value)
            for lower, name, value in fields
        ]


@attrs.frozen(kw_only=True)
class RewriteCookies(HttpModuleBuilder):
    """Makes the cookies that an origin sets cookies of the public site (RFC 6265).

    Path is rewritten by the `PathPrefix` of this proxy, where it has one. A cookie whose name
    begins with ``__Host-`` keeps its Path and Domain, without which browsers would not take it.

    Attributes:
      domains: By a Domain of the origin's, the public one: ``{"app.internal": "www.example"}``;
        None in its place leaves the cookie to the host that set it, and ``"*"`` stands for all
        others.
      secure: Whether each gets Secure (True) or none has it (False, for sites without TLS; names
        that begin with ``__Secure-`` or ``__Host-`` keep theirs); None leaves it alone.
      http_only: Likewise for HttpOnly.
      same_site: What each gets as SameSite: ``"Strict"``, ``"Lax"`` or ``"None"``, which needs
        ``secure=True``; None leaves it alone.
    """

    order = 510
    module_type = RewriteCookiesModule

    domains: tuple[tuple[str, str | None], ...] = attrs.field(
        default=(), converter=pairs, validator=_domains
    )
    secure: bool | None = attrs.field(default=None, validator=_optional_flag)
    http_only: bool | None = attrs.field(default=None, validator=_optional_flag)
    same_site: str | None = attrs.field(default=None, validator=_same_site)
    _by_domain: Map[str, str | None] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.same_site == "None" and self.secure is not True:
            raise ValueError("same_site='None': secure=True is right with it")
        found = {old.lstrip(".").lower(): new for old, new in self.domains}
        object.__setattr__(self, "_by_domain", found)

    def rewritten(self, value: bytes, mapping: Mapping) -> bytes:
        """Return a Set-Cookie value for the public site; what names the cookie stays byte for byte."""
        pair, *attributes = value.split(b";")
        name = pair.partition(b"=")[0].strip(b" \t").lower()
        host_only = name.startswith(b"__host-")
        marked = host_only or name.startswith(b"__secure-")
        kept = [pair]
        for attribute in attributes:
            key, equals, text = attribute.partition(b"=")
            kind, text = key.strip(b" \t").lower(), text.strip(b" \t")
            if kind == b"domain" and not host_only:
                made = self._domain(text)
                if made is None:
                    continue
                attribute = attribute if made == text else b" Domain=" + made
            elif kind == b"path" and not host_only and equals:
                made = self._path(text, mapping)
                attribute = attribute if made == text else b" Path=" + made
            elif (
                (kind == b"secure" and (self.secure or (self.secure is False and not marked)))
                or (kind == b"httponly" and self.http_only is not None)
                or (kind == b"samesite" and self.same_site is not None)
            ):
                continue
            kept.append(attribute)
        if self.secure:
            kept.append(b" Secure")
        if self.http_only:
            kept.append(b" HttpOnly")
        if self.same_site is not None:
            kept.append(b" SameSite=" + self.same_site.encode())
        return b";".join(kept)

    def _domain(self, text: bytes) -> bytes | None:
        """Return what stands for a Domain, None where none is to."""
        old = text.decode("latin-1").lower().lstrip(".")
        if old in self._by_domain:
            new = self._by_domain[old]
        elif "*" in self._by_domain and old:
            new = self._by_domain["*"]
        else:
            return text
        return None if new is None else new.encode("ascii")

    def _path(self, text: bytes, mapping: Mapping) -> bytes:
        """Return what stands for a Path.

        One that is above the origin's prefix holds for all below, and so for all that is public.
        """
        path = text.decode("latin-1")
        if not path.startswith("/"):
            return text  # browsers take the default then
        bare = path.rstrip("/")
        found = mapping.to_public(bare) if bare or not mapping.origin else None
        if found is not None:
            slash = "/" if path.endswith("/") and not found.endswith("/") and bare else ""
            return (found + slash).encode("latin-1")
        above = mapping.origin == bare or mapping.origin.startswith(f"{bare}/")
        return (mapping.public or "/").encode("latin-1") if above else text

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return RewriteCookiesModule(self)
