"""Requests that bring a key, in a field, in the query or in a cookie."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import attrs

from .._messages import RequestHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import (
    TOKEN,
    Applies,
    Blinder,
    answer,
    challenge,
    exempt,
    flag,
    function,
    optional_field_name,
    realm,
    set_field,
    settled,
)

if TYPE_CHECKING:
    from ..proxy._session import Session

#: Whose key it is, by a function of the user's: a name, True without one, or None or False.
CheckKey = Callable[[str], "str | bool | Awaitable[str | bool | None] | None"]

#: The longest key that is looked at, in bytes.
LONGEST = 1024


def _keys(value: Any) -> Any:
    """Return keys by themselves as pairs, the name of whose owner is empty."""
    if callable(value):
        return value
    if isinstance(value, (str, bytes)):
        raise ValueError("keys: several are right, a function, or a mapping of names to keys")
    found = value.items() if isinstance(value, Mapping) else [("", each) for each in value]
    return tuple(found)


class ApiKeyAuthModule(HttpModule):
    """One request's part of `ApiKeyAuth`."""

    def __init__(self, options: ApiKeyAuth) -> None:
        self._options = options
        #: The name of whose key it was; empty where keys have no names, None before one was good.
        self.owner: str | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Let a request with a good key pass, answer all others."""
        options = self._options
        if exempt(options.applies, session, request, options.owner_field):
            return False
        found = options.find(request)
        if options.remove:
            options.take_out(request)
        if len(found) > 1:
            return await answer(session, 400, text="more than one key\n")
        owner = await options.owner_of(found[0]) if found else None
        if owner is None:
            return await challenge(session, "ApiKey", [("realm", options.realm)])
        self.owner = owner
        if options.owner_field is not None:
            set_field(request, options.owner_field, owner)
        return False


@attrs.frozen(kw_only=True)
class ApiKeyAuth(HttpModuleBuilder):
    """Lets only requests pass that bring one of the keys; all others get 401.

    The key comes from exactly one place. A request that brings it twice gets 400. Nothing that is
    logged has a key in it, but where it is in the query and stays there (``remove=False``) the
    target has.

    Attributes:
      keys: The keys; a mapping of names to keys tells whose key it was. Or a function that gets a
        key and returns the name of whose it is, or True or False; it may be async.
      header: The field that has the key, ``"X-Api-Key"`` say; of ``"Authorization"`` what stands
        behind ``scheme``.
      query: The parameter of the query that has it.
      cookie: The cookie that has it.
      scheme: The word before the key in the field, ``"ApiKey"`` say; None where there is none.
      remove: Whether the origin gets the request without the key.
      owner_field: The request field that tells the origin whose key it was; what clients send in it
        is replaced.
      realm: What the answer 401 calls what is protected.
      applies: Tells of a session whether a key is asked for; None: always.
    """

    order = 600
    module_type = ApiKeyAuthModule

    keys: tuple[tuple[str, str], ...] | CheckKey = attrs.field(converter=_keys, repr=False)
    header: str | None = attrs.field(default=None, validator=optional_field_name)
    query: str | None = attrs.field(default=None)
    cookie: str | None = attrs.field(default=None)
    scheme: str | None = attrs.field(default=None)
    remove: bool = attrs.field(default=True, validator=flag)
    owner_field: str | None = attrs.field(default=None, validator=optional_field_name)
    realm: str = attrs.field(default="api", validator=realm)
    applies: Applies | None = attrs.field(default=None, validator=function)
    _blind: Blinder = attrs.field(init=False, factory=Blinder, repr=False, eq=False)
    _owners: dict[bytes, str] = attrs.field(init=False, factory=dict, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        query: Any = self.query
        places = [self.header, self.query, self.cookie]
        if sum(each is not None for each in places) != 1:
            raise ValueError(
                f"header={self.header!r}, query={self.query!r}, cookie={self.cookie!r}: one of "
                "them is right"
            )
        if query is not None and (not isinstance(query, str) or not query):
            raise ValueError(f"query={self.query!r}: the name of a parameter is right")
        names: dict[str, Any] = {"cookie": self.cookie, "scheme": self.scheme}
        for name, value in names.items():
            if value is not None and not (isinstance(value, str) and TOKEN.fullmatch(value)):
                raise ValueError(f"{name}={value!r}: a name (a token) is right")
        if self.scheme is not None and self.header is None:
            raise ValueError(f"scheme={self.scheme!r}: it goes with header")
        if callable(self.keys):
            return
        if not self.keys:
            raise ValueError("keys: at least one key, or a function, is right")
        pairs: Any = self.keys
        for owner, key in pairs:
            # The value is a secret: it is not shown.
            if not isinstance(key, str) or not key or len(key.encode()) > LONGEST:
                raise ValueError(
                    f"keys: a key ({owner!r}) is no text of 1 to {LONGEST} bytes, which is right"
                )
            if not isinstance(owner, str) or not re.fullmatch(r"[!-~]?|[!-~][ -~]*[!-~]", owner):
                raise ValueError(f"keys has the name {owner!r}: one line of ASCII text is right")
            self._owners[self._blind(key.encode())] = owner

    def find(self, request: RequestHeader) -> list[str]:
        """Return the keys that a request brings."""
        if self.header is not None:
            values = [_as_utf8(each) for each in request.headers.get_all(self.header)]
            return values if self.scheme is None else [self._behind(each) for each in values]
        if self.query is not None:
            parameters = [each.partition("=") for each in (request.query or "").split("&")]
            return [
                unquote_plus(value) for name, _, value in parameters if self._is_parameter(name)
            ]
        cookies = [each.partition("=") for each in _cookies(request)]
        return [
            _as_utf8(value.strip(' \t"'))
            for name, _, value in cookies
            if name.strip(" \t") == self.cookie
        ]

    def _behind(self, value: str) -> str:
        scheme, _, key = value.partition(" ")
        return key.strip(" \t") if scheme.lower() == str(self.scheme).lower() else ""

    def _is_parameter(self, name: str) -> bool:
        return unquote_plus(name) == self.query

    def take_out(self, request: RequestHeader) -> None:
        """Remove the key from a request, and nothing else."""
        if self.header is not None:
            request.headers.remove(self.header)
        elif self.query is not None and request.query is not None:
            parameters = request.query.split("&")
            kept = [each for each in parameters if not self._is_parameter(each.partition("=")[0])]
            if len(kept) != len(parameters):
                request.query = "&".join(kept) if kept else None
        elif self.cookie is not None:
            cookies = _cookies(request)
            kept = [each for each in cookies if each.partition("=")[0].strip(" \t") != self.cookie]
            if len(kept) == len(cookies):
                return
            if kept:
                request.headers.set("Cookie", "; ".join(each.strip(" \t") for each in kept))
            else:
                request.headers.remove("cookie")

    async def owner_of(self, key: str) -> str | None:
        """Return whose key it is, or None where it is nobody's."""
        if not key or len(key) > LONGEST:
            return None
        if callable(self.keys):
            owner = await settled(self.keys(key))
            if owner is True:
                return ""
            return owner if isinstance(owner, str) else None
        digest = self._blind(key.encode())
        found: str | None = None
        # All are compared, each in a time that depends on no key.
        for known, owner_name in self._owners.items():
            if hmac.compare_digest(known, digest):
                found = owner_name
        return found

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return ApiKeyAuthModule(self)


def _as_utf8(text: str) -> str:
    """Return what a field says, which is bytes, as the text that was most likely meant."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _cookies(request: RequestHeader) -> list[str]:
    """Return the pairs of all Cookie fields; HTTP/2 may have one for each (RFC 9113 8.2.3)."""
    values: Iterable[str] = request.headers.get_all("cookie")
    return [each for value in values for each in value.split(";") if each.strip(" \t")]
