"""What the Priority field says (RFC 9218), and what it says when it is broken: nothing."""

from __future__ import annotations

import pytest

from trioproxy.semantics._priority import DEFAULT, MAX_BYTES, Priority, parse_priority


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        (b"u=0", Priority(0, False)),
        (b"u=7", Priority(7, False)),
        (b"u=5, i", Priority(5, True)),
        (b"i=?1", Priority(3, True)),
        (b"i=?0, u=1", Priority(1, False)),
        (b"i;x=1, u=2;y", Priority(2, True)),
        (b"u=1, foo=(bar), i", Priority(1, True)),
        (b"u=1, u=6", Priority(6, False)),
    ],
)
def test_h2_19_urgency_and_incremental_are_read(value: bytes, priority: Priority) -> None:
    assert parse_priority(value) == priority


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        (b"u=8, i", Priority(3, True)),
        (b"u=-1", DEFAULT),
        (b"u=1.0", DEFAULT),
        (b"u", DEFAULT),
        (b"u=?1", DEFAULT),
        (b'u="1"', DEFAULT),
        (b"u=(1)", DEFAULT),
        (b"i=1, u=2", Priority(2, False)),
        (b"i=yes", DEFAULT),
    ],
)
def test_h2_19_a_parameter_of_another_type_or_range_counts_as_absent(
    value: bytes, priority: Priority
) -> None:
    assert parse_priority(value) == priority


@pytest.mark.parametrize(
    "value", [None, b"", b"u=1,", b"u=1 i", b"U=1", b"\xff", b"u=1" + b" " * MAX_BYTES]
)
def test_h2_19_a_broken_value_says_nothing(value: bytes | None) -> None:
    assert parse_priority(value) == DEFAULT == (3, False)
