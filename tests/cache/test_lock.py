"""The cache lock: one writer a key, whatever happens to it and to those who wait (row C-08)."""

from __future__ import annotations

import math
from collections import Counter

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trioproxy.cache._key import CacheKey
from trioproxy.cache._lock import (
    CacheLock,
    CacheLockStatistics,
    LockStatus,
    WaitHandle,
    WritePermit,
)
from trioproxy.cache._policy import NoCacheReason

KEY = CacheKey(b"", b"/a")
OTHER = CacheKey(b"", b"/b")
RELEASES = [
    LockStatus.DONE,
    LockStatus.TRANSIENT_ERROR,
    LockStatus.GIVE_UP,
    LockStatus.DANGLING,
]


def take(lock: CacheLock, key: CacheKey = KEY) -> WritePermit:
    permit = lock.lock(key)
    assert isinstance(permit, WritePermit)
    return permit


@pytest.mark.parametrize("status", RELEASES)
async def test_what_was_written_is_counted_by_the_key(status: LockStatus) -> None:
    lock = CacheLock(30)
    permit = take(lock)
    before = lock.written(KEY)
    permit.release(status)
    permit.release(LockStatus.DONE)  # it has ended already
    assert lock.written(KEY) - before == (status is LockStatus.DONE)
    assert lock.written(OTHER) == 0


def queue(lock: CacheLock, key: CacheKey = KEY) -> WaitHandle:
    handle = lock.lock(key)
    assert isinstance(handle, WaitHandle)
    return handle


async def test_the_first_may_write_and_the_others_wait() -> None:
    lock = CacheLock(10)
    permit = take(lock)
    assert "held" in repr(permit)
    assert "waiting" in repr(queue(lock))
    take(lock, OTHER)
    assert lock.statistics() == CacheLockStatistics(held=2, waiting=0)
    permit.release(LockStatus.DONE)
    assert "Done" in repr(permit)
    assert not permit.held
    assert lock.statistics().held == 1
    take(lock)


async def test_variants_of_a_key_have_locks_of_their_own() -> None:
    lock = CacheLock(10)
    take(lock)
    take(lock, KEY.with_variance(b"v" * 16))
    queue(lock, KEY.with_variance(b"v" * 16))


@pytest.mark.parametrize("status", RELEASES)
async def test_all_who_wait_learn_how_the_writer_ended(status: LockStatus) -> None:
    lock = CacheLock(10)
    permit = take(lock)
    seen: list[LockStatus] = []

    async def wait(handle: WaitHandle) -> None:
        seen.append(await handle.wait())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, queue(lock))
            await wait_all_tasks_blocked()
            assert lock.statistics() == CacheLockStatistics(held=1, waiting=3)
            late = queue(lock)
            permit.release(status)
            # A second release, or a cleanup after it, changes nothing.
            permit.release(LockStatus.DONE)
            permit.drop()
        assert seen == [status] * 3
        assert await late.wait() is status
    assert lock.statistics() == CacheLockStatistics(held=0, waiting=0)


@pytest.mark.parametrize("status", [LockStatus.AGE_TIMEOUT, LockStatus.WAIT_TIMEOUT])
async def test_a_writer_cannot_end_as_one_who_waited(status: LockStatus) -> None:
    permit = take(CacheLock(10))
    with pytest.raises(ValueError, match=status.value):
        permit.release(status)
    assert permit.held


async def test_a_dropped_permit_is_seen_as_dangling() -> None:
    lock = CacheLock(10)
    permit = take(lock)
    handle = queue(lock)
    permit.drop()
    assert await handle.wait() is LockStatus.DANGLING
    assert LockStatus.DANGLING.retries()
    take(lock)


async def test_a_writer_over_its_time_is_replaced_by_one_of_those_who_wait(
    autojump_clock: MockClock,
) -> None:
    lock = CacheLock(10)
    slow = take(lock)
    won: list[WritePermit] = []
    seen: Counter[LockStatus] = Counter()

    async def wait() -> None:
        handle = queue(lock)
        seen[await handle.wait()] += 1
        again = lock.lock(KEY)
        if isinstance(again, WritePermit):
            won.append(again)

    start = trio.current_time()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
    assert trio.current_time() - start == 10
    assert seen == {LockStatus.AGE_TIMEOUT: 5}
    (permit,) = won
    # What the slow one says now is nobody's business any more.
    slow.release(LockStatus.GIVE_UP)
    assert permit.held
    assert not slow.held
    handle = queue(lock)
    permit.release(LockStatus.DONE)
    assert await handle.wait() is LockStatus.DONE


async def test_a_writer_over_its_time_is_replaced_by_a_newcomer(
    autojump_clock: MockClock,
) -> None:
    lock = CacheLock(10)
    slow = take(lock)
    handle = queue(lock)
    await trio.sleep(10)
    take(lock)
    assert not slow.held
    assert await handle.wait() is LockStatus.AGE_TIMEOUT
    assert lock.statistics().held == 1


