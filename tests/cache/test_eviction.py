"""What a full store removes: against a simple reference, and by the properties that count."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from trioproxy.cache._eviction import (
    MAX_VARIANTS,
    EvictionManager,
    LruEviction,
    S3FifoEviction,
)
from trioproxy.cache._key import CompactKey

Make: TypeAlias = Callable[[int], EvictionManager]

BOTH = pytest.mark.parametrize("make", [LruEviction, S3FifoEviction])


def key(number: int, variant: int | None = None, tag: str = "") -> CompactKey:
    variance = None if variant is None else variant.to_bytes(16, "big")
    return CompactKey(number.to_bytes(16, "big"), variance, tag)


def known(manager: EvictionManager, numbers: range) -> list[int]:
    return [number for number in numbers if manager.peek(key(number))]


# -- both ----------------------------------------------------------------------------------------


@BOTH
def test_an_entry_is_known_until_it_is_removed(make: Make) -> None:
    manager = make(100)
    assert not manager.access(key(1))
    assert manager.admit(key(1), 40, 0.0) == []
    assert manager.peek(key(1))
    assert manager.access(key(1))
    assert (manager.total_size, manager.total_items) == (40, 1)
    assert manager.remove(key(1))
    assert not manager.remove(key(1))
    assert (manager.total_size, manager.total_items) == (0, 0)


@BOTH
def test_an_entry_that_does_not_fit_is_named_itself_and_displaces_nothing(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1), 90, 0.0)
    assert manager.admit(key(2), 101, 0.0) == [key(2)]
    assert manager.peek(key(1))


@BOTH
def test_an_entry_that_grew_too_large_goes_when_it_is_admitted_again(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1), 90, 0.0)
    assert manager.admit(key(1), 101, 0.0) == [key(1)]
    assert (manager.total_size, manager.total_items) == (0, 0)


@BOTH
def test_admitting_a_known_entry_replaces_its_size(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1), 40, 0.0)
    assert manager.admit(key(1), 60, 0.0) == []
    assert (manager.total_size, manager.total_items) == (60, 1)


@BOTH
def test_the_user_tag_does_not_tell_entries_apart(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1, tag="alice"), 40, 0.0)
    assert manager.peek(key(1))
    assert manager.remove(key(1, tag="bob"))


@BOTH
def test_variants_are_entries_of_their_own(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1), 10, 0.0)
    manager.admit(key(1, 1), 10, 0.0)
    assert manager.remove(key(1))
    assert manager.peek(key(1, 1))


@BOTH
def test_the_variant_used_longest_ago_goes_when_there_are_too_many(make: Make) -> None:
    manager = make(10_000)
    for variant in range(MAX_VARIANTS):
        assert manager.admit(key(1, variant), 1, 0.0) == []
    manager.access(key(1, 0))
    assert manager.admit(key(2, 0), 1, 0.0) == []
    assert manager.admit(key(1), 1, 0.0) == []
    assert manager.admit(key(1, MAX_VARIANTS), 1, 0.0) == [key(1, 1)]
    assert manager.total_items == MAX_VARIANTS + 2


@BOTH
def test_a_variant_that_was_removed_makes_room_for_another(make: Make) -> None:
    manager = make(10_000)
    for variant in range(MAX_VARIANTS):
        manager.admit(key(1, variant), 1, 0.0)
    manager.remove(key(1, 7))
    assert manager.admit(key(1, MAX_VARIANTS), 1, 0.0) == []


@BOTH
def test_growing_weight_makes_others_go(make: Make) -> None:
    manager = make(100)
    manager.admit(key(1), 40, 0.0)
    manager.admit(key(2), 40, 0.0)
    assert manager.increment_weight(key(2), 30) == [key(1)]
    assert manager.total_size == 70
    assert manager.increment_weight(key(2), -100) == []
    assert manager.total_size == 0
    assert manager.increment_weight(key(9), 30) == []


@BOTH
def test_what_is_set_aside_is_taken_from_the_entries(make: Make) -> None:
    manager = make(100)
    for number in range(10):
        manager.admit(key(number), 10, 0.0)
    assert manager.reserve(25) == [key(0), key(1), key(2)]
    assert (manager.reserved, manager.total_size) == (25, 70)
    assert manager.admit(key(20), 76, 0.0) == [key(20)]
    assert manager.reserve(-25) == []
    assert manager.admit(key(21), 30, 0.0) == []


@pytest.mark.parametrize("make", [LruEviction, S3FifoEviction])
def test_the_number_of_entries_is_held_to_the_watermark(
    make: Callable[[int, int], EvictionManager],
) -> None:
    manager = make(1000, 3)
    evicted = [gone for number in range(5) for gone in manager.admit(key(number), 1, 0.0)]
    assert evicted == [key(0), key(1)]
    assert manager.total_items == 3


@BOTH
@pytest.mark.parametrize(
    "arguments", [{"limit_bytes": -1}, {"watermark_items": 0}, {"max_variants": 0}]
)
def test_limits_that_make_no_sense_are_refused(
    make: Callable[..., EvictionManager], arguments: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(**{"limit_bytes": 100, **arguments})


@pytest.mark.parametrize("arguments", [{"small": 1.5}, {"ghost_items": -1}])
def test_queues_that_make_no_sense_are_refused(arguments: dict[str, int]) -> None:
    make: Callable[..., EvictionManager] = S3FifoEviction
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(100, **arguments)


# -- the saved form ------------------------------------------------------------------------------


@BOTH
def test_what_was_saved_is_loaded_with_everything_that_decides(make: Make) -> None:
    manager = make(200)
    manager.admit(key(1, tag="alice\u00e9"), 30, 1.5e9)
    manager.admit(key(2, 5), 40, 1.0)
    manager.admit(key(3), 50, 2.0)
    for _ in range(3):
        manager.access(key(1))
    other = make(200)
    other.admit(key(9), 10, 0.0)
    assert other.load(manager.save()) == []
    assert other.save() == manager.save()
    assert (other.total_size, other.total_items) == (120, 3)
    assert not other.peek(key(9))
    assert other.admit(key(4), 190, 0.0) == manager.admit(key(4), 190, 0.0)


@BOTH
def test_loading_into_less_room_names_what_does_not_fit(make: Make) -> None:
    manager = make(100)
    for number in range(10):
        manager.admit(key(number), 10, 0.0)
    smaller = make(35)
    assert smaller.load(manager.save()) == [key(number) for number in range(7)]
    assert smaller.total_size == 30


@BOTH
def test_loading_keeps_the_bound_on_variants(make: Callable[..., EvictionManager]) -> None:
    manager = make(1000)
    for variant in range(5):
        manager.admit(key(1, variant), 10, 0.0)
    fewer = make(1000, max_variants=3)
    fewer.admit(key(1, 9), 10, 0.0)
    assert fewer.load(manager.save()) == [key(1, 0), key(1, 1)]


@BOTH
@given(data=st.binary(max_size=80))
def test_foreign_bytes_are_refused(make: Make, data: bytes) -> None:
    manager = make(100)
    manager.admit(key(1), 10, 0.0)
    with pytest.raises(ValueError, match="saved state"):
        manager.load(data)
    assert manager.total_items == 1


@BOTH
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_or_a_cut_is_noticed(make: Make, place: int, flip: int) -> None:
    manager = make(100)
    manager.admit(key(1, 4, "tag"), 10, 0.0)
    manager.admit(key(2), 10, 0.0)
    saved = manager.save()
    place %= len(saved)
    changed = bytearray(saved)
    changed[place] ^= flip
    for broken in (bytes(changed), saved[:place], saved + b"\0"):
        with pytest.raises(ValueError, match="saved state"):
            manager.load(broken)


def test_the_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="saved state"):
        LruEviction(100).load(S3FifoEviction(100).save())


# -- LRU against a reference ---------------------------------------------------------------------

KEYS = st.builds(key, st.integers(0, 2), st.none() | st.integers(0, 2))


class LruMachine(RuleBasedStateMachine):
    """The manager beside a list of (key, size) in the order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[tuple[CompactKey, int]] = []
        self.reserved = 0

    @initialize(watermark=st.none() | st.integers(1, 6), variants=st.integers(1, 3))
    def make(self, watermark: int | None, variants: int) -> None:
        self.watermark, self.variants = watermark, variants
        self.manager = LruEviction(100, watermark, max_variants=variants)

    def size_of(self, key: CompactKey) -> int | None:
        return dict(self.known).get(key)

    def put(self, key: CompactKey, size: int, *, last: bool) -> None:
        places = [place for place, (each, _) in enumerate(self.known) if each == key]
        if places and not last:
            self.known[places[0]] = (key, size)
            return
        self.known = [pair for pair in self.known if pair[0] != key]
        self.known.append((key, size))

    def shrink(self) -> set[CompactKey]:
        gone = set()
        while self.known and (
            sum(size for _, size in self.known) + self.reserved > 100
            or (self.watermark is not None and len(self.known) > self.watermark)
        ):
            gone.add(self.known.pop(0)[0])
        return gone

    def shrink_variants(self, key: CompactKey) -> set[CompactKey]:
        """Return the oldest of too many variants, taken out."""
        same = [
            each
            for each, _ in self.known
            if each.primary_hash == key.primary_hash and each.variance is not None
        ]
        if len(same) <= self.variants:
            return set()
        self.known = [pair for pair in self.known if pair[0] != same[0]]
        return {same[0]}

    @rule(key=KEYS, size=st.integers(0, 120))
    def admit(self, key: CompactKey, size: int) -> None:
        evicted = self.manager.admit(key, size, 0.0)
        if size + self.reserved > 100:
            self.known = [pair for pair in self.known if pair[0] != key]
            assert evicted == [key]
            return
        self.put(key, size, last=True)
        expected = self.shrink()
        assert set(evicted) == expected | self.shrink_variants(key)

    @rule(key=KEYS)
    def access(self, key: CompactKey) -> None:
        size = self.size_of(key)
        assert self.manager.access(key) is (size is not None)
        if size is not None:
            self.put(key, size, last=True)

    @rule(key=KEYS)
    def remove(self, key: CompactKey) -> None:
        assert self.manager.remove(key) is (self.size_of(key) is not None)
        self.known = [pair for pair in self.known if pair[0] != key]

    @rule(key=KEYS, delta=st.integers(-50, 50))
    def increment_weight(self, key: CompactKey, delta: int) -> None:
        evicted = self.manager.increment_weight(key, delta)
        size = self.size_of(key)
        if size is not None:
            self.put(key, max(size + delta, 0), last=False)
        assert set(evicted) == self.shrink()

    @rule(size=st.integers(-40, 40))
    def reserve(self, size: int) -> None:
        size = max(size, -self.reserved)
        self.reserved += size
        assert set(self.manager.reserve(size)) == self.shrink()

    @rule()
    def save_and_load(self) -> None:
        loaded = LruEviction(100, self.watermark, max_variants=self.variants)
        loaded.reserve(self.reserved)
        assert loaded.load(self.manager.save()) == []
        self.manager = loaded

    @invariant()
    def same(self) -> None:
        assert self.manager.total_items == len(self.known)
        assert self.manager.total_size == sum(size for _, size in self.known)
        assert all(self.manager.peek(each) for each, _ in self.known)


