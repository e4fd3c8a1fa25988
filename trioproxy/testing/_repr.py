"""Frozen values that print as the code that makes them, defaults left out."""

from __future__ import annotations

import attrs


class Value:
    """Base of attrs classes (made with ``repr=False``) that print only what is not the default."""

    __slots__ = ()

    def __repr__(self) -> str:
        parts = []
        for field in attrs.fields(type(self)):  # type: ignore[arg-type]  # subclasses are attrs classes
            mine = getattr(self, field.name)
            if mine != field.default:
                parts.append(f"{field.name}={mine!r}")
        return f"{type(self).__name__}({', '.join(parts)})"