async def test_who_waits_without_a_newcomer_finds_the_writer_over_its_time(
    autojump_clock: MockClock,
) -> None:
    lock = CacheLock(10)
    take(lock)
    handle = queue(lock)
    await trio.sleep(11)
    assert await handle.wait() is LockStatus.AGE_TIMEOUT
    assert lock.statistics().held == 0


async def test_a_request_waits_for_no_longer_than_it_may(autojump_clock: MockClock) -> None:
    lock = CacheLock(10)
    permit = take(lock)
    with trio.fail_after(60):
        assert await queue(lock).wait(3) is LockStatus.WAIT_TIMEOUT
        assert trio.current_time() == pytest.approx(3)
        assert await queue(lock).wait(0) is LockStatus.WAIT_TIMEOUT
        assert await queue(lock).wait(-1) is LockStatus.WAIT_TIMEOUT
    assert permit.held
    assert not LockStatus.WAIT_TIMEOUT.retries()
    assert lock.statistics() == CacheLockStatistics(held=1, waiting=0)


async def test_with_both_times_over_at_once_one_still_takes_over(
    autojump_clock: MockClock,
) -> None:
    lock = CacheLock(10)
    take(lock)
    assert await queue(lock).wait(10) is LockStatus.AGE_TIMEOUT
    take(lock)


async def test_a_wait_that_is_cancelled_leaves_nothing() -> None:
    lock = CacheLock(10)
    permit = take(lock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue(lock).wait)
        nursery.start_soon(queue(lock).wait)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert lock.statistics() == CacheLockStatistics(held=1, waiting=0)
    permit.release(LockStatus.DONE)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_wait_is_a_checkpoint(ended: bool) -> None:
    lock = CacheLock(10)
    permit = take(lock)
    handle = queue(lock)
    if ended:
        permit.release(LockStatus.DONE)
    with trio.CancelScope() as scope:
        scope.cancel()
        await handle.wait(5)
    assert scope.cancelled_caught
    with trio.testing.assert_checkpoints():
        await handle.wait(0)


@pytest.mark.parametrize("failures", [0, 1, 3])
async def test_c_08_of_500_exactly_one_takes_over_each_time(failures: int) -> None:
    lock = CacheLock(math.inf)
    first = take(lock)
    writers = 0
    done = 0
    most = 0

    async def request() -> None:
        nonlocal writers, done, most
        while True:
            taken = lock.lock(KEY)
            if isinstance(taken, WritePermit):
                writers += 1
                await wait_all_tasks_blocked()
                most = max(most, lock.statistics().held)
                failed = writers <= failures
                taken.release(LockStatus.TRANSIENT_ERROR if failed else LockStatus.DONE)
                if failed:
                    return
                break
            if await taken.wait() is LockStatus.DONE:
                break
        done += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(request)
            await wait_all_tasks_blocked()
            assert lock.statistics() == CacheLockStatistics(held=1, waiting=500)
            first.release(LockStatus.TRANSIENT_ERROR)
    assert writers == failures + 1
    assert most == 1
    assert done == 500 - failures
    assert lock.statistics().held == 0


async def test_those_who_wait_know_whether_the_writer_holds_a_stale_response() -> None:
    lock = CacheLock(10)
    permit = lock.lock(KEY, stale_writer=True)
    assert permit.stale_writer
    assert queue(lock).stale_writer
    assert not take(lock, OTHER).stale_writer
    assert not queue(lock, OTHER).stale_writer


TRANSIENT = ["InternalError", "StorageError", "Deferred", "UpstreamError", "DeclinedToUpstream"]
FINAL = ["OriginNotCache", "ResponseTooLarge", "PredictedResponseTooLarge"]


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_reason_of_the_moment_is_a_transient_error(name: str) -> None:
    assert CacheLock(1).status_for(getattr(NoCacheReason, name)) is LockStatus.TRANSIENT_ERROR


@pytest.mark.parametrize("name", FINAL)
def test_a_reason_of_the_resource_gives_up(name: str) -> None:
    assert CacheLock(1).status_for(getattr(NoCacheReason, name)) is LockStatus.GIVE_UP


def test_a_custom_reason_gives_up_unless_the_lock_says_otherwise() -> None:
    class Mine(CacheLock):
        def custom_lock_status(self, reason: str) -> LockStatus:
            if reason == "again":
                return LockStatus.TRANSIENT_ERROR
            return super().custom_lock_status(reason)

    assert CacheLock(1).status_for(NoCacheReason.Custom("again")) is LockStatus.GIVE_UP
    assert Mine(1).status_for(NoCacheReason.Custom("again")) is LockStatus.TRANSIENT_ERROR
    assert Mine(1).status_for(NoCacheReason.Custom("other")) is LockStatus.GIVE_UP
    # A custom reason that happens to have the name of a plain one is still custom.
    assert CacheLock(1).status_for(NoCacheReason.Custom("StorageError")) is LockStatus.GIVE_UP


