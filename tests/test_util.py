from __future__ import annotations

import pytest
import trio
import trio.testing

from trioproxy._util import Bell, unwrap


async def test_a_bell_wakes_the_one_who_waits() -> None:
    bell, woken = Bell(), trio.Event()

    async def wait() -> None:
        await bell.wait()
        woken.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken.is_set()
            bell.ring()
            bell.ring()
            await woken.wait()
    assert woken.is_set()


async def test_ringing_while_nobody_waits_is_forgotten() -> None:
    bell = Bell()
    bell.ring()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


async def test_a_cancelled_wait_leaves_the_bell_free() -> None:
    bell = Bell()
    with trio.move_on_after(0):
        await bell.wait()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            bell.ring()
    assert not nursery.child_tasks


async def test_a_second_waiter_is_refused() -> None:
    bell = Bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await bell.wait()
        nursery.cancel_scope.cancel()


async def _cancelled() -> trio.Cancelled:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as exc:
            return exc
    raise AssertionError


async def test_the_error_that_matters_comes_out_of_its_groups() -> None:
    error, other, cancelled = ValueError("a"), KeyError("b"), await _cancelled()
    assert unwrap(error) is error
    assert unwrap(ExceptionGroup("", [error, other])) is error
    group = BaseExceptionGroup("", [cancelled, BaseExceptionGroup("", [cancelled])])
    assert unwrap(BaseExceptionGroup("", [group, ExceptionGroup("", [other])])) is other
    assert unwrap(group) is cancelled
