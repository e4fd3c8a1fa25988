"""Header fields: ordered, repeats kept, case kept on the wire, looked up case-blind, bytes inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

Text = str | bytes
Field = tuple[bytes, bytes, bytes]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\r\n\0]")


def _octets(text: object) -> bytes:
    # bytes(5) is five NULs, and bytes(0) nothing: a number must not pass for a field's value.
    if not isinstance(text, (bytes, bytearray, memoryview)):
        raise TypeError(f"{text!r} is not text for a field: str or bytes is")
    return bytes(text)


def _name(name: Text) -> bytes:
    try:
        raw = name.encode("ascii") if isinstance(name, str) else _octets(name)
    except UnicodeEncodeError:
        raw = b""
    if not _TOKEN.fullmatch(raw):
        raise ValueError(f"{name!r} is not a field name: a token (RFC 9110 section 5.6.2) is")
    return raw


def _value(value: Text) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(
                f"{value!r} is not a field value: encode it to bytes yourself, str is latin-1"
            ) from None
    raw = _octets(value).strip(b" \t")
    if _BAD_VALUE.search(raw):
        raise ValueError(f"{value!r} is not a field value: it has CR, LF or NUL in it")
    return raw


def _lower(name: Text) -> bytes:
    if type(name) is bytes:  # nearly always
        return name.lower()
    return (name.encode("latin-1", "replace") if isinstance(name, str) else _octets(name)).lower()


class Headers:
    """The fields of a message head, or its trailers.

    Names and values are bytes on the wire and are accepted as `str` and `bytes`; `get` and its kin
    return `str` (latin-1, so nothing is lost). Blanks around a value are dropped; CR, LF and NUL
    are refused with `ValueError`, and so is a name that is not a token. What is neither `str` nor
    `bytes`, a number say, is a `TypeError`.
    """

    __slots__ = ("fields",)

    #: The (lower-case name, name as on the wire, value) triples, in order; treat as read-only.
    fields: list[Field]

    def __init__(
        self, items: Headers | Mapping[str, Text] | Iterable[tuple[Text, Text]] = ()
    ) -> None:
        if isinstance(items, Headers):
            self.fields = items.fields.copy()
            return
        pairs = items.items() if isinstance(items, Mapping) else items
        self.fields = []
        for name, value in pairs:
            self.add(name, value)

    @classmethod
    def trusted(cls, fields: list[Field]) -> Headers:
        """Take over triples that were checked already."""
        headers = cls.__new__(cls)
        headers.fields = fields
        return headers

    def get_bytes(self, name: Text, default: bytes | None = None) -> bytes | None:
        """Return the first value of a field as bytes, or the default."""
        lower = _lower(name)
        for key, _, value in self.fields:
            if key == lower:
                return value
        return default

    def get(self, name: Text, default: str | None = None) -> str | None:
        """Return the first value of a field as text, or the default."""
        value = self.get_bytes(name)
        return default if value is None else value.decode("latin-1")

    def get_all(self, name: Text) -> list[str]:
        """Return every value of a field as text, in order."""
        lower = _lower(name)
        return [value.decode("latin-1") for key, _, value in self.fields if key == lower]

    def set(self, name: Text, value: Text) -> None:
        """Make a field have this one value; it keeps the place of its first occurrence."""
        raw, checked = _name(name), _value(value)
        lower = raw.lower()
        fields = self.fields
        for index, field in enumerate(fields):
            if field[0] == lower:
                fields[index] = (lower, raw, checked)
                fields[index + 1 :] = [each for each in fields[index + 1 :] if each[0] != lower]
                return
        fields.append((lower, raw, checked))

    def add(self, name: Text, value: Text) -> None:
        """Add one more value of a field, at the end."""
        raw = _name(name)
        self.fields.append((raw.lower(), raw, _value(value)))

    def remove(self, name: Text) -> None:
        """Remove every value of a field; does nothing where there is none."""
        lower = _lower(name)
        self.fields = [field for field in self.fields if field[0] != lower]

    def items(self) -> list[tuple[str, str]]:
        """Return (name as on the wire, value) pairs as text, in order."""
        return [(raw.decode("latin-1"), value.decode("latin-1")) for _, raw, value in self.fields]

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """The (name, value) pairs as on the wire."""
        return [(raw, value) for _, raw, value in self.fields]

    def copy(self) -> Headers:
        """Return an independent copy."""
        return Headers.trusted(self.fields.copy())

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, (str, bytes)):
            return False
        lower = _lower(name)
        return any(key == lower for key, _, _ in self.fields)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names as on the wire, repeats included."""
        return iter([raw.decode("latin-1") for _, raw, _ in self.fields])

    def __len__(self) -> int:
        return len(self.fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return [(k, v) for k, _, v in self.fields] == [(k, v) for k, _, v in other.fields]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Headers({self.items()!r})"
