"""The predictor: what was not cacheable is remembered, within bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.cache._key import CacheKey
from trioproxy.cache._policy import NoCacheReason
from trioproxy.cache._predictor import Predictor

KEYS = [CacheKey(b"", f"/{number}".encode()) for number in range(6)]
A, B, C, D = KEYS[:4]
MARKED = [
    NoCacheReason.OriginNotCache,
    NoCacheReason.ResponseTooLarge,
    NoCacheReason.Custom("mine"),
]
UNMARKED = [
    NoCacheReason.NeverEnabled,
    NoCacheReason.PredictedResponseTooLarge,
    NoCacheReason.StorageError,
    NoCacheReason.InternalError,
    NoCacheReason.Deferred,
    NoCacheReason.DeclinedToUpstream,
    NoCacheReason.UpstreamError,
    NoCacheReason.CacheLockGiveUp,
    NoCacheReason.CacheLockTimeout,
]


def test_what_was_never_seen_is_cacheable() -> None:
    assert Predictor(3).cacheable_prediction(A)


@pytest.mark.parametrize("reason", MARKED)
def test_a_reason_of_the_resource_is_remembered(reason: NoCacheReason) -> None:
    predictor = Predictor(3)
    assert predictor.mark_uncacheable(A, reason) is True
    assert not predictor.cacheable_prediction(A)
    assert predictor.cacheable_prediction(B)
    assert predictor.mark_uncacheable(A, reason) is False


@pytest.mark.parametrize("reason", UNMARKED)
def test_a_reason_of_the_moment_is_not(reason: NoCacheReason) -> None:
    predictor = Predictor(3)
    assert predictor.mark_uncacheable(A, reason) is None
    assert predictor.cacheable_prediction(A)
    # Nor does it clear what is known.
    predictor.mark_uncacheable(A, NoCacheReason.OriginNotCache)
    assert predictor.mark_uncacheable(A, reason) is None
    assert not predictor.cacheable_prediction(A)


def test_custom_reasons_can_be_skipped() -> None:
    skipped: Callable[[str], bool] = frozenset({"skip", "OriginNotCache"}).__contains__
    predictor = Predictor(3, skipped)
    assert predictor.mark_uncacheable(A, NoCacheReason.Custom("skip")) is None
    assert predictor.mark_uncacheable(A, NoCacheReason.Custom("mine")) is True
    # The plain reason of that name is not a custom one.
    assert predictor.mark_uncacheable(B, NoCacheReason.OriginNotCache) is True


def test_a_later_response_clears_it() -> None:
    predictor = Predictor(3)
    assert predictor.mark_cacheable(A) is True
    predictor.mark_uncacheable(A, NoCacheReason.OriginNotCache)
    assert predictor.mark_cacheable(A) is False
    assert predictor.cacheable_prediction(A)
    assert len(predictor) == 0


def test_variants_count_as_one() -> None:
    predictor = Predictor(3)
    predictor.mark_uncacheable(A.with_variance(b"v" * 16), NoCacheReason.OriginNotCache)
    assert not predictor.cacheable_prediction(A)
    predictor.mark_cacheable(A)
    assert predictor.cacheable_prediction(A.with_variance(b"v" * 16))


def test_the_least_recently_marked_is_forgotten_and_asking_does_not_count() -> None:
    predictor = Predictor(3)
    for key in (A, B, C, A):
        predictor.mark_uncacheable(key, NoCacheReason.OriginNotCache)
    predictor.cacheable_prediction(B)
    predictor.mark_uncacheable(D, NoCacheReason.OriginNotCache)
    assert [predictor.cacheable_prediction(key) for key in (A, B, C, D)] == [
        False,
        True,
        False,
        False,
    ]


def test_a_predictor_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Predictor(0)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS)), max_size=30))
def test_it_is_a_bounded_memory_of_the_last_marks(
    capacity: int, steps: list[tuple[bool, CacheKey]]
) -> None:
    predictor = Predictor(capacity)
    model: list[CacheKey] = []
    for cacheable, key in steps:
        if key in model:
            model.remove(key)
        if cacheable:
            predictor.mark_cacheable(key)
        else:
            predictor.mark_uncacheable(key, NoCacheReason.OriginNotCache)
            model = [*model, key][-capacity:]
        assert [each for each in KEYS if not predictor.cacheable_prediction(each)] == [
            each for each in KEYS if each in model
        ]
        assert len(predictor) == len(model)
