"""The cache lock: of all who miss one key, one fetches, and the others wait for it (row C-08).

`CacheLock.lock` gives a `WritePermit` to whoever comes first and a `WaitHandle` to the others.
The table holds nothing but keys whose writer is still at it: a release takes the key out before it
wakes anybody, so whoever looks then finds either no writer or a new one, never an old one. All
waiters wake at once and compete anew; `lock` has no checkpoint, so exactly one of them becomes the
next writer. There is no task and no timer behind a lock: it costs a dict entry, and a writer that
takes too long is found out by those who wait for it.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import attrs
import trio

from ._policy import NoCacheReason

if TYPE_CHECKING:
    from ._key import CacheKey


class LockStatus(enum.Enum):
    """What became of the writer that a request waited for (Pingora's ``LockStatus``)."""

    #: It has written the response, or as much that it can be read: look it up.
    DONE = "Done"
    #: It failed in a way that need not come again: look up and compete.
    TRANSIENT_ERROR = "TransientError"
    #: What it got is not to be cached: everybody fetches without the cache.
    GIVE_UP = "GiveUp"
    #: It went away without a word: look up and compete.
    DANGLING = "Dangling"
    #: It has held the lock for longer than the lock allows: look up and compete.
    AGE_TIMEOUT = "AgeTimeout"
    #: This request has waited for as long as it may: it fetches without the cache.
    WAIT_TIMEOUT = "WaitTimeout"

    def retries(self) -> bool:
        """Return whether the waiter looks up again and competes; else it leaves the cache."""
        return self not in (LockStatus.GIVE_UP, LockStatus.WAIT_TIMEOUT)


#: Reasons that hold for everybody who wants the resource; of the others the next one may see nothing.
_GIVES_UP = (
    NoCacheReason.OriginNotCache,
    NoCacheReason.ResponseTooLarge,
    NoCacheReason.PredictedResponseTooLarge,
)

#: With what a writer may end.
_RELEASES = (LockStatus.DONE, LockStatus.TRANSIENT_ERROR, LockStatus.GIVE_UP, LockStatus.DANGLING)


@attrs.frozen
class CacheLockStatistics:
    """The state of a cache lock at one moment.

    Attributes:
      held: Keys with a writer.
      waiting: Requests that wait for one of these writers.
    """

    held: int
    waiting: int


#: How many counters of `CacheLock.written` there are.
_PLACES = 1024


def _place(name: bytes) -> int:
    return int.from_bytes(name[:2], "big") % _PLACES


class _Core:
    """One writer's hold on one key, as the writer and those who wait for it share it."""

    __slots__ = ("deadline", "lock", "lot", "name", "stale_writer", "status", "table", "written")

    def __init__(
        self,
        lock: CacheLock,
        table: dict[bytes, _Core],
        written: list[int],
        name: bytes,
        stale_writer: bool,
    ) -> None:
        self.lock = lock
        self.table = table
        self.written = written
        self.name = name
        self.deadline = trio.current_time() + lock.age_timeout
        self.stale_writer = stale_writer
        self.status: LockStatus | None = None
        # Made by the first who waits: most writers have nobody behind them.
        self.lot: trio.lowlevel.ParkingLot | None = None

    def end(self, status: LockStatus) -> None:
        """Settle the status, once, and let go of the key and of all who wait."""
        if self.status is None:
            self.status = status
            # Nobody takes its place in the table before it has ended.
            del self.table[self.name]
            if status is LockStatus.DONE:
                self.written[_place(self.name)] += 1
            if self.lot is not None:
                self.lot.unpark_all()

    def expired(self) -> bool:
        """Return whether the writer is over its time."""
        return trio.current_time() >= self.deadline


class WritePermit:
    """The right, and the duty, to fetch for all who wait (Pingora's ``WritePermit``).

    It must end with `release` or `drop`; there is no finalizer that would do it. It may be handed
    on, to a background request for one.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _Core) -> None:
        self._core = core

    def __repr__(self) -> str:
        state = self._core.status.value if self._core.status is not None else "held"
        return f"<WritePermit {self._core.name.hex()} {state}>"

    @property
    def name(self) -> bytes:
        """The combined hash of the key that is locked."""
        return self._core.name

    @property
    def stale_writer(self) -> bool:
        """Whether the writer holds a stale response, which it may serve meanwhile."""
        return self._core.stale_writer

    @property
    def held(self) -> bool:
        """Whether it is still to be released; False also once its time is over and it was taken."""
        return self._core.status is None

    def release(self, status: LockStatus) -> None:
        """Let go of the key and tell all who wait how it went; does nothing the second time.

        Raises:
          ValueError: a writer cannot end with this status.
        """
        if status not in _RELEASES:
            raise ValueError(f"{status.value} is no end of a writer")
        self._core.end(status)

    def release_for(self, reason: NoCacheReason) -> None:
        """Let go, as nothing is cached, with the status that the lock has for the reason."""
        if self._core.status is None:
            self.release(self._core.lock.status_for(reason))

    def drop(self) -> None:
        """Let go without a word: those who wait see `LockStatus.DANGLING` and compete."""
        self._core.end(LockStatus.DANGLING)


class WaitHandle:
    """A place behind a writer (Pingora's ``ReadLock``); dropping it leaves nothing behind."""

    __slots__ = ("_core",)

    def __init__(self, core: _Core) -> None:
        self._core = core

    def __repr__(self) -> str:
        state = self._core.status.value if self._core.status is not None else "waiting"
        return f"<WaitHandle {self._core.name.hex()} {state}>"

    @property
    def stale_writer(self) -> bool:
        """Whether the writer holds a stale response."""
        return self._core.stale_writer

    async def wait(self, timeout: float = math.inf) -> LockStatus:
        """Wait until the writer ends, its time is over, or ``timeout`` seconds have passed.

        The writer's age counts first where both come at once: the request may then compete, and
        its next wait finds its own time over. Always a checkpoint.

        Raises:
          trio.Cancelled: nothing is left behind.
        """
        core = self._core
        until = trio.current_time() + timeout
        if core.status is not None or core.expired() or timeout <= 0:
            await trio.lowlevel.checkpoint()
        else:
            if core.lot is None:
                core.lot = trio.lowlevel.ParkingLot()
            with trio.CancelScope(deadline=min(until, core.deadline)):
                await core.lot.park()
        if core.status is None and core.expired():
            # Whoever finds out wakes the others, whose timers stand at the same moment.
            core.end(LockStatus.AGE_TIMEOUT)
        return core.status if core.status is not None else LockStatus.WAIT_TIMEOUT


class CacheLock:
    """Lets one request at a time fetch what many want (Pingora's ``CacheLock``).

    One object serves all requests of a process; keys do not get into each other's way.
    """

    def __init__(self, age_timeout: float) -> None:
        """Make a lock without a writer.

        Args:
          age_timeout: Seconds that a writer may hold a key. Those who wait then see
            `LockStatus.AGE_TIMEOUT`, and one of them takes the key over.
        """
        if not age_timeout > 0:
            raise ValueError(f"age_timeout is {age_timeout}: a writer needs some time")
        self.age_timeout = age_timeout
        self._table: dict[bytes, _Core] = {}
        self._written = [0] * _PLACES

    def lock(self, key: CacheKey, *, stale_writer: bool = False) -> WritePermit | WaitHandle:
        """Return a permit where the key has no writer in its time, else a place behind it.

        Args:
          key: What is to be fetched; variants have locks of their own.
          stale_writer: Whether the request holds a stale response, for those who wait to know.
        """
        name = key.combined_hash
        core = self._table.get(name)
        if core is not None:
            if not core.expired():
                return WaitHandle(core)
            core.end(LockStatus.AGE_TIMEOUT)
        core = self._table[name] = _Core(self, self._table, self._written, name, stale_writer)
        return WritePermit(core)

    def written(self, key: CacheKey) -> int:
        """Return a number that grows whenever a writer of the key is done.

        A look-up in a storage takes its time, and the writer may be done in the middle of it: who
        found nothing and sees another number than before looks again, and does not fetch what has
        just been stored. Keys share their numbers, so at times one looks again in vain.
        """
        return self._written[_place(key.combined_hash)]

    def custom_lock_status(self, reason: str) -> LockStatus:
        """Return how a writer ends that met a custom reason not to cache; to be overridden."""
        return LockStatus.GIVE_UP

    def status_for(self, reason: NoCacheReason) -> LockStatus:
        """Return how a writer ends that does not cache for this reason."""
        if reason.custom:
            return self.custom_lock_status(reason.name)
        return LockStatus.GIVE_UP if reason in _GIVES_UP else LockStatus.TRANSIENT_ERROR

    def statistics(self) -> CacheLockStatistics:
        """Return how many keys are held, and how many requests wait."""
        cores = self._table.values()
        return CacheLockStatistics(
            held=len(cores), waiting=sum(len(each.lot) for each in cores if each.lot is not None)
        )