@pytest.mark.parametrize("age", [0, -1, math.nan])
def test_a_lock_without_time_is_refused(age: float) -> None:
    with pytest.raises(ValueError, match="age_timeout"):
        CacheLock(age)


# -- against a model -----------------------------------------------------------------------------

AGE = 10.0
KEYS = [KEY, OTHER]


@attrs.define
class _Hold:
    """A writer in the model."""

    permit: WritePermit
    end: float
    status: LockStatus | None = None


@attrs.define
class _Wait:
    """One who waits, in the model: what it has to see in the end."""

    hold: _Hold
    end: float
    scope: trio.CancelScope
    expected: LockStatus | None = None
    seen: LockStatus | None = None


@attrs.define
class _Model:
    """The lock beside what it should be; every step is checked."""

    lock: CacheLock
    nursery: trio.Nursery
    clock: MockClock
    current: dict[CacheKey, _Hold] = attrs.Factory(dict)
    holds: list[_Hold] = attrs.Factory(list)
    waits: list[_Wait] = attrs.Factory(list)

    def end(self, hold: _Hold, status: LockStatus) -> None:
        if hold.status is None:
            hold.status = status
            for wait in self.waits:
                if wait.hold is hold and wait.expected is None:
                    wait.expected = status

    def request(self, key: CacheKey, timeout: float) -> None:
        """One more who wants the key: writes, or waits."""
        now = trio.current_time()
        hold = self.current.get(key)
        free = hold is None or hold.status is not None or now >= hold.end
        taken = self.lock.lock(key)
        if free:
            assert isinstance(taken, WritePermit)
            if hold is not None:
                self.end(hold, LockStatus.AGE_TIMEOUT)
            hold = self.current[key] = _Hold(taken, now + AGE)
            self.holds.append(hold)
        else:
            assert isinstance(taken, WaitHandle)
            assert hold is not None
            wait = _Wait(hold, now + timeout, trio.CancelScope())
            self.waits.append(wait)
            self.nursery.start_soon(self._wait, wait, taken, timeout)

    async def _wait(self, wait: _Wait, handle: WaitHandle, timeout: float) -> None:
        with wait.scope:
            wait.seen = await handle.wait(timeout)

    def advance(self, seconds: float) -> None:
        self.clock.jump(seconds)
        now = trio.current_time()
        for wait in self.waits:
            if wait.expected is None:
                if now >= wait.hold.end:
                    self.end(wait.hold, LockStatus.AGE_TIMEOUT)
                elif now >= wait.end:
                    wait.expected = LockStatus.WAIT_TIMEOUT

    def cancel(self, wait: _Wait) -> None:
        wait.scope.cancel()
        self.waits.remove(wait)

    def check(self) -> None:
        for wait in self.waits:
            assert wait.seen is wait.expected
        for hold in self.holds:
            assert hold.permit.held == (hold.status is None)
        held = [each for each in self.current.values() if each.status is None]
        waiting = [each for each in self.waits if each.expected is None]
        assert self.lock.statistics() == CacheLockStatistics(len(held), len(waiting))


async def _play(data: st.DataObject, clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        model = _Model(CacheLock(AGE), nursery, clock)
        for _ in range(data.draw(st.integers(1, 25))):
            step = data.draw(
                st.sampled_from(["request"] * 4 + ["release", "drop", "time", "cancel"])
            )
            if step == "request":
                timeout = data.draw(st.sampled_from([0.0, 1.0, 4.0, AGE, math.inf]))
                model.request(data.draw(st.sampled_from(KEYS)), timeout)
            elif step == "time":
                # Whole steps, so that both times come at one moment now and then.
                model.advance(data.draw(st.sampled_from([0.5, 1.0, 4.0, AGE])))
            elif step == "cancel" and model.waits:
                model.cancel(data.draw(st.sampled_from(model.waits)))
            elif model.holds and step in ("release", "drop"):
                hold = data.draw(st.sampled_from(model.holds))
                status = LockStatus.DANGLING
                if step == "drop":
                    hold.permit.drop()
                else:
                    status = data.draw(st.sampled_from(RELEASES))
                    hold.permit.release(status)
                model.end(hold, status)
            await wait_all_tasks_blocked()
            # A wait of no time ends at once.
            model.advance(0)
            model.check()
        nursery.cancel_scope.cancel()


@given(st.data())
def test_the_lock_does_what_its_model_says(data: st.DataObject) -> None:
    clock = MockClock()
    trio.run(_play, data, clock, clock=clock)
