"""Cache-Control (RFC 9111 section 5.2) and its targeted kin (RFC 9213), as values."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

import attrs

from .._headers import Headers, Text
from ._structured import BadStructure, InnerList, parse_dictionary

#: What numbers saturate at (RFC 9111 section 1.2.2).
MAX_SECONDS = 2**31

_NUMERIC = frozenset(
    {"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error", "min-fresh", "max-stale"}
)
# Pingora takes ";" for "," and so do we. Each of these reads on from where the one before ended,
# and none goes over the same bytes twice.
_SEPARATORS = re.compile(r"[ \t,;]*")
_NAME = re.compile(r"[^=,;]*")
_BLANKS = re.compile(r"[ \t]*")
_PLAIN = re.compile(r"[^,;]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]*(?=[,;]|\Z)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_LONGEST_CACHED = 512

#: A directive's value; None where it has none, or one that nobody can read.
Value = str | None


@attrs.frozen
class CacheControl:
    """The directives of a message.

    What is broken counts against reuse: a number that is none, or that stands there twice with two
    values, is 0 (RFC 9111 section 4.2.1), and field names that cannot be read make the bare form.

    Attributes:
      directives: All values of each directive, by its lower-case name.
    """

    directives: Mapping[str, tuple[Value, ...]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, headers: Headers, name: Text = b"cache-control") -> CacheControl | None:
        """Read a field; None where the message has none.

        Args:
          headers: The message's fields; of several lines all count.
          name: The field's name.
        """
        lower = name.lower() if isinstance(name, bytes) else name.lower().encode("ascii")
        values = [value for key, _, value in headers.fields if key == lower]
        return cls.parse(b",".join(values)) if values else None

    @classmethod
    def parse(cls, value: bytes) -> CacheControl:
        """Read one value."""
        return _parse_cached(value) if len(value) <= _LONGEST_CACHED else _parse(value)

    @classmethod
    def targeted(cls, headers: Headers, targets: Iterable[Text]) -> CacheControl | None:
        """Read the first field of a target list that is valid (RFC 9213 section 2.2).

        Args:
          headers: A response's fields.
          targets: The names of the fields, the most specific first.

        Returns:
          What it says instead of Cache-Control and Expires, or None. A field that is empty, or
          broken in any part, counts as absent.
        """
        for name in targets:
            lower = name.lower() if isinstance(name, bytes) else name.lower().encode("ascii")
            values = [value for key, _, value in headers.fields if key == lower]
            if values:
                found = _parse_structured(b", ".join(values))
                if found is not None:
                    return found
        return None

    def __contains__(self, name: object) -> bool:
        """Tell whether a directive is there, by its lower-case name."""
        return name in self.directives

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the last value of a directive, by its lower-case name."""
        values = self.directives.get(name)
        if not values or values[-1] is None:
            return default
        return values[-1]

    def seconds(self, name: str) -> int | None:
        """Return a directive's number of seconds; None where it is absent, 0 where it is broken."""
        values = self.directives.get(name)
        if values is None:
            return None
        numbers = {_number(value) for value in values}
        return numbers.pop() if len(numbers) == 1 else 0

    @property
    def max_age(self) -> int | None:
        """The number of max-age, in seconds."""
        return self.seconds("max-age")

    @property
    def s_maxage(self) -> int | None:
        """The number of s-maxage, in seconds."""
        return self.seconds("s-maxage")

    @property
    def stale_while_revalidate(self) -> int | None:
        """The number of stale-while-revalidate (RFC 5861 section 3), in seconds."""
        return self.seconds("stale-while-revalidate")

    @property
    def stale_if_error(self) -> int | None:
        """The number of stale-if-error (RFC 5861 section 4), in seconds."""
        return self.seconds("stale-if-error")

    @property
    def min_fresh(self) -> int | None:
        """The number of a request's min-fresh, in seconds."""
        return self.seconds("min-fresh")

    @property
    def max_stale(self) -> int | None:
        """The number of a request's max-stale, in seconds; without a number it has no end."""
        if self.directives.get("max-stale") == (None,):
            return MAX_SECONDS
        return self.seconds("max-stale")

    @property
    def no_store(self) -> bool:
        """Whether no-store is there."""
        return "no-store" in self.directives

    @property
    def must_understand(self) -> bool:
        """Whether must-understand is there (RFC 9111 section 5.2.2.3)."""
        return "must-understand" in self.directives

    @property
    def no_cache(self) -> bool:
        """Whether no-cache is there for the whole response."""
        return self._bare("no-cache")

    @property
    def no_cache_fields(self) -> frozenset[bytes]:
        """The lower-case names that ``no-cache="..."`` lists."""
        return self._fields("no-cache")

    @property
    def private(self) -> bool:
        """Whether private is there for the whole response."""
        return self._bare("private")

    @property
    def private_fields(self) -> frozenset[bytes]:
        """The lower-case names that ``private="..."`` lists."""
        return self._fields("private")

    @property
    def public(self) -> bool:
        """Whether public is there."""
        return "public" in self.directives

    @property
    def must_revalidate(self) -> bool:
        """Whether must-revalidate is there."""
        return "must-revalidate" in self.directives

    @property
    def proxy_revalidate(self) -> bool:
        """Whether proxy-revalidate is there."""
        return "proxy-revalidate" in self.directives

    @property
    def only_if_cached(self) -> bool:
        """Whether a request's only-if-cached is there."""
        return "only-if-cached" in self.directives

    @property
    def forbids_stale(self) -> bool:
        """Whether a shared cache must not serve this response stale (RFC 9111 section 4.2.4)."""
        directives = self.directives
        return (
            "must-revalidate" in directives
            or "proxy-revalidate" in directives
            or "s-maxage" in directives
            or self._bare("no-cache")
        )

    def _bare(self, name: str) -> bool:
        values = self.directives.get(name)
        return values is not None and any(_names(value) is None for value in values)

    def _fields(self, name: str) -> frozenset[bytes]:
        found = [_names(value) for value in self.directives.get(name, ())]
        return frozenset().union(*[names for names in found if names])


