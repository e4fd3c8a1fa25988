"""The extension field of a WebSocket's handshake, as far as permessage-deflate goes (RFC 7692)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_ELEMENT = re.compile(
    rf"[ \t]*({_TOKEN})((?:[ \t]*;[ \t]*{_TOKEN}(?:[ \t]*=[ \t]*(?:{_TOKEN}|\"{_TOKEN}\"))?)*)[ \t]*"
)
_PARAMETER = re.compile(rf"[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*\"?({_TOKEN})\"?)?")
_BITS = {str(bits): bits for bits in range(8, 16)}

DEFLATE = "permessage-deflate"


@attrs.frozen
class Deflate:
    """What was agreed on: whose compressor starts anew with each message, and how far it looks back.

    Attributes:
      client_no_context_takeover: Whether the client's does.
      server_no_context_takeover: Whether the server's does.
      client_max_window_bits: The client's window, as a power of two in bytes.
      server_max_window_bits: The server's.
    """

    client_no_context_takeover: bool = False
    server_no_context_takeover: bool = False
    client_max_window_bits: int = 15
    server_max_window_bits: int = 15


def _elements(value: str) -> list[tuple[str, str, str]]:
    """Return each extension of a field as its name, its parameters, and all of it.

    Raises:
      ValueError: it is no list of extensions.
    """
    found = []
    at = 0
    while True:
        element = _ELEMENT.match(value, at)
        if element is None:
            raise ValueError(f"Sec-WebSocket-Extensions: {value!r} is no list of extensions")
        found.append((element[1], element[2], element[0].strip(" \t")))
        at = element.end()
        if at == len(value):
            return found
        if value[at] != ",":
            raise ValueError(f"Sec-WebSocket-Extensions: {value!r} is no list of extensions")
        at += 1


def _parameters(text: str, *, offer: bool) -> Deflate:
    """Return what an element asks for or agrees to.

    Raises:
      ValueError: a parameter is unknown, repeated, or its value is wrong (RFC 7692 section 7.1).
    """
    given: dict[str, bool | int] = {}
    for parameter in _PARAMETER.finditer(text):
        name, value = parameter[1], parameter[2]
        wrong = ValueError(f"Sec-WebSocket-Extensions: {parameter[0].strip('; ')!r} is wrong")
        if name in given:
            raise wrong
        if name in ("client_no_context_takeover", "server_no_context_takeover"):
            if value is not None:
                raise wrong
            given[name] = True
        elif name == "client_max_window_bits" and value is None and offer:
            given[name] = 15
        elif name in ("client_max_window_bits", "server_max_window_bits") and value in _BITS:
            given[name] = _BITS[value]
        else:
            raise wrong
    return Deflate(**given)  # type: ignore[arg-type]  # of the right kind by its name


def deflate_offers(values: Iterable[str]) -> str | None:
    """Return of a request's extensions those that we can carry out, as one field; None for none."""
    offers = []
    for value in values:
        try:
            elements = _elements(value)
        except ValueError:
            continue  # a server would not know either
        for name, parameters, whole in elements:
            if name == DEFLATE:
                try:
                    _parameters(parameters, offer=True)
                except ValueError:
                    continue  # to be declined (section 7.1)
                offers.append(whole)
    return ", ".join(offers) or None


def deflate_agreed(values: Iterable[str]) -> Deflate | None:
    """Return what a response agrees to; None for no extension.

    Raises:
      ValueError: it agrees to something else, or to too much.
    """
    elements = [each for value in values for each in _elements(value)]
    if not elements:
        return None
    if len(elements) > 1 or elements[0][0] != DEFLATE:
        names = ", ".join(name for name, _, _ in elements)
        raise ValueError(f"Sec-WebSocket-Extensions: {names} was not offered")
    return _parameters(elements[0][1], offer=False)
