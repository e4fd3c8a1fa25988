"""Who asks, as proxies before this one tell it: Forwarded (RFC 7239) and X-Forwarded-For.

The parsers are strict, and what they cannot read is None and not nothing: a client may send half a
quoted string in the hope that what a trusted proxy appends to it is lost.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import attrs

_OWS = r"[ \t]*"
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(
    rf"({_TOKEN})=(?:({_TOKEN})|\"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -~\x80-\xff])*)\")"
)
_BETWEEN = re.compile(rf"{_OWS}([;,]){_OWS}|{_OWS}$")
_ESCAPED = re.compile(r"\\(.)")
_OBFUSCATED = re.compile(r"_[A-Za-z0-9._-]+")
_PORT = r":(?:[0-9]{1,5}|_[A-Za-z0-9._-]+)"
_BRACKETED = re.compile(rf"\[([0-9A-Fa-f:.]+)\](?:{_PORT})?")
_WITH_PORT = re.compile(rf"([0-9.]+|unknown|_[A-Za-z0-9._-]+)(?:{_PORT})?", re.IGNORECASE)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")

#: Who asks, where that is not known.
UNKNOWN = "unknown"


@attrs.frozen
class Element:
    """What one proxy said of the party that asked it.

    Attributes:
      node: The party's address, ``unknown`` or an obfuscated name (``_hidden``); None where the
        proxy said nothing of it, or nothing that can be read.
      proto: The scheme it used, lower-case; None where that was not told.
      host: The host it asked for; None where that was not told.
    """

    node: str | None
    proto: str | None = None
    host: str | None = None


def node_of(text: str) -> str | None:
    """Return the node that a text names, without a port; None where it names none.

    An address comes back in its canonical form, one that is mapped into IPv6 as that of IPv4.
    """
    text = text.strip(" \t")
    if _OBFUSCATED.fullmatch(text):
        return text
    match = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    host = match[1] if match else text
    if host.lower() == UNKNOWN:
        return UNKNOWN
    if match and _OBFUSCATED.fullmatch(host):
        return host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        if address.scope_id is not None:  # a zone means something on one machine alone
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def host_or_none(text: str | None) -> str | None:
    """Return a host with or without a port, or None for what is none."""
    return text if text is not None and _HOST.fullmatch(text) else None


def proto_or_none(text: str | None) -> str | None:
    """Return ``http`` or ``https``, or None for anything else."""
    lower = text.strip(" \t").lower() if text is not None else None
    return lower if lower in ("http", "https") else None


def parse_forwarded(value: str, limit: int | None = None) -> list[Element] | None:
    """Read one Forwarded field (RFC 7239 section 4), leftmost element first.

    Blanks around ``;`` and ``,`` are taken although the grammar has none around the former; of
    parameters that this does not know nothing is kept.

    Args:
      value: The field's value.
      limit: How many of its last elements are wanted; None for all.

    Returns:
      Its elements, or None where any part of it is broken or a parameter stands there twice.
    """
    elements: list[dict[str, str]] = []
    text = value.strip(" \t")
    at = 0
    while True:
        found: dict[str, str] = {}
        while True:
            pair = _PAIR.match(text, at)
            if pair is None:
                return None
            name = pair[1].lower()
            if name in found:
                return None
            found[name] = pair[2] if pair[2] is not None else _ESCAPED.sub(r"\1", pair[3])
            between = _BETWEEN.match(text, pair.end())
            if between is None:
                return None
            at = between.end()
            if between[1] != ";":
                break
        elements.append(found)
        if between[1] is None:
            return list(map(_element, elements if limit is None else elements[-limit:]))


def _element(found: dict[str, str]) -> Element:
    node = found.get("for")
    return Element(
        node=node_of(node) if node is not None else None,
        proto=proto_or_none(found.get("proto")),
        host=host_or_none(found.get("host")),
    )


def read_forwarded(values: Sequence[str], limit: int) -> list[Element | None]:
    """Read the last elements of all Forwarded fields; None stands for a field that is broken.

    Args:
      values: The fields of a message.
      limit: How many elements are wanted.
    """
    found: list[Element | None] = []
    for value in reversed(values):
        elements = parse_forwarded(value, limit)
        found = [*([None] if elements is None else elements), *found]
        if elements is None or len(found) >= limit:
            break  # what is further left is not looked at: nobody is believed beyond this
    return found[-limit:]


def read_x_forwarded(
    addresses: Sequence[str], protos: Sequence[str], hosts: Sequence[str], limit: int
) -> list[Element | None]:
    """Read the last entries of X-Forwarded-For, -Proto and -Host; None for what is no address.

    A list of protocols or of hosts that is as long as that of addresses goes with it one by one. Of
    another one the last entry counts, which is what the nearest proxy wrote, and for all.

    Args:
      addresses: The fields X-Forwarded-For of a message.
      protos: Its fields X-Forwarded-Proto.
      hosts: Its fields X-Forwarded-Host.
      limit: How many entries are wanted.
    """
    nodes = _entries(addresses)
    told_protos = _for_each(_entries(protos), len(nodes))
    told_hosts = _for_each(_entries(hosts), len(nodes))
    found: list[Element | None] = []
    whole = zip(nodes[-limit:], told_protos[-limit:], told_hosts[-limit:], strict=True)
    for text, proto, host in whole:
        node = node_of(text)
        found.append(
            None if node is None else Element(node, proto_or_none(proto), host_or_none(host))
        )
    return found


def _entries(values: Sequence[str]) -> list[str]:
    return [each.strip(" \t") for value in values for each in value.split(",")]


def _for_each(entries: list[str], count: int) -> list[str | None]:
    if entries and len(entries) == count:
        return list(entries)
    last = entries[-1] if entries else None
    return [last] * count


def write_element(element: Element) -> str:
    """Return an element of Forwarded."""
    node = element.node or UNKNOWN
    parts = [f'for="[{node}]"' if ":" in node else f"for={node}"]
    if element.proto is not None:
        parts.append(f"proto={element.proto}")
    if element.host is not None:
        escaped = element.host.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'host="{escaped}"')
    return ";".join(parts)
