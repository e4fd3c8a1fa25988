from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import backoff


def test_the_bound_doubles_from_the_base_up_to_the_cap() -> None:
    bounds = [backoff(attempt, jitter=0) for attempt in range(9)]
    assert bounds == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert [backoff(attempt, 1, 3, jitter=0) for attempt in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("chance", "share"), [(0.0, 1.0), (0.25, 0.75), (0.999, 0.001)])
def test_a_random_share_is_taken_off(chance: float, share: float) -> None:
    assert backoff(1, 1.0, random=lambda: chance) == pytest.approx(share)
    assert backoff(1, 1.0, jitter=0.5, random=lambda: chance) == pytest.approx(0.5 + share / 2)


def test_two_waits_differ() -> None:
    assert len({backoff(5) for _ in range(20)}) > 10


@given(
    st.integers(0, 10**9),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_it_is_between_nothing_and_the_cap(
    attempt: int, base: float, more: float, jitter: float, chance: float
) -> None:
    seconds = backoff(attempt, base, base + more, jitter=jitter, random=lambda: chance)
    assert 0 <= seconds <= base + more


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempt": -1},
        {"attempt": 1, "base": -1.0},
        {"attempt": 1, "base": 3.0},
        {"attempt": 1, "base": 1.0, "cap": 0.5},
        {"attempt": 1, "jitter": 1.1},
        {"attempt": 1, "jitter": -0.1},
        {"attempt": 1, "cap": float("nan")},
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is right"):
        backoff(**arguments)
