"""The part of a site that an origin is, and the paths on either side of that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

from .._messages import RequestHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import answer, flag, set_field

if TYPE_CHECKING:
    from ..proxy._session import Session

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")


def prefix(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no prefix of a path."""
    if not isinstance(value, str) or not _PREFIX.fullmatch(value) or climbs(value):
        raise ValueError(
            f"{attribute.name}={value!r}: '/a' or '/a/b' is right, without a slash at its end, or "
            "'' for none"
        )


def climbs(path: str) -> bool:
    """Tell whether a path has a segment that leads upwards or nowhere, however it is written.

    An origin may read ``%2e%2e``, ``..;x``, ``..%2f`` and backslashes as ``..`` and slashes.
    """
    segments = unquote(path).replace("\\", "/").split("/")
    return any(segment.partition(";")[0] in (".", "..") for segment in segments)


def below(path: str, start: str) -> str | None:
    """Return what of a path is behind a prefix, which ends between two segments; None: it is not below."""
    if not path.startswith(start):
        return None
    rest = path[len(start) :]
    return rest if not rest or rest.startswith("/") else None


@attrs.frozen
class Mapping:
    """Which paths of the origin stand for which of the public.

    Attributes:
      public: The prefix that clients see.
      origin: The prefix that stands in its place at the origin.
    """

    public: str = ""
    origin: str = ""

    def to_origin(self, path: str) -> str | None:
        """Return the origin's path for a public one, None where there is none."""
        rest = below(path, self.public)
        return None if rest is None else _whole(self.origin, rest)

    def to_public(self, path: str) -> str | None:
        """Return the public path for one of the origin's, None where there is none."""
        rest = below(path, self.origin)
        return None if rest is None else _whole(self.public, rest)


def _whole(start: str, rest: str) -> str:
    """Join a prefix and what is behind it; never to something that looks like a host."""
    path = start + rest if start or rest else "/"
    return "/" + path.lstrip("/") if path.startswith("//") else path


class PathPrefixModule(HttpModule):
    """One request's part of `PathPrefix`."""

    def __init__(self, options: PathPrefix) -> None:
        self._options = options
        #: The path that the client asked for.
        self.public_path: str | None = None

    @property
    def mapping(self) -> Mapping:
        """Which paths stand for which."""
        return self._options.mapping

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Rewrite the path, once for all attempts; answer what is not below the prefix."""
        options = self._options
        if session.is_subrequest():  # what it is made of was rewritten
            return False
        path = request.path
        if path == "*":
            return False
        self.public_path = path
        if climbs(path):
            return await answer(session, 400, text="bad path\n")
        found = options.mapping.to_origin(path)
        if found is None:
            return await answer(session, 404, text="not found\n")
        request.path = found
        request.headers.remove(b"x-forwarded-prefix")
        if options.tell and options.strip:
            set_field(request, "X-Forwarded-Prefix", options.strip)
        return False


@attrs.frozen(kw_only=True)
class PathPrefix(HttpModuleBuilder):
    """Makes an origin a part of a site: ``/app/x`` of the public is ``/x`` of the origin.

    A request for another path gets 404, and one whose path has dot segments in it, in whatever
    disguise, gets 400: the origin might read them, and leave the prefix. `RewriteLocation` and
    `RewriteCookies` do the same to what comes back.

    Attributes:
      strip: The prefix that clients see, ``"/app"``; ``""`` for none.
      add: The prefix at the origin, in its place; ``""`` for none.
      tell: Whether the origin is told the public prefix in X-Forwarded-Prefix. One that heeds it
        makes public URLs by itself, and takes no `RewriteLocation`. What clients send in that field
        is removed.
      mapping: Which paths stand for which, as the two prefixes have it.
    """

    order = 500
    module_type = PathPrefixModule

    strip: str = attrs.field(default="", validator=prefix)
    add: str = attrs.field(default="", validator=prefix)
    tell: bool = attrs.field(default=False, validator=flag)
    mapping: Mapping = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "mapping", Mapping(self.strip, self.add))

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return PathPrefixModule(self)