def _number(value: Value) -> int:
    if value is None or not _DIGITS.fullmatch(value):
        return 0
    # Thousands of digits are no reason to convert them all.
    digits = value.lstrip("0")
    return MAX_SECONDS if len(digits) > 10 else min(int(digits or "0"), MAX_SECONDS)


def _names(value: Value) -> frozenset[bytes] | None:
    """Return the field names of a qualified directive, None where it has to count as bare."""
    names = [name.strip(" \t") for name in (value or "").split(",")]
    if not all(_TOKEN.fullmatch(name) for name in names):
        return None
    return frozenset(name.lower().encode("ascii") for name in names)


def _parse(value: bytes) -> CacheControl:
    scanner = _Scanner(value.decode("latin-1"))
    found: dict[str, list[Value]] = {}
    while scanner.more():
        name, said = scanner.directive()
        if name:
            found.setdefault(name, []).append(said)
    return CacheControl({name: tuple(values) for name, values in found.items()})


class _Scanner:
    """Takes directives off a text."""

    __slots__ = ("damaged", "pos", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.damaged = False  # behind a quote that is not closed: no number there is believed

    def more(self) -> bool:
        self._take(_SEPARATORS)
        return self.pos < len(self.text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.pos)
        assert match is not None  # they all match nothing as well
        self.pos = match.end()
        return match[0]

    def directive(self) -> tuple[str, Value]:
        name = self._take(_NAME)
        if not self.text.startswith("=", self.pos):
            return name.rstrip(" \t").lower(), None
        self.pos += 1
        # Blanks around "=" are not in the grammar: what the value means is anybody's guess.
        guess = name.endswith((" ", "\t")) or bool(self._take(_BLANKS))
        found = self._value()
        name = name.rstrip(" \t").lower()
        return name, "" if guess or (self.damaged and name in _NUMERIC) else found

    def _value(self) -> str:
        match = None if self.damaged else _QUOTED.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()
            return _ESCAPED.sub(r"\1", match[1])
        plain = self._take(_PLAIN).rstrip(" \t")
        self.damaged = self.damaged or '"' in plain
        return plain


_parse_cached = functools.lru_cache(maxsize=1024)(_parse)


def _parse_structured(value: bytes) -> CacheControl | None:
    try:
        members = parse_dictionary(value)
    except BadStructure:
        return None
    directives: dict[str, tuple[Value, ...]] = {}
    for name, member in members.items():
        if isinstance(member, InnerList):
            plain: object = member
        else:
            plain = member.value
        if name in _NUMERIC:
            if type(plain) is not int:
                return None
            directives[name] = (str(plain),)  # a negative one is a broken number
        elif plain is not False:
            directives[name] = (plain if isinstance(plain, str) else None,)
    return CacheControl(directives) if members else None
