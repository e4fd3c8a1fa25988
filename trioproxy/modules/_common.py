"""What several modules share: checks of options, request fields that count once, answers of their own."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from .._headers import Headers, Text
from .._messages import RequestHeader, ResponseHeader
from .._networks import Networks

if TYPE_CHECKING:
    from ..proxy._session import Session

T = TypeVar("T")

#: A function that chooses by the request: whether a module is to act on it.
Applies = Callable[["Session"], bool]

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_NOT_QUOTABLE = re.compile(r"[^\x20-\x7e]")


# -- options -------------------------------------------------------------------------------------


def flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


def function(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is neither a function nor None."""
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name}={value!r}: a function or None is right")


def whole_number(least: int, unit: str, *, optional: bool = False) -> Any:
    """Return a check for whole numbers from ``least`` on."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        if type(value) is not int or value < least:
            more = " or None" if optional else ""
            raise ValueError(f"{attribute.name}={value!r}: {least} or more {unit}{more} is right")

    return check


def seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no positive, finite duration."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValueError(f"{attribute.name}={value!r}: seconds above 0 are right")


def field_name(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no field name."""
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise ValueError(f"{attribute.name}={value!r}: the name of a field (a token) is right")


def optional_field_name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is neither a field name nor None."""
    if value is not None:
        field_name(instance, attribute, value)


def field_names(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Refuse what is no tuple of field names."""
    for each in value:
        field_name(instance, attribute, each)


def field_value(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what cannot stand in a field as it is."""
    if not isinstance(value, str) or not value.strip() or not _VALUE.fullmatch(value):
        raise ValueError(f"{attribute.name}={value!r}: one line of ASCII text is right")


def optional_field_value(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is neither a field's value nor None."""
    if value is not None:
        field_value(instance, attribute, value)


def realm(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what cannot stand in quotes."""
    if not isinstance(value, str) or not value or _NOT_QUOTABLE.search(value):
        raise ValueError(f"{attribute.name}={value!r}: one line of ASCII text is right")


def strings(value: Any) -> Any:
    """Return several strings as a tuple; one string by itself is a mistake that is told."""
    if isinstance(value, (str, bytes)):
        raise ValueError(f"{value!r}: several are right, such as [{value!r}]")
    found = tuple(value)
    for each in found:
        if not isinstance(each, str):
            raise ValueError(f"{each!r}: text is right")
    return found


def networks(value: Iterable[str]) -> Networks:
    """Return networks given as text."""
    return Networks.parse(value)


def pairs(value: Any) -> Any:
    """Return a mapping as a tuple of pairs, so that an option's value can be hashed."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


# -- values --------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """Return text as a quoted-string (RFC 9110 section 5.6.4)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Blinder:
    """Makes secrets comparable without telling anything by the time that takes.

    What is compared are keyed digests under a key that nobody outside this process has, so that
    neither a look-up in a dictionary nor a comparison depends on the secret in a way that a client
    could choose.
    """

    __slots__ = ("_key",)

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def __call__(self, *parts: bytes) -> bytes:
        """Return the digest of secrets; where one ends and the next begins counts."""
        whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, whole, hashlib.sha256)


async def settled(value: T | Awaitable[T]) -> T:
    """Return what a function of the user's returned, which may be async."""
    if inspect.isawaitable(value):
        return cast("T", await value)
    return value


# -- the request ---------------------------------------------------------------------------------


def exempt(
    choose: Applies | None, session: Session, request: RequestHeader, *vouched: str | None
) -> bool:
    """Tell whether a request passes without credentials.

    A request that the proxy makes of itself does, as what it was made of has brought them.

    Args:
      choose: The user's function, True where credentials are asked for.
      session: The request's session.
      request: Its head.
      vouched: The fields in which the origin is told who asks: what the client sent of them is
        removed, for the origin believes them.
    """
    if session.is_subrequest():
        return True
    for name in vouched:
        if name is not None:
            remove_field(request, name)
    return choose is not None and not choose(session)


def remove_field(request: RequestHeader, name: Text) -> None:
    """Remove a request field, and those that many origins take for it: with "_" for "-"."""
    lower = _lower(name)
    headers = request.headers
    headers.fields = [field for field in headers.fields if field[0].replace(b"_", b"-") != lower]


def set_field(request: RequestHeader, name: Text, value: Text) -> None:
    """Set a request field that the origin relies on.

    Nothing that the client sends can take its place, nor can Connection take it away again.
    """
    remove_field(request, name)
    request.headers.add(name, value)
    keep_field(request, name)


def _lower(name: Text) -> bytes:
    """Return how a field is looked up here: in lower case, with "-" for "_"."""
    raw = name.encode("ascii") if isinstance(name, str) else name
    return raw.lower().replace(b"_", b"-")


def keep_field(request: RequestHeader, name: Text) -> None:
    """See to it that a field goes on although the client's Connection nominates it.

    Otherwise a client could have removed what a module tells the origin (RFC 9110 section 7.6.1).
    """
    lower = (name.encode("ascii") if isinstance(name, str) else name).lower()
    facts = request.facts
    if facts is not None:
        if lower in facts.nominated:
            facts.nominated = tuple(each for each in facts.nominated if each != lower)
        return
    values = request.headers.get_all(b"connection")
    if values:
        tokens = [token.strip() for value in values for token in value.split(",")]
        kept = [each for each in tokens if each.lower().encode("latin-1") != lower]
        if kept:
            request.headers.set(b"Connection", ", ".join(kept))
        else:
            request.headers.remove(b"connection")


def add_vary(headers: Headers, *names: str) -> None:
    """Add field names to Vary, those that are not there already."""
    values = headers.get_all(b"vary")
    there = [each.strip() for value in values for each in value.split(",") if each.strip()]
    if "*" in there:
        return
    known = {each.lower() for each in there}
    there += [name for name in names if name.lower() not in known]
    headers.set("Vary", ", ".join(there))


# -- answers -------------------------------------------------------------------------------------


async def answer(
    session: Session,
    status: int,
    fields: Iterable[tuple[Text, Text]] = (),
    text: str = "",
) -> bool:
    """Answer a request; return True, as a hook that answered does.

    No cache may keep it, and its text tells nothing that the client sent.
    """
    body = text.encode("utf-8")
    head = ResponseHeader(status)
    headers = head.headers
    if status not in (204, 304):
        headers.add("Content-Length", str(len(body)))
    if body:
        headers.add("Content-Type", "text/plain; charset=utf-8")
    headers.add("Cache-Control", "no-store")
    for name, value in fields:
        headers.add(name, value)
    await session.write_response_header(head, end_of_stream=not body)
    if body:
        await session.write_response_body(body, end_of_stream=True)
    return True


async def challenge(
    session: Session, scheme: str, parameters: Iterable[tuple[str, str]], *, status: int = 401
) -> bool:
    """Answer that a request lacks (good) credentials, with WWW-Authenticate (RFC 9110 11.6.1)."""
    told = ", ".join(f"{name}={quoted(value)}" for name, value in parameters)
    texts = {400: "bad credentials\n", 401: "unauthorized\n", 403: "forbidden\n"}
    return await answer(
        session, status, [("WWW-Authenticate", f"{scheme} {told}")], texts.get(status, "refused\n")
    )