LruMachine.TestCase.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=40
)
TestLruAgainstAReference = LruMachine.TestCase


# -- S3-FIFO -------------------------------------------------------------------------------------


class S3FifoMachine(RuleBasedStateMachine):
    """Whatever happens, the sums are right, the limits are kept and nothing is named twice."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[CompactKey, int] = {}
        self.manager = S3FifoEviction(100, 6, max_variants=2, ghost_items=4)

    def went(self, evicted: list[CompactKey]) -> None:
        for each in evicted:
            del self.sizes[each]

    @rule(key=KEYS, size=st.integers(0, 120))
    def admit(self, key: CompactKey, size: int) -> None:
        evicted = self.manager.admit(key, size, 0.0)
        self.sizes[key] = size
        self.went(evicted)

    @rule(key=KEYS)
    def access(self, key: CompactKey) -> None:
        assert self.manager.access(key) is (key in self.sizes)

    @rule(key=KEYS)
    def remove(self, key: CompactKey) -> None:
        assert self.manager.remove(key) is (self.sizes.pop(key, None) is not None)

    @rule(key=KEYS, delta=st.integers(-50, 50))
    def increment_weight(self, key: CompactKey, delta: int) -> None:
        evicted = self.manager.increment_weight(key, delta)
        if key in self.sizes:
            self.sizes[key] = max(self.sizes[key] + delta, 0)
        self.went(evicted)

    @rule(size=st.integers(-40, 40))
    def reserve(self, size: int) -> None:
        self.went(self.manager.reserve(max(size, -self.manager.reserved)))

    @rule()
    def save_and_load(self) -> None:
        loaded = S3FifoEviction(100, 6, max_variants=2, ghost_items=4)
        loaded.reserve(self.manager.reserved)
        assert loaded.load(self.manager.save()) == []
        self.manager = loaded

    @invariant()
    def sums(self) -> None:
        manager = self.manager
        assert manager.total_size == sum(self.sizes.values())
        assert manager.total_items == len(self.sizes) <= 6
        assert all(manager.peek(each) for each in self.sizes)
        assert manager.total_size + manager.reserved <= 100 or not self.sizes
        assert manager.ghosts <= 4
        small = manager._small.values()
        assert manager._small_size == sum(each.size for each in small)


S3FifoMachine.TestCase.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=40
)
TestS3FifoKeepsItsBooks = S3FifoMachine.TestCase


def test_a_scan_does_not_wash_out_what_is_used_again() -> None:
    hot = range(20)
    survived = {}
    for make in (LruEviction, S3FifoEviction):
        manager: EvictionManager = make(100)
        for _ in range(3):
            for number in hot:
                if not manager.access(key(number)):
                    manager.admit(key(number), 1, 0.0)
        for number in range(1000, 2000):
            manager.admit(key(number), 1, 0.0)
        survived[make] = known(manager, hot)
    assert survived[LruEviction] == []
    assert survived[S3FifoEviction] == list(hot)


def test_what_comes_back_soon_goes_straight_to_the_main_queue() -> None:
    manager = S3FifoEviction(10)
    for number in range(11):
        manager.admit(key(number), 1, 0.0)
    assert not manager.peek(key(0))
    manager.admit(key(0), 1, 0.0)
    # Twenty that are seen once wash out the small queue, not the main one.
    for number in range(100, 120):
        manager.admit(key(number), 1, 0.0)
    assert manager.peek(key(0))


def test_uses_count_for_the_queue_they_were_made_in_one_round_each() -> None:
    # All is taken from the main queue as soon as there is one.
    manager = S3FifoEviction(10, small=1.0)
    for number in range(10):
        manager.admit(key(number), 1, 0.0)
        for _ in range(3 if number == 0 else 2):
            manager.access(key(number))
    # The third use of the first made it no better in the main queue, where all are new.
    assert manager.admit(key(10), 1, 0.0) == [key(0)]
    for number in range(1, 10):
        for _ in range(3 if number == 1 else 1):
            manager.access(key(number))
    assert manager.admit(key(11), 1, 0.0) == [key(2)]


def test_the_ghosts_are_never_more_than_the_entries() -> None:
    manager = S3FifoEviction(10)
    for number in range(1000):
        manager.admit(key(number), 1, 0.0)
        assert manager.ghosts <= manager.total_items


def test_popular_entries_are_hit_more_often_than_with_lru() -> None:
    # A Zipf-like load with many that are asked for once, as web caches see it.
    source = random.Random(7)
    requests = [int(source.paretovariate(0.6)) for _ in range(8000)]
    hits = {}
    for make in (LruEviction, S3FifoEviction):
        manager: EvictionManager = make(60)
        hits[make] = 0
        for number in requests:
            if manager.access(key(number)):
                hits[make] += 1
            else:
                manager.admit(key(number), 1, 0.0)
    assert hits[S3FifoEviction] > hits[LruEviction]
