"""Structured field values (RFC 9651): strict parsers to plain Python values."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

import attrs


class BadStructure(ValueError):
    """A value that is not the structure that it should be; the whole field counts as absent."""


class Token(str):
    """A token, which is not a string that was quoted."""

    __slots__ = ()


@attrs.frozen
class Date:
    """A date.

    Attributes:
      seconds: Since the epoch.
    """

    seconds: int


#: What an item is: text is `str`, a byte sequence `bytes`; a Display String is `str` as well.
BareItem = bool | int | float | str | bytes | Token | Date
Parameters = dict[str, BareItem]


@attrs.frozen
class Item:
    """An item with its parameters.

    Attributes:
      value: The bare item.
      parameters: By their keys; the last of a repeated one counts.
    """

    value: BareItem
    parameters: Parameters


@attrs.frozen
class InnerList:
    """A list in a list, with its parameters.

    Attributes:
      items: The items.
      parameters: Those of the list itself.
    """

    items: tuple[Item, ...]
    parameters: Parameters


Member = Item | InnerList

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]*))?")
_STRING = re.compile(r'"((?:[ !\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_DISPLAY = re.compile(r'%"((?:[ !\x23\x24\x26-\x7e]|%[0-9a-f]{2})*)"')
_ESCAPED = re.compile(r"\\(.)")
_OWS = re.compile(r"[ \t]*")
_SP = re.compile(r" *")

_T = TypeVar("_T")


def parse_item(value: bytes) -> Item:
    """Parse an Item.

    Raises:
      BadStructure: it is none.
    """
    return _whole(value, _Parser.item)


def parse_list(value: bytes) -> list[Member]:
    """Parse a List; several fields of a name are joined with a comma first.

    Raises:
      BadStructure: it is none.
    """
    return _whole(value, _Parser.list)


def parse_dictionary(value: bytes) -> dict[str, Member]:
    """Parse a Dictionary; several fields of a name are joined with a comma first.

    Raises:
      BadStructure: it is none.
    """
    return _whole(value, _Parser.dictionary)


def _whole(value: bytes, parse: Callable[[_Parser], _T]) -> _T:
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        raise BadStructure("a byte that is not ASCII") from None
    parser = _Parser(text.strip(" "))
    parsed = parse(parser)
    if parser.pos != len(parser.text):
        parser.fail("something behind the end")
    return parsed


class _Parser:
    """The algorithms of RFC 9651 section 4.2; each takes what it parses off the text."""

    __slots__ = ("pos", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def fail(self, text: str) -> NoReturn:
        """Give up."""
        raise BadStructure(f"{text}, at byte {self.pos}")

    def _at(self, character: str) -> bool:
        return self.text.startswith(character, self.pos)

    def _take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = pattern.match(self.text, self.pos)
        if match is None:
            self.fail(f"no {what}")
        self.pos = match.end()
        return match

    def _next_member(self) -> bool:
        """Take the comma between two members; False at the end."""
        self._take(_OWS, "blank")
        if self.pos == len(self.text):
            return False
        if not self._at(","):
            self.fail("no comma")
        self.pos += 1
        self._take(_OWS, "blank")
        if self.pos == len(self.text):
            self.fail("nothing behind a comma")
        return True

    def list(self) -> list[Member]:
        """Take a List."""
        members: list[Member] = []
        more = self.pos < len(self.text)
        while more:
            members.append(self._member())
            more = self._next_member()
        return members

    def dictionary(self) -> dict[str, Member]:
        """Take a Dictionary; the last of a repeated key counts."""
        members: dict[str, Member] = {}
        more = self.pos < len(self.text)
        while more:
            key = self._take(_KEY, "key")[0]
            if self._at("="):
                self.pos += 1
                member = self._member()
            else:
                member = Item(True, self._parameters())
            members[key] = member
            more = self._next_member()
        return members

    def item(self) -> Item:
        """Take an Item."""
        return Item(self._bare_item(), self._parameters())

    def _member(self) -> Member:
        return self._inner_list() if self._at("(") else self.item()

    def _inner_list(self) -> InnerList:
        self.pos += 1
        items: list[Item] = []
        while True:
            self._take(_SP, "blank")
            if self._at(")"):
                self.pos += 1
                return InnerList(tuple(items), self._parameters())
            items.append(self.item())
            if not self._at(" ") and not self._at(")"):
                self.fail("an inner list that does not go on")

    def _parameters(self) -> Parameters:
        parameters: Parameters = {}
        while self._at(";"):
            self.pos += 1
            self._take(_SP, "blank")
            key = self._take(_KEY, "key")[0]
            value: BareItem = True
            if self._at("="):
                self.pos += 1
                value = self._bare_item()
            parameters[key] = value
        return parameters

    def _bare_item(self) -> BareItem:
        first = self.text[self.pos : self.pos + 1]
        if first == '"':
            return _ESCAPED.sub(r"\1", self._take(_STRING, "string that is whole")[1])
        if first == "?":
            return self._boolean()
        if first == ":":
            return self._bytes()
        if first == "@":
            self.pos += 1
            seconds = self._number()
            if isinstance(seconds, float):
                self.fail("a date with a fraction")
            return Date(seconds)
        if first == "%":
            return self._display_string()
        if first == "-" or first.isdigit():
            return self._number()
        return Token(self._take(_TOKEN, "item")[0])

    def _boolean(self) -> bool:
        value = self.text[self.pos : self.pos + 2]
        if value not in ("?0", "?1"):
            self.fail("no boolean")
        self.pos += 2
        return value == "?1"

    def _number(self) -> int | float:
        sign, whole, fraction = self._take(_NUMBER, "number").groups()
        if fraction is None:
            if len(whole) > 15:
                self.fail("an integer of more than 15 digits")
            return int(sign + whole)
        if len(whole) > 12 or not 1 <= len(fraction) <= 3:
            self.fail("a decimal of too many digits, or too few")
        return float(f"{sign}{whole}.{fraction}")

    def _bytes(self) -> bytes:
        text = self._take(_BYTES, "byte sequence that is whole")[1]
        text = text.rstrip("=")
        try:  # without its padding a sequence is as good (RFC 9651 section 4.2.7)
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except binascii.Error:
            self.fail("a byte sequence that is not base64")

    def _display_string(self) -> str:
        text = self._take(_DISPLAY, "display string that is whole")[1]
        raw = re.sub(
            rb"%([0-9a-f]{2})", lambda match: bytes((int(match[1], 16),)), text.encode("ascii")
        )
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a display string that is not UTF-8")
